"""Stores of pairs: what is written is read back, by zarr-python too; what is unfinished, wrong or damaged is named."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hpfwi.errors import DataError
from hpfwi.store import page_cache, pair_values, pair_writer, shard_reader
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.store.pair_writer import PairsWriter, create_pairs

SAMPLES, RECORDS, MODEL, SHARD = 25, (2, 20, 6), (5, 6), 10
PHYSICS: dict[str, Any] = {
    "dx_m": 10.0,
    "dz_m": 10.0,
    "dt_s": 0.001,
    "peak_hz": 15.0,
    "sources_m": None,
    "receivers_m": None,
    "records_unit": "Pa",
}


def values(samples: int = SAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    records = random.normal(size=(samples, *RECORDS)).astype(np.float32)
    return records, random.uniform(1500, 4500, (samples, *MODEL)).astype(np.float32)


def begin(path: Path, **changes: Any) -> PairsWriter:
    options: dict[str, Any] = {
        "samples": SAMPLES,
        "records_shape": RECORDS,
        "model_shape": MODEL,
        "family": "toy",
        "physics": PHYSICS,
        "splits": {"train": range(20), "test": range(20, SAMPLES)},
        "shard_samples": SHARD,
    }
    return create_pairs(path, **options | changes)


def fill(writer: PairsWriter, shards_to_write: int | None = None) -> PairsWriter:
    records, models = values()
    for samples in writer.missing()[:shards_to_write]:
        rows = slice(samples.start, samples.stop)
        writer.write(samples.start, records[rows], models[rows])
    return writer


@pytest.fixture(params=[False, True], ids=["read", "mapped"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> PairStore:
    fill(begin(tmp_path / "toy.zarr")).finish()
    return open_pairs(tmp_path / "toy.zarr", mapped=request.param)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_what_is_written_is_read_back_and_zarr_reads_the_same(tmp_path: Path, dtype: str, compression: str) -> None:
    records, models = values()
    store = fill(begin(tmp_path / "toy.zarr", dtype=dtype, compression=compression)).finish()
    read, maps = store.read([24, 0, 9, 10, 0])
    assert read.dtype == maps.dtype == np.float32
    assert np.array_equal(read, records[[24, 0, 9, 10, 0]].astype(dtype).astype(np.float32))
    assert np.array_equal(maps, models[[24, 0, 9, 10, 0]])
    group = zarr.open_group(str(store.path), mode="r")
    assert {name for name, _ in group.members()} == {"records", "models"}  # and warns of no file that it does not know
    array: Any = group["records"]
    assert np.array_equal(array[:], records.astype(dtype))
    assert (array.chunks, array.shards) == ((1, *RECORDS), (SHARD, *RECORDS))
    other: Any = group["models"]
    assert np.array_equal(other[:], models)


def test_a_store_says_what_it_holds(store: PairStore) -> None:
    records, models = values()
    assert (store.samples, store.records_shape, store.model_shape) == (SAMPLES, RECORDS, MODEL)
    assert (store.family, store.physics) == ("toy", PHYSICS)
    assert store.splits == {"train": range(20), "test": range(20, 25)}
    for name, array in (("records", records), ("models", models)):
        wide = array.astype(np.float64)
        expected = {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "std": wide.std()}
        # Sums of 6000 float64 at most, and the difference of two squares of the mean.
        assert store.statistics[name] == pytest.approx(expected, rel=1e-11, abs=1e-12)
    assert store.manifest["units"] == {"records": "Pa", "models": "m/s"}
    assert sorted(os.listdir(store.path)) == ["models", "records", "zarr.json"]
    assert len(store.manifest["files"]) == 2 * 3 + 2
    assert store.read([])[0].shape == (0, *RECORDS)


def test_every_split_has_statistics_of_its_own(store: PairStore) -> None:
    """The splits meet in the middle of a shard; a store of version 1, which states none, reads its samples."""
    older = {key: value for key, value in store.manifest.items() if key != "split_statistics"}
    for split, samples in store.splits.items():
        for name, array in zip(("records", "models"), values(), strict=True):
            wide = array[samples.start : samples.stop].astype(np.float64)
            expected = {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "std": wide.std()}
            for one in (store, replace(store, manifest=older)):
                found = one.split_statistics(name, split)
                assert found == pytest.approx(expected, rel=1e-11, abs=1e-12)
                assert (found["min"], found["max"]) == (expected["min"], expected["max"])


def test_a_shard_whose_note_lacks_the_sums_of_splits_is_written_again(tmp_path: Path) -> None:
    writer = fill(begin(tmp_path / "toy.zarr"))
    note = writer.part / "done" / "1.json"
    done = json.loads(note.read_text())
    for name in ("records", "models"):
        done[name] = {"bytes": done[name]["bytes"], "sha256": done[name]["sha256"], "min": 0.0}
    note.write_text(json.dumps(done))
    assert writer.missing() == [range(10, 20)]
    assert fill(writer).finish().split_statistics("models", "train")["min"] >= 1500


def test_the_error_of_float16_is_measured(tmp_path: Path) -> None:
    records, _ = values()
    error = fill(begin(tmp_path / "toy.zarr", dtype="float16")).finish().manifest["float16_error"]
    stored = records.astype(np.float16).astype(np.float64)
    assert error["max"] == np.abs(records - stored).max()
    assert error["relative_l2"] == pytest.approx(np.linalg.norm(records - stored) / np.linalg.norm(stored), rel=1e-12)
    assert 0 < error["relative_l2"] < 2**-11


def test_an_unfinished_store_is_named_and_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    writer = fill(begin(path, resume_with="hpfwi data convert openfwi SRC toy.zarr"), 1)
    assert not path.exists()
    for attempt in (lambda: open_pairs(path), lambda: open_pairs(writer.part), writer.finish):
        with pytest.raises(
            DataError,
            match=r"toy\.zarr\.part is unfinished, with 1 of 3 shards whole: start `hpfwi data convert openfwi",
        ):
            attempt()
    with pytest.raises(FileNotFoundError):
        zarr.open_group(str(writer.part), mode="r")
    again = begin(path)
    assert again.missing() == [range(10, 20), range(20, 25)]
    store = fill(again).finish()
    assert np.array_equal(store.read(range(SAMPLES))[0], values()[0])
    assert not writer.part.exists()


def test_a_finished_store_is_left_alone(store: PairStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    writer = begin(store.path)
    assert writer.missing() == []
    records, models = values()
    writer.write(0, 0 * records[:10], models[:10])  # from a worker that was late
    assert not writer.part.exists()
    assert np.array_equal(writer.finish().read([3])[0], store.read([3])[0])
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


@pytest.mark.parametrize("change", [{"samples": 26}, {"dtype": "float16"}, {"provenance": {"from": "elsewhere"}}])
def test_a_store_of_something_else_is_not_taken_up(tmp_path: Path, change: dict[str, Any]) -> None:
    begin(tmp_path / "toy.zarr")
    with pytest.raises(DataError, match=rf"was begun as .*part, and differs in {next(iter(change))}: use the same"):
        begin(tmp_path / "toy.zarr", **change)


def test_processes_may_share_the_shards(tmp_path: Path) -> None:
    """Two pickled writers write every shard, at the same time: the result is that of one."""
    records, models = values()
    writer = begin(tmp_path / "toy.zarr")
    errors: list[BaseException] = []

    def work(copy: PairsWriter) -> None:
        try:
            for samples in [range(0, 10), range(10, 20), range(20, 25)]:
                rows = slice(samples.start, samples.stop)
                copy.write(samples.start, records[rows], models[rows])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(pickle.loads(pickle.dumps(writer)),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert np.array_equal(writer.finish().read(range(SAMPLES))[1], models)
    assert list(tmp_path.rglob(".*")) == []


def test_several_whole_shards_may_be_written_at_once(tmp_path: Path) -> None:
    records, models = values()
    writer = begin(tmp_path / "toy.zarr")
    writer.write(10, records[10:], models[10:])
    assert writer.missing() == [range(0, 10)]
    writer.write(0, records[:10], models[:10])
    assert np.array_equal(writer.finish().read(range(SAMPLES))[0], records)


@pytest.mark.parametrize(("first", "count"), [(5, 10), (0, 5), (20, 10), (-10, 10), (0, 0), (10, 12)])
def test_parts_of_shards_are_refused(tmp_path: Path, first: int, count: int) -> None:
    records, models = values(30)
    with pytest.raises(DataError, match=r"are no whole shards of .*: it has 25 samples in shards of 10"):
        begin(tmp_path / "toy.zarr").write(first, records[:count], models[:count])


def _set(index: tuple[int, ...], value: float, which: int) -> Callable[[list[np.ndarray]], None]:
    def change(arrays: list[np.ndarray]) -> None:
        arrays[which][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set((3, 1, 2, 0), np.nan, 0), r"records of sample 13 \(row 3 of a file\) span nan to nan and hold NaN"),
        (_set((2, 0, 0), -np.inf, 1), r"models of sample 12 .* hold NaN or infinity"),
        (_set((9, 0, 0), 0.0, 1), r"models of sample 19 .* span 0 to .* must be positive velocities in m/s"),
        (_set((4,), 3.5, 1), r"models of sample 14 .* span 3.5 to 3.5 and must be positive velocities in m/s"),
        (_set((6, 0, 0, 0), 7e4, 0), r"records of sample 16 .* to 70000 beyond 65504, where float16 ends"),
    ],
)
def test_values_that_no_store_should_hold(
    tmp_path: Path, change: Callable[[list[np.ndarray]], None], words: str
) -> None:
    arrays = [array[10:20] for array in values()]
    change(arrays)
    writer = begin(tmp_path / "toy.zarr", dtype="float16")
    with pytest.raises(DataError, match=words):
        writer.write(10, arrays[0], arrays[1], origin=lambda sample: f"row {sample - 10} of a file")
    assert len(writer.missing()) == 3


def test_shapes_and_types_are_checked(tmp_path: Path) -> None:
    records, models = values(10)
    writer = begin(tmp_path / "toy.zarr")
    with pytest.raises(DataError, match=r"models for .* are float32\[10, 5, 5\]: they must be float32\[10, 5, 6\]"):
        writer.write(0, records, models[:, :, :5])
    with pytest.raises(DataError, match=r"records for .* are complex64\[10, 2, 20, 6\]"):
        writer.write(0, records.astype(np.complex64), models)


def test_a_store_that_was_deleted_is_not_written_on(tmp_path: Path) -> None:
    writer = begin(tmp_path / "toy.zarr")
    shutil.rmtree(writer.part)
    with pytest.raises(DataError, match=r"toy\.zarr\.part is gone: it was deleted while it was written"):
        fill(writer, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_said_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"will take 0\.0 GB, and its disk has 0\.0 GB left: make room"):
        begin(tmp_path / "toy.zarr")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    writer = fill(begin(tmp_path / "toy.zarr"), 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"Shard 1 cannot be written .*No space left.*start the same command again"):
        fill(writer, 1)
    monkeypatch.undo()
    assert len(writer.missing()) == 2
    assert list(writer.part.rglob(".*.tmp")) == []


def test_impossible_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    for change, words in (
        ({"samples": 0}, "is impossible: sizes start from 1"),
        ({"dtype": "float64"}, "records are float32 or float16"),
        ({"physics": {"dx_m": 1.0}}, "lack dz_m, dt_s, peak_hz, sources_m"),
        ({"physics": {**PHYSICS, "dx_m": float("nan")}}, "must be plain JSON values"),
        ({"splits": {"train": range(20), "test": range(19, 25)}}, r"Split 'train' is range\(0, 20\)"),
        ({"splits": {"test": range(30)}}, r"Split 'test' is range\(0, 30\).*0 to 24"),
    ):
        with pytest.raises(DataError, match=words):
            begin(path, **change)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_mapped_where_it_stays_in_memory(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SAMPLES * (4 * 2 * 20 * 6 + 4 * 5 * 6)
    for memory, mapped in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr("hpfwi.store.page_cache.memory_bytes", lambda memory=memory: memory)
        assert open_pairs(store.path)._records.mapped is mapped
    monkeypatch.undo()
    assert 2**27 < page_cache.memory_bytes() < 2**50


def test_samples_are_asked_for_before_they_are_read(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once where files stay in memory, else every time; what does not exist is left to whoever reads it."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(shard_reader._ShardFile, "expect", lambda self, *place: asked.append(place))
    for _ in range(2):
        store._models.expect([3, 12])
    size = 4 * MODEL[0] * MODEL[1]
    once = [(3 * size, size), (2 * size, size)]
    assert asked == (once if store._models.mapped else 2 * once)
    monkeypatch.undo()
    assert np.array_equal(store.read(range(SAMPLES))[0], values()[0])


def test_samples_that_do_not_exist(store: PairStore) -> None:
    for sample in (-1, 25):
        with pytest.raises(DataError, match=f"Sample {sample} does not exist: .* has samples 0 to 24"):
            store.read([sample])


def test_a_store_may_be_pickled_and_read_from_many_threads(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one open file only, threads that read from others keep theirs."""
    monkeypatch.setattr(shard_reader, "OPEN_FILES", 1)
    records, _ = values()
    before = len(os.listdir("/proc/self/fd"))
    copies = [pickle.loads(pickle.dumps(store))]
    wrong: list[int] = []

    def work(seed: int) -> None:
        samples = np.random.default_rng(seed).integers(0, SAMPLES, 150).tolist()
        wrong.extend(
            sample for sample in samples if not np.array_equal(copies[0].read([sample])[0][0], records[sample])
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the last shard of the records and of the models
    copies.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_leftovers_of_a_kill_go_away(tmp_path: Path) -> None:
    """A writer that was killed in the middle of a file leaves its temporary name, which nothing takes for a shard."""
    writer = begin(tmp_path / "toy.zarr")
    left = writer.part / "records" / "c" / "0" / "0" / "0" / ".0.12345678.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    store = fill(writer).finish()
    assert list(store.path.rglob(".*")) == []


def test_statistics_do_not_depend_on_the_cut() -> None:
    rows = np.random.default_rng(3).normal(3000, 500, (12, 50)).astype(np.float32)
    whole = pair_values.statistics_of([pair_values.sums_of(rows, as_float16=False)])
    parts = pair_values.statistics_of(
        pair_values.sums_of(part, as_float16=False) for part in np.array_split(rows, [1, 5, 6])
    )
    assert parts == pytest.approx(whole, rel=1e-12)
    assert pair_writer.shard_samples_for(3, 8) == 3
