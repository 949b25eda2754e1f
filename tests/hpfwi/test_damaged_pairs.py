"""Stores of pairs that were damaged, cut or changed, and folders that are none: each is named, with what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hpfwi.errors import DataError
from hpfwi.store import shard_reader
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.store.pair_writer import create_pairs
from hpfwi.store.shards import ABSENT

SAMPLES, RECORDS, MODEL, SHARD = 25, (2, 20, 6), (5, 6), 10
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")


def values() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    records = random.normal(size=(SAMPLES, *RECORDS)).astype(np.float32)
    return records, random.uniform(1500, 4500, (SAMPLES, *MODEL)).astype(np.float32)


def make(path: Path, **changes: Any) -> PairStore:
    options: dict[str, Any] = {
        "samples": SAMPLES,
        "records_shape": RECORDS,
        "model_shape": MODEL,
        "family": "toy",
        "physics": dict.fromkeys(NAMES),
        "shard_samples": SHARD,
    }
    writer = create_pairs(path, **options | changes)
    if writer.missing():
        writer.write(0, *values())
    return writer.finish()


@pytest.fixture(params=["read", "mapped", "past caches"])
def store(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PairStore:
    make(tmp_path / "toy.zarr")
    monkeypatch.setattr(shard_reader, "LARGE_BYTES", 1)
    opened = open_pairs(tmp_path / "toy.zarr", mapped=request.param != "read")
    if request.param == "past caches":
        opened.prepare()
    return opened


def shard_file(store: PairStore, name: str = "records", shard: int = 1) -> Path:
    return store.path / name / "c" / str(shard) / ("0/0/0" if name == "records" else "0/0")


def rewrite_index(file: Path, row: int, offset: int, length: int) -> None:
    """Give one sample of a shard another place, with a checksum that is right."""
    import google_crc32c

    content = bytearray(file.read_bytes())
    start = len(content) - 4 - 16 * SHARD
    content[start + 16 * row : start + 16 * row + 16] = np.array([offset, length], "<u8").tobytes()
    content[-4:] = google_crc32c.value(bytes(content[start:-4])).to_bytes(4, "little")
    file.write_bytes(content)


SAMPLE_BYTES = 2 * 20 * 6 * 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.unlink(), r"Shard .*records/c/1/0/0/0 cannot be opened \(No such file"),
        (lambda file: file.write_bytes(b"short"), "has 5 bytes, fewer than its index alone"),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "index of shard .* does not match its checksum"),
        (lambda file: file.write_bytes(file.read_bytes()[10:]), r"Sample 9 of shard .* claims bytes 8640 to 9600"),
        (lambda file: rewrite_index(file, 3, 0, SAMPLE_BYTES + 4), "Sample 3 of shard .* claims bytes 0 to 964"),
        (lambda file: rewrite_index(file, 3, 2**63, SAMPLE_BYTES), "Sample 3 of shard .* claims bytes"),
        (lambda file: rewrite_index(file, 3, 9000, SAMPLE_BYTES), "claims bytes 9000 to 9960 of a file with 9600"),
        (lambda file: rewrite_index(file, 3, ABSENT, ABSENT), "does not hold its sample 3"),
    ],
)
def test_a_damaged_shard_is_named(store: PairStore, damage: Callable[[Path], None], words: str) -> None:
    damage(shard_file(store))
    assert np.array_equal(store.read([0, 24])[0], values()[0][[0, 24]])
    with pytest.raises(DataError, match=words):
        store.read([13])


@pytest.mark.parametrize("place", [4, 12, 0, 40])
def test_a_compressed_sample_that_claims_more_than_it_holds(tmp_path: Path, place: int) -> None:
    """Bytes 4 to 8 claim the unpacked size, 12 to 16 the packed one; byte 0 is the version, byte 40 content."""
    store = make(tmp_path / "toy.zarr", compression="lz4")
    file = shard_file(store)
    content = bytearray(file.read_bytes())
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    file.write_bytes(content)
    if place == 40:  # it may unpack to something else: that is for `verify` to find
        with contextlib.suppress(DataError):
            assert store.read([10])[0].shape == (1, *RECORDS)
        return
    words = "cannot be unpacked" if place == 0 else "claims to unpack"
    with pytest.raises(DataError, match=rf"Sample 0 of shard .*records/c/1/0/0/0 {words}"):
        store.read([10])


def test_a_shard_that_is_cut_while_it_is_open(store: PairStore) -> None:
    assert np.array_equal(store.read([10])[0][0], values()[0][10])
    os.truncate(shard_file(store), 5000)
    with pytest.raises(DataError, match=r"records/c/1/0/0/0 (ends in the middle of a sample|became shorter since)"):
        store.read([19])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("samples", 10**12, "does not match its own sha256"),
        ("format", "other", "is 'other' version 2, and this program reads 'hpfwi-pairs' versions 1 and 2"),
        ("version", 3, "is 'hpfwi-pairs' version 3, and this program reads 'hpfwi-pairs' versions 1 and 2"),
    ],
)
def test_a_manifest_that_was_changed(store: PairStore, key: str, value: Any, words: str) -> None:
    file = store.path / "zarr.json"
    group = json.loads(file.read_text())
    group["attributes"][key] = value
    file.write_text(json.dumps(group))
    with pytest.raises(DataError, match=words):
        open_pairs(store.path)


def test_arrays_that_contradict_the_manifest(store: PairStore) -> None:
    file = store.path / "records" / "zarr.json"
    text = file.read_text()
    file.write_text(text.replace("20,", "21,"))
    with pytest.raises(DataError, match=r"records/zarr\.json contradicts the manifest|not one that hpfwi writes"):
        open_pairs(store.path)
    file.write_text(text.replace('"crc32c"', '"other"'))
    with pytest.raises(DataError, match="is a Zarr array, but not one that hpfwi writes"):
        open_pairs(store.path)
    file.write_text("{")
    with pytest.raises(DataError, match=r"records/zarr\.json cannot be read"):
        open_pairs(store.path)


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_pairs(tmp_path / "nothing.zarr")
    with pytest.raises(DataError, match=r"is no store of pairs \(it has no zarr\.json\)"):
        open_pairs(tmp_path)
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(DataError, match="is no store of pairs"):
        open_pairs(tmp_path / "other.zarr")
    (tmp_path / "toy.zarr.part").mkdir()
    with pytest.raises(DataError, match=r"toy\.zarr\.part is no unfinished store of pairs"):
        open_pairs(tmp_path / "toy.zarr")
    with pytest.raises(DataError, match="delete it and start again"):
        make(tmp_path / "toy.zarr")
