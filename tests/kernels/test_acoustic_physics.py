"""Properties of the wave equation the kernels must keep: reciprocity, linearity in the wavelet, causality, symmetry."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, off_grid

SHAPE = (33, 41)
DT_S = 1.5e-3
SAMPLES = 180
PEAK_HZ = 20.0


def scheme_of(order: int = 4, **options: Any) -> Scheme:
    settings: dict[str, Any] = {"boundary": "cpml", "absorbing": (10, 10, 10, 10), "free_surface": False} | options
    return Scheme(
        spacing_m=(10.0, 10.0), dt_s=DT_S, order=order, pml_hz=PEAK_HZ, max_velocity_mps=2500.0,
        min_velocity_mps=1500.0 if settings["boundary"] == "sponge" else None, **settings,
    )  # fmt: skip


def velocity_of(shape: tuple[int, int] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(21).uniform(1500.0, 2500.0, shape)


def one(position: tuple[float, float], scheme: Scheme) -> Points:
    """One shot with one point."""
    return off_grid(np.array([[position]], np.float64), SHAPE, free_surface=scheme.free_surface)


def gap(result: NDArray, expected: NDArray) -> float:
    """Relative L2 distance."""
    result, expected = result.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


# The bar of a layered case is what the discrete C-PML itself costs: its product-rule form is symmetric only up to the
# discretisation error of the waves inside the layer.
RECIPROCAL: dict[str, tuple[dict[str, Any], float]] = {
    "no-layer": ({"absorbing": (0, 0, 0, 0)}, 1e-12),
    "free-surface": ({"absorbing": (0, 0, 0, 0), "free_surface": True}, 1e-12),
    "sponge": ({"boundary": "sponge"}, 1e-12),
    "cpml": ({}, 1e-5),
    "cpml-free-surface": ({"absorbing": (0, 10, 10, 10), "free_surface": True}, 1e-5),
}


@pytest.mark.parametrize("order", [2, 8])
@pytest.mark.parametrize("name", RECIPROCAL)
@pytest.mark.parametrize("places", [((7, 9), (22, 30)), ((7.3, 9.6), (22.25, 30.5))], ids=["cells", "between"])
def test_source_and_receiver_change_places(
    places: tuple[tuple[float, float], ...], name: str, order: int, engine: Any, ricker: Callable[..., NDArray]
) -> None:
    """The source term f stands beside lap u, so no velocity enters the exchange."""
    options, bar = RECIPROCAL[name]
    scheme, wavelet = scheme_of(order, **options), ricker(PEAK_HZ, DT_S, SAMPLES)[None, None]
    here, there = (one(place, scheme) for place in places)
    forth, _ = engine.forward(velocity_of(), wavelet, here, there, scheme)
    back, _ = engine.forward(velocity_of(), wavelet, there, here, scheme)
    assert gap(back, forth) <= (max(bar, 1e-5) if engine.single else bar)


@pytest.mark.parametrize("boundary", ["cpml", "sponge"])
def test_records_are_linear_in_the_wavelet(boundary: str, engine: Any) -> None:
    scheme, rng = scheme_of(boundary=boundary), np.random.default_rng(22)
    first, second = rng.standard_normal((2, 1, 1, SAMPLES))
    here, there = one((5, 6), scheme), one((20, 30), scheme)
    parts = [engine.forward(velocity_of(), part, here, there, scheme)[0] for part in (first, second)]
    whole, _ = engine.forward(velocity_of(), 3.0 * first - 0.5 * second, here, there, scheme)
    assert gap(whole, 3.0 * parts[0] - 0.5 * parts[1]) <= (1e-5 if engine.single else 1e-13)


def test_two_sources_of_a_shot_add_up(engine: Any) -> None:
    scheme, rng = scheme_of(), np.random.default_rng(23)
    wavelet = rng.standard_normal((1, 2, SAMPLES))
    cells = np.array([[[4.0, 6.0], [15.5, 20.0]]])
    there = one((20, 30), scheme)
    both, _ = engine.forward(velocity_of(), wavelet, off_grid(cells, SHAPE, free_surface=False), there, scheme)
    alone = [
        engine.forward(
            velocity_of(), wavelet[:, [k]], off_grid(cells[:, [k]], SHAPE, free_surface=False), there, scheme
        )
        for k in (0, 1)
    ]
    assert gap(both, alone[0][0] + alone[1][0]) <= (1e-5 if engine.single else 1e-13)


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_nothing_arrives_before_the_stencil_can_carry_it(order: int, engine: Any) -> None:
    """A step carries a wave order/2 cells, and the source shows one step after its sample: before that, exact zeros."""
    scheme = scheme_of(order)
    wavelet = np.ones((1, 1, SAMPLES))
    cells = 24
    records, _ = engine.forward(velocity_of(), wavelet, one((5, 6), scheme), one((5, 6 + cells), scheme), scheme)
    first = 1 + cells // (order // 2)
    assert not records[0, 0, :first].any()
    assert records[0, 0, first] != 0.0


def test_almost_nothing_arrives_before_the_fastest_wave(fast64: Any, ricker: Callable[..., NDArray]) -> None:
    scheme, delay_s, cells = scheme_of(8), 0.1, 30
    wavelet = ricker(PEAK_HZ, DT_S, SAMPLES, delay_s)[None, None]
    velocity = np.full(SHAPE, 2500.0)
    record = fast64.forward(velocity, wavelet, one((5, 6), scheme), one((5, 6 + cells), scheme), scheme)[0][0, 0]
    # A Ricker wavelet is below 1e-3 of its peak a period before its centre, and the two-dimensional Green's function
    # spreads it backwards not at all.
    arrival = int((cells * 10.0 / 2500.0 + delay_s - 1.0 / PEAK_HZ) / DT_S)
    assert np.abs(record[:arrival]).max() <= 5e-3 * np.abs(record).max()


def test_sample_zero_is_the_initial_field_and_the_first_wavelet_sample_shows_in_sample_one(engine: Any) -> None:
    scheme, here = scheme_of(), one((12, 13), scheme_of())
    wavelet = np.zeros((1, 1, 4))
    wavelet[0, 0, 0] = 3.0
    records, _ = engine.forward(velocity_of(), wavelet, here, here, scheme)
    assert records[0, 0, 0] == 0.0
    assert records[0, 0, 1] == pytest.approx(3.0 * (velocity_of()[12, 13] * DT_S) ** 2, rel=1e-6)


def test_a_mirrored_model_gives_mirrored_records(engine: Any, ricker: Callable[..., NDArray]) -> None:
    scheme, wavelet = scheme_of(8, absorbing=(10, 10, 12, 7)), ricker(PEAK_HZ, DT_S, SAMPLES)[None, None]
    turned = scheme_of(8, absorbing=(10, 10, 7, 12))
    last = SHAPE[1] - 1
    velocity = velocity_of()
    plain, _ = engine.forward(velocity, wavelet, one((5, 6), scheme), one((20, 30), scheme), scheme)
    mirrored, _ = engine.forward(
        velocity[:, ::-1].copy(), wavelet, one((5, last - 6), turned), one((20, last - 30), turned), turned
    )
    assert gap(mirrored, plain) <= (1e-5 if engine.single else 1e-12)


def test_a_transposed_model_gives_the_same_records(engine: Any, ricker: Callable[..., NDArray]) -> None:
    """Rows and columns are computed by different loops; exchanging the axes must not show."""
    wavelet = ricker(PEAK_HZ, DT_S, SAMPLES)[None, None]
    scheme, turned = scheme_of(8, absorbing=(10, 11, 12, 7)), scheme_of(8, absorbing=(12, 7, 10, 11))
    velocity = velocity_of((36, 36))
    points = [off_grid(np.array([[place]]), (36, 36), free_surface=False) for place in ((5.0, 6.0), (20.0, 30.0))]
    swapped = [off_grid(np.array([[place]]), (36, 36), free_surface=False) for place in ((6.0, 5.0), (30.0, 20.0))]
    plain, _ = engine.forward(velocity, wavelet, *points, scheme)
    transposed, _ = engine.forward(velocity.T.copy(), wavelet, *swapped, turned)
    assert gap(transposed, plain) <= (1e-5 if engine.single else 1e-12)


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_a_free_surface_is_the_odd_image_of_the_model(order: int, engine: Any, ricker: Callable[..., NDArray]) -> None:
    """Below a free surface the field is that of model and mirror image, the mirrored source of opposite sign."""
    free = scheme_of(order, absorbing=(0, 9, 9, 9), free_surface=True)
    whole = scheme_of(order, absorbing=(9, 9, 9, 9))
    rows = SHAPE[0]
    wavelet = ricker(PEAK_HZ, DT_S, SAMPLES)
    doubled = np.concatenate([velocity_of()[:0:-1], velocity_of()])
    shape = doubled.shape
    images = off_grid(np.array([[[rows - 1 + 4.0, 9.0], [rows - 1 - 4.0, 9.0]]]), shape, free_surface=False)
    receiver = off_grid(np.array([[[rows - 1 + 6.0, 30.0]]]), shape, free_surface=False)
    expected, _ = engine.forward(doubled, np.stack([wavelet, -wavelet])[None], images, receiver, whole)
    records, _ = engine.forward(velocity_of(), wavelet[None, None], one((4, 9), free), one((6, 30), free), free)
    assert gap(records, expected) <= (1e-5 if engine.single else 1e-12)
    on_the_surface, _ = engine.forward(velocity_of(), wavelet[None, None], one((4, 9), free), one((0, 20), free), free)
    assert not on_the_surface.any()
