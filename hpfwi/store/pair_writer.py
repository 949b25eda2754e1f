"""Write a store of pairs (see `hpfwi.store.openfwi`) shard by shard, from one process or from several."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.store.pair_manifest import (
    ARRAYS,
    DONE,
    FORMAT,
    PHYSICS,
    PLAN,
    VERSION,
    digest_of,
    done_shard,
    layouts_of,
    part_of,
    read_manifest,
    read_plan,
    unfinished,
)
from hpfwi.store.pair_values import check_values, float16_error_of, statistics_of, sums_by_split
from hpfwi.store.shards import Compression, Layout, create_array, flush_folder, write_flushed, write_shard

SHARD_BYTES = 150_000_000
"""Largest shard of records where its samples are left open: 100 samples of OpenFWI, 300 to 670 shards a family."""


def shard_samples_for(samples: int, sample_bytes: int) -> int:
    """Samples a shard, at most 100, such that a shard stays below SHARD_BYTES.

    >>> [shard_samples_for(30_000, 5 * 1000 * 70 * 4), shard_samples_for(140, 29 * 400 * 301 * 4)]
    [100, 10]
    """
    return max(1, min(100, samples, SHARD_BYTES // sample_bytes))


@dataclass(frozen=True, eq=False)
class PairsWriter:
    """Writes a store shard by shard; made by `create_pairs`, can be pickled, shards may come from any process."""

    path: Path
    plan: Mapping[str, Any]

    @property
    def part(self) -> Path:
        """The folder that the store is written in until it is finished."""
        return part_of(self.path)

    def missing(self) -> list[range]:
        """Samples still to be written: one range for each shard that is not whole, in order."""
        if self.path.exists():
            return []
        layout = layouts_of(self.plan)["records"]
        shards = [shard for shard in range(layout.shards) if done_shard(self.part, self.plan, shard) is None]
        return [layout.samples_of(shard) for shard in shards]

    def write(
        self,
        first: int,
        records: NDArray[np.float32],
        models: NDArray[np.float32],
        *,
        origin: Callable[[int], str] | None = None,
    ) -> None:
        """Write whole shards, on the disk when this returns.

        Writing a shard again replaces it; once the store is finished a repeat changes nothing.

        first    number of the first sample: the first of a shard
        records  float32[n, shot, time, receiver]
        models   float32[n, z, x], m/s
        origin   what a message says of a sample beside its number
        raises   DataError: not whole shards, wrong shapes, NaN or infinity, velocities that are not positive m/s,
                 values beyond float16 where that is stored, or a disk that refuses
        """
        layouts = layouts_of(self.plan)
        arrays = {"records": np.asarray(records), "models": np.asarray(models)}
        count, size, samples = len(arrays["records"]), layouts["records"].shard_samples, layouts["records"].shape[0]
        end = first + count
        if first % size or not 0 <= first < end <= samples or (end % size and end != samples):
            raise DataError(
                f"Samples {first} to {end - 1} are no whole shards of {self.path}: it has {samples} samples in shards "
                f"of {size}, each starting at a multiple of {size}."
            )
        for name, values in arrays.items():
            expected = (count, *layouts[name].shape[1:])
            if values.shape != expected or values.dtype.kind not in "fiu":
                raise DataError(
                    f"The {name} for {self.path} are {values.dtype}{list(values.shape)}: they must be "
                    f"float32{list(expected)}."
                )
        if not (self.part / PLAN).is_file():
            if self.path.exists():
                return
            raise DataError(f"{self.part} is gone: it was deleted while it was written; begin again.")
        for start in range(0, count, size):
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite and is refused
                shard = {
                    name: np.ascontiguousarray(values[start : start + size], dtype=np.float32)
                    for name, values in arrays.items()
                }
            called = partial(_called, first + start, origin)
            for name, values in shard.items():
                check_values(name, values, layouts[name].dtype, called)
            self._write_shard((first + start) // size, shard, layouts)

    def _write_shard(self, shard: int, arrays: Mapping[str, NDArray[Any]], layouts: Mapping[str, Layout]) -> None:
        first = layouts["records"].samples_of(shard).start
        done: dict[str, Any] = {"first": first, "samples": len(arrays["models"])}
        for name, values in arrays.items():
            rows, low = values.reshape(len(values), -1), layouts[name].dtype == "float16"
            done[name] = {"sums": sums_by_split(rows, first, self.plan["splits"], as_float16=low)}
        try:
            for name, values in arrays.items():
                file = self.part / name / layouts[name].file_of(shard)
                done[name]["bytes"], done[name]["sha256"] = write_shard(file, values, layouts[name])
            write_flushed(self.part / DONE / f"{shard}.json", [json.dumps(done).encode()])
        except OSError as error:
            raise DataError(
                f"Shard {shard} cannot be written to {self.part} ({error.strerror or error}): make room or give write "
                "permission there and start the same command again; it goes on from here."
            ) from error

    def finish(self) -> PairStore:
        """Write the manifest, give the store its name and open it; a second call opens it only.

        raises  DataError: shards are missing, or the disk refuses
        """
        if not self.path.exists():
            shards = range(layouts_of(self.plan)["records"].shards)
            done = [found for shard in shards if (found := done_shard(self.part, self.plan, shard)) is not None]
            if len(done) < len(shards):
                raise unfinished(self.part)
            try:
                self._seal(done)
            except OSError as error:
                # Another process may have finished it at the same time.
                if not self.path.exists():
                    raise DataError(
                        f"{self.path} cannot be finished ({error.strerror or error}): start the same command again."
                    ) from error
        (self.path / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.path / DONE, ignore_errors=True)
        return open_pairs(self.path)

    def _seal(self, done: Sequence[Mapping[str, Any]]) -> None:
        layouts = layouts_of(self.plan)
        files = {}
        for name in ARRAYS:
            files[f"{name}/zarr.json"] = hashlib.sha256((self.part / name / "zarr.json").read_bytes()).hexdigest()
            for shard, found in enumerate(done):
                files[f"{name}/{layouts[name].file_of(shard)}"] = found[name]["sha256"]
        sums = {name: [part for found in done for part in found[name]["sums"]] for name in ARRAYS}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self.plan,
            "statistics": {name: statistics_of(sums[name]) for name in ARRAYS},
            "split_statistics": {
                split: {name: statistics_of(part for part in sums[name] if part["split"] == split) for name in ARRAYS}
                for split, (start, stop) in self.plan["splits"].items()
                if start < stop
            },
            "files": files,
        }
        if self.plan["dtype"] == "float16":
            manifest["float16_error"] = float16_error_of(sums["records"])
        manifest["sha256"] = digest_of(manifest)
        group = {"zarr_format": 3, "node_type": "group", "attributes": manifest}
        for leftover in self.part.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for leftover in self.part.parent.glob(f".{self.part.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        # The names of all folders are on the disk before anything says that the store is whole.
        for folder, _, _ in os.walk(self.part):
            flush_folder(Path(folder))
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
                   records_unit, each None where it is not known; more keys are kept too
    splits         samples of each split by name; None puts all of them into "train"
    dtype          of the records on disk: "float32", or "float16" for copies of half the size, with the error measured
    compression    "none", or "lz4" for slow disks
    shard_samples  samples a shard; None chooses shards below SHARD_BYTES
    provenance     where the pairs come from, plain JSON values: a store begun from something else is not taken up
    resume_with    the command that goes on with an unfinished store, for messages

    raises  DataError: the path holds something else, an unfinished store begun with other arguments, impossible sizes,
            physics that miss a name, splits that overlap or leave the samples, or a disk that is full or refuses
    """
    path = Path(path)
    sizes = (samples, *records_shape, *model_shape, 1 if shard_samples is None else shard_samples)
    if min(sizes) < 1 or dtype not in ("float32", "float16") or compression not in ("none", "lz4"):
        raise DataError(
            f"A store of {samples} samples {dtype}{list(records_shape)} with models {list(model_shape)}, compression "
            f"{compression}, is impossible: sizes start from 1, records are float32 or float16, compression is none "
            "or lz4."
        )
    if absent := [name for name in PHYSICS if name not in physics]:
        raise DataError(f"The physics of {path} lack {', '.join(absent)}: give None where it is not known.")
    splits = {"train": range(samples)} if splits is None else splits
    _check_splits(splits, samples)
    sample_bytes = Layout((samples, *records_shape), 1, dtype).sample_bytes
    described = {
        "samples": samples,
        "records_shape": list(records_shape),
        "model_shape": list(model_shape),
        "shard_samples": shard_samples_for(samples, sample_bytes) if shard_samples is None else shard_samples,
        "dtype": dtype,
        "compression": compression,
        "units": {"records": physics["records_unit"], "models": "m/s"},
        "axes": {"records": ["sample", "shot", "time", "receiver"], "models": ["sample", "z", "x"]},
        "family": family,
        "physics": dict(physics),
        "splits": {name: [split.start, split.stop] for name, split in splits.items()},
        "provenance": dict(provenance or {}),
    }
    try:
        plan = json.loads(json.dumps(described, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"Physics and provenance of {path} must be plain JSON values ({error}).") from error
    part = part_of(path)
    try:
        if not path.exists() and not part.exists():
            _begin(part, plan, resume_with)
    except OSError as error:
        raise DataError(f"{part} cannot be made ({error.strerror or error}): choose another place.") from error
    begun = read_manifest(path) if path.exists() else read_plan(part)[0]
    if other := [key for key in plan if begun.get(key) != plan[key]]:
        state = "is there already" if path.exists() else f"was begun as {part}"
        raise DataError(
            f"{path} {state}, and differs in {', '.join(other)}: use the same source and options, choose another "
            "name, or delete it."
        )
    return PairsWriter(path, plan)


def _called(first: int, origin: Callable[[int], str] | None, row: int) -> str:
    """What a message calls row number `row` of the samples that begin with `first`."""
    return f"sample {first + row}" + (f" ({origin(first + row)})" if origin else "")


def _begin(part: Path, plan: Mapping[str, Any], resume_with: str) -> None:
    """Make the folder of an unfinished store; when another process makes it at the same time, that one stays."""
    layouts = layouts_of(plan)
    part.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(one.sample_bytes * one.shape[0] for one in layouts.values()), shutil.disk_usage(part.parent).free
    if needed > free and plan["compression"] == "none":
        raise DataError(
            f"{part} will take {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left: make room."
        )
    temporary = part.with_name(f".{part.name}.{uuid4().hex[:8]}.tmp")
    try:
        (temporary / DONE).mkdir(parents=True)
        for name, layout in layouts.items():
            create_array(temporary, name, layout)
        write_flushed(temporary / PLAN, [json.dumps({"plan": plan, "resume_with": resume_with}, indent=1).encode()])
        try:
            os.rename(temporary, part)
        except OSError:
            if not (part / PLAN).is_file():
                raise
        flush_folder(part.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_splits(splits: Mapping[str, range], samples: int) -> None:
    ordered = sorted(splits.items(), key=lambda item: item[1].start)
    for (name, split), after in zip(ordered, [*(split.start for _, split in ordered[1:]), samples], strict=True):
        if split.step != 1 or split.start < 0 or split.stop > after:
            raise DataError(
                f"Split {name!r} is {split}: splits are ranges of the samples 0 to {samples - 1} that do not overlap."
            )
