"""`gradient` is the transpose of the derivative of `forward`: dot products in two directions, and the Taylor slope."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, off_grid, on_grid

SHAPE = (15, 18)
DT_S = 1.6e-3
SAMPLES = 90
BAR = {np.float32: 1e-5, np.float64: 1e-12}
BOUNDARIES: dict[str, dict[str, Any]] = {
    "cpml": {"boundary": "cpml", "absorbing": (6, 5, 4, 7)},
    "sponge": {"boundary": "sponge", "absorbing": (6, 5, 4, 7)},
    "sponge-for-each-model": {"boundary": "sponge", "absorbing": (6, 5, 4, 7), "min_velocity_mps": (1500.0, 800.0)},
    "cpml-free-surface": {"boundary": "cpml", "absorbing": (0, 6, 5, 7), "free_surface": True},
    "sponge-free-surface": {"boundary": "sponge", "absorbing": (0, 6, 5, 7), "free_surface": True},
    "no-layer": {"boundary": "cpml", "absorbing": (0, 0, 0, 0)},
    "two-substeps": {"boundary": "cpml", "absorbing": (6, 5, 4, 7), "substeps": 2},
}


def scheme_of(name: str, order: int) -> Scheme:
    base: dict[str, Any] = {"free_surface": False, "min_velocity_mps": 1500.0}
    return Scheme(
        spacing_m=(10.0, 11.0),
        dt_s=DT_S,
        order=order,
        pml_hz=20.0,
        max_velocity_mps=2500.0,
        **(base | BOUNDARIES[name]),
    )


def velocity_of(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(3).uniform(1500.0, 2500.0, shape)


def shape_of(scheme: Scheme) -> tuple[int, ...]:
    """Of a model for both shots, or of one for each where each has a sponge."""
    return (2, *SHAPE) if len(scheme.sponges_mps) > 1 else SHAPE


def points_between_cells(scheme: Scheme, points: int, seed: int) -> Points:
    """Two shots of points anywhere in the model, one of them on a cell and one absent."""
    positions = np.random.default_rng(seed).uniform(1.0, [SHAPE[0] - 2, SHAPE[1] - 2], (2, points, 2))
    positions[0, 0] = np.round(positions[0, 0])
    positions[1, 1] = np.nan
    return off_grid(positions, SHAPE, free_surface=scheme.free_surface)


def adjoint_gap(fx: NDArray, y: NDArray, x: NDArray, adjoint_y: NDArray) -> float:
    """Gap between <Fx, y> and <x, F'y> relative to |Fx| |y|, the sums taken in float64."""
    fx, y, x, adjoint_y = (array.astype(np.float64) for array in (fx, y, x, adjoint_y))
    return float(abs(np.vdot(fx, y) - np.vdot(x, adjoint_y)) / (np.linalg.norm(fx) * np.linalg.norm(y)))


@pytest.mark.parametrize("order", [2, 4, 6, 8])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_wavelet_map_and_its_adjoint(name: str, order: int, engine: Any) -> None:
    scheme, rng = scheme_of(name, order), np.random.default_rng(11)
    sources, receivers = points_between_cells(scheme, 2, 5), points_between_cells(scheme, 4, 6)
    x = rng.standard_normal((2, 2, SAMPLES)).astype(engine.dtype)
    y = rng.standard_normal((2, 4, SAMPLES)).astype(engine.dtype)
    velocity = velocity_of(shape_of(scheme))
    records, stored = engine.forward(velocity, x, sources, receivers, scheme, store=True)
    _, adjoint = engine.gradient(velocity, x, sources, receivers, scheme, stored, y)
    assert adjoint_gap(records, y, x, adjoint) <= BAR[engine.dtype]


def tangent(
    engine: Any, velocity: NDArray, change: NDArray, wavelet: NDArray, case: tuple[Points, Points, Scheme]
) -> Any:
    """Derivative of the records along `change`, from forward alone.

    With c = v² dt², u(t+1) = c (w + f) + 2 u(t) - u(t-1): a change of c that stays inside the model drives the same
    recursion with (dc/c)(w + f) at every cell, and w + f is read off the recorded field itself.
    """
    sources, receivers, scheme = case
    shots = wavelet.shape[0]
    cells = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(1, -1, 2)
    everywhere = on_grid(np.repeat(cells, shots, axis=0), SHAPE)
    longer = np.concatenate([wavelet, np.zeros((*wavelet.shape[:2], 1))], axis=-1)
    field, _ = engine.forward(velocity, longer, sources, everywhere, scheme)
    before = np.concatenate([np.zeros((*field.shape[:2], 1)), field[..., :-2]], axis=-1)
    factor = (velocity.reshape(1, -1, 1) * scheme.dt_s) ** 2
    bracket = (field[..., 1:] - 2.0 * field[..., :-1] + before) / factor
    if scheme.free_surface:
        bracket[:, : SHAPE[1]] = 0.0
    drive = (2.0 * change / velocity).reshape(1, -1, 1) * bracket
    return engine.forward(velocity, drive, everywhere, receivers, scheme)[0]


@pytest.mark.parametrize("order", [2, 4, 6, 8])
@pytest.mark.parametrize("name", ["cpml", "cpml-free-surface", "no-layer"])
def test_velocity_derivative_and_its_adjoint(
    name: str, order: int, engine64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    scheme, rng = scheme_of(name, order), np.random.default_rng(12)
    sources, receivers = points_between_cells(scheme, 2, 5), points_between_cells(scheme, 4, 6)
    wavelet = rng.uniform(0.5, 1.0, (2, 2, 1)) * ricker(20.0, DT_S, SAMPLES)
    change = rng.standard_normal(SHAPE)
    if name != "no-layer":  # edge cells reach into the layers, whose own change `tangent` does not see
        change[[0, -1]] = 0.0
        change[:, [0, -1]] = 0.0
    y = rng.standard_normal((2, 4, SAMPLES))
    derivative = tangent(engine64, velocity_of(), change, wavelet, (sources, receivers, scheme))
    _, stored = engine64.forward(velocity_of(), wavelet, sources, receivers, scheme, store=True)
    adjoint, _ = engine64.gradient(velocity_of(), wavelet, sources, receivers, scheme, stored, y)
    assert adjoint_gap(derivative, y, change, adjoint) <= BAR[np.float64]


def central(engine: Any, velocity: NDArray, change: NDArray, *args: Any) -> NDArray:
    """Directional derivative of the records by central differences, extrapolated twice (Richardson): error ~ h^6."""

    def difference(h: float) -> NDArray:
        ahead, _ = engine.forward(velocity + h * change, *args)
        behind, _ = engine.forward(velocity - h * change, *args)
        return (ahead - behind) / (2.0 * h)

    coarse, middle, fine = difference(4.0), difference(2.0), difference(1.0)
    first, second = (4.0 * middle - coarse) / 3.0, (4.0 * fine - middle) / 3.0
    return (16.0 * second - first) / 15.0


@pytest.mark.parametrize("name", BOUNDARIES)
def test_velocity_adjoint_with_changes_up_to_the_edges(
    name: str, engine: Any, fast64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    scheme, rng = scheme_of(name, 4), np.random.default_rng(13)
    sources, receivers = points_between_cells(scheme, 2, 5), points_between_cells(scheme, 4, 6)
    wavelet = rng.uniform(0.5, 1.0, (2, 2, 1)) * ricker(20.0, DT_S, SAMPLES)
    velocity = velocity_of(shape_of(scheme))
    change, y = rng.standard_normal(velocity.shape), rng.standard_normal((2, 4, SAMPLES))
    derivative = central(fast64, velocity, change, wavelet, sources, receivers, scheme)
    _, stored = engine.forward(velocity, wavelet, sources, receivers, scheme, store=True)
    adjoint, _ = engine.gradient(velocity, wavelet, sources, receivers, scheme, stored, y)
    # The extrapolated difference itself is good to a few 1e-11 of the derivative.
    assert adjoint_gap(derivative, y, change, adjoint) <= (1e-5 if engine.single else 1e-9)


def test_one_model_per_shot_gives_each_shot_its_own_gradient(engine: Any) -> None:
    scheme, rng = scheme_of("cpml", 4), np.random.default_rng(14)
    sources, receivers = points_between_cells(scheme, 2, 5), points_between_cells(scheme, 4, 6)
    wavelet, y = rng.standard_normal((2, 2, SAMPLES)), rng.standard_normal((2, 4, SAMPLES))
    velocity = velocity_of()
    both = np.stack([velocity, velocity])

    def run(model: NDArray) -> NDArray:
        _, stored = engine.forward(model, wavelet, sources, receivers, scheme, store=True)
        return engine.gradient(model, wavelet, sources, receivers, scheme, stored, y)[0].astype(np.float64)

    shared, separate = run(velocity), run(both)
    assert separate.shape == both.shape
    assert not np.allclose(separate[0], separate[1])
    assert np.linalg.norm(separate.sum(axis=0) - shared) <= (1e-6 if engine.single else 1e-14) * np.linalg.norm(shared)


@pytest.mark.parametrize("order", [2, 8])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_taylor_slope_is_two(name: str, order: int, engine64: Any, ricker: Callable[..., NDArray[np.float64]]) -> None:
    scheme, rng = scheme_of(name, order), np.random.default_rng(15)
    sources, receivers = points_between_cells(scheme, 2, 5), points_between_cells(scheme, 4, 6)
    wavelet = np.tile(ricker(20.0, DT_S, SAMPLES), (2, 2, 1))
    velocity, shape = velocity_of(shape_of(scheme)), shape_of(scheme)
    direction, other = rng.standard_normal(shape), velocity + 40.0 * rng.standard_normal(shape)
    observed, _ = engine64.forward(other, wavelet, sources, receivers, scheme)

    def misfit(model: NDArray) -> float:
        return 0.5 * float(np.sum((engine64.forward(model, wavelet, sources, receivers, scheme)[0] - observed) ** 2))

    records, stored = engine64.forward(velocity, wavelet, sources, receivers, scheme, store=True)
    adjoint, _ = engine64.gradient(velocity, wavelet, sources, receivers, scheme, stored, records - observed)
    slope, steps = np.vdot(adjoint, direction), 4.0 * 0.5 ** np.arange(5)
    rest = [abs(misfit(velocity + h * direction) - misfit(velocity) - h * slope) for h in steps]
    assert np.polyfit(np.log(steps), np.log(rest), 1)[0] == pytest.approx(2.0, abs=0.05)


def test_storing_fewer_steps_changes_the_gradient_little_and_the_records_not(
    engine64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    rng = np.random.default_rng(16)
    every, third = scheme_of("cpml", 4), replace(scheme_of("cpml", 4), store_every=3)
    sources, receivers = points_between_cells(every, 2, 5), points_between_cells(every, 4, 6)
    wavelet, y = np.tile(ricker(20.0, DT_S, SAMPLES), (2, 2, 1)), rng.standard_normal((2, 4, 1))
    y = y * ricker(20.0, DT_S, SAMPLES, delay_s=0.08)
    gradients = []
    for scheme in (every, third):
        records, stored = engine64.forward(velocity_of(), wavelet, sources, receivers, scheme, store=True)
        gradients.append((records, *engine64.gradient(velocity_of(), wavelet, sources, receivers, scheme, stored, y)))
    (all_records, exact, exact_wavelet), (records, sampled, sampled_wavelet) = gradients
    assert np.array_equal(records, all_records)
    assert np.array_equal(sampled_wavelet, exact_wavelet)
    # Summing every third step is spectrally accurate for signals far below its Nyquist frequency of 104 Hz.
    assert 0.0 < np.linalg.norm(sampled - exact) <= 2e-2 * np.linalg.norm(exact)
