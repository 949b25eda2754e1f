"""Pairs of records and velocity models for training: a Zarr v3 group of two sharded arrays and a manifest.

records     float32 or float16[sample, shot, time, receiver]   one chunk a sample, a whole number of samples a shard
models      float32[sample, z, x]                              m/s, cut in the same way
zarr.json   the group, written last: its attributes are the manifest (split, physics, statistics, origin, sha256)

Until it has its manifest a store is called NAME.part and is no Zarr group, so nobody takes an unfinished one for whole;
the writer that is started again goes on with the shards that are missing. Several processes may write shards of one
store at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.page_cache import stays_in_memory
from hpfwi.store.pair_manifest import ARRAYS, PLAN, layouts_of, part_of, read_manifest, unfinished
from hpfwi.store.pair_values import statistics_of, sums_of
from hpfwi.store.shard_reader import ShardReader
from hpfwi.store.shards import read_layout


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
        """What the writer said about grid, time step, source and positions (see `create_pairs`)."""
        return dict(self.manifest["physics"])

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """min, max, mean and std over every stored value, of "records" and of "models" (m/s)."""
        return {name: dict(self.manifest["statistics"][name]) for name in ARRAYS}

    @property
    def splits(self) -> dict[str, range]:
        """Samples of each split by name, such as "train" and "test"."""
        return {name: range(*ends) for name, ends in self.manifest["splits"].items()}

    def split_statistics(self, name: str, split: str) -> dict[str, float]:
        """min, max, mean and std of "records" or "models" over the samples of one split, which has at least one.

        They stand in the manifest; of a store of version 1, which has none, the samples are read.
        """
        if "split_statistics" in self.manifest:
            return dict(self.manifest["split_statistics"][split][name])
        reader = self._records if name == "records" else self._models
        row = np.empty(reader.layout.shape[1:], np.float32)
        sums = []
        for sample in self.splits[split]:
            reader.read_into(sample, row)
            sums.append(sums_of(row.reshape(1, -1), as_float16=False))
        return statistics_of(sums)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x] (m/s) of some samples, in this order.

        raises  DataError: a sample that does not exist, a shard that is missing or damaged
        """
        records = np.empty((len(indices), *self.records_shape), dtype=np.float32)
        models = np.empty((len(indices), *self.model_shape), dtype=np.float32)
        self.read_rows([(row, int(sample)) for row, sample in enumerate(indices)], records, models)
        return records, models

    def prepare(self) -> None:
        """Make ready for reading many samples: worth half a second, once, to whoever reads thousands."""
        self._records.prepare()

    def read_rows(
        self, places: Sequence[tuple[int, int]], records: NDArray[np.float32], models: NDArray[np.float32]
    ) -> None:
        """Read samples into rows of arrays float32[row, shot, time, receiver] and float32[row, z, x].

        places  (row, sample), best in the order of the samples; the system is asked for all of them before the first is
                read

        raises  DataError: as `read`
        """
        samples = [sample for _, sample in places]
        if samples and not 0 <= min(samples) <= max(samples) < self.samples:
            sample = min(samples) if min(samples) < 0 else max(samples)
            raise DataError(f"Sample {sample} does not exist: {self.path} has samples 0 to {self.samples - 1}.")
        for reader, out in ((self._records, records), (self._models, models)):
            reader.expect(samples)
            reader.read_rows(places, out)


def open_pairs(path: str | Path, *, mapped: bool | None = None) -> PairStore:
    """Open a finished store for reading.

    mapped  whether its files are mapped into memory; None maps those of a store that fits into half of the memory

    raises  DataError: missing, unfinished (with how to go on), not a store of pairs, another version, or damaged
    """
    path = Path(path)
    begun = path if (path / PLAN).is_file() and not (path / "zarr.json").exists() else part_of(path)
    if not path.exists() or begun == path:
        if begun.is_dir():
            raise unfinished(begun)
        raise DataError(f"{path} does not exist: give the folder of a store that `hpfwi data` wrote.")
    manifest = read_manifest(path)
    layouts = layouts_of(manifest)
    for name, layout in layouts.items():
        if read_layout(path / name) != layout:
            raise DataError(f"{path / name / 'zarr.json'} contradicts the manifest of {path}: make the store again.")
    if mapped is None:
        mapped = stays_in_memory(sum(one.sample_bytes * one.shape[0] for one in layouts.values()))
    return PairStore(path, manifest, *(ShardReader(path / name, layouts[name], mapped) for name in ARRAYS))
