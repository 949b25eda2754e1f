"""Shards: zarr-python's are read and ours are read by it; samples copied past the caches are the same samples."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpfwi.store import shard_reader, shards
from hpfwi.store.past_caches import copy_rows
from hpfwi.store.shard_reader import ShardReader
from hpfwi.store.shards import Layout


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4)),
    shard=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "float16"]),
    compression=st.sampled_from(["none", "lz4"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_of_zarr_are_read_and_ours_are_read_by_zarr(
    tmp_path: Path, shape: tuple[int, int, int], shard: int, dtype: str, compression: Any, seed: int
) -> None:
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    layout = Layout(shape, shard, dtype, compression)
    expected = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    for name in ("theirs", "ours"):
        shards.create_array(tmp_path / "a", name, layout)
        assert shards.read_layout(tmp_path / "a" / name) == layout
        array: Any = zarr.open_array(str(tmp_path / "a" / name), mode="r+")
        if name == "theirs":
            array[:] = expected
        else:
            for number in range(layout.shards):
                rows = expected[layout.samples_of(number).start : layout.samples_of(number).stop]
                shards.write_shard(tmp_path / "a" / name / layout.file_of(number), rows, layout)
            assert np.array_equal(array[:], expected)
        for mapped in (False, True):
            reader = ShardReader(tmp_path / "a" / name, layout, mapped)
            out = np.full(shape[1:], np.nan, np.float32)
            for sample in range(shape[0]):
                reader.read_into(sample, out)
                assert np.array_equal(out, expected[sample].astype(np.float32))


@given(
    length=st.integers(1, 300),
    rows=st.permutations(range(6)),
    shift=st.integers(0, 16),
    source_shift=st.integers(0, 16),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_copied_whole_wherever_they_lie(length: int, rows: list[int], shift: int, source_shift: int) -> None:
    """Every alignment of source and target to the vectors, rows shorter than one, and nothing beside the rows."""
    values = np.random.default_rng(length).normal(size=4 * length + source_shift).astype(np.float32)
    sources = values[source_shift:].reshape(4, length)
    memory = np.full(6 * length + 40, np.nan, np.float32)
    out = memory[shift : shift + 6 * length].reshape(6, length)
    copy_rows([row.ctypes.data for row in sources], rows[:4], out)
    assert np.array_equal(out[rows[:4]], sources)
    assert np.isnan(out[rows[4:]]).all()
    assert np.isnan(memory[:shift]).all()
    assert np.isnan(memory[shift + 6 * length :]).all()


def test_large_samples_are_copied_past_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are mapped and the reader prepared; a shard whose samples lie in another order is read one by one."""
    layout = Layout((25, 3, 50), 10)
    expected = np.random.default_rng(1).normal(size=layout.shape).astype(np.float32)
    shards.create_array(tmp_path, "a", layout)
    array: Any = zarr.open_array(str(tmp_path / "a"), mode="r+")
    array[:] = expected
    reader = ShardReader(tmp_path / "a", layout, mapped=True)
    reader.prepare()
    assert reader._copy_rows is None  # small samples stay in the caches
    monkeypatch.setattr(shard_reader, "LARGE_BYTES", layout.sample_bytes)
    unmapped = ShardReader(tmp_path / "a", layout)
    for one in (reader, unmapped):
        one.prepare()
    assert unmapped._copy_rows is None
    copied: list[int] = []
    assert reader._copy_rows is not None
    monkeypatch.setattr(reader, "_copy_rows", lambda *given: (copied.extend(given[1]), copy_rows(*given)))
    file = reader._file(1)
    file._rows, file.address = None, 0  # as if its samples did not lie one after another
    samples = [24, 3, 11, 0, 19, 20]
    out = np.full((8, *layout.shape[1:]), np.nan, np.float32)
    reader.read_rows([(row + 1, sample) for row, sample in enumerate(samples)], out)
    assert np.array_equal(out[1:7], expected[samples])
    assert np.isnan(out[[0, 7]]).all()
    assert copied == [1, 2, 4, 6]
    other = pickle.loads(pickle.dumps(reader))
    other.read_rows([(0, 13)], out)
    assert np.array_equal(out[0], expected[13])
