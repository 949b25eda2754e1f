"""OpenFWI's .npy files, in its authors' layout or in that of the AMFMS release, read as one numbered set of pairs.

OpenFWI's own       SRC/[data/]data1.npy and SRC/[model/]model1.npy, or SRC/seis2_1_0.npy and SRC/vel2_1_0.npy
AMFMS               SRC/train_data/seismic/seismic1.npy and SRC/train_data/vmodel/vmodel1.npy, and test_data likewise

Records are (n, shot, time, receiver), velocities (n, 1, z, x) or (n, z, x) in m/s. The samples are numbered file by
file, those of the training split first.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import ConfigError, DataError
from hpfwi.store.npy_files import NpyFile, open_npy
from hpfwi.store.openfwi_families import (
    FAMILIES,
    MARMOUSI,
    MODEL_SHAPE,
    RECORDS_SHAPE,
    Family,
    Split,
    family_named,
    physics_of,
    split_files,
)


@dataclass(frozen=True)
class NpyPairs:
    """Files of records and files of velocities that belong together, as one set of samples."""

    family: str
    physics: dict[str, Any]
    splits: dict[str, range]
    files: tuple[tuple[NpyFile, NpyFile], ...]
    starts: tuple[int, ...]
    """Number of the first sample of each pair of files."""
    provenance: dict[str, Any]
    missing: tuple[str, ...]
    """Files of the split that are not there; only where a part of it was asked for."""

    @property
    def samples(self) -> int:
        return self.starts[-1] + self.files[-1][0].samples

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver)."""
        shots, times, receivers = self.files[0][0].shape[1:]
        return shots, times, receivers

    @property
    def model_shape(self) -> tuple[int, int]:
        """(z, x)."""
        rows, columns = self.files[0][1].shape[-2:]
        return rows, columns

    def read(self, indices: range) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x] (m/s) of neighbouring samples.

        raises  DataError: a file that cannot be read
        """
        records = np.empty((len(indices), *self.records_shape), dtype=np.float32)
        models = np.empty((len(indices), *self.model_shape), dtype=np.float32)
        done = 0
        while done < len(indices):
            file = self._file_of(indices.start + done)
            first = indices.start + done - self.starts[file]
            count = min(len(indices) - done, self.files[file][0].samples - first)
            rows = slice(done, done + count)
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which the writer refuses
                records[rows] = self.files[file][0].read(first, count)
                models[rows] = self.files[file][1].read(first, count).reshape(count, *self.model_shape)
            done += count
        return records, models

    def origin(self, sample: int) -> str:
        """Where a sample comes from, for messages."""
        file = self._file_of(sample)
        names = " and ".join(one.path.name for one in self.files[file])
        return f"row {sample - self.starts[file]} of {names}"

    def _file_of(self, sample: int) -> int:
        return bisect_right(self.starts, sample) - 1


def open_openfwi(
    source: Path,
    *,
    family: str | None = None,
    split: Split = "openfwi",
    partial: bool = False,
    records_shape: tuple[int, int, int] = RECORDS_SHAPE,
    model_shape: tuple[int, int] = MODEL_SHAPE,
) -> NpyPairs:
    """Find the files of one family in a folder and check every header; no value is read.

    family          such as "FlatVel-A"; None takes it from the name of the folder
    split           which files of OpenFWI's own layout train and test; the AMFMS layout has a folder for each
    partial         take the files that are there; otherwise a missing one is an error
    records_shape   (shot, time, receiver) that a sample must have
    model_shape     (z, x) that a model must have

    raises  ConfigError: the family is not known; DataError: a missing file or half of a pair, a file that is none of
            the family's, damaged, or of another shape or type
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give the one that holds the files of a family.")
    found = family_named(source.resolve().name if family is None else family)
    if found is None:
        known = ", ".join(one.name for one in FAMILIES)
        said = f"{source} is named after none" if family is None else f"{family!r} is none"
        raise ConfigError(f"{said} of the families: give --family with one of {known}.")
    amfms = (source / "train_data").is_dir() or (source / "test_data").is_dir()
    names = _amfms_names(source, found) if amfms else _openfwi_names(source, found, split)
    missing: list[str] = []
    files: dict[str, list[tuple[NpyFile, NpyFile]]] = {}
    for name, pairs in names.items():
        files[name] = []
        for pair in pairs:
            there = [path.is_file() for path in pair]
            if all(there):
                files[name].append(_open_pair(*pair, records_shape, model_shape))
            elif any(there):
                half, other = pair if there[0] else pair[::-1]
                raise DataError(
                    f"{half} is there and {other} is not: half of a pair is of no use, fetch the other one."
                )
            else:
                missing += [str(path.relative_to(source)) for path in pair]
    if not any(files.values()):
        expected = next(iter(names.values()))[0]
        raise DataError(f"{source} holds no files of {found.name}, such as {expected[0]} and {expected[1]}.")
    if missing and not partial:
        shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise DataError(
            f"{len(missing)} files of {found.name} are missing in {source} ({shown}): fetch them, or convert what is "
            "there with --partial."
        )
    for pairs_of_split in files.values():
        _check_lengths(pairs_of_split, partial)
    return _numbered(source, found, "amfms" if amfms else split, files, tuple(missing))


def _numbered(
    source: Path,
    family: Family,
    split: str,
    files: dict[str, list[tuple[NpyFile, NpyFile]]],
    missing: tuple[str, ...],
) -> NpyPairs:
    """Number the samples file by file, split after split."""
    ordered = tuple(pair for pairs in files.values() for pair in pairs)
    counts = [pair[0].samples for pair in ordered]
    starts = tuple(int(start) for start in np.cumsum([0, *counts])[:-1])
    splits, first = {}, 0
    for name, pairs in files.items():
        count = sum(pair[0].samples for pair in pairs)
        if count:
            splits[name] = range(first, first + count)
        first += count
    records, models = ordered[0]
    shots, times, receivers = records.shape[1:]
    provenance = {
        "set": "OpenFWI" if family.name != MARMOUSI else "Marmousi II",
        "split": split,
        "types": {"records": str(records.dtype), "models": str(models.dtype)},
        "files": [
            {"file": str(one.path.relative_to(source)), "samples": one.samples, "bytes": one.path.stat().st_size}
            for pair in ordered
            for one in pair
        ],
    }
    physics = physics_of(family, (shots, times, receivers), (models.shape[-2], models.shape[-1]))
    return NpyPairs(family.name, physics, splits, ordered, starts, provenance, missing)


def _openfwi_names(source: Path, family: Family, split: Split) -> dict[str, list[tuple[Path, Path]]]:
    """Paths of records and velocities by split, in OpenFWI's own layout."""
    records = source / "data" if (source / "data").is_dir() else source
    models = source / "model" if (source / "model").is_dir() else source
    ids = split_files(family, split)
    expected = {name for names in ids.values() for name in names}
    _refuse_others(records, family.records, expected, family)
    _refuse_others(models, family.models, expected, family)
    return {
        name: [(records / f"{family.records}{one}.npy", models / f"{family.models}{one}.npy") for one in ids[name]]
        for name in ids
    }


def _amfms_names(source: Path, family: Family) -> dict[str, list[tuple[Path, Path]]]:
    """Paths of records and velocities by split, in the layout of the AMFMS release: each split numbered from 1."""
    names = {}
    for name, count in (("train", len(family.train)), ("test", len(family.test))):
        records, models = (source / f"{name}_data" / kind for kind in ("seismic", "vmodel"))
        expected = [str(number) for number in range(1, count + 1)]
        _refuse_others(records, "seismic", set(expected), family)
        _refuse_others(models, "vmodel", set(expected), family)
        names[name] = [(records / f"seismic{one}.npy", models / f"vmodel{one}.npy") for one in expected]
    return names


def _refuse_others(folder: Path, beginning: str, expected: set[str], family: Family) -> None:
    """Refuse a file that looks like one of the family's and is none: its samples would be lost without a word."""
    for path in _matching(folder, beginning):
        if path.stem[len(beginning) :] not in expected:
            raise DataError(
                f"{path} is none of the {len(expected)} files {beginning}….npy that {family.name} has there: move it "
                "away, or give the right --family or --split."
            )


def _matching(folder: Path, beginning: str) -> Iterator[Path]:
    pattern = re.compile(rf"{beginning}\d[\d_]*\.npy")
    return (path for path in sorted(folder.glob("*.npy")) if pattern.fullmatch(path.name))


def _open_pair(
    records_path: Path, models_path: Path, records_shape: Sequence[int], model_shape: Sequence[int]
) -> tuple[NpyFile, NpyFile]:
    records, models = open_npy(records_path), open_npy(models_path)
    if records.dtype.kind != "f":
        raise DataError(
            f"{records_path} holds {records.dtype}: records are amplitudes in float32; bring them to their own scale "
            "and save them as that."
        )
    if records.shape[1:] != tuple(records_shape):
        raise DataError(
            f"{records_path} is {records.dtype}{list(records.shape)}: records must be float32[n, "
            f"{', '.join(map(str, records_shape))}] (sample, shot, time, receiver), or --records-shape another."
        )
    if models.shape[1:] not in (tuple(model_shape), (1, *model_shape)):
        sizes = ", ".join(map(str, model_shape))
        raise DataError(
            f"{models_path} is {models.dtype}{list(models.shape)}: velocities must be float32[n, 1, {sizes}] or "
            f"[n, {sizes}] (sample, z, x), or --model-shape another."
        )
    if records.samples != models.samples:
        raise DataError(
            f"{records_path} holds {records.samples} samples and {models_path} {models.samples}: they are no pair."
        )
    return records, models


def _check_lengths(pairs: Sequence[tuple[NpyFile, NpyFile]], partial: bool) -> None:
    """Refuse a short file in the middle of a split: its neighbours show how many samples it should hold."""
    for pair in [] if partial else pairs[:-1]:
        if pair[0].samples != pairs[0][0].samples:
            raise DataError(
                f"{pair[0].path} holds {pair[0].samples} samples and {pairs[0][0].path} {pairs[0][0].samples}: fetch "
                "it again, or convert what is there with --partial."
            )
