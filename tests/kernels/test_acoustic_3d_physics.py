"""In three dimensions: the gradient is the transpose of the derivative, and the waves are those of the equation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, cpu_3d, off_grid, on_grid

SHAPE = (10, 9, 12)
DT_S = 1.5e-3
SAMPLES = 70
BOUNDARIES: dict[str, dict[str, Any]] = {
    "cpml": {"boundary": "cpml", "absorbing": (4, 5, 3, 4, 5, 3)},
    "free-surface": {"boundary": "cpml", "absorbing": (0, 5, 3, 4, 5, 3), "free_surface": True},
    "sponge": {"boundary": "sponge", "absorbing": (4, 5, 4, 4, 5, 4), "min_velocity_mps": 1500.0},
    "no-layer": {"boundary": "cpml", "absorbing": (0,) * 6},
}


def scheme_of(name: str, **options: Any) -> Scheme:
    base: dict[str, Any] = {
        "spacing_m": (10.0, 12.0, 11.0),
        "dt_s": DT_S,
        "order": 4,
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
    }
    return Scheme(**(base | BOUNDARIES[name] | options))


def velocity_of() -> NDArray[np.float64]:
    return np.random.default_rng(41).uniform(1500.0, 2500.0, SHAPE)


def places(scheme: Scheme, points: int, seed: int) -> Points:
    """Two shots of points anywhere in the model, one of them on a cell and one absent."""
    high = [size - 2 for size in SHAPE]
    positions = np.random.default_rng(seed).uniform(1.0, high, (2, points, 3))
    positions[0, 0] = np.round(positions[0, 0])
    positions[1, 1] = np.nan
    return off_grid(positions, SHAPE, free_surface=scheme.free_surface)


def adjoint_gap(fx: NDArray, y: NDArray, x: NDArray, adjoint_y: NDArray) -> float:
    """Gap between <Fx, y> and <x, F'y> relative to |Fx| |y|, the sums taken in float64."""
    fx, y, x, adjoint_y = (array.astype(np.float64) for array in (fx, y, x, adjoint_y))
    return float(abs(np.vdot(fx, y) - np.vdot(x, adjoint_y)) / (np.linalg.norm(fx) * np.linalg.norm(y)))


@pytest.fixture
def double(fast64: Any) -> Any:
    """The compiled loops in float64."""
    return replace(fast64, module=cpu_3d)


@pytest.fixture
def single(fast32: Any) -> Any:
    """The compiled loops in float32."""
    return replace(fast32, module=cpu_3d)


@pytest.mark.parametrize("order", [2, 4, 6, 8])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_wavelet_map_and_its_adjoint(name: str, order: int, double: Any, single: Any) -> None:
    scheme, rng = scheme_of(name, order=order), np.random.default_rng(42)
    sources, receivers = places(scheme, 2, 43), places(scheme, 4, 44)
    x, y = rng.standard_normal((2, 2, SAMPLES)), rng.standard_normal((2, 4, SAMPLES))
    # Single precision at two orders only: each order is compiled for itself.
    for engine, bar in ((double, 1e-12), *([(single, 1e-5)] if order in (4, 8) else [])):
        x, y = x.astype(engine.dtype), y.astype(engine.dtype)
        records, stored = engine.forward(velocity_of(), x, sources, receivers, scheme, store=True)
        _, adjoint = engine.gradient(velocity_of(), x, sources, receivers, scheme, stored, y)
        assert adjoint_gap(records, y, x, adjoint) <= bar


@pytest.mark.parametrize("order", [2, 8])
@pytest.mark.parametrize("name", ["cpml", "free-surface", "no-layer"])
def test_velocity_derivative_and_its_adjoint(name: str, order: int, double: Any, ricker: Callable[..., Any]) -> None:
    """A change of c = v² dt² inside the model drives the same recursion with (dc/c)(w + f) at every cell."""
    scheme, rng = scheme_of(name, order=order), np.random.default_rng(45)
    sources, receivers = places(scheme, 2, 43), places(scheme, 4, 44)
    wavelet = rng.uniform(0.5, 1.0, (2, 2, 1)) * ricker(20.0, DT_S, SAMPLES)
    change = np.zeros(SHAPE)
    # Edge cells reach into the layers, whose own change the drive below does not hold.
    change[1:-1, 1:-1, 1:-1] = rng.standard_normal([size - 2 for size in SHAPE])
    cells = np.indices(SHAPE).reshape(3, -1).T[None]
    everywhere = on_grid(np.repeat(cells, 2, axis=0), SHAPE)
    longer = np.concatenate([wavelet, np.zeros((2, 2, 1))], axis=-1)
    field, _ = double.forward(velocity_of(), longer, sources, everywhere, scheme)
    before = np.concatenate([np.zeros((*field.shape[:2], 1)), field[..., :-2]], axis=-1)
    bracket = (field[..., 1:] - 2.0 * field[..., :-1] + before) / (velocity_of().reshape(1, -1, 1) * DT_S) ** 2
    drive = (2.0 * change / velocity_of()).reshape(1, -1, 1) * bracket
    derivative, _ = double.forward(velocity_of(), drive, everywhere, receivers, scheme)
    y = rng.standard_normal((2, 4, SAMPLES))
    _, stored = double.forward(velocity_of(), wavelet, sources, receivers, scheme, store=True)
    adjoint, _ = double.gradient(velocity_of(), wavelet, sources, receivers, scheme, stored, y)
    assert adjoint_gap(derivative, y, change, adjoint) <= 1e-12


@pytest.mark.parametrize("name", BOUNDARIES)
def test_taylor_slope_is_two(name: str, double: Any, ricker: Callable[..., Any]) -> None:
    """With changes up to the edges, whose cells the layers repeat."""
    scheme, rng = scheme_of(name), np.random.default_rng(46)
    sources, receivers = places(scheme, 2, 43), places(scheme, 4, 44)
    wavelet = np.tile(ricker(20.0, DT_S, SAMPLES), (2, 2, 1))
    velocity, direction = velocity_of(), rng.standard_normal(SHAPE)
    observed, _ = double.forward(velocity + 40.0 * rng.standard_normal(SHAPE), wavelet, sources, receivers, scheme)

    def misfit(model: NDArray) -> float:
        return 0.5 * float(np.sum((double.forward(model, wavelet, sources, receivers, scheme)[0] - observed) ** 2))

    records, stored = double.forward(velocity, wavelet, sources, receivers, scheme, store=True)
    adjoint, _ = double.gradient(velocity, wavelet, sources, receivers, scheme, stored, records - observed)
    slope, steps = np.vdot(adjoint, direction), 4.0 * 0.5 ** np.arange(5)
    rest = [abs(misfit(velocity + h * direction) - misfit(velocity) - h * slope) for h in steps]
    assert np.polyfit(np.log(steps), np.log(rest), 1)[0] == pytest.approx(2.0, abs=0.05)


# The bar of a layered case is what the discrete C-PML itself costs: its product-rule form is symmetric only up to the
# discretisation error of the waves inside the layer.
@pytest.mark.parametrize(
    ("name", "bar"), [("no-layer", 1e-12), ("sponge", 1e-12), ("cpml", 1e-4), ("free-surface", 1e-4)]
)
def test_source_and_receiver_change_places(name: str, bar: float, double: Any, ricker: Callable[..., Any]) -> None:
    widths = tuple(10 if width else 0 for width in BOUNDARIES[name]["absorbing"])
    scheme, wavelet = scheme_of(name, absorbing=widths), ricker(20.0, DT_S, SAMPLES)[None, None]
    here, there = (
        off_grid(np.array([[place]]), SHAPE, free_surface=scheme.free_surface)
        for place in ((2.3, 3.0, 2.6), (6.25, 5.5, 8.1))
    )
    forth, _ = double.forward(velocity_of(), wavelet, here, there, scheme)
    back, _ = double.forward(velocity_of(), wavelet, there, here, scheme)
    assert np.linalg.norm(back - forth) <= bar * np.linalg.norm(forth)


def test_a_point_source_sounds_like_the_analytic_one(single: Any, ricker: Callable[..., Any]) -> None:
    """u(r, t) = s(t - r/v) / (4 pi r) for f = s(t) delta(r); on a grid the delta is one over the volume of a cell."""
    shape, velocity_mps, h = (30, 30, 30), 2000.0, 10.0
    scheme = scheme_of(
        "cpml", order=8, spacing_m=(h,) * 3, dt_s=1e-3, absorbing=(10,) * 6, pml_hz=15.0, max_velocity_mps=2000.0
    )
    source, receivers = np.array([7.5, 8.0, 7.25]), np.array([[20.0, 8.0, 7.25], [17.5, 18.0, 16.25], [8.5, 9.0, 24.0]])
    shift = 1.5 / 15.0
    wavelet = ricker(15.0, 1e-3, 300, shift)
    records, _ = single.forward(
        np.full(shape, velocity_mps),
        wavelet[None, None] / h**3,
        off_grid(source[None, None], shape, free_surface=False),
        off_grid(receivers[None], shape, free_surface=False),
        scheme,
    )
    for record, place in zip(records[0], receivers, strict=True):
        distance_m = h * float(np.linalg.norm(place - source))
        expected = ricker(15.0, 1e-3, 300, shift + distance_m / velocity_mps) / (4.0 * np.pi * distance_m)
        # A step of 1 ms delays the wave by (omega dt)² / 24 of its travel time, and the layers send 1e-3 back.
        assert np.linalg.norm(record - expected) <= 1e-2 * np.linalg.norm(expected)
