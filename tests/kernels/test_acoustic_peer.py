"""The kernels equal deepwave's scalar propagator in float64: records, velocity and wavelet gradients, whole arrays.

The bar is 1e-11 in float64 and 1e-5 in float32: rounding errors of every time step add up along a record, so correct
float32 codes lie 1e-6 to 5e-6 from a float64 one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import deepwave
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, off_grid

PEAK_HZ = 20.0
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-11}


@dataclass(frozen=True)
class Case:
    """One problem both codes solve; the cell (-1, -1) stands for an absent point."""

    velocity: NDArray[np.float64]
    wavelet: NDArray[np.float64]
    sources: NDArray[np.int64]
    receivers: NDArray[np.int64]
    scheme: Scheme
    weights: NDArray[np.float64]


def build(
    ricker: Callable[..., NDArray[np.float64]],
    *,
    shape: tuple[int, int] = (31, 38),
    spacing_m: tuple[float, float] = (10.0, 10.0),
    order: int = 4,
    absorbing: tuple[int, int, int, int] = (9, 9, 9, 9),
    samples: int = 150,
    dt_s: float = 1.5e-3,
    shots: int = 2,
    sources_per_shot: int = 1,
    batched: bool = False,
    absent: bool = False,
    still: bool = False,
    negative: bool = False,
    free_surface: bool = False,
    **options: Any,
) -> Case:
    """A random-velocity problem; options go to the scheme."""
    rng = np.random.default_rng(7)
    velocity = rng.uniform(1500.0, 2500.0, (shots, *shape) if batched else shape)
    if still:
        velocity[..., 12:15, 20:23] = 0.0
    if negative:
        velocity[..., 12:15, 20:23] *= -1.0

    def places(points: int) -> NDArray[np.int64]:
        below = shape[0] - 1 if free_surface else shape[0]
        chosen = [rng.choice(below * shape[1], points, replace=False) for _ in range(shots)]
        cells = np.stack(np.unravel_index(np.array(chosen), (below, shape[1])), axis=-1).astype(np.int64)
        return cells + np.array([shape[0] - below, 0])

    sources, receivers = places(sources_per_shot), places(9)
    if absent:
        receivers[0, 3] = -1
        receivers[1, 0] = -1
        sources[1, -1] = -1
    amplitudes = rng.uniform(0.5, 2.0, (shots, sources_per_shot, 1))
    wavelet = amplitudes * ricker(PEAK_HZ, dt_s, samples)
    scheme = Scheme(
        spacing_m=spacing_m,
        dt_s=dt_s,
        order=order,
        absorbing=absorbing,
        boundary="cpml",
        pml_hz=PEAK_HZ,
        max_velocity_mps=2500.0,
        free_surface=free_surface,
        **options,
    )
    return Case(velocity, wavelet, sources, receivers, scheme, rng.uniform(-1.0, 1.0, (shots, 9, 1)))


def peer(case: Case) -> tuple[NDArray, NDArray, NDArray]:
    """Records, velocity gradient and wavelet gradient of deepwave in float64; its wavelet has the opposite sign.

    deepwave's free surface lies one cell above its first row, ours on it: the peer's model starts at our second row.
    """
    scheme = case.scheme
    above = 1 if scheme.free_surface else 0
    velocity = torch.tensor(case.velocity[..., above:, :], requires_grad=True)
    amplitudes = torch.tensor(-case.wavelet, requires_grad=True)

    def locations(cells: NDArray[np.int64]) -> torch.Tensor:
        return torch.tensor(np.where(cells < 0, deepwave.IGNORE_LOCATION, cells - np.array([above, 0])))

    out = deepwave.scalar(
        velocity,
        scheme.spacing_m,
        scheme.dt_s,
        source_amplitudes=amplitudes,
        source_locations=locations(case.sources),
        receiver_locations=locations(case.receivers),
        accuracy=scheme.order,
        pml_width=list(scheme.absorbing),
        boundary=["free", "pml", "pml", "pml"] if scheme.free_surface else None,
        pml_freq=scheme.pml_hz,
        max_vel=scheme.max_velocity_mps,
        model_gradient_sampling_interval=max(1, scheme.store_every // scheme.substeps),
    )
    assert out.info.step_ratio == scheme.substeps, "the peer must take the same inner steps"
    records = out.receiver_amplitudes
    records.backward(records.detach() * torch.tensor(case.weights))
    assert velocity.grad is not None
    assert amplitudes.grad is not None
    velocity_gradient = np.zeros_like(case.velocity)
    velocity_gradient[..., above:, :] = velocity.grad.numpy()
    return records.detach().numpy(), velocity_gradient, -amplitudes.grad.numpy()


def ours(engine: Any, case: Case, record_gradient: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The same three arrays from the implementation under test, for the peer's own record gradient."""

    def points(cells: NDArray[np.int64]) -> Points:
        positions = np.where(cells < 0, np.nan, cells.astype(np.float64))
        return off_grid(positions, case.velocity.shape[-2:], free_surface=case.scheme.free_surface)

    sources, receivers = points(case.sources), points(case.receivers)
    records, stored = engine.forward(case.velocity, case.wavelet, sources, receivers, case.scheme, store=True)
    velocity_gradient, wavelet_gradient = engine.gradient(
        case.velocity, case.wavelet, sources, receivers, case.scheme, stored, record_gradient
    )
    return records, velocity_gradient, wavelet_gradient


def distance(result: NDArray, truth: NDArray) -> float:
    """Relative L2 distance over the whole array, in float64."""
    assert result.shape == truth.shape
    return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))


CASES: dict[str, dict[str, Any]] = {
    "order-2": {"order": 2},
    "order-4": {"order": 4},
    "order-6": {"order": 6},
    "order-8": {"order": 8},
    "unequal-widths": {"absorbing": (5, 12, 8, 3), "order": 8},
    "no-layer-above": {"absorbing": (0, 9, 7, 9), "order": 2},
    "no-layer-right": {"absorbing": (9, 9, 7, 0)},
    "no-layer-at-all": {"absorbing": (0, 0, 0, 0), "order": 6},
    "oblong-cells": {"spacing_m": (8.0, 12.5), "order": 6, "dt_s": 1.2e-3},
    "weights-that-round-badly": {"spacing_m": (12.5, 12.5), "order": 6, "dt_s": 1.8e-3},
    "one-model-per-shot": {"batched": True},
    "two-sources": {"sources_per_shot": 2, "order": 8},
    "absent-points": {"absent": True, "sources_per_shot": 2},
    "two-substeps-even": {"dt_s": 3e-3, "samples": 80, "substeps": 2, "store_every": 2},
    "two-substeps-odd": {"dt_s": 3e-3, "samples": 81, "substeps": 2, "store_every": 2, "order": 8},
    "two-substeps-every-fourth": {"dt_s": 3e-3, "samples": 80, "substeps": 2, "store_every": 4},
    "every-third-step": {"store_every": 3},
    "every-fifth-step": {"store_every": 5, "order": 8},
    "smaller-than-the-layers": {"shape": (9, 12), "absorbing": (20, 20, 20, 20), "order": 8},
    "two-rows": {"shape": (2, 40), "absorbing": (9, 9, 9, 9)},
    "still-cells": {"still": True, "order": 8},
    "negative-velocities": {"negative": True},
    "free-surface-order-2": {"free_surface": True, "absorbing": (0, 9, 9, 9), "order": 2},
    "free-surface-order-4": {"free_surface": True, "absorbing": (0, 9, 9, 9), "order": 4},
    "free-surface-order-6": {"free_surface": True, "absorbing": (0, 5, 12, 0), "order": 6},
    "free-surface-order-8": {"free_surface": True, "absorbing": (0, 20, 9, 9), "order": 8, "sources_per_shot": 2},
}


@cache
def solved(name: str, ricker: Callable[..., NDArray[np.float64]]) -> tuple[Case, tuple[NDArray, NDArray, NDArray]]:
    """A case and the peer's answer to it, computed once for all implementations."""
    case = build(ricker, **CASES[name])
    return case, peer(case)


@pytest.mark.filterwarnings("ignore::deepwave.ZeroWidthFaceWarning")  # the cases without a layer mean it
@pytest.mark.parametrize("name", CASES)
def test_equals_deepwave_in_float64(name: str, engine: Any, ricker: Callable[..., NDArray[np.float64]]) -> None:
    case, (records, velocity_gradient, wavelet_gradient) = solved(name, ricker)
    result = ours(engine, case, records * case.weights)
    tolerance = TOLERANCE[engine.dtype]
    assert distance(result[0], records) <= tolerance
    assert distance(result[1], velocity_gradient) <= tolerance
    assert distance(result[2], wavelet_gradient) <= tolerance


def test_the_bar_would_notice_a_layer_one_cell_narrower(
    engine64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    records, _, _ = peer(build(ricker, absorbing=(8, 9, 9, 9)))
    result, _, _ = ours(engine64, build(ricker), records)
    assert distance(result, records) > 1e-5
