"""The Numba implementation, float32 or float64: planes in parallel on threads, each read once."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.dct_pool import loops
from hpfwi_kernels.dct_pool.tables import bins, cosine
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.threads import share

Frequencies = Sequence[tuple[int, int]]
LANES, ROWS_AT_ONCE = int(loops.LANES), loops.ROWS_AT_ONCE


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
    plan = _plan(x.shape[2], x.shape[3], tuple(frequencies), side, x.dtype)
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

    share(run, planes, threads, lambda: plan.workspace(x.shape[3]))
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
    plan = _plan(*shape, tuple(frequencies), side, dtype)
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


@dataclass(frozen=True, eq=False)
class _Plan:
    """What every plane's loop shares; float arrays in the dtype of x, indices uint64."""

    weight: NDArray
    row_bins: NDArray[np.uint64]
    row_weight: NDArray
    column_bins: NDArray[np.uint64]
    widths: NDArray[np.uint64]
    pick: NDArray[np.uint64]
    row_factor: NDArray
    column_factor: NDArray
    pairs: NDArray[np.uint64]

    def workspace(self, columns: int) -> list[NDArray]:
        """One row of x, its averages, the pooled plane, its columns' extremes per row frequency, one vector of each."""
        dtype, (count, rows), wide = self.weight.dtype, self.row_factor.shape, self.column_factor.shape[1]
        averages = (self.widths.size * columns + wide,)
        shapes = ((columns,), averages, (rows, wide), (count, wide), (count, wide), (LANES,), (LANES,))
        return [buffers.empty(shape, dtype) for shape in shapes]


@functools.lru_cache(maxsize=32)
def _plan(rows: int, columns: int, frequencies: tuple[tuple[int, int], ...], side: int, dtype: np.dtype) -> _Plan:
    row_bins, column_bins = bins(rows, side), bins(columns, side)
    row_widths, column_widths = (np.diff(pair)[:, 0] for pair in (row_bins, column_bins))
    row_lines, column_lines = (sorted({pair[axis] for pair in frequencies}) for axis in (0, 1))
    pairs = [(row_lines.index(row), column_lines.index(column)) for row, column in frequencies]
    average = sum(np.outer(cosine(row, side), cosine(column, side)) for row, column in frequencies)
    # Transposes of the adaptive pooling: what a cell of x counts in the mean.
    spread = [np.zeros((side, size)) for size in (rows, columns)]
    for matrix, limits in zip(spread, (row_bins, column_bins), strict=True):
        for line, (first, end) in zip(matrix, limits, strict=True):
            line[first:end] = 1.0 / (end - first)
    weight = spread[0].T @ average @ spread[1] / (len(frequencies) * side**2)
    widths = np.unique(column_widths)
    pick = np.searchsorted(widths, column_widths) * columns + column_bins[:, 0]
    return _Plan(
        weight=weight.reshape(-1).astype(dtype),
        row_bins=row_bins.astype(np.uint64),
        row_weight=(1.0 / row_widths).astype(dtype),
        column_bins=column_bins.astype(np.uint64),
        widths=widths.astype(np.uint64),
        pick=_lengthened(pick[None], LANES)[0].astype(np.uint64),
        row_factor=_lengthened(np.stack([cosine(line, side) for line in row_lines]), ROWS_AT_ONCE).astype(dtype),
        column_factor=_lengthened(np.stack([cosine(line, side) for line in column_lines]), LANES).astype(dtype),
        pairs=np.array(pairs, np.uint64),
    )


def _lengthened(lines: NDArray, block: int) -> NDArray:
    """Rows that repeat their last value up to a whole number of blocks."""
    return np.pad(lines, ((0, 0), (0, -lines.shape[1] % block)), mode="edge")
