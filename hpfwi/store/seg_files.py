"""The SEG salt and SEG simulation sets: one MATLAB file a sample for the records, one for the velocities.

SRC/train_data/seismic/seismic1.mat     variable Rec or data, (time, receiver, shot)
SRC/train_data/vmodel/svmodel1.mat      variable svmodel or data, (z, x), of the salt set
SRC/train_data/vmodel/vmodel1.mat       variable vmodel or data, (z, x), of the simulation set
SRC/test_data/…                         numbered from 1, or on from the last training sample

MATLAB files up to version 7 are read; those of version 7.3 are HDF5 and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError

RECORDS_SHAPE = (29, 400, 301)
"""(shot, time, receiver) of a sample of both sets."""

MODEL_SHAPE = (201, 301)
"""(z, x) of a sample of both sets."""

RECORDS_NAMES = ("Rec", "data")
MODEL_NAMES = ("svmodel", "vmodel", "data")

SIZES = {"SEG-salt": (130, 10), "SEG-simulation": (1600, 100)}
"""Training and test samples of the published sets; salt is the one whose velocities are called svmodel."""

PHYSICS: dict[str, Any] = {
    "dx_m": 10.0,
    "dz_m": 10.0,
    "dt_s": 0.005,
    "peak_hz": None,
    "sources_m": None,
    "receivers_m": None,
    "records_unit": "amplitude as published",
    "recipe": "unknown",
    "benchmark_amplitudes": None,
}
"""A 3 km x 2 km grid and 2 s in 400 samples: FCNVMB's configuration. Positions and wavelet are not known."""


@dataclass(frozen=True)
class MatPairs:
    """MATLAB files of records and of velocities that belong together, as one set of samples."""

    family: str
    physics: dict[str, Any]
    splits: dict[str, range]
    files: tuple[tuple[Path, Path], ...]
    records_shape: tuple[int, int, int]
    model_shape: tuple[int, int]
    provenance: dict[str, Any]
    missing: tuple[str, ...]
    """Files of the set that are not there; only where a part of it was asked for."""

    @property
    def samples(self) -> int:
        return len(self.files)

    def read(self, indices: range) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x] (m/s) of some samples.

        raises  DataError: a file that cannot be read, of HDF5, or without the variable in the right shape
        """
        records = np.empty((len(indices), *self.records_shape), dtype=np.float32)
        models = np.empty((len(indices), *self.model_shape), dtype=np.float32)
        shots, times, receivers = self.records_shape
        for row, sample in enumerate(indices):
            records_path, models_path = self.files[sample]
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which the writer refuses
                gathers = read_mat(records_path, RECORDS_NAMES, (times, receivers, shots))
                records[row] = gathers.transpose(2, 0, 1)
                models[row] = read_mat(models_path, MODEL_NAMES, self.model_shape)
        return records, models

    def origin(self, sample: int) -> str:
        """Where a sample comes from, for messages."""
        return " and ".join(path.name for path in self.files[sample])


def open_seg(
    source: Path,
    *,
    partial: bool = False,
    records_shape: tuple[int, int, int] = RECORDS_SHAPE,
    model_shape: tuple[int, int] = MODEL_SHAPE,
) -> MatPairs:
    """Find the files of a SEG set in a folder; what is in them is checked when they are read.

    partial         take the samples that are there; otherwise a missing one is an error
    records_shape   (shot, time, receiver) that a sample must have
    model_shape     (z, x) that a model must have

    raises  DataError: no such files, a missing one, or half of a pair
    """
    models = source / "train_data" / "vmodel"
    if not models.is_dir():
        models = source / "test_data" / "vmodel"
    salt = _numbered(models, "svmodel")
    family, beginning = ("SEG-salt", "svmodel") if salt else ("SEG-simulation", "vmodel")
    files: list[tuple[Path, Path]] = []
    splits, missing, first = {}, [], 1
    for name, count in zip(("train", "test"), SIZES[family], strict=True):
        folder = source / f"{name}_data"
        records_there, models_there = _numbered(folder / "seismic", "seismic"), _numbered(folder / "vmodel", beginning)
        if halves := sorted(records_there.keys() ^ models_there.keys()):
            other = folder / ("vmodel" if halves[0] in records_there else "seismic")
            half = records_there.get(halves[0]) or models_there[halves[0]]
            raise DataError(f"{half} has no partner in {other}: half of a pair is of no use, fetch the other one.")
        # The test set is numbered on from the training set in one release, from 1 in the others.
        start = first if min(records_there, default=1) >= first else 1
        expected = range(start, start + count)
        if others := sorted(records_there.keys() - set(expected)):
            raise DataError(
                f"{records_there[others[0]]} is none of the {count} {name} samples of {family}, which are numbered "
                f"{start} to {expected[-1]}: move it away."
            )
        missing += [f"{name}_data/seismic/seismic{number}.mat" for number in expected if number not in records_there]
        there = sorted(records_there)
        if there:
            splits[name] = range(len(files), len(files) + len(there))
        files += [(records_there[number], models_there[number]) for number in there]
        first += count
    if not files:
        raise DataError(
            f"{source} holds no SEG set: train_data/seismic/seismic1.mat and train_data/vmodel/{beginning}1.mat are "
            "looked for."
        )
    if missing and not partial:
        shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise DataError(
            f"{len(missing)} samples of {family} are missing in {source} ({shown}): fetch them, or convert what is "
            "there with --partial."
        )
    listed = [
        {"file": str(one.relative_to(source)), "samples": 1, "bytes": one.stat().st_size}
        for pair in files
        for one in pair
    ]
    provenance = {"set": "SEG", "split": "folders", "files": listed}
    return MatPairs(family, dict(PHYSICS), splits, tuple(files), records_shape, model_shape, provenance, tuple(missing))


def _numbered(folder: Path, beginning: str) -> dict[int, Path]:
    """Files beginning….mat of a folder by their number."""
    pattern = re.compile(rf"{beginning}(\d+)\.mat")
    return {int(match[1]): path for path in folder.glob("*.mat") if (match := pattern.fullmatch(path.name))}


def read_mat(path: Path, names: Sequence[str], shape: Sequence[int]) -> NDArray[Any]:
    """The one variable of a MATLAB file that has one of these names, real numbers of this shape.

    raises  DataError: no MATLAB file, of version 7.3, damaged, or without the variable in that shape
    """
    from scipy.io import loadmat, whosmat

    try:
        with path.open("rb") as file:
            start = file.read(128)
        # The text says MATLAB 7.3, or the file starts as HDF5 does.
        if b"MATLAB 7.3" in start[:116] or start.startswith(b"\x89HDF"):
            raise DataError(f"{path} is a MATLAB 7.3 file (HDF5), which is not read: save it in MATLAB with '-v7'.")
        # Shapes are compared before a variable is loaded, so a false claim takes no memory.
        found = {name: (dimensions, kind) for name, dimensions, kind in whosmat(str(path))}
        name = next((name for name in names if name in found), None)
        if name is None:
            raise DataError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}, and not {' or '.join(names)}.")
        dimensions, kind = found[name]
        if tuple(dimensions) != tuple(shape) or kind in ("cell", "struct", "object", "char", "function", "opaque"):
            raise DataError(f"{path} holds {name} as {kind}{list(dimensions)}: it must be numbers{list(shape)}.")
        values = loadmat(str(path), variable_names=[name])[name]
    except DataError:
        raise
    # scipy raises a dozen unrelated types for a damaged file.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as a MATLAB file ({reason}): fetch or write it again.") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.shape != tuple(shape):
        raise DataError(f"{path} holds {name} in a form that is no array of real numbers{list(shape)}.")
    return values
