import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.survey import Survey
from hpfwi.store.gathers import open_gathers, write_gathers

SHOTS, RECEIVERS, SAMPLES = 4, 3, 25


@pytest.fixture
def survey() -> Survey:
    random = np.random.default_rng(0)
    receivers = random.uniform(0, 100, (SHOTS, RECEIVERS, 2))
    receivers[1, 2] = np.nan
    return Survey(random.uniform(0, 100, (SHOTS, 1, 2)), receivers, 0.0019, SAMPLES)


@pytest.fixture
def gathers() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(SHOTS, RECEIVERS, SAMPLES)).astype(np.float32)


@pytest.fixture
def wavelet() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(SHOTS, 1, SAMPLES)).astype(np.float32)


def test_round_trip(tmp_path: Path, gathers: np.ndarray, survey: Survey, wavelet: np.ndarray) -> None:
    write_gathers(tmp_path / "line" / "g.zarr", gathers, survey, wavelet, {"vessel": "none"})
    store = open_gathers(tmp_path / "line" / "g.zarr")
    assert store.shape == (SHOTS, RECEIVERS, SAMPLES)
    assert store.survey.dt_s == 0.0019
    assert np.array_equal(store.survey.receivers_m, survey.receivers_m, equal_nan=True)
    assert np.array_equal(store.survey.sources_m, survey.sources_m)
    assert store.wavelet is not None
    assert np.array_equal(store.wavelet, wavelet)
    assert store.provenance == {"vessel": "none"}
    assert np.array_equal(store.read([3, 0]), gathers[[3, 0]])
    assert store.read([]).shape == (0, RECEIVERS, SAMPLES)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(range(SHOTS)), gathers)


def test_one_chunk_per_shot_in_zarr_3(tmp_path: Path, gathers: np.ndarray, survey: Survey) -> None:
    write_gathers(tmp_path / "g.zarr", gathers, survey, None)
    array = zarr.open_group(str(tmp_path / "g.zarr"), mode="r")["gathers"]
    assert isinstance(array, zarr.Array)
    assert array.chunks == (1, RECEIVERS, SAMPLES)
    assert array.metadata.zarr_format == 3
    assert open_gathers(tmp_path / "g.zarr").wavelet is None


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, gathers: np.ndarray, survey: Survey, wavelet: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = zarr.Group.create_array

    def failing(self: zarr.Group, name: str, **options: object) -> object:
        if name == "wavelet":
            raise KeyboardInterrupt
        return create(self, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.Group, "create_array", failing)
    with pytest.raises(KeyboardInterrupt):
        write_gathers(tmp_path / "g.zarr", gathers, survey, wavelet)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_has_to_be_allowed(tmp_path: Path, gathers: np.ndarray, survey: Survey) -> None:
    write_gathers(tmp_path / "g.zarr", gathers, survey, None)
    with pytest.raises(ConfigError, match="exists already"):
        write_gathers(tmp_path / "g.zarr", gathers, survey, None)
    write_gathers(tmp_path / "g.zarr", 2 * gathers, survey, None, overwrite=True)
    assert np.array_equal(open_gathers(tmp_path / "g.zarr").read([1]), 2 * gathers[[1]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.zarr"]


def test_refused_writes(tmp_path: Path, gathers: np.ndarray, survey: Survey, wavelet: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 3, 25\) do not fit .* are \(4, 3, 25\)"):
        write_gathers(tmp_path / "g.zarr", gathers[:3], survey, wavelet)
    with pytest.raises(DataError, match=r"a wavelet of shape \(4, 1, 24\) does not fit"):
        write_gathers(tmp_path / "g.zarr", gathers, survey, wavelet[..., 1:])
    gathers[2, 1, 7] = np.nan
    with pytest.raises(DataError, match="gather of shot 2 holds NaN"):
        write_gathers(tmp_path / "g.zarr", gathers, survey, wavelet)
    assert list(tmp_path.iterdir()) == []


def edit_attributes(folder: Path, **changes: object) -> None:
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"] |= changes
    (folder / "zarr.json").write_text(json.dumps(metadata))


def test_refused_folders(tmp_path: Path, gathers: np.ndarray, survey: Survey, wavelet: np.ndarray) -> None:
    good = tmp_path / "good.zarr"
    write_gathers(good, gathers, survey, wavelet)

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    with pytest.raises(DataError, match="does not exist"):
        open_gathers(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is not a Zarr group"):
        open_gathers(tmp_path / "folder")

    edit_attributes(damaged("format"), format="other")
    with pytest.raises(DataError, match="its format is 'other', not 'hpfwi-gathers'"):
        open_gathers(tmp_path / "format")
    edit_attributes(damaged("version"), version=99)
    with pytest.raises(DataError, match="format version 99, and this program reads 1"):
        open_gathers(tmp_path / "version")
    edit_attributes(damaged("dt"), dt_s="fast")
    with pytest.raises(DataError, match="dt_s='fast'"):
        open_gathers(tmp_path / "dt")

    for name in ("gathers", "sources_m", "receivers_m"):
        shutil.rmtree(damaged(f"no_{name}") / name)
        with pytest.raises(DataError, match=f"has no array '{name}'"):
            open_gathers(tmp_path / f"no_{name}")

    fewer = tmp_path / "fewer.zarr"
    write_gathers(fewer, gathers[:3], survey.subset([0, 1, 2]), None)
    mixed = damaged("mixed")
    shutil.rmtree(mixed / "gathers")
    shutil.copytree(fewer / "gathers", mixed / "gathers")
    with pytest.raises(DataError, match=r"contradicts itself: gathers of shape \(3, 3, 25\), positions of 4 shots"):
        open_gathers(mixed)


def test_damaged_shots_are_named_and_others_still_read(
    tmp_path: Path, gathers: np.ndarray, survey: Survey, wavelet: np.ndarray
) -> None:
    write_gathers(tmp_path / "g.zarr", gathers, survey, wavelet)
    chunks = tmp_path / "g.zarr" / "gathers" / "c"
    (chunks / "1" / "0" / "0").unlink()
    (chunks / "2" / "0" / "0").write_bytes(b"damage")
    store = open_gathers(tmp_path / "g.zarr")
    assert np.array_equal(store.read([0, 3]), gathers[[0, 3]])
    with pytest.raises(DataError, match=r"Shot 1 of .* holds NaN or infinity, or its chunk is missing"):
        store.read([0, 1])
    with pytest.raises(DataError, match="Shot 2 cannot be read"):
        store.read([2])
    with pytest.raises(DataError, match=r"Shot 4 does not exist: .* has shots 0 to 3"):
        store.read([4])
