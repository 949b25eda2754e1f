"""Pairs of records and velocity models for training: a Zarr v3 group of two sharded arrays and a manifest.

records     float32 or float16[sample, shot, time, receiver]   one chunk a sample, a whole number of samples a shard
models      float32[sample, z, x]                              m/s, cut in the same way
zarr.json   the group, written last: its attributes are the manifest

The manifest holds the split, physics, statistics, origin and the sha256 of every file. Until it is written the store is
called NAME.part and is no Zarr group, so nobody takes an unfinished store for a whole one; the writer that is started
again goes on behind the last whole shard. Several processes may write shards of one store at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.shards import (
    Compression,
    Layout,
    ShardReader,
    create_array,
    flush_folder,
    read_layout,
    write_flushed,
    write_shard,
)

FORMAT = "hpfwi-pairs"
VERSION = 1

SHARD_BYTES = 150_000_000
"""Largest shard of records where its samples are left open: 100 samples of OpenFWI, 240 to 670 files a family."""

SLOWEST_PLAUSIBLE_MPS = 20.0
"""Models that are slower everywhere are in km/s, or are no velocities."""

_PLAN = "plan.json"
_DONE = "done"
_ARRAYS = ("records", "models")


def shard_samples_for(samples: int, sample_bytes: int) -> int:
    """Samples a shard, at most 100, such that a shard stays below SHARD_BYTES.

    >>> [shard_samples_for(30_000, 5 * 1000 * 70 * 4), shard_samples_for(140, 29 * 400 * 301 * 4)]
    [100, 10]
    """
    return max(1, min(100, samples, SHARD_BYTES // sample_bytes))


@dataclass(frozen=True, eq=False)
class PairStore:
    """A finished store, read sample by sample from any thread; it can be pickled."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    _records: ShardReader = field(repr=False)
    _models: ShardReader = field(repr=False)

    @property
    def samples(self) -> int:
        return self._records.layout.shape[0]

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver) of one sample."""
        shots, times, receivers = self._records.layout.shape[1:]
        return shots, times, receivers

    @property
    def model_shape(self) -> tuple[int, int]:
        """(z, x) of one sample."""
        rows, columns = self._models.layout.shape[1:]
        return rows, columns

    @property
    def family(self) -> str:
        return str(self.manifest["family"])

    @property
    def physics(self) -> dict[str, Any]:
        """What the writer said about grid, time step, source and positions; None where it is not known."""
        return dict(self.manifest["physics"])

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """min, max, mean and std (float64, over every value of every sample) of "records" and of "models" (m/s)."""
        return {name: dict(self.manifest["statistics"][name]) for name in _ARRAYS}

    @property
    def splits(self) -> dict[str, range]:
        """Samples of each split by name, such as "train" and "test"."""
        return {name: range(*ends) for name, ends in self.manifest["splits"].items()}

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x] (m/s) of some samples, in this order.

        raises  DataError: a sample that does not exist, a shard that is missing or damaged
        """
        records = np.empty((len(indices), *self.records_shape), dtype=np.float32)
        models = np.empty((len(indices), *self.model_shape), dtype=np.float32)
        for row, sample in enumerate(indices):
            self.read_into(int(sample), records[row], models[row])
        return records, models

    def read_into(self, sample: int, records: NDArray[np.float32], model: NDArray[np.float32]) -> None:
        """Read one sample into C-contiguous arrays float32[shot, time, receiver] and float32[z, x].

        raises  DataError: as `read`
        """
        if not 0 <= sample < self.samples:
            raise DataError(f"Sample {sample} does not exist: {self.path} has samples 0 to {self.samples - 1}.")
        self._records.read_into(sample, records)
        self._models.read_into(sample, model)


def open_pairs(path: str | Path) -> PairStore:
    """Open a finished store for reading.

    raises  DataError: missing, unfinished (with how to go on), not a store of pairs, another version, or damaged
    """
    path = Path(path)
    part = _part(path)
    if not path.exists():
        if part.is_dir():
            raise DataError(_unfinished(part))
        raise DataError(f"{path} does not exist: give the folder of pairs that `hpfwi data` wrote.")
    manifest = _read_manifest(path)
    layouts = _layouts(manifest)
    for name, layout in layouts.items():
        if read_layout(path / name) != layout:
            raise DataError(f"{path / name / 'zarr.json'} contradicts the manifest of {path}: make the store again.")
    return PairStore(path, manifest, *(ShardReader(path / name, layouts[name]) for name in _ARRAYS))


@dataclass(frozen=True, eq=False)
class PairsWriter:
    """Writes a store shard by shard; made by `create_pairs`, can be pickled, shards may come from any process."""

    path: Path
    plan: Mapping[str, Any]

    @property
    def part(self) -> Path:
        """The folder that the store is written in until it is finished."""
        return _part(self.path)

    def write(self, first: int, records: NDArray[np.float32], models: NDArray[np.float32]) -> None:
        """Write whole shards, on the disk when this returns; writing a shard again replaces it.

        first    number of the first sample: the first of a shard
        records  float32[n, shot, time, receiver]
        models   float32[n, z, x], m/s
        raises   DataError: not whole shards, wrong shapes, NaN or infinity, velocities that are not positive m/s,
                 values beyond float16 where that is stored, or a disk that refuses
        """
        layouts = _layouts(self.plan)
        records, models = np.asarray(records), np.asarray(models)
        count = len(records)
        size, samples = layouts["records"].shard_samples, layouts["records"].shape[0]
        whole = first % size == 0 and 0 <= first < first + count <= samples
        if not whole or not (count % size == 0 or first + count == samples):
            raise DataError(
                f"Samples {first} to {first + count - 1} are no whole shards of {self.path}: shards hold {size} of its "
                f"{samples} samples, starting from a multiple of {size}."
            )
        for name, values in (("records", records), ("models", models)):
            expected = (count, *layouts[name].shape[1:])
            if values.shape != expected or values.dtype.kind not in "fiu":
                raise DataError(
                    f"{name.capitalize()} for {self.path} are {values.dtype}{list(values.shape)}: they must be "
                    f"float32{list(expected)}."
                )
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            self._write_shard((first + start) // size, {"records": records[rows], "models": models[rows]}, layouts)

    def _write_shard(self, shard: int, arrays: dict[str, NDArray[Any]], layouts: dict[str, Layout]) -> None:
        first = layouts["records"].samples_of(shard).start
        done: dict[str, Any] = {"first": first, "samples": len(arrays["models"])}
        for name, values in arrays.items():
            done[name] = _measured(name, values, layouts[name], first, self.path)
        try:
            for name, values in arrays.items():
                file = self.part / name / layouts[name].file_of(shard)
                done[name]["bytes"], done[name]["sha256"] = write_shard(file, values, layouts[name])
            write_flushed(self.part / _DONE / f"{shard}.json", [json.dumps(done).encode()])
        except OSError as error:
            raise DataError(
                f"Shard {shard} cannot be written to {self.part} ({error.strerror or error}): make room or give write "
                "permission there and start the same command again; it goes on from here."
            ) from error

    def missing(self) -> list[range]:
        """Samples still to be written: one range for each shard that is not whole, in order."""
        if self.path.exists():
            return []
        layout = _layouts(self.plan)["records"]
        return [layout.samples_of(shard) for shard in range(layout.shards) if self._done(shard) is None]

    def _done(self, shard: int) -> dict[str, Any] | None:
        """What was noted when the shard was whole; None where it is not."""
        try:
            done = json.loads((self.part / _DONE / f"{shard}.json").read_bytes())
            sizes = [
                os.stat(self.part / name / layout.file_of(shard)).st_size == done[name]["bytes"]
                for name, layout in _layouts(self.plan).items()
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return done if all(sizes) else None

    def finish(self) -> PairStore:
        """Write the manifest, give the store its name and open it; a second call opens it only.

        raises  DataError: shards are missing, or the disk refuses
        """
        if not self.path.exists():
            layout = _layouts(self.plan)["records"]
            shards = [done for shard in range(layout.shards) if (done := self._done(shard)) is not None]
            if len(shards) < layout.shards:
                raise DataError(_unfinished(self.part))
            try:
                self._seal(shards)
            except OSError as error:
                raise DataError(
                    f"{self.path} cannot be finished ({error.strerror or error}): start the same command again."
                ) from error
        for leftover in (_DONE, _PLAN):
            found = self.path / leftover
            shutil.rmtree(found, ignore_errors=True) if found.is_dir() else found.unlink(missing_ok=True)
        return open_pairs(self.path)

    def _seal(self, shards: list[dict[str, Any]]) -> None:
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self.plan,
            "statistics": {name: _combined([shard[name] for shard in shards]) for name in _ARRAYS},
            "files": {
                f"{name}/{_layouts(self.plan)[name].file_of(number)}": shard[name]["sha256"]
                for number, shard in enumerate(shards)
                for name in _ARRAYS
            }
            | {
                f"{name}/zarr.json": hashlib.sha256((self.part / name / "zarr.json").read_bytes()).hexdigest()
                for name in _ARRAYS
            },
        }
        if self.plan["dtype"] == "float16":
            worst = max(shard["records"]["error"] for shard in shards)
            squares = math.fsum(shard["records"]["error_squares"] for shard in shards)
            whole = math.fsum(shard["records"]["squares"] for shard in shards)
            manifest["float16_error"] = {"max": worst, "relative_l2": math.sqrt(squares / whole) if whole else 0.0}
        manifest["sha256"] = _digest(manifest)
        group = {"zarr_format": 3, "node_type": "group", "attributes": manifest}
        for temporary in self.part.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        write_flushed(self.part / "zarr.json", [json.dumps(group, indent=1, allow_nan=False).encode()])
        os.rename(self.part, self.path)
        flush_folder(self.path.parent)


def create_pairs(
    path: str | Path,
    *,
    samples: int,
    records_shape: tuple[int, int, int],
    model_shape: tuple[int, int],
    family: str,
    physics: Mapping[str, Any],
    splits: Mapping[str, range] | None = None,
    dtype: str = "float32",
    compression: Compression = "none",
    shard_samples: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    resume_with: str = "",
) -> PairsWriter:
    """Begin a store, or take up the one that was begun with the same arguments; every process may call it.

    samples        pairs in the whole store
    records_shape  (shot, time, receiver) of one sample
    model_shape    (z, x) of one sample
    family         what the models are, such as "FlatVel-A"
    physics        plain JSON values: dx_m, dz_m, dt_s, peak_hz, sources_m [shot][z, x], receivers_m [receiver][z, x],
                   records_unit; None where it is not known; more keys are kept too
    splits         samples of each split by name; None puts all of them into "train"
    dtype          of the records on disk: "float32", or "float16" for copies of half the size, with the error measured
    compression    "none", or "lz4" for slow disks
    shard_samples  samples a shard; None chooses shards below SHARD_BYTES
    provenance     where the pairs come from, plain JSON values: a store begun from something else is not taken up
    resume_with    the command that goes on with an unfinished store, for messages

    raises  DataError: the path holds something else, an unfinished store begun with other arguments, impossible sizes,
            splits that overlap or leave the samples, or a disk that refuses
    """
    path = Path(path)
    sizes = (samples, *records_shape, *model_shape)
    if min(sizes) < 1 or dtype not in ("float32", "float16") or compression not in ("none", "lz4"):
        raise DataError(
            f"A store of {samples} samples {dtype}{list(records_shape)} with models {list(model_shape)}, compression "
            f"{compression}, is impossible: sizes start from 1, records are float32 or float16, compression is none "
            "or lz4."
        )
    splits = {"train": range(samples)} if splits is None else splits
    _check_splits(splits, samples)
    layout = Layout((samples, *records_shape), 1, dtype)
    plan = {
        "samples": samples,
        "records_shape": list(records_shape),
        "model_shape": list(model_shape),
        "shard_samples": shard_samples or shard_samples_for(samples, layout.sample_bytes),
        "dtype": dtype,
        "compression": compression,
        "units": {"records": physics.get("records_unit"), "models": "m/s"},
        "axes": {"records": ["sample", "shot", "time", "receiver"], "models": ["sample", "z", "x"]},
        "family": family,
        "physics": dict(physics),
        "splits": {name: [split.start, split.stop] for name, split in splits.items()},
        "provenance": dict(provenance or {}),
    }
    try:
        plan = json.loads(json.dumps(plan, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"Physics and provenance of {path} must be plain JSON values ({error}).") from error
    part = _part(path)
    try:
        if not path.exists() and not part.exists():
            _begin(part, plan, resume_with)
    except OSError as error:
        raise DataError(f"{part} cannot be made ({error.strerror or error}): choose another place.") from error
    begun = _read_manifest(path) if path.exists() else _read_plan(part)
    other = [key for key in plan if begun.get(key) != plan[key]]
    if other:
        state = "is there already" if path.exists() else f"was begun as {part}"
        raise DataError(
            f"{path} {state}, with another {', '.join(other)}: use the same options and source, choose another "
            "name, or delete it."
        )
    return PairsWriter(path, plan)


def _begin(part: Path, plan: Mapping[str, Any], resume_with: str) -> None:
    """Make the folder of an unfinished store; when another process made it at the same time, that one stays."""
    part.parent.mkdir(parents=True, exist_ok=True)
    temporary = part.with_name(f".{part.name}.{uuid4().hex[:8]}.tmp")
    try:
        (temporary / _DONE).mkdir(parents=True)
        for name, layout in _layouts(plan).items():
            create_array(temporary, name, layout)
        write_flushed(temporary / _PLAN, [json.dumps({"plan": plan, "resume_with": resume_with}, indent=1).encode()])
        try:
            os.rename(temporary, part)
        except OSError:
            if not (part / _PLAN).is_file():
                raise
        flush_folder(part.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _check_splits(splits: Mapping[str, range], samples: int) -> None:
    ordered = sorted(splits.items(), key=lambda item: item[1].start)
    for (name, split), after in zip(ordered, [*(split.start for _, split in ordered[1:]), samples], strict=True):
        if split.step != 1 or split.start < 0 or split.stop > after:
            raise DataError(
                f"Split {name!r} is {split}: splits are ranges of the samples 0 to {samples - 1} that do not overlap."
            )


def _layouts(plan: Mapping[str, Any]) -> dict[str, Layout]:
    samples, shard, compression = plan["samples"], plan["shard_samples"], plan["compression"]
    return {
        "records": Layout((samples, *plan["records_shape"]), shard, plan["dtype"], compression),
        "models": Layout((samples, *plan["model_shape"]), shard, "float32", compression),
    }


def _measured(name: str, values: NDArray[Any], layout: Layout, first: int, path: Path) -> dict[str, float]:
    """Sums over one shard for the statistics; raises DataError for values that no store should hold."""
    rows = values.reshape(len(values), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(
            f"The {name} of sample {first + int(np.argmin(finite))} for {path} hold NaN or infinity: mend or leave out "
            "that sample at its source."
        )
    low, high = float(rows.min()), float(rows.max())
    if name == "models" and (low <= 0 or high < SLOWEST_PLAUSIBLE_MPS):
        raise DataError(
            f"Models from sample {first} on for {path} span {low:g} to {high:g}: velocities are positive and in m/s."
        )
    if layout.dtype == "float16" and max(-low, high) > np.finfo(np.float16).max:
        raise DataError(
            f"Records from sample {first} on for {path} reach {max(-low, high):g}, and float16 ends at "
            f"{np.finfo(np.float16).max:g}: store them as float32."
        )
    sums = {"min": low, "max": high, "count": rows.size, "sum": 0.0, "squares": 0.0}
    if layout.dtype == "float16":
        sums |= {"error": 0.0, "error_squares": 0.0}
    for row in rows:
        wide = row.astype(np.float64)
        if layout.dtype == "float16":
            difference = wide - row.astype(np.float16)
            sums["error"] = max(sums["error"], float(np.abs(difference).max()))
            sums["error_squares"] += float(np.square(difference).sum())
        sums["sum"] += float(wide.sum())
        sums["squares"] += float(np.square(wide).sum())
    return sums


def _combined(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Statistics of the whole from the sums of its shards, in the order of the shards."""
    parts = list(parts)
    count = sum(part["count"] for part in parts)
    mean = math.fsum(part["sum"] for part in parts) / count
    variance = math.fsum(part["squares"] for part in parts) / count - mean * mean
    return {
        "min": min(part["min"] for part in parts),
        "max": max(part["max"] for part in parts),
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)),
    }


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "zarr.json").read_bytes())["attributes"]
        stated = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no store of pairs ({type(error).__name__}: {error}): make one with `hpfwi data`."
        ) from error
    if stated != (FORMAT, VERSION):
        raise DataError(f"{path} has format {stated}, and this program reads {(FORMAT, VERSION)}: make it again.")
    if manifest.get("sha256") != _digest(manifest):
        raise DataError(f"The manifest of {path} does not match its own sha256: it was changed or is damaged.")
    return dict(manifest)


def _read_plan(part: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((part / _PLAN).read_bytes())["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{part} is no unfinished store ({error}): delete it and start again.") from error


def _unfinished(part: Path) -> str:
    """The sentence about a store without a manifest: how far it is and how to go on."""
    try:
        begun = json.loads((part / _PLAN).read_bytes())
        shards = _layouts(begun["plan"])["records"].shards
        whole = shards - len(PairsWriter(part.with_suffix(""), begun["plan"]).missing())
        command = begun["resume_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{part} is an unfinished store that cannot be read: delete it and start again."
    again = f"`{command}`" if command else "the command that began it"
    return (
        f"{part} is unfinished, with {whole} of {shards} shards whole: start {again} again, and it goes on from there."
    )
