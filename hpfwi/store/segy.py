"""Velocity models in SEG-Y files: one trace per column of the model, samples going down.

The SEG-Y standard has no field for a depth step. By habit the sample interval holds millimetres where a trace is a
function of depth, and the coordinates hold metres, or millimetres with no scalar. Some models that circulate have
neither, or counters in the coordinate fields, so a spacing is taken from the headers only when they leave no doubt.
"""

from __future__ import annotations

import math
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

FORMATS = (1, 2, 3, 5, 6, 8, 10, 11, 12, 16)
"""Sample format codes that are read: IBM and IEEE floats and the integers."""

IBM_FLOAT = 1
EXTENDED_TEXT_BYTES = 3200

PLAUSIBLE_STEP_M = (0.5, 200.0)
"""Spacings outside this range are taken for something else than metres."""

COORDINATES = ((181, 185), (73, 77), (81, 85))
"""Trace header bytes of x and y: of the midpoint, the source and the receiver."""


@dataclass(frozen=True, eq=False)
class SegyTable:
    """The samples of a SEG-Y file and what its headers say about the spacing."""

    samples: NDArray[np.float32]
    """float32[z, trace], in the unit of the file."""
    spacing_m: tuple[float, float] | None
    """(dz, dx) in metres, or None where the headers leave a doubt."""
    doubt: str
    """Why spacing_m is None; empty otherwise."""


def read_segy(path: str | Path) -> SegyTable:
    """All samples of a SEG-Y file with traces of equal length, big- or little-endian, IBM, IEEE or integer.

    raises  DataError: not a file, not SEG-Y, truncated, without traces, an unknown sample format
    """
    with open_segy(path) as file:
        traces = file.read(np.arange(file.traces))
        with _damage(file.path):
            spacing_m, doubt = _spacing(file.headers)
    return SegyTable(np.ascontiguousarray(traces.T), spacing_m, doubt)


@dataclass(frozen=True, eq=False)
class SegyFile:
    """An open SEG-Y file whose traces are read a few at a time."""

    path: Path
    headers: segyio.SegyFile
    words: NDArray[Any] | None
    """uint32[trace, time] on disk where the samples are IBM floats, else None."""

    @property
    def traces(self) -> int:
        """Number of traces."""
        return int(self.headers.tracecount)

    @property
    def samples(self) -> int:
        """Samples of every trace."""
        return len(self.headers.samples)

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

    raises  DataError: not a file, not SEG-Y, truncated, without traces, an unknown sample format
    """
    path = Path(path)
    endian = _endian(path)
    with _damage(path):
        headers = segyio.open(str(path), "r", ignore_geometry=True, endian=endian)
    with headers:
        if not (headers.tracecount and len(headers.samples)):
            raise DataError(f"{path} holds SEG-Y headers but no samples.")
        with _damage(path):
            words = _ibm_words(path, endian, headers) if int(headers.format) == IBM_FLOAT else None
        yield SegyFile(path, headers, words)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say damage, which segyio reports with these types and with wording for programmers, in one sentence."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as SEG-Y ({error}): the file is truncated, or its traces differ in length."
        ) from error


def read_segy_model(
    path: str | Path, spacing_m: tuple[float, ...] | None = None
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """A model from a SEG-Y file: values float32[z, x] in the file's unit, and (dz, dx) in metres.

    spacing_m  (dz, dx) in metres; it takes precedence over the headers, None uses them

    raises  DataError: see `read_segy`; or the headers leave a doubt about the spacing and none is given
    """
    table = read_segy(path)
    if spacing_m is not None:
        return table.samples, spacing_m
    if table.spacing_m is None:
        raise DataError(
            f"The headers of {path} do not tell the cell size ({table.doubt}): give it in metres as spacing_m = "
            "[dz, dx]."
        )
    return table.samples, table.spacing_m


def _endian(path: Path) -> Literal["big", "little"]:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.")
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


def _spacing(file: segyio.SegyFile) -> tuple[tuple[float, float] | None, str]:
    """((dz, dx) in metres, "") or (None, the doubt)."""
    low, high = PLAUSIBLE_STEP_M
    if file.bin[segyio.BinField.MeasurementSystem] == 2:
        return None, "they are in feet"
    interval = int(file.bin[segyio.BinField.Interval]) or int(file.header[0][segyio.TraceField.TRACE_SAMPLE_INTERVAL])
    dz_m = interval / 1000
    if not low <= dz_m <= high:
        return None, f"the sample interval {interval} is no depth step in mm"
    steps = sorted({round(step, 6) for step in (_lateral_step_m(file, *fields) for fields in COORDINATES) if step})
    if not steps:
        return None, "no coordinate grows evenly from trace to trace"
    if steps[-1] > 1.01 * steps[0]:
        return None, f"different coordinates give steps of {steps[0]:g} and {steps[-1]:g} m"
    if not 1 / 5 <= dz_m / steps[0] <= 5:
        return None, f"a depth step of {dz_m:g} m does not go with a trace step of {steps[0]:g} m"
    return (dz_m, steps[0]), ""


def _lateral_step_m(file: segyio.SegyFile, x_byte: int, y_byte: int) -> float | None:
    """Distance between neighbouring traces in metres, or None where these coordinates do not give one."""
    low, high = PLAUSIBLE_STEP_M
    x = np.asarray(file.attributes(x_byte)[:], dtype=np.float64)
    y = np.asarray(file.attributes(y_byte)[:], dtype=np.float64)
    if len(x) < 2:
        return None
    raw = np.hypot(np.diff(x), np.diff(y))
    if raw.min() <= 0 or raw.max() > 1.01 * raw.min():
        return None
    scalars = set(np.asarray(file.attributes(int(segyio.TraceField.SourceGroupScalar))[:]).tolist())
    if len(scalars) > 1:
        return None
    scalar = int(scalars.pop())
    step = float(raw.mean()) * (scalar if scalar > 0 else -1 / scalar if scalar < 0 else 1)
    if scalar in (0, 1):
        # A step of 1 without a scalar is a trace counter; one of 500 and more is in millimetres.
        if math.isclose(step, 1.0):
            return None
        if step > high:
            step /= 1000
    return step if low <= step <= high else None
