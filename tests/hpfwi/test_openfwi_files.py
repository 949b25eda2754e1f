"""OpenFWI's files in both layouts: every one is found, numbered and split rightly, and a damaged one is named."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi.errors import ConfigError, DataError
from hpfwi.store.convert import convert
from hpfwi.store.npy_files import open_npy
from hpfwi.store.openfwi_families import FAMILIES, MARMOUSI, family_named, physics_of, split_files
from hpfwi.store.openfwi_files import NpyPairs, open_openfwi
from hpfwi.store.pair_check import source_velocity_gap

RECORDS, MODEL = (2, 20, 6), (5, 6)
SHARED_DATA = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
RECORD = SHARED_DATA / "dl" / "openfwi_waveforms_000039dca2.npy"


def write_pair(records: Path, models: Path, number: float, samples: int = 2, channel: bool = True) -> None:
    """Samples whose values say which file and row they are from: number + row / 10, velocities 1000 more."""
    rows = number + np.arange(samples, dtype=np.float32) / 10
    for path, shape, start in ((records, RECORDS, 0.0), (models, ((1,) if channel else ()) + MODEL, 1000.0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.broadcast_to((rows + start).reshape(-1, *[1] * len(shape)), (samples, *shape)).astype("f4"))


def write_family(folder: Path, name: str, layout: str = "openfwi", samples: int = 2) -> None:
    """Every file of a family; the number in file k of the official order is k."""
    family = family_named(name)
    assert family is not None
    for split, first, ids in (("train", 0, family.train), ("test", len(family.train), family.test)):
        for place, one in enumerate(ids):
            if layout == "amfms":
                place_of = folder / f"{split}_data"
                pair = place_of / "seismic" / f"seismic{place + 1}.npy", place_of / "vmodel" / f"vmodel{place + 1}.npy"
            else:
                inner = ("data", "model") if layout == "folders" else ("", "")
                pair = folder / inner[0] / f"{family.records}{one}.npy", folder / inner[1] / f"{family.models}{one}.npy"
            write_pair(*pair, first + place, samples)


def found(folder: Path, **options: Any) -> NpyPairs:
    return open_openfwi(folder, records_shape=RECORDS, model_shape=MODEL, **options)


def test_the_official_splits() -> None:
    sizes = {family.name: (500 * len(family.train), 500 * len(family.test)) for family in FAMILIES}
    assert len(sizes) == 11
    for name, size in sizes.items():
        if name != MARMOUSI:
            assert (
                size
                == {"V": (24_000, 6_000), "F": (48_000, 6_000), "S": (60_000, 7_000)}[
                    next(letter for letter in "VFS" if letter in name.replace("FlatF", "F").replace("FlatV", "V"))
                ]
            )
    fault = family_named("flatfault_b")
    assert fault is not None
    assert (fault.train[0], fault.train[31], fault.train[32], fault.test[0]) == ("6_1_0", "6_1_31", "7_1_0", "6_1_32")


def test_the_split_of_the_amfms_release() -> None:
    for name in ("FlatFault-A", "CurveFault-A", "CurveVel-B"):
        family = family_named(name)
        assert family is not None
        files = split_files(family, "amfms")
        assert sorted(files["train"] + files["test"]) == sorted(family.train + family.test)
        assert len(files["train"]) == len(family.train)
    curve = split_files(FAMILIES[6], "amfms")
    assert (curve["train"][-1], curve["test"]) == ("4_1_35", tuple(f"4_1_{number}" for number in range(12)))
    with pytest.raises(ConfigError, match="state no split of Style-A: use --split openfwi"):
        split_files(FAMILIES[8], "amfms")


@pytest.mark.parametrize(
    ("name", "layout"),
    [("FlatVel_A", "openfwi"), ("CurveVel_B", "folders"), ("CurveFault_B", "openfwi"), ("FlatFaultA", "amfms")],
)
def test_every_file_is_found_and_numbered(tmp_path: Path, name: str, layout: str) -> None:
    write_family(tmp_path / name, name, layout)
    pairs = found(tmp_path / name)
    files = len(pairs.files)
    assert pairs.family.replace("-", "") == name.replace("_", "")
    assert (pairs.samples, pairs.records_shape, pairs.model_shape) == (2 * files, RECORDS, MODEL)
    train = 2 * (96 if "Fault" in name else 48)
    assert pairs.splits == {"train": range(train), "test": range(train, 2 * files)}
    records, models = pairs.read(range(pairs.samples))
    expected = (np.repeat(np.arange(files), 2) + np.tile([0, 0.1], files)).astype(np.float32)
    assert np.array_equal(records[:, 0, 0, 0], expected)
    assert np.array_equal(records[:, -1, -1, -1], expected)
    assert np.allclose(models[:, -1, -1], expected + 1000, atol=1e-3)
    part_records, part_models = pairs.read(range(3, 8))
    assert np.array_equal(part_records, records[3:8])
    assert np.array_equal(part_models, models[3:8])
    assert pairs.origin(3).startswith("row 1 of ")
    assert len(pairs.provenance["files"]) == 2 * files
    assert not any("/tmp" in entry["file"] for entry in pairs.provenance["files"])


def test_the_amfms_split_orders_the_files_anew(tmp_path: Path) -> None:
    write_family(tmp_path / "CurveFault_A", "CurveFault_A")
    family = FAMILIES[6]
    official = [*family.train, *family.test]
    pairs = found(tmp_path / "CurveFault_A", split="amfms")
    order = [official.index(one) for names in split_files(family, "amfms").values() for one in names]
    assert pairs.read(range(pairs.samples))[0][::2, 0, 0, 0].astype(int).tolist() == order


def test_slices_of_marmousi_end_in_shorter_files(tmp_path: Path) -> None:
    for split, count in (("train", 62), ("test", 1)):
        for number in range(1, count + 1):
            folder = tmp_path / f"{split}_data"
            short = 1 if number == count else 2
            write_pair(folder / f"seismic/seismic{number}.npy", folder / f"vmodel/vmodel{number}.npy", number, short)
    pairs = found(tmp_path, family="marmousi slices")
    assert pairs.splits == {"train": range(123), "test": range(123, 124)}
    assert pairs.physics["sources_m"] is None
    assert pairs.physics["recipe"] == "unknown"


def test_the_physics_of_the_records() -> None:
    physics = physics_of(FAMILIES[0], (5, 1000, 70), (70, 70))
    assert [x_m for _, x_m in physics["sources_m"]] == [0.0, 170.0, 340.0, 520.0, 690.0]
    assert {z_m for z_m, _ in physics["sources_m"] + physics["receivers_m"]} == {10.0}
    assert len(physics["receivers_m"]) == 70
    assert (physics["dx_m"], physics["dt_s"], physics["peak_hz"]) == (10.0, 0.001, 15.0)


@pytest.mark.skipif(not RECORD.is_file(), reason="the shared OpenFWI record is not on this machine")
def test_a_published_record_tells_the_velocity_under_its_sources() -> None:
    """The velocities were found from this record by other means; a wrong column or wavelet gives others."""
    physics = physics_of(FAMILIES[0], (5, 1000, 70), (70, 70))
    record = np.load(RECORD, allow_pickle=False)[None]
    model = np.full((1, 70, 70), 1.0, np.float32)
    model[0, 1, [0, 17, 34, 52, 69]] = [1630.6, 1638.8, 1641.2, 1636.7, 1694.1]
    gap = source_velocity_gap(record, model, physics)
    assert gap is not None
    assert gap[0] < 5e-5  # the velocities have five digits
    model[0, 1, 52] *= 1.02
    gap = source_velocity_gap(record, model, physics)
    assert gap is not None
    assert gap[0] == pytest.approx(0.02, rel=0.05)


def test_a_family_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        open_openfwi(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"named after none of the families: give --family with one of FlatVel-A, Fl"):
        open_openfwi(tmp_path)
    with pytest.raises(ConfigError, match="'FlatVel-C' is none of the families"):
        open_openfwi(tmp_path, family="FlatVel-C")
    with pytest.raises(DataError, match=r"holds no files of Style-B, such as .*data1\.npy and .*model1\.npy"):
        open_openfwi(tmp_path, family="Style-B")


def test_missing_files_and_halves(tmp_path: Path) -> None:
    for number in (1, 2, 50):
        write_pair(tmp_path / f"data{number}.npy", tmp_path / f"model{number}.npy", number)
    with pytest.raises(DataError, match=r"114 files of FlatVel-A are missing in .* \(data3\.npy, model3\.npy, data4"):
        found(tmp_path, family="FlatVel-A")
    pairs = found(tmp_path, family="FlatVel-A", partial=True)
    assert pairs.splits == {"train": range(4), "test": range(4, 6)}
    assert len(pairs.missing) == 114
    (tmp_path / "model2.npy").unlink()
    with pytest.raises(DataError, match=r"data2\.npy is there and .*model2\.npy is not: half of a pair"):
        found(tmp_path, family="FlatVel-A", partial=True)
    (tmp_path / "data2.npy").rename(tmp_path / "data61.npy")
    with pytest.raises(DataError, match=r"data61\.npy is none of the 60 files data….npy that FlatVel-A has there"):
        found(tmp_path, family="FlatVel-A", partial=True)


def test_a_short_file_in_the_middle(tmp_path: Path) -> None:
    write_family(tmp_path, "FlatVel-A")
    write_pair(tmp_path / "data7.npy", tmp_path / "model7.npy", 7, samples=1)
    with pytest.raises(DataError, match=r"data7\.npy holds 1 samples and .*data1\.npy 2: fetch it again"):
        found(tmp_path, family="FlatVel-A")
    assert found(tmp_path, family="FlatVel-A", partial=True).samples == 119


def header(claim: str) -> bytes:
    """The beginning of a .npy file with this header."""
    text = (claim + " " * (118 - len(claim) - 1) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def saved(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


GOOD = np.ones((2, *RECORDS), np.float32)
CLAIM = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
MALFORMED = {
    "empty": (b"", r"is no \.npy file"),
    "text": (b"<html>not found</html>", r"is no \.npy file .*magic string is not correct"),
    "truncated header": (saved(GOOD)[:40], r"is no \.npy file"),
    "truncated": (saved(GOOD)[:-1], r"claims float32\[2, 2, 20, 6\], 1920 bytes, and holds 1919: fetch or write"),
    "too long": (saved(GOOD) + b"x", "1920 bytes, and holds 1921"),
    "a claim beyond the file": (header(CLAIM % "(4611686018427387904, 4, 1)") + b"0" * 64, "and holds 64"),
    "a negative claim": (header(CLAIM % "(-2, 2, 20, 6)") + b"0" * 64, "holds no samples"),
    "no shape": (saved(np.float32(3)), "holds no samples"),
    "code": (header("__import__('os').system('touch /tmp/never')"), r"is no \.npy file"),
    "objects": (saved(np.array([{"a": 1}]), allow_pickle=True), "holds Python objects, which are never loaded"),
    "text values": (saved(np.array(["a", "b"])), "values of type <U1: they must be real numbers"),
    "complex": (saved(GOOD.astype(complex)), "they must be real numbers"),
    "Fortran order": (saved(np.asfortranarray(GOOD)), "is in Fortran order"),
    "another version": (b"\x93NUMPY\x09\x00" + saved(GOOD)[8:], r"is no \.npy file"),
    "another shape": (
        saved(np.ones((2, 2, 20, 5), "f4")),
        r"float32\[2, 2, 20, 5\]: records must be float32\[n, 2, 20",
    ),
    "integers": (saved(GOOD.astype(np.int32)), "holds int32: records are amplitudes in float32"),
    "another number": (saved(np.ones((3, *RECORDS), "f4")), r"holds 3 samples and .*model1\.npy 2: they are no pair"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_named(tmp_path: Path, kind: str) -> None:
    content, words = MALFORMED[kind]
    write_pair(tmp_path / "data1.npy", tmp_path / "model1.npy", 1)
    (tmp_path / "data1.npy").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        found(tmp_path, family="FlatVel-A", partial=True)
    assert "data1.npy" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_models_of_another_shape_are_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "data1.npy", tmp_path / "model1.npy", 1, channel=False)
    assert found(tmp_path, family="FlatVel-A", partial=True).model_shape == MODEL
    np.save(tmp_path / "model1.npy", np.ones((2, 3, *MODEL), "f4"))
    with pytest.raises(DataError, match=r"velocities must be float32\[n, 1, 5, 6\] or \[n, 5, 6\]"):
        found(tmp_path, family="FlatVel-A", partial=True)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GOOD)
    file = open_npy(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 1500)
    assert file.read(0, 1).sum() == 240
    with pytest.raises(DataError, match="ends in sample 1: it became shorter while it was read"):
        file.read(1, 1)


def test_other_types_are_converted_and_noted(tmp_path: Path) -> None:
    write_pair(tmp_path / "data1.npy", tmp_path / "model1.npy", 1)
    np.save(tmp_path / "data1.npy", (GOOD * 0.1).astype(">f8"))
    np.save(tmp_path / "model1.npy", np.full((2, *MODEL), 1500, np.int64))
    pairs = found(tmp_path, family="FlatVel-A", partial=True)
    records, models = pairs.read(range(2))
    assert records.dtype == models.dtype == np.float32
    assert (float(records[0, 0, 0, 0]), float(models[1, 0, 0])) == (float(np.float32(0.1)), 1500.0)
    assert pairs.provenance["types"] == {"records": ">f8", "models": "int64"}


def test_a_family_becomes_a_store(tmp_path: Path) -> None:
    write_family(tmp_path / "FlatVel_A", "FlatVel_A", samples=3)
    pairs = found(tmp_path / "FlatVel_A")
    seen: list[tuple[int, int]] = []
    store = convert(pairs, tmp_path / "a.zarr", shard_samples=7, progress=lambda *now: seen.append(now))
    records, models = pairs.read(range(pairs.samples))
    assert np.array_equal(store.read(range(store.samples))[0], records)
    assert np.array_equal(store.read(range(store.samples))[1], models)
    assert store.splits == {"train": range(144), "test": range(144, 180)}
    assert store.physics == pairs.physics
    assert (seen[0], seen[-1]) == ((0, 180), (180, 180))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nan_in_a_file_is_named_by_file_and_row(tmp_path: Path) -> None:
    write_family(tmp_path / "FlatVel_A", "FlatVel_A")
    values = np.load(tmp_path / "FlatVel_A" / "data3.npy")
    values[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "FlatVel_A" / "data3.npy", values)
    with pytest.raises(DataError, match=r"records of sample 5 \(row 1 of data3\.npy and model3\.npy\) span nan"):
        convert(found(tmp_path / "FlatVel_A"), tmp_path / "a.zarr", shard_samples=4)
    assert not (tmp_path / "a.zarr").exists()
    values[1, 0, 0, 0] = 0.0
    np.save(tmp_path / "FlatVel_A" / "data3.npy", values)
    assert convert(found(tmp_path / "FlatVel_A"), tmp_path / "a.zarr", shard_samples=4).samples == 120
