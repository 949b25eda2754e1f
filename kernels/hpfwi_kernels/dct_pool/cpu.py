"""The Numba implementation, float32 or float64: planes in parallel on threads, each read once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.dct_pool import loops
from hpfwi_kernels.dct_pool.plan import Plan, plan_of
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.threads import share

Frequencies = Sequence[tuple[int, int]]


def forward(
    x: NDArray, frequencies: Frequencies, side: int, *, positions: bool = True, threads: int = 1
) -> tuple[NDArray, NDArray, NDArray, NDArray[np.int32]]:
    """Mean, maximum and minimum over space of g·D, averaged over the frequencies, and where the extremes are.

    x           float32 or float64 [sample, channel, row, column]; g is x pooled adaptively to side x side
    positions   whether to look for them: a gradient needs them; without, they come back empty
    threads     planes worked on at the same time; the bits do not depend on it
    returns     three [sample, channel] in the dtype of x, and int32[sample, channel, 2, frequency]: the first cell in
                row-major order of the side x side that holds the maximum (0) and the minimum (1)
    raises      KernelError for another dtype, or a frequency that `side` has not
    """
    if x.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {x.dtype}; give float32 or float64.")
    plan = plan_of(x.shape[2], x.shape[3], tuple(frequencies), side, x.dtype)
    planes = x.shape[0] * x.shape[1]
    mean, high, low = (buffers.empty(planes, x.dtype) for _ in range(3))
    cells = buffers.empty((planes if positions else 0, 2, len(frequencies)), np.int32)
    flat = np.ascontiguousarray(x).reshape(-1)

    def run(space: list[NDArray], first: int, end: int) -> None:
        loops.forward_planes(
            flat, np.uint64(first), np.uint64(end), np.uint64(x.shape[3]), plan.weight, plan.row_bins,
            plan.row_weight, plan.widths, plan.pick, plan.row_factor, plan.column_factor, plan.pairs,
            mean, high, low, cells, positions, *space,
        )  # fmt: skip

    share(run, planes, threads, lambda: _workspace(plan, x.shape[3]))
    means, highs, lows = (part.reshape(x.shape[:2]) for part in (mean, high, low))
    return means, highs, lows, cells.reshape(*x.shape[:2], 2, -1) if positions else cells[:0]


def gradient(
    shape: tuple[int, int],
    positions: NDArray[np.int32],
    frequencies: Frequencies,
    side: int,
    mean_gradient: NDArray,
    high_gradient: NDArray,
    low_gradient: NDArray,
    *,
    threads: int = 1,
) -> NDArray:
    """Transpose of forward's derivative: gradient of x [sample, channel, *shape] from those of its three results."""
    dtype = mean_gradient.dtype
    plan = plan_of(*shape, tuple(frequencies), side, dtype)
    samples, channels = mean_gradient.shape
    out = buffers.empty((samples, channels, *shape), dtype)
    parts = [np.ascontiguousarray(g, dtype).reshape(-1) for g in (mean_gradient, high_gradient, low_gradient)]
    cells = np.ascontiguousarray(positions).reshape(samples * channels, 2, -1)

    def run(space: None, first: int, end: int) -> None:
        loops.gradient_planes(
            out.reshape(-1), np.uint64(first), np.uint64(end), np.uint64(shape[1]), plan.weight, plan.row_bins,
            plan.row_weight, plan.column_bins, plan.row_factor, plan.column_factor, plan.pairs, *parts, cells,
        )  # fmt: skip

    share(run, samples * channels, threads, lambda: None)
    return out


def _workspace(plan: Plan, columns: int) -> list[NDArray]:
    """One row of x, its averages, the pooled plane, its columns' extremes per row frequency, one vector of each."""
    dtype, (count, rows), wide = plan.weight.dtype, plan.row_factor.shape, plan.column_factor.shape[1]
    averages = (plan.widths.size * columns + wide,)
    lanes = int(loops.LANES)
    shapes = ((columns,), averages, (rows, wide), (count, wide), (count, wide), (lanes,), (lanes,))
    return [buffers.empty(shape, dtype) for shape in shapes]
