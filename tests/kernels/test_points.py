"""Points between cells: the windowed sinc reproduces band-limited waves, and injection is the transpose of sampling."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, off_grid, on_grid
from hpfwi_kernels.errors import GeometryError

SHAPE = (24, 31)
DT_S = 1.5e-3


def at(*positions: tuple[float, float], free_surface: bool = False) -> Points:
    """One shot with these points."""
    return off_grid(np.array([positions], np.float64), SHAPE, free_surface=free_surface)


def sample(field: NDArray, points: Points) -> NDArray[np.float64]:
    """Values of a field [z, x] at the points of the first shot, from the taps themselves."""
    inside = np.logical_and(points.cells >= 0, points.cells < np.array(field.shape)).all(axis=-1)
    cells = np.where(np.expand_dims(inside, -1), points.cells, 0)
    values = np.where(inside, field[cells[..., 0], cells[..., 1]], 0.0)
    return (points.weights * values).sum(axis=-1)[0]


def plane_wave(z: Any, x: Any, per_wavelength: float, degrees: float) -> Any:
    angle, k = np.radians(degrees), 2.0 * np.pi / per_wavelength
    return np.cos(k * (np.cos(angle) * z + np.sin(angle) * x) + 0.4)


# The window is made for wavenumbers up to half the Nyquist wavenumber, 4 cells per wavelength (Hicks 2002). Its largest
# error over directions and places is 1.5e-3 there and 0.9e-3 at 8 and 16 cells per wavelength; the bar is twice that.
@pytest.mark.parametrize(("per_wavelength", "bar"), [(4.0, 3e-3), (8.0, 2e-3), (16.0, 2e-3)])
@pytest.mark.parametrize("degrees", [0.0, 30.0, 77.0])
def test_band_limited_plane_waves_are_sampled(per_wavelength: float, degrees: float, bar: float) -> None:
    z, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    field = plane_wave(z, x, per_wavelength, degrees)
    positions = np.random.default_rng(51).uniform(4.0, [SHAPE[0] - 5, SHAPE[1] - 5], (200, 2))
    values = sample(field, off_grid(positions[None], SHAPE, free_surface=False))
    expected = plane_wave(positions[:, 0], positions[:, 1], per_wavelength, degrees)
    assert np.abs(values - expected).max() <= bar


@settings(max_examples=60, deadline=None, derandomize=True)
@given(z=st.floats(4.0, SHAPE[0] - 5.0), x=st.floats(4.0, SHAPE[1] - 5.0))
def test_weights_sum_to_nearly_one(z: float, x: float) -> None:
    points = at((z, x))
    assert points.weights.sum() == pytest.approx(1.0, abs=2e-3)
    assert (np.abs(points.cells[0, 0] - np.array([z, x])) <= 4.0).all()


def test_a_point_on_a_cell_is_that_cell() -> None:
    cells = np.array([[[3, 4], [0, 0], [23, 30]]])
    exact, between = on_grid(cells, SHAPE), off_grid(cells.astype(np.float64), SHAPE, free_surface=False)
    assert np.array_equal(exact.cells, between.cells)
    assert np.array_equal(exact.weights, between.weights)
    assert exact.cells.shape == (1, 3, 1, 2)
    assert (exact.weights == 1.0).all()


def test_a_point_on_a_cell_is_that_cell_beside_one_between_cells() -> None:
    points = at((3.0, 4.0), (7.5, 8.25))
    used = points.weights[0, 0] != 0
    assert points.cells[0, 0][used].tolist() == [[3, 4]]
    assert points.weights[0, 0][used].tolist() == [1.0]


def test_a_point_on_a_row_between_columns_uses_that_row_alone() -> None:
    points = at((3.0, 8.25))
    assert set(points.cells[0, 0][points.weights[0, 0] != 0][:, 0].tolist()) == {3}


def test_taps_above_a_free_surface_fold_back_with_the_opposite_sign() -> None:
    """An odd field about row 0 is sampled next to the surface as if the cells above it existed."""
    z, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    field = np.sin(2.0 * np.pi / 10.0 * z) * np.cos(0.3 * x)
    positions = [(depth, column) for depth in (0.2, 0.5, 1.3, 2.75, 3.5) for column in (9.5, 14.2)]
    values = sample(field, at(*positions, free_surface=True))
    expected = [np.sin(2.0 * np.pi / 10.0 * depth) * np.cos(0.3 * column) for depth, column in positions]
    assert np.abs(values - expected).max() <= 2e-3
    assert (at(*positions, free_surface=True).cells >= 0).all()


def test_a_point_on_a_free_surface_hears_nothing(engine: Any, ricker: Any) -> None:
    scheme = scheme_of(absorbing=(0, 8, 8, 8), free_surface=True)
    wavelet = ricker(20.0, DT_S, 80)[None, None]
    velocity = np.full(SHAPE, 2000.0)
    records, _ = engine.forward(velocity, wavelet, at((5.0, 7.0)), at((0.0, 12.5), free_surface=True), scheme)
    assert np.abs(records).max() <= 1e-12


def scheme_of(**options: Any) -> Scheme:
    base: dict[str, Any] = {"absorbing": (8, 8, 8, 8), "free_surface": False}
    return Scheme(
        spacing_m=(10.0, 10.0),
        dt_s=DT_S,
        order=8,
        boundary="cpml",
        pml_hz=20.0,
        max_velocity_mps=2000.0,
        **(base | options),
    )


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_moving_source_and_receivers_by_a_fraction_changes_nothing(fraction: float, engine: Any, ricker: Any) -> None:
    """In a homogeneous medium only the distance counts, wherever the grid lies: here 10 cells per peak wavelength."""
    velocity, wavelet = np.full(SHAPE, 2000.0), ricker(20.0, DT_S, 120)[None, None]
    source, receivers = np.array([[[9.0, 8.0]]]), np.array([[[9.0, 20.0], [14.0, 17.0], [16.0, 8.0]]])

    def record(shift: NDArray) -> NDArray:
        moved = [off_grid(points + shift, SHAPE, free_surface=False) for points in (source, receivers)]
        return engine.forward(velocity, wavelet, *moved, scheme_of())[0]

    still = record(np.zeros(2))
    moved = record(np.array([0.6 * fraction, fraction]))
    assert np.linalg.norm(moved - still) <= 0.01 * np.linalg.norm(still)


@pytest.mark.parametrize("free_surface", [False, True])
def test_injection_is_the_transpose_of_sampling(free_surface: bool, engine: Any) -> None:
    """Read both off the kernel itself: one step after an impulse the field is c times the injected weights."""
    top = 0 if free_surface else 8
    scheme = scheme_of(absorbing=(top, 8, 8, 8), free_surface=free_surface)
    velocity, wavelet = np.full(SHAPE, 2000.0), np.array([[[1.0, 0.0]]])
    place = at((1.3, 9.75), free_surface=free_surface)
    cells = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(1, -1, 2)
    everywhere = on_grid(cells, SHAPE)
    injected = engine.forward(velocity, wavelet, place, everywhere, scheme)[0][0, :, 1]
    drive = np.zeros((1, cells.shape[1], 2))
    drive[0, :, 0] = np.random.default_rng(52).standard_normal(cells.shape[1])
    sampled = engine.forward(velocity, drive, everywhere, place, scheme)[0][0, 0, 1]
    assert sampled == pytest.approx(
        float(injected.astype(float) @ drive[0, :, 0]), rel=1e-5 if engine.single else 1e-12
    )


def test_absent_points_record_zeros_and_inject_nothing(engine: Any) -> None:
    velocity, rng = np.full(SHAPE, 2000.0), np.random.default_rng(53)
    wavelet = rng.standard_normal((1, 2, 60))
    nowhere = (np.nan, np.nan)
    records, stored = engine.forward(
        velocity, wavelet, at((9.0, 8.0), nowhere), at(nowhere, (12.5, 14.0)), scheme_of(), store=True
    )
    alone, _ = engine.forward(velocity, wavelet[:, :1], at((9.0, 8.0)), at((12.5, 14.0)), scheme_of())
    assert not records[0, 0].any()
    assert np.array_equal(records[0, 1], alone[0, 0])
    y = rng.standard_normal(records.shape)
    _, wavelet_gradient = engine.gradient(
        velocity, wavelet, at((9.0, 8.0), nowhere), at(nowhere, (12.5, 14.0)), scheme_of(), stored, y
    )
    assert wavelet_gradient[0, 0].any()
    assert not wavelet_gradient[0, 1].any()


@pytest.mark.parametrize("position", [(-0.1, 3.0), (3.0, 30.01), (24.0, 3.0), (3.0, np.inf)])
def test_a_position_outside_is_named(position: tuple[float, float]) -> None:
    with pytest.raises(GeometryError, match=r"Point 1 of shot 0 .*24 x 31 cells; move it"):
        at((3.0, 3.0), position)


def test_cells_must_be_integers() -> None:
    with pytest.raises(GeometryError, match="off_grid"):
        on_grid(np.array([[[1.0, 2.0]]]), SHAPE)


def test_positions_must_have_two_coordinates() -> None:
    with pytest.raises(GeometryError, match=r"\[shot, point, 2\]"):
        off_grid(np.zeros((1, 3)), SHAPE, free_surface=False)


def test_choosing_shots_keeps_their_taps() -> None:
    positions = np.random.default_rng(54).uniform(4.0, 20.0, (5, 3, 2))
    points = off_grid(positions, SHAPE, free_surface=False)
    chosen = points.of_shots([3, 1])
    assert (chosen.shots, chosen.per_shot) == (2, 3)
    assert np.array_equal(chosen.weights, points.weights[[3, 1]])
