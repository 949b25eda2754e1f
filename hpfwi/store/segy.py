"""SEG-Y files: traces of equal length and their headers, in all the sample formats that circulate.

Files of Seismic Unix (.su) are the same traces, IEEE floats of either byte order, without the headers of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import segyio
from numpy.typing import NDArray

from hpfwi.errors import DataError

HEADER_BYTES = 3600
TRACE_HEADER_BYTES = 240
FORMAT_OFFSET = 3224
"""Byte of the sample format code in the file, from 0 (bytes 3225-3226 of the standard)."""

SAMPLES_OFFSET = 114
"""Byte of the number of samples in a trace header, from 0 (bytes 115-116 of the standard)."""

FORMATS = (1, 2, 3, 5, 6, 8, 10, 11, 12, 16)
"""Sample format codes that are read: IBM and IEEE floats and the integers."""

IBM_FLOAT = 1
EXTENDED_TEXT_BYTES = 3200


@dataclass(frozen=True, eq=False)
class SegyFile:
    """An open SEG-Y file whose traces are read a few at a time."""

    path: Path
    headers: segyio.SegyFile
    words: NDArray[Any] | None
    """uint32[trace, time] on disk where the samples are IBM floats, else None."""
    bare: bool = False
    """Without headers of a file, as Seismic Unix writes them."""

    @property
    def traces(self) -> int:
        """Number of traces."""
        return int(self.headers.tracecount)

    @property
    def samples(self) -> int:
        """Samples of every trace."""
        return len(self.headers.samples)

    def of_file(self, field: int) -> int:
        """A field of the file's binary header, 0 where there is none."""
        with _damage(self.path):
            return 0 if self.bare else int(self.headers.bin[field])

    def field(self, first_byte: int) -> NDArray[np.int64]:
        """A trace header field of every trace, by the first of its bytes as the standard counts them, int64[trace]."""
        with _damage(self.path):
            return np.asarray(self.headers.attributes(first_byte)[:], dtype=np.int64)

    def read(self, traces: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Some traces, float32[trace, time], in the order given; raises DataError where the file is damaged."""
        with _damage(self.path):
            if self.words is not None:
                return ibm_floats(self.words[traces])
            if len(traces) and (np.diff(traces) == 1).all():
                return np.asarray(self.headers.trace.raw[int(traces[0]) : int(traces[-1]) + 1], dtype=np.float32)
            return np.stack([np.asarray(self.headers.trace[int(trace)], dtype=np.float32) for trace in traces])


@contextmanager
def open_segy(path: str | Path) -> Iterator[SegyFile]:
    """A SEG-Y file with traces of equal length, big- or little-endian, IBM, IEEE or integer, open for reading.

    A name that ends in .su is a file of Seismic Unix.

    raises  DataError: not a file, not SEG-Y, truncated, without traces, an unknown sample format
    """
    path = Path(path)
    bare = path.suffix.lower() == ".su"
    endian = _endian_of_bare(path) if bare else _endian(path)
    with _damage(path):
        headers = (segyio.su if bare else segyio).open(str(path), "r", ignore_geometry=True, endian=endian)
    with headers:
        if not (headers.tracecount and len(headers.samples)):
            raise DataError(f"{path} holds SEG-Y headers but no samples.")
        with _damage(path):
            words = _ibm_words(path, endian, headers) if int(headers.format) == IBM_FLOAT else None
        yield SegyFile(path, headers, words, bare)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Tell damage, which segyio reports with these types and with wording for programmers, in one sentence."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as SEG-Y ({error}): the file is truncated, or its traces differ in length."
        ) from error


def _endian(path: Path) -> Literal["big", "little"]:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; give one in SEG-Y or of Seismic Unix (.su).")
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise DataError(f"{path} has {size} bytes, less than the {HEADER_BYTES} of the SEG-Y headers: it is no SEG-Y.")
    with path.open("rb") as file:
        file.seek(FORMAT_OFFSET)
        code = file.read(2)
    if size <= HEADER_BYTES + TRACE_HEADER_BYTES:
        raise DataError(f"{path} holds SEG-Y headers but no samples: it has {size} bytes.")
    if int.from_bytes(code, "big") in FORMATS:
        return "big"
    if int.from_bytes(code, "little") in FORMATS:
        return "little"
    raise DataError(
        f"{path} has sample format code {int.from_bytes(code, 'big')} in bytes 3225-3226: it is no SEG-Y, or uses a "
        "format other than 1 (IBM float), 5 (IEEE float) or an integer."
    )


def _endian_of_bare(path: Path) -> Literal["big", "little"]:
    """The byte order in which the first trace's number of samples makes the file a whole number of traces."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; give one in SEG-Y or of Seismic Unix (.su).")
    size = path.stat().st_size
    with path.open("rb") as file:
        count = file.read(TRACE_HEADER_BYTES)[SAMPLES_OFFSET : SAMPLES_OFFSET + 2]
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        samples = int.from_bytes(count, order)
        if samples and size % (TRACE_HEADER_BYTES + 4 * samples) == 0:
            return order
    raise DataError(
        f"{path} has {size} bytes, no whole number of traces as long as its first header says (bytes 115-116): it is "
        "no file of Seismic Unix, or truncated."
    )


def _ibm_words(path: Path, endian: Literal["big", "little"], file: segyio.SegyFile) -> NDArray[Any]:
    """uint32[trace, time] of a file of IBM floats, on disk.

    segyio's own conversion takes the fraction for normalised; some field systems write it unnormalised, and then it is
    wrong by up to a factor of 16.
    """
    word = np.dtype(">u4" if endian == "big" else "<u4")
    trace = np.dtype([("header", np.void, TRACE_HEADER_BYTES), ("samples", word, (len(file.samples),))])
    start = HEADER_BYTES + EXTENDED_TEXT_BYTES * int(file.ext_headers)
    table = np.memmap(path, dtype=trace, mode="r", offset=start, shape=(file.tracecount,))
    return np.asarray(table["samples"])


def ibm_floats(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """IBM System/360 floats, uint32 in native meaning, as float32: sign bit, base-16 exponent plus 64, 24-bit fraction.

    Values beyond the range of float32 become infinite.

    >>> ibm_floats(np.array([0xC276A000, 0x42640000, 0x41019000], dtype=np.uint32)).tolist()
    [-118.625, 100.0, 0.09765625]
    """
    words = words.astype(np.uint32)
    fraction = (words & 0x00FFFFFF).astype(np.float64)
    exponent = ((words >> 24) & 0x7F).astype(np.int32) - 64
    value = np.ldexp(fraction, 4 * exponent - 24)
    with np.errstate(over="ignore"):
        return np.where(words >> 31, -value, value).astype(np.float32)
