"""Large .npy files read and written a few samples at a time; a header is held against what its file holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.atomic import new_file


@dataclass(frozen=True)
class NpyFile:
    """A .npy file of real numbers in C order whose size agrees with its header."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """Byte at which the values begin."""

    @property
    def samples(self) -> int:
        return self.shape[0]

    def read(self, first: int, count: int) -> NDArray[Any]:
        """`count` samples from `first` on, in the file's type; raises DataError where the file ends early."""
        values = np.empty((count, *self.shape[1:]), dtype=self.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + first * (values.nbytes // max(count, 1)))
                room, done = values.data.cast("B"), 0
                while done < len(room) and (got := file.readinto(room[done:])):
                    done += got
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror or error}).") from error
        if done < values.nbytes:
            raise DataError(f"{self.path} ends in sample {first + count - 1}: it became shorter while it was read.")
        return values


def open_npy(path: Path) -> NpyFile:
    """Read and check the header of a .npy file; no value is read, nothing is unpickled.

    raises  DataError: not a .npy file, Python objects or no real numbers, Fortran order, no samples, or a header that
            claims more or less than the file holds
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2 are read all the same
            version = npy_format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = npy_format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, dtype = npy_format.read_array_header_2_0(file)
            else:
                raise ValueError(f"its format version is {version}")
            start = file.tell()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    # The header is text that numpy parses: damage ends it in unrelated ways.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no .npy file ({reason}): fetch or write it again.") from error
    if dtype.hasobject:
        raise DataError(f"{path} holds Python objects, which are never loaded: save it as an array of numbers.")
    if dtype.kind not in "fiu":
        raise DataError(f"{path} holds values of type {dtype}: they must be real numbers.")
    if fortran and len(shape) > 1:
        raise DataError(f"{path} is in Fortran order: save it again as numpy.ascontiguousarray(values).")
    if not shape or min(shape) < 1:
        raise DataError(f"{path} has shape {list(shape)} and holds no samples.")
    claimed = dtype.itemsize
    for length in shape:
        claimed *= int(length)
    if claimed != size - start:
        raise DataError(
            f"{path} claims {dtype}{list(shape)}, {claimed} bytes, and holds {size - start}: fetch or write it again."
        )
    return NpyFile(path, tuple(int(length) for length in shape), dtype, start)


def write_npy(path: Path, shape: tuple[int, ...], parts: Iterable[NDArray[np.float32]], *, overwrite: bool) -> None:
    """Write float32 values of a shape, part after part in C order; the file appears whole or not at all.

    It is written rather than mapped, because a full disk ends a process that writes to a mapping by a signal.

    raises  ConfigError: something is there already and overwrite is False; DiskError: the disk refuses
    """
    with new_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        npy_format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").data)
