import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import segyio

from hpfwi.errors import DataError
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.store.models import read_model
from hpfwi.store.segy_models import read_segy, read_segy_model
from hpfwi.store.segy_write import write_segy_model

SHARED_DATA = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
ODD = SHARED_DATA / "segy_odd"
shared = pytest.mark.skipif(not ODD.is_dir(), reason="the shared SEG-Y files are not on this machine")

IBM, IEEE = 1, 5


def write(
    path: Path,
    velocity: np.ndarray,
    *,
    code: int = IBM,
    interval: int = 5000,
    source_x: list[int] | None = None,
    cdp_x: list[int] | None = None,
    scalar: int = 0,
    endian: str = "big",
    feet: bool = False,
) -> None:
    """A model as SEG-Y: one trace per column."""
    spec = segyio.spec()
    spec.format = code
    spec.samples = np.arange(velocity.shape[0])
    spec.tracecount = velocity.shape[1]
    spec.endian = endian
    with segyio.create(str(path), spec) as file:
        file.bin.update({segyio.BinField.Interval: interval, segyio.BinField.MeasurementSystem: 2 if feet else 1})
        for column in range(velocity.shape[1]):
            file.header[column] = {
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
                segyio.TraceField.SourceGroupScalar: scalar,
                segyio.TraceField.SourceX: 0 if source_x is None else source_x[column],
                segyio.TraceField.CDP_X: 0 if cdp_x is None else cdp_x[column],
            }
            file.trace[column] = np.ascontiguousarray(velocity[:, column], dtype=np.float32)


@pytest.fixture
def velocity() -> np.ndarray:
    # Multiples of 1/4 below 2^14 are exact in both float formats.
    return np.random.default_rng(0).integers(6000, 18000, (13, 7)).astype(np.float32) / 4


@pytest.mark.parametrize("code", [IBM, IEEE])
@pytest.mark.parametrize("endian", ["big", "little"])
def test_ibm_and_ieee_of_both_byte_orders(tmp_path: Path, velocity: np.ndarray, code: int, endian: str) -> None:
    write(tmp_path / "v.sgy", velocity, code=code, endian=endian)
    table = read_segy(tmp_path / "v.sgy")
    assert table.samples.dtype == np.float32
    assert (table.samples == velocity).all()


@pytest.mark.parametrize(
    ("scalar", "step"),
    [(0, 6250), (1, 6), (-10, 63), (-100, 625), (10, 1)],
    ids=["millimetres", "metres", "decimetres", "centimetres", "tens"],
)
def test_spacing_from_headers(tmp_path: Path, velocity: np.ndarray, scalar: int, step: int) -> None:
    write(tmp_path / "v.sgy", velocity, scalar=scalar, source_x=[1000 + step * k for k in range(7)])
    metres = {0: 6.25, 1: 6.0, -10: 6.3, -100: 6.25, 10: 10.0}[scalar]
    _, spacing_m = read_segy_model(tmp_path / "v.sgy")
    assert spacing_m == pytest.approx((5.0, metres))
    assert read_segy_model(tmp_path / "v.sgy", (1.0, 2.0))[1] == (1.0, 2.0)
    earth = read_model(tmp_path / "v.sgy")
    assert earth.grid.spacing_m == pytest.approx((5.0, metres))
    assert (earth.velocity == velocity).all()


COUNTER = list(range(1, 8))


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ({}, "no coordinate grows evenly"),
        ({"source_x": COUNTER}, "no coordinate grows evenly"),
        ({"source_x": [0, 10, 20, 35, 40, 50, 60]}, "no coordinate grows evenly"),
        ({"source_x": [10 * k for k in COUNTER], "cdp_x": [20 * k for k in COUNTER]}, "steps of 10 and 20 m"),
        ({"source_x": [6 * k for k in COUNTER], "interval": 0}, "interval 0 is no depth step"),
        ({"source_x": [150 * k for k in COUNTER], "interval": 1250}, "does not go with a trace step of 150 m"),
        ({"source_x": [6 * k for k in COUNTER], "feet": True}, "in feet"),
    ],
)
def test_doubtful_headers_ask_for_the_spacing(tmp_path: Path, velocity: np.ndarray, options: dict, doubt: str) -> None:
    write(tmp_path / "v.sgy", velocity, scalar=1, **options)
    with pytest.raises(DataError, match=rf"do not tell the cell size \(.*{doubt}.*spacing_m = \[dz, dx\]"):
        read_segy_model(tmp_path / "v.sgy")
    assert (read_segy_model(tmp_path / "v.sgy", (5.0, 6.0))[0] == velocity).all()


def test_a_truncated_file_is_refused_in_one_sentence(tmp_path: Path, velocity: np.ndarray) -> None:
    write(tmp_path / "v.sgy", velocity)
    whole = (tmp_path / "v.sgy").read_bytes()
    for name, content, sentence in (
        ("cut.sgy", whole[:-30], "truncated, or its traces differ in length"),
        ("headers.sgy", whole[:3600], "holds SEG-Y headers but no samples"),
        ("short.sgy", whole[:100], "has 100 bytes, less than the 3600"),
        ("text.sgy", b"x" * 5000, "sample format code"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=sentence) as caught:
            read_segy(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        read_segy(tmp_path / "none.sgy")


def test_a_block_is_read_whatever_the_order_of_its_traces(tmp_path: Path) -> None:
    grid = Grid((5, 3, 4), (10.0, 25.0, 20.0), (0.0, 50.0, 100.0))
    block = np.random.default_rng(0).uniform(1500, 4500, grid.shape).astype(np.float32)
    write_segy_model(tmp_path / "block.sgy", EarthModel(block, grid))
    read = read_model(tmp_path / "block.sgy")
    assert np.array_equal(read.velocity, block)
    assert read.grid.spacing_m == grid.spacing_m
    # A trace is 240 bytes of headers and 5 samples; crosslines outermost, and walked backwards.
    whole = (tmp_path / "block.sgy").read_bytes()
    traces = np.frombuffer(whole[3600:], np.uint8).reshape(3, 4, 260)
    (tmp_path / "other.sgy").write_bytes(whole[:3600] + traces.swapaxes(0, 1)[::-1].tobytes())
    assert np.array_equal(read_model(tmp_path / "other.sgy").velocity, block)
    assert read_model(tmp_path / "other.sgy", (5.0, 6.0, 7.0)).grid.spacing_m == (5.0, 6.0, 7.0)
    assert read_model(tmp_path / "other.sgy", 5.0).grid.spacing_m == (5.0, 5.0, 5.0)
    section = read_model(tmp_path / "block.sgy", (10.0, 20.0))  # who gives two numbers has a section
    assert np.array_equal(section.velocity, block.reshape(5, 12))
    (tmp_path / "gap.sgy").write_bytes(whole[: 3600 + 11 * 260])
    with pytest.raises(DataError, match=r"has 11 at 11 crossings of 3 inlines and 4 crosslines .* fill the gaps, or"):
        read_model(tmp_path / "gap.sgy", (10.0, 25.0, 20.0))
    write(tmp_path / "line.sgy", np.ones((4, 7)))
    with pytest.raises(DataError, match=r"no block of traces: it has 7 at 1 crossings of 1 inlines and 1 crosslines"):
        read_model(tmp_path / "line.sgy", (10.0, 25.0, 20.0))


def test_a_block_of_doubtful_headers_asks_for_three_steps(tmp_path: Path) -> None:
    grid = Grid((5, 3, 4), (10.0, 300.0, 20.0))
    write_segy_model(tmp_path / "flat.sgy", EarthModel(np.full(grid.shape, 2000, np.float32), grid))
    with pytest.raises(DataError, match=r"no coordinate grows evenly .* as spacing_m = \[dz, dy, dx\]"):
        read_model(tmp_path / "flat.sgy")


@shared
def test_public_files_in_all_formats_agree() -> None:
    reference = read_segy(ODD / "Format1msb.sgy").samples
    assert reference.shape == (75, 23, 18)
    assert (reference.min(), reference.max()) == (-10239.0, 10827.0)
    for name in ("Format1lsb", "Format2msb", "Format3msb", "Format5msb", "Format5lsb", "Format6msb", "f3-lsb"):
        assert (read_segy(ODD / f"{name}.sgy").samples == reference).all(), name


@shared
@pytest.mark.parametrize("name", ["obspy_00001034.sgy_first_trace.sgy", "obspy_ld0042_file_00018.sgy_first_trace.sgy"])
def test_public_traces_have_their_expected_samples(name: str) -> None:
    assert read_segy(ODD / name).samples[:, 0] == pytest.approx(np.load(ODD / f"{name}.npy")[0], rel=1e-6)


@shared
@pytest.mark.parametrize("name", ["broken.sgy", "text.sgy", "trace-header-extensions.sgy"])
def test_public_broken_files_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_segy(ODD / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@shared
def test_seismic_amplitudes_are_no_velocities() -> None:
    with pytest.raises(DataError, match="not positive finite numbers"):
        read_model(ODD / "Format1msb.sgy", (4.0, 25.0))


@shared
def test_a_public_model_with_rectangular_cells(tmp_path: Path) -> None:
    with tarfile.open(SHARED_DATA / "models" / "marmousi2_original_segy" / "Vp.segy.tar.gz") as archive:
        archive.extract("Vp.segy", tmp_path, filter="data")
    earth = read_model(tmp_path / "Vp.segy")
    assert earth.grid.shape == (701, 2721)
    assert earth.grid.spacing_m == (5.0, 6.25)
    assert (earth.slowest_mps, earth.fastest_mps) == (1028.0, 4700.0)
