"""Families of velocity maps: what each shows, what their statistics measure, and that a map depends on nothing else."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi.errors import ConfigError
from hpfwi.synthetic.families import FAMILIES, LAYERINGS, default_shape, velocity_map
from hpfwi.synthetic.salt import SALT_MPS
from hpfwi.synthetic.statistics import map_statistics

OPENFWI = [f"{name}-{kind}" for name in ("flatvel", "curvevel", "flatfault", "curvefault", "style") for kind in "ab"]
MAPS = 12
EXAMPLE = Path(__file__).parents[2] / "examples" / "family_statistics.py"


def maps_of(family: str, count: int = MAPS) -> NDArray[np.float32]:
    shape = default_shape(family)
    return np.stack([velocity_map(family, shape, 0, index) for index in range(count)])


def test_the_families_are_those_of_openfwi_and_salt() -> None:
    assert sorted(FAMILIES) == sorted([*OPENFWI, "segsalt"])
    assert {family: default_shape(family) for family in FAMILIES} == {
        **dict.fromkeys(OPENFWI, (70, 70)),
        "segsalt": (201, 301),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_is_a_function_of_its_family_seed_and_index(family: str) -> None:
    shape = (24, 31)
    first = velocity_map(family, shape, 5, 3)
    assert first.shape == shape
    assert first.dtype == np.float32
    assert first.min() >= 1500.0
    assert first.max() <= 4500.0
    velocity_map(family, shape, 5, 4)
    assert np.array_equal(velocity_map(family, shape, 5, 3), first)
    others = [velocity_map(family, shape, 5, 4), velocity_map(family, shape, 6, 3)]
    assert not any(np.array_equal(other, first) for other in others)


def test_no_two_of_many_maps_are_alike() -> None:
    maps = {velocity_map(family, (16, 16), seed, k).tobytes() for family in FAMILIES for seed in (0, 1) for k in (0, 1)}
    assert len(maps) == 4 * len(FAMILIES)


@pytest.mark.parametrize("family", LAYERINGS)
def test_layers_show_what_the_name_says(family: str) -> None:
    layering = LAYERINGS[family]
    maps = maps_of(family)
    found = [map_statistics(velocity) for velocity in maps]
    assert (maps == np.rint(maps)).all()
    # A fault takes whole layers out of a column or brings some in twice, relief moves others out of the map.
    fewest, most = layering.layers
    counts = [item.layers for item in found]
    assert min(counts) >= fewest - 1
    assert max(counts) <= most + 2
    assert np.median(counts) == pytest.approx((fewest + most) / 2, abs=1.5)

    flat = family.startswith("flat")
    faulted = layering.faults[0] > 0
    median_dips = [item.dip_deg[0] for item in found]
    assert max(median_dips) < 15 if flat else min(median_dips) > 15
    throws = np.array([item.throw for item in found])
    if faulted:
        assert np.median(throws) > 0.08 * 70
    else:
        assert throws.max() <= (0 if flat else 0.07 * 70)  # a tight bend counts as a small offset
    faster = [item.faster_share for item in found]
    if family.endswith("-a"):
        # A reverse fault brings the slower layer below the faster one again, where it is crossed.
        assert min(faster) > 0.8 if faulted else min(faster) == 1.0
    else:
        assert 0.3 < np.mean(faster) < 0.7


def test_curves_are_as_steep_and_layers_as_thick_as_in_real_maps() -> None:
    """Three maps of CurveVel-A: layers 23 to 34 % of the height, median dips 34 to 60 degrees."""
    found = [map_statistics(velocity) for velocity in maps_of("curvevel-a", 30)]
    assert np.median([item.thickness for item in found]) == pytest.approx(0.28 * 70, abs=0.06 * 70)
    assert np.median([item.dip_deg[0] for item in found]) == pytest.approx(47, abs=14)
    assert min(item.slowest_mps for item in found) < 1700
    assert max(item.fastest_mps for item in found) > 4200


def test_style_maps_are_textures_smooth_or_sharp() -> None:
    smooth, sharp = maps_of("style-a"), maps_of("style-b")
    for velocity in (*smooth, *sharp):
        assert len(np.unique(velocity)) > 1000

    def roughness(maps: NDArray[np.float32]) -> float:
        """Share of the variance that one cell's distance explains."""
        return float(np.mean(np.diff(maps, axis=1) ** 2) / np.mean(maps.var(axis=(1, 2))))

    assert roughness(sharp) > 4 * roughness(smooth)


def test_salt_stands_or_floats_in_layers_that_grow_faster() -> None:
    maps = maps_of("segsalt", 40)
    shares = (maps == SALT_MPS).mean(axis=(1, 2))
    assert 0.03 < shares.min() < shares.max() < 0.30
    standing = (maps[:, -1] == SALT_MPS).any(axis=1).mean()
    assert 0.5 < standing < 0.9
    beside = maps[:, :, 3]
    assert beside.max() <= 4000.0
    assert (np.diff(beside, axis=1) >= 0).all()
    layers = np.array([len(np.unique(column)) for column in beside])
    assert (layers.min(), layers.max()) == (5, 10)


def test_statistics_measure_what_was_drawn() -> None:
    rows, columns = np.mgrid[:60, :80]
    flat = np.select([rows < 15, rows < 30, rows < 45], [1600.0, 2200.0, 3000.0], 4000.0)
    plain = map_statistics(flat)
    assert (plain.layers, plain.thickness, plain.throw, plain.dip_deg) == (4, 15, 0, (0, 0))
    assert (plain.slowest_mps, plain.fastest_mps, plain.faster_share) == (1600.0, 4000.0, 1.0)
    upside_down = map_statistics(flat[::-1])
    assert upside_down.faster_share == 0.0

    # Right of a vertical plane everything lies 7 rows lower.
    faulted = np.where(columns >= 40, np.roll(flat, 7, axis=0), flat)
    faulted[:7, 40:] = 1600.0
    assert map_statistics(faulted).throw == 7.0

    # Interfaces that dip by 30 degrees, cut and offset by 9 rows.
    tilted_depth = rows - columns * math.tan(math.radians(30.0))
    tilted = np.select([tilted_depth < -20, tilted_depth < 0, tilted_depth < 20], [1600.0, 2200.0, 3000.0], 4000.0)
    dip = map_statistics(tilted).dip_deg
    assert dip[0] == pytest.approx(30.0, abs=2.0)
    cut_depth = np.where(columns >= 40, tilted_depth - 9, tilted_depth)
    cut = np.select([cut_depth < -20, cut_depth < 0, cut_depth < 20], [1600.0, 2200.0, 3000.0], 4000.0)
    assert map_statistics(tilted).throw < 2.0
    assert map_statistics(cut).throw == pytest.approx(9.0, abs=2.0)
    assert math.isnan(map_statistics(np.random.default_rng(0).uniform(1500, 4500, (20, 20))).throw)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ConfigError, match=r'There is no family "curvfault-b": .*; did you mean curvefault-b\?'):
        velocity_map("curvfault-b", (70, 70), 0, 0)
    with pytest.raises(ConfigError, match=r"A map of 70 x 7 cells is too small for style-a: give at least 8 rows"):
        velocity_map("style-a", (70, 7), 0, 0)
    with pytest.raises(ConfigError, match=r"seed=-1 cannot be used"):
        velocity_map("style-a", (70, 70), -1, 0)


def test_the_example_compares_files_with_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "real.npz"
    np.savez(path, row=np.arange(4), vp=maps_of("flatvel-a", 4)[:, None])
    picture = tmp_path / "maps.png"
    arguments = ["--maps", str(path), "--families", "flatvel-a", "curvefault-b", "-n", "4", "--figure", str(picture)]
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main(arguments) == 0
    header, real, same, other, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("maps ")
    # The same maps from a file and from the generator: the same numbers.
    assert real.split()[1:] == same.split()[1:]
    assert re.match(r"curvefault-b +4 ", other)
    assert other.split()[1:] != same.split()[1:]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["--families", "marmousi"]) == 2
    assert capsys.readouterr().err.startswith('There is no family "marmousi"')
