"""The sponge scheme equals the finite-difference step that OpenFWI's records were made with, written out plainly here.

With c = (v dt/dx)² and k = D dt:
p(n+1) = (2 - 5c - k) p(n) - (1 - k) p(n-1) + c (4/3 (sum of 4 neighbours at distance 1) - 1/12 (of 4 at distance 2)),
then p(n+1)[source] += (v dt)² s(n+1), and record(n+1) = p(n+1)[receiver]. The kernel's sample 0 is the field before the
first step, so its sample n + 1 is that code's sample n.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Scheme, on_grid

SPACING_M = 10.0
DT_S = 1e-3
WIDTH = 20
SHAPE = (19, 26)
SAMPLES = 400


def plain_records(velocity: NDArray, wavelet: NDArray, source: tuple[int, int], receivers: NDArray) -> NDArray:
    """Records [receiver, time] of the step above in float64, on a periodic padded grid."""
    rows, columns = velocity.shape
    padded = np.empty((rows + 2 * WIDTH, columns + 2 * WIDTH))
    damping = np.zeros_like(padded)
    length = (WIDTH - 1) * SPACING_M
    strength = 3.0 * velocity.min() * math.log(1e7) / (2.0 * length)
    for z in range(padded.shape[0]):
        for x in range(padded.shape[1]):
            padded[z, x] = velocity[min(max(z - WIDTH, 0), rows - 1), min(max(x - WIDTH, 0), columns - 1)]
            above, below = WIDTH - 1 - z, z - (WIDTH + rows)
            left, right = WIDTH - 1 - x, x - (WIDTH + columns)
            depth = left if left >= 0 else right if right >= 0 else max(above, below, 0)
            damping[z, x] = strength * (depth * SPACING_M / length) ** 2
    c, k = (padded * DT_S / SPACING_M) ** 2, damping * DT_S
    now, before = np.zeros_like(padded), np.zeros_like(padded)
    records = np.zeros((len(receivers), wavelet.size))
    for n in range(wavelet.size):
        field = np.pad(now, 2, mode="wrap")
        near = field[1:-3, 2:-2] + field[3:-1, 2:-2] + field[2:-2, 1:-3] + field[2:-2, 3:-1]
        far = field[:-4, 2:-2] + field[4:, 2:-2] + field[2:-2, :-4] + field[2:-2, 4:]
        after = (2.0 - 5.0 * c - k) * now - (1.0 - k) * before + c * (4.0 / 3.0 * near - far / 12.0)
        after[source[0] + WIDTH, source[1] + WIDTH] += (velocity[source] * DT_S) ** 2 * wavelet[n]
        now, before = after, now
        records[:, n] = now[receivers[:, 0] + WIDTH, receivers[:, 1] + WIDTH]
    return records


def recipe_wavelet(peak_hz: float) -> NDArray[np.float64]:
    """The recipe's own Ricker wavelet, 147 samples long at 15 Hz and 1 ms, zero afterwards."""
    count = 2 * (int(2.2 / (peak_hz * DT_S)) // 2) + 1
    centre = count // 2 + 1
    alpha = (centre - np.arange(1, count + 1)) * peak_hz * DT_S * np.pi
    wavelet = np.zeros(SAMPLES)
    wavelet[:count] = (1.0 - 2.0 * alpha**2) * np.exp(-(alpha**2))
    return wavelet


def scheme_of(velocity: NDArray) -> Scheme:
    return Scheme(
        spacing_m=(SPACING_M, SPACING_M),
        dt_s=DT_S,
        order=4,
        absorbing=(WIDTH,) * 4,
        boundary="sponge",
        free_surface=False,
        pml_hz=0.0,
        max_velocity_mps=4500.0,
        min_velocity_mps=float(velocity.min()),
    )


def test_recipe_wavelet_has_147_samples_and_its_peak_at_the_74th() -> None:
    wavelet = recipe_wavelet(15.0)
    assert np.count_nonzero(wavelet) == 147
    assert int(np.argmax(wavelet)) == 73


@pytest.mark.parametrize("source", [(1, 0), (1, 13), (18, 25)])
def test_sponge_equals_the_step_written_out(source: tuple[int, int], engine: Any) -> None:
    velocity = np.random.default_rng(41).uniform(1500.0, 4500.0, SHAPE)
    wavelet = recipe_wavelet(15.0)
    receivers = np.stack([np.ones(SHAPE[1], np.int64), np.arange(SHAPE[1])], axis=-1)
    expected = plain_records(velocity, wavelet, source, receivers)
    records, _ = engine.forward(
        velocity,
        wavelet[None, None],
        on_grid(np.array([[source]]), SHAPE),
        on_grid(receivers[None], SHAPE),
        scheme_of(velocity),
    )
    assert not records[..., 0].any()
    difference = records[0, :, 1:].astype(np.float64) - expected[:, :-1]
    assert np.linalg.norm(difference) <= (1e-5 if engine.single else 1e-12) * np.linalg.norm(expected)
    # The first sample at the source's own receiver reveals the velocity there: (v dt)² s_1.
    if source[0] == 1:
        scale = (velocity[source] * DT_S) ** 2 * wavelet[0]
        assert records[0, source[1], 1] == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sponge_for_each_model_is_what_each_has_alone(threads: int, engine: Any) -> None:
    """Records and gradients, bit by bit; two of three share a sponge, and two threads the last shot."""
    rng, made_for = np.random.default_rng(42), (1500.0, 3000.0, 1500.0)
    velocity, wavelet = rng.uniform(1500.0, 4500.0, (3, *SHAPE)), rng.standard_normal((3, 1, 120))
    sources = on_grid(rng.integers(0, SHAPE, (3, 1, 2)), SHAPE)
    receivers = on_grid(rng.integers(0, SHAPE, (3, 5, 2)), SHAPE)
    scheme = replace(scheme_of(velocity), min_velocity_mps=made_for)

    def everything(how: Scheme, shots: list[int]) -> tuple[NDArray, ...]:
        work = velocity[shots], wavelet[shots], sources.of_shots(shots), receivers.of_shots(shots), how
        records, stored = engine.forward(*work, store=True, threads=threads)
        return records, *engine.gradient(*work, stored, records, threads=threads)

    together = everything(scheme, [0, 1, 2])
    for shot, velocity_mps in enumerate(made_for):
        alone = everything(replace(scheme, min_velocity_mps=velocity_mps), [shot])
        assert all(np.array_equal(one[shot], other[0]) for one, other in zip(together, alone, strict=True))
    shared = everything(replace(scheme, min_velocity_mps=made_for[0]), [0, 1, 2])
    assert all(np.array_equal(one[[0, 2]], other[[0, 2]]) for one, other in zip(together, shared, strict=True))
    assert all(
        np.linalg.norm(one[1] - other[1]) > 1e-2 * np.linalg.norm(other[1])
        for one, other in zip(together, shared, strict=True)
    )
