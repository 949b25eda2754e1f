"""What the absorbing layers send back: reflection by angle of incidence, decay over 50,000 steps, the sponge."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.absorbing import cpml_profiles, sponge_damping
from hpfwi_kernels.acoustic import Scheme, off_grid, on_grid

VELOCITY_MPS = 2000.0
SPACING_M = 10.0
DT_S = 2e-3
PEAK_HZ = 12.0
HEIGHT = 40
DEGREES = (0, 10, 20, 30, 40, 50, 60, 70)


def scheme_of(**options: Any) -> Scheme:
    settings: dict[str, Any] = {"boundary": "cpml", "absorbing": (20, 20, 20, 20), "free_surface": False, "order": 4}
    return Scheme(
        spacing_m=(SPACING_M, SPACING_M),
        dt_s=DT_S,
        pml_hz=PEAK_HZ,
        max_velocity_mps=VELOCITY_MPS,
        **(settings | options),
    )


def reflection_table(engine: Any, wavelet: NDArray, **options: Any) -> dict[int, float]:
    """Reflection coefficient of the layer below a homogeneous model, in dB by angle of incidence in degrees.

    A source and a line of receivers lie HEIGHT cells above the layer. The residual against a model so deep that nothing
    returns from its bottom is the reflection; its measure is the same wave recorded at the receiver's mirror image in
    the layer's face, where a perfect mirror would have it come from. Both models reach equally far to the other sides.
    """
    offsets = np.array([round(2 * HEIGHT * math.tan(math.radians(degree))) for degree in DEGREES])
    columns, above = int(offsets[-1]) + 2 * 60, 80
    deep = HEIGHT + math.ceil(wavelet.size * DT_S * VELOCITY_MPS / SPACING_M / 2) + 1
    scheme = scheme_of(**options)

    def record(rows: int, receiver_row: int) -> NDArray:
        shape = (rows, columns)
        sources = on_grid(np.array([[[above, 60]]]), shape)
        cells = np.stack([np.full_like(offsets, receiver_row), 60 + offsets], axis=-1)[None]
        velocity = np.full(shape, VELOCITY_MPS)
        return engine.forward(velocity, wavelet[None, None], sources, on_grid(cells, shape), scheme)[0][0].astype(float)

    # The layer's first damped cell is the first outside the model: its face is the last row, HEIGHT rows below.
    shallow, endless = record(above + HEIGHT + 1, above), record(above + deep, above)
    mirrored = record(above + deep, above + 2 * HEIGHT)
    heard = np.abs(shallow - endless).max(axis=1) / np.abs(mirrored).max(axis=1)
    return {degree: float(20.0 * np.log10(ratio)) for degree, ratio in zip(DEGREES, heard, strict=True)}


@pytest.mark.parametrize("order", [2, 4, 8])
def test_twenty_cells_reflect_less_than_50_db_at_normal_incidence(order: int, fast64: Any, ricker: Any) -> None:
    table = reflection_table(fast64, ricker(PEAK_HZ, DT_S, 700, 1.5 / PEAK_HZ), order=order)
    print("\nreflection in dB by angle:", {degree: round(value, 1) for degree, value in table.items()})
    assert table[0] <= -50.0
    assert all(table[degree] <= -50.0 for degree in DEGREES if degree <= 30)
    assert all(table[degree] <= -25.0 for degree in DEGREES)


def test_a_wider_layer_reflects_less(fast64: Any, ricker: Any) -> None:
    wavelet = ricker(PEAK_HZ, DT_S, 500, 1.5 / PEAK_HZ)
    tables = [reflection_table(fast64, wavelet, absorbing=(20, width, 20, 20)) for width in (0, 4, 8, 14)]
    normal = [table[0] for table in tables]
    assert normal[0] == pytest.approx(0.0, abs=1.0)
    assert normal == sorted(normal, reverse=True)


LONG: dict[str, dict[str, Any]] = {
    "cpml": {"absorbing": (10, 10, 10, 10)},
    "cpml-order-8": {"absorbing": (10, 10, 10, 10), "order": 8},
    "cpml-uneven": {"absorbing": (3, 20, 1, 9)},
    "free-surface": {"absorbing": (0, 10, 10, 10), "free_surface": True},
    "free-surface-order-8": {"absorbing": (0, 10, 10, 10), "free_surface": True, "order": 8},
    "one-corner": {"absorbing": (0, 10, 0, 10), "order": 8},
    "sponge": {"boundary": "sponge", "absorbing": (10, 10, 10, 10), "min_velocity_mps": 1500.0},
    "sponge-free-surface": {
        "boundary": "sponge",
        "absorbing": (0, 10, 10, 10),
        "free_surface": True,
        "min_velocity_mps": 1500.0,
    },
}


@pytest.mark.parametrize("name", LONG)
def test_fifty_thousand_steps_do_not_grow(name: str, compiled: Any, ricker: Any) -> None:
    """Late instabilities of absorbing layers grow slowly, mostly in corners and along free surfaces."""
    steps, shape = 50_000, (14, 17)
    scheme = scheme_of(**LONG[name])
    wavelet = np.zeros((1, 1, steps))
    wavelet[0, 0, :200] = ricker(PEAK_HZ, DT_S, 200, 1.5 / PEAK_HZ)
    velocity = np.random.default_rng(31).uniform(1500.0, VELOCITY_MPS, shape)
    cells = np.array([[[1, 0], [13, 16], [7, 8], [1, 16], [13, 0]]])
    records, _ = compiled.forward(
        velocity, wavelet, on_grid(np.array([[[5, 6]]]), shape), on_grid(cells, shape), scheme
    )
    level = np.abs(records).max(axis=(0, 1)) / np.abs(records).max()
    assert np.isfinite(records).all()
    # The two-dimensional tail and the near-static part of the field leave slowly; rounding leaves a constant behind.
    assert level[2000:].max() <= 1e-5
    late = level[40_000:].max()
    if scheme.boundary == "sponge" and not scheme.free_surface:
        # Its grid is periodic and damps changes only: the mean that the cut-off wavelet leaves stays as it is.
        assert late <= (1e-7 if compiled.single else min(1e-7, 1.001 * level[20_000:30_000].max()))
    else:
        assert late <= (1e-7 if compiled.single else 1e-11)
    assert level[45_000:].max() <= 1.05 * level[40_000:45_000].max()


def test_profiles_are_zero_in_the_model_and_grow_outwards() -> None:
    profiles = cpml_profiles(40, 8, 12, spacing_m=10.0, dt_s=1e-3, order=8, max_velocity_mps=2500.0, pml_hz=20.0)
    model = slice(8, 28)
    assert not profiles.decay[model].any()
    assert not profiles.gain[model].any()
    assert not profiles.slope[8 + 4 : 28 - 4].any()
    assert (np.diff(profiles.gain[:9]) > 0).all()
    assert (np.diff(profiles.gain[27:]) < 0).all()
    assert (profiles.decay[:8] > 0).all()
    assert (profiles.decay < 1).all()


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 7), (7, 0)])
def test_a_side_without_a_layer_has_no_profile(low: int, high: int) -> None:
    profiles = cpml_profiles(30, low, high, spacing_m=10.0, dt_s=1e-3, order=4, max_velocity_mps=2500.0, pml_hz=20.0)
    ends = ([profiles.gain[:12]] if low == 0 else []) + ([profiles.gain[-12:]] if high == 0 else [])
    assert not any(end.any() for end in ends)


def test_sponge_corners_take_the_lateral_value() -> None:
    damping = sponge_damping((30, 40), (6, 7, 8, 9), spacing_m=(10.0, 10.0), dt_s=1e-3, min_velocity_mps=1500.0)
    assert np.array_equal(damping[:, 0], np.full(30, damping[15, 0]))
    assert np.array_equal(damping[0, :8], damping[15, :8])
    assert not damping[6:23, 8:31].any()
    assert damping[15, 7] == 0.0
    assert damping[15, 6] > 0.0


def test_the_sponge_absorbs(fast64: Any, ricker: Any) -> None:
    """OpenFWI's 120 cells: what comes back from them is small beside what a hard edge sends back."""
    shape, wavelet = (30, 60), ricker(PEAK_HZ, DT_S, 450, 1.5 / PEAK_HZ)[None, None]
    velocity = np.full(shape, VELOCITY_MPS)
    sources = off_grid(np.array([[[15.0, 20.0]]]), shape, free_surface=False)
    receivers = off_grid(np.array([[[15.0, 40.0]]]), shape, free_surface=False)

    def record(**options: Any) -> NDArray:
        return fast64.forward(velocity, wavelet, sources, receivers, scheme_of(**options))[0]

    absorbed = record(boundary="sponge", absorbing=(120,) * 4, min_velocity_mps=VELOCITY_MPS)
    endless = record(absorbing=(240,) * 4)
    assert np.abs(absorbed - endless).max() <= 0.02 * np.abs(endless).max()
    assert np.abs(record(absorbing=(0,) * 4) - endless).max() > 0.2 * np.abs(endless).max()
