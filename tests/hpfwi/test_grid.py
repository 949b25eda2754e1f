import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpfwi.errors import DataError
from hpfwi.physics.grid import Grid

grids = st.builds(
    Grid,
    st.tuples(st.integers(2, 400), st.integers(2, 400)),
    st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
    st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
)


def test_axes_and_extent() -> None:
    grid = Grid((3, 5), (10.0, 20.0), (100.0, -40.0))
    assert grid.depths_m().tolist() == [100.0, 110.0, 120.0]
    assert grid.distances_m().tolist() == [-40.0, -20.0, 0.0, 20.0, 40.0]
    assert grid.extent_m == (20.0, 80.0)
    assert grid.last_m == (120.0, 40.0)
    assert grid.cell_area_m2 == 200.0


@given(grids, st.data())
def test_a_node_is_found_exactly(grid: Grid, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, grid.shape[0] - 1))
    column = data.draw(st.integers(0, grid.shape[1] - 1))
    position = [grid.depths_m()[row], grid.distances_m()[column]]
    assert grid.cells_of(position).tolist() == [row, column]


def test_positions_between_nodes_stay_between_and_nan_stays_nan() -> None:
    cells = Grid((3, 5), (10.0, 20.0)).cells_of([[2.5, 30.0], [np.nan, np.nan]])
    assert cells[0].tolist() == [0.25, 1.5]
    assert np.isnan(cells[1]).all()


@given(grids, st.integers(1, 4))
def test_refined_keeps_the_old_nodes(grid: Grid, factor: int) -> None:
    fine = grid.refined(factor)
    assert fine.depths_m()[::factor] == pytest.approx(grid.depths_m())
    assert fine.distances_m()[::factor] == pytest.approx(grid.distances_m())
    assert fine.last_m == pytest.approx(grid.last_m)


def test_numbers_become_plain() -> None:
    shape = np.array([3, 4])
    grid = Grid((shape[0], shape[1]), (np.float32(5), np.float32(5)))  # type: ignore[arg-type]
    assert grid == Grid((3, 4), (5.0, 5.0))
    assert repr(grid) == "Grid(shape=(3, 4), spacing_m=(5.0, 5.0), origin_m=(0.0, 0.0))"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((1, 5), (1.0, 1.0)), "A grid of 1 x 5 cells is too small: both counts must be at least 2."),
        (((5, 5), (0.0, 1.0)), r"spacing_m=\(0.0, 1.0\) cannot be used"),
        (((5, 5), (1.0, float("nan"))), "must be positive and finite"),
        (((5, 5), (1.0, 1.0), (0.0, float("inf"))), "origin_m=.* must be finite"),
    ],
)
def test_refusals(arguments: tuple, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Grid(*arguments)


def test_positions_need_two_coordinates() -> None:
    with pytest.raises(DataError, match="last axis must hold"):
        Grid((3, 3), (1.0, 1.0)).cells_of([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="cannot be refined 0 times"):
        Grid((3, 3), (1.0, 1.0)).refined(0)
