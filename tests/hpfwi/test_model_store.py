import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.store.models import read_model, write_model_zarr

SHARED_DATA = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
MODELS = SHARED_DATA / "models"

VELOCITY = np.random.default_rng(0).uniform(1500, 4500, (6, 9)).astype(np.float32)
SPACING_M = (10.0, 12.5)


@pytest.fixture
def earth() -> EarthModel:
    return EarthModel(VELOCITY, Grid((6, 9), SPACING_M, (0.0, 100.0)))


def test_zarr_round_trip(tmp_path: Path, earth: EarthModel) -> None:
    write_model_zarr(tmp_path / "m.zarr", earth, {"from": "a test"})
    back = read_model(tmp_path / "m.zarr")
    assert (back.velocity == VELOCITY).all()
    assert back.grid == earth.grid
    assert zarr.open_group(str(tmp_path / "m.zarr"), mode="r").attrs["provenance"] == {"from": "a test"}
    assert read_model(tmp_path / "m.zarr", (5.0, 5.0)).grid.spacing_m == (5.0, 5.0)


def test_an_existing_model_is_replaced_only_when_asked(tmp_path: Path, earth: EarthModel) -> None:
    write_model_zarr(tmp_path / "m.zarr", earth)
    with pytest.raises(ConfigError, match="exists already"):
        write_model_zarr(tmp_path / "m.zarr", earth)
    faster = EarthModel(VELOCITY + 1, earth.grid)
    write_model_zarr(tmp_path / "m.zarr", faster, overwrite=True)
    assert (read_model(tmp_path / "m.zarr").velocity == VELOCITY + 1).all()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.zarr"]


def test_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VELOCITY.astype(np.float64))
    np.savez(tmp_path / "one.npz", v=VELOCITY)
    np.savez(tmp_path / "two.npz", vp=VELOCITY, vs=VELOCITY / 2)
    for name in ("v.npy", "one.npz", "one.npz:v", "two.npz:vp"):
        earth = read_model(f"{tmp_path}/{name}", SPACING_M)
        assert (earth.velocity == VELOCITY).all()
        assert earth.grid.spacing_m == SPACING_M
    with pytest.raises(DataError, match=r"holds 2 arrays \(vp, vs\): name one as two.npz:ARRAY"):
        read_model(tmp_path / "two.npz", SPACING_M)
    with pytest.raises(DataError, match="no array 'rho': it holds vp, vs"):
        read_model(f"{tmp_path}/two.npz:rho", SPACING_M)


def test_arrays_of_other_zarr_folders(tmp_path: Path) -> None:
    zarr.create_array(store=str(tmp_path / "plain.zarr"), data=VELOCITY)
    with pytest.raises(DataError, match="does not hold its cell size: give it in metres as spacing_m"):
        read_model(tmp_path / "plain.zarr")
    assert (read_model(tmp_path / "plain.zarr", SPACING_M).velocity == VELOCITY).all()
    results = zarr.create_group(store=str(tmp_path / "results.zarr"))
    results.attrs.update({"spacing_m": list(SPACING_M), "origin_m": [0.0, 5.0]})
    results.create_array("model/inverted", data=VELOCITY)
    results.create_array("model/true", data=VELOCITY + 1)
    earth = read_model(f"{tmp_path}/results.zarr:model/inverted")
    assert (earth.velocity == VELOCITY).all()
    assert earth.grid == Grid((6, 9), SPACING_M, (0.0, 5.0))
    with pytest.raises(DataError, match=r"holds 2 arrays \(model/inverted, model/true\)"):
        read_model(tmp_path / "results.zarr")


def test_kilometres_per_second_need_to_be_said(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VELOCITY / 1000)
    with pytest.raises(DataError, match='too small for m/s: set velocity_unit to "km/s"'):
        read_model(tmp_path / "v.npy", SPACING_M)
    assert read_model(tmp_path / "v.npy", SPACING_M, "km/s").velocity == pytest.approx(VELOCITY, rel=1e-6)
    np.save(tmp_path / "v.npy", VELOCITY)
    with pytest.raises(DataError, match="no rock is faster than 20 km/s"):
        read_model(tmp_path / "v.npy", SPACING_M, "km/s")


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="it is no NumPy file, or one of Python objects"):
        read_model(tmp_path / "v.npy", SPACING_M)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.npy", "does not exist"),
        ("v.mat", "suffix '.mat'"),
        ("v.segy.gz", r"or \.sgy; unpack it first"),
        ("text.npy", "cannot be read as a NumPy array"),
        ("text.npz", "cannot be read as a NumPy array"),
        ("empty.zarr", "cannot be read as Zarr"),
        ("cube.npy", r"shape \(2, 3, 4, 5\)"),
        ("words.npy", "must be real numbers"),
        ("nan.npy", r"cell \(z=0, x=1\) is nan m/s"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, sentence: str) -> None:
    for text in ("v.mat", "v.segy.gz", "text.npy", "text.npz"):
        (tmp_path / text).write_text("no model")
    (tmp_path / "empty.zarr").mkdir()
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4, 5)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "nan.npy", np.array([[2000.0, np.nan], [2000.0, 2000.0]]))
    with pytest.raises(DataError, match=sentence) as caught:
        read_model(tmp_path / name, SPACING_M)
    assert "\n" not in str(caught.value)


def test_a_damaged_chunk_is_refused(tmp_path: Path, earth: EarthModel) -> None:
    write_model_zarr(tmp_path / "m.zarr", earth)
    chunk = next(path for path in (tmp_path / "m.zarr" / "velocity" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"damage")
    with pytest.raises(DataError, match="cannot be read as Zarr"):
        read_model(tmp_path / "m.zarr")


@pytest.mark.skipif(not MODELS.is_dir(), reason="the shared models are not on this machine")
@pytest.mark.parametrize(
    ("name", "shape"),
    [("marmousi2_vp_dz20m.npy", (176, 851)), ("bg_compass_tti_dz12p5m.npz:vp", (171, 325))],
)
def test_public_models(name: str, shape: tuple[int, int]) -> None:
    assert read_model(f"{MODELS}/{name}", (20.0, 20.0)).grid.shape == shape
