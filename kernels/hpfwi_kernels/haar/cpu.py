"""The Numba implementation, float32 or float64: planes in parallel on threads, each read and written once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.haar import layout, loops
from hpfwi_kernels.haar.filtering import SIDES
from hpfwi_kernels.haar.filters import filters
from hpfwi_kernels.threads import share

# Samples whose filter gradients one task adds up: fixed, so that the bits do not depend on the threads, and small, so
# that a batch of a few samples still gives every thread work.
GROUP = 4


def forward(
    x: NDArray,
    base_weight: NDArray,
    base_bias: NDArray | None,
    band_weights: NDArray,
    wavelet: str = "haar",
    *,
    threads: int = 1,
) -> NDArray:
    """Depthwise convolution of x plus that of its wavelet coefficients, in the dtype of x.

    x             float32 or float64 [sample, channel, row, column]
    base_weight   [channel, k, k], k = 3, 5 or 7            base_bias   [channel] or None
    band_weights  [level, channel, 4, k, k], finest level first
    threads       planes worked on at the same time; the bits do not depend on it
    raises        KernelError for another dtype, k or wavelet
    """
    plan = _plan(x, _side(base_weight), len(band_weights), wavelet)
    samples, channels = x.shape[:2]
    out = buffers.empty(x.shape, x.dtype)
    bias = np.zeros(channels, x.dtype) if base_bias is None else base_bias
    flat = plan.flat(x, base_weight, bias, band_weights)

    def run(space: "_Space", first: int, end: int) -> None:
        loops.forward_planes(
            *flat, out.reshape(-1), np.uint64(first), np.uint64(end), np.uint64(channels),
            *plan.constants, space.padded, space.filtered, space.lines, plan.reach,
        )  # fmt: skip

    share(run, samples * channels, threads, plan.workspace)
    return out


def gradient(
    x: NDArray,
    base_weight: NDArray,
    band_weights: NDArray,
    output_gradient: NDArray,
    wavelet: str = "haar",
    *,
    wants_x: bool = True,
    wants_weights: bool = True,
    threads: int = 1,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Transpose of forward's derivative: gradients of x, base_weight, base_bias and band_weights, in the dtype of x.

    What is not wanted comes back empty. Filter gradients are summed over a plane in x's dtype and over planes in
    float64, in an order that `threads` does not change.
    """
    k, levels = _side(base_weight), len(band_weights)
    plan = _plan(x, k, levels, wavelet)
    samples, channels = x.shape[:2]
    tasks = -(-samples // GROUP) * channels
    out = buffers.empty(x.shape if wants_x else (0,), x.dtype)
    terms = (1 + 4 * levels) * k * k + 1
    sums = buffers.zeros((tasks if wants_weights else 1, terms), np.float64)
    none = np.zeros(channels, x.dtype)
    turned = (base_weight[..., ::-1, ::-1], none, band_weights[..., ::-1, ::-1])
    flat = plan.flat(x, output_gradient, *turned)

    def run(space: "_Space", first: int, end: int) -> None:
        loops.gradient_planes(
            *flat, out.reshape(-1), sums, np.uint64(first), np.uint64(end), np.uint64(samples), np.uint64(GROUP),
            np.uint64(channels), wants_x, wants_weights,
            *plan.constants, space.padded, space.padded_gradient, space.filtered, space.lines, plan.reach,
        )  # fmt: skip

    share(run, tasks, threads, plan.workspace)
    if not wants_weights:
        none = buffers.empty((0,), x.dtype)
        return out, none, none, none
    total = sums.reshape(-1, channels, terms).sum(axis=0)
    base, bands = total[:, : k * k], total[:, k * k : -1].reshape(channels, levels, 4, k, k)
    return (
        out,
        base.reshape(channels, k, k).astype(x.dtype),
        total[:, -1].astype(x.dtype),
        np.ascontiguousarray(bands.swapaxes(0, 1), x.dtype),
    )


def transform(x: NDArray, wavelet: str = "haar", *, threads: int = 1) -> NDArray:
    """One level of wavelet coefficients of [sample, channel, row, column]: [sample, channel, 4, row/2, column/2]."""
    plan = _plan(x, 1, 1, wavelet)
    planes = x.shape[0] * x.shape[1]
    out = buffers.empty((*x.shape[:2], 4, -(-x.shape[2] // 2), -(-x.shape[3] // 2)), x.dtype)
    (flat,) = plan.flat(x)

    def run(space: "_Space", first: int, end: int) -> None:
        loops.transform_planes(
            flat, out.reshape(-1), np.uint64(first), np.uint64(end), *plan.constants, space.padded, space.lines
        )

    share(run, planes, threads, plan.workspace)
    return out


def inverse(bands: NDArray, shape: tuple[int, int], wavelet: str = "haar", *, threads: int = 1) -> NDArray:
    """Transpose of `transform`: [sample, channel, 4, row, column] to [sample, channel, *shape]."""
    out = buffers.empty((*bands.shape[:2], *shape), bands.dtype)
    plan = _plan(out, 1, 1, wavelet)
    planes = bands.shape[0] * bands.shape[1]
    (flat,) = plan.flat(bands)

    def run(space: "_Space", first: int, end: int) -> None:
        loops.inverse_planes(
            flat, out.reshape(-1), np.uint64(first), np.uint64(end), *plan.constants, space.padded, space.lines
        )

    share(run, planes, threads, plan.workspace)
    return out


@dataclass(frozen=True, eq=False)
class _Space:
    """What one thread works in."""

    padded: NDArray
    padded_gradient: NDArray
    filtered: NDArray
    lines: NDArray


@dataclass(frozen=True, eq=False)
class _Plan:
    """What every plane's loop shares."""

    layouts: list[layout.Layout]
    dtype: np.dtype
    constants: tuple[NDArray, ...]
    reach: tuple[int, ...]

    def flat(self, *arrays: NDArray) -> tuple[NDArray, ...]:
        return tuple(np.ascontiguousarray(array, self.dtype).reshape(-1) for array in arrays)

    def workspace(self) -> _Space:
        plane, taps = self.layouts[0], self.constants[1].size
        lines = 2 if taps == 2 else 2 * plane.rows + 3
        padded, gradient, filtered = (layout.workspace(self.layouts, self.dtype) for _ in range(3))
        wide = buffers.zeros((lines, plane.columns + 2 * taps + 3 * layout.LANES), self.dtype)
        return _Space(padded, gradient, filtered, wide)


def _side(base_weight: NDArray) -> int:
    k = base_weight.shape[-1]
    if k not in SIDES:
        raise KernelError(f"The filters are {k} x {k}; this implementation has k = {', '.join(map(str, SIDES))}.")
    return k


def _plan(x: NDArray, k: int, levels: int, wavelet: str) -> _Plan:
    if x.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {x.dtype}; give float32 or float64.")
    layouts = layout.levels(x.shape[-2], x.shape[-1], k, levels)
    pair = filters(wavelet)
    halves = layout.halves(layouts, x.dtype)
    constants = (layout.table(layouts), pair.low.astype(x.dtype), pair.high.astype(x.dtype), halves)
    return _Plan(layouts, x.dtype, constants, (1,) * k)
