"""The same kernels by Numba's CUDA target, float32 or float64: for GPUs without CuPy, and to compare with.

One block of threads per plane, x read once, no atomics. Threads stand in `side` columns by a few slices of rows, about
128 together. Each walks down its column of the pooled plane and keeps the extremes for every distinct row frequency, as
`loops.py` does; slices and then columns are brought together in shared memory, in an order that keeps the first of
equal cells. This module imports Numba's CUDA target, so it is imported only where there may be a GPU; the tests run its
kernels in Numba's simulator.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, types

from hpfwi_kernels.dct_pool.plan import plan_of

Frequencies = Sequence[tuple[int, int]]
THREADS = 128
# Threads that look for one frequency's extreme among the columns.
SEARCHERS = 4


def available() -> bool:
    """Whether Numba finds a GPU that it can compile for."""
    # Numba's CUDA target calls a function that NumPy 2.5 no longer has.
    return hasattr(np, "row_stack") and bool(cuda.is_available())


def forward(
    x: Any, frequencies: Frequencies, side: int, mean: Any, high: Any, low: Any, positions: Any, *, stream: int = 0,
    gpu: int = 0,
) -> None:  # fmt: skip
    """Fill mean, high and low [plane] and int32 positions [plane, 2, frequency] for x [plane, row, column].

    All are device arrays: anything with the CUDA array interface, such as torch tensors; contiguous. Positions of zero
    planes are not looked for. `stream` is the address of the stream to run in, 0 for the default one; `gpu` is the
    number of the current GPU, on which the plan's arrays are kept.
    """
    planes, rows, columns = x.shape
    dtype = np.dtype(str(x.dtype).removeprefix("torch."))
    device, lines = _on_device(rows, columns, tuple(frequencies), side, dtype, gpu)
    kernel = _forward_kernel(lines, side, len(frequencies), dtype.name, positions.shape[0] > 0)
    slices = max(1, THREADS // side)
    kernel[planes, (side, slices), _stream(stream)](
        _array(x), device["weight"], device["row_bins"], device["row_weight"], device["column_bins"],
        device["row_factor"], device["column_factor"], device["pairs"], _array(mean), _array(high), _array(low),
        _array(positions),
    )  # fmt: skip


def gradient(
    x_gradient: Any, positions: Any, frequencies: Frequencies, side: int, mean: Any, high: Any, low: Any, *,
    stream: int = 0, gpu: int = 0,
) -> None:  # fmt: skip
    """Fill the gradient of x [plane, row, column] from those of mean, maximum and minimum [plane]."""
    planes, rows, columns = x_gradient.shape
    dtype = np.dtype(str(x_gradient.dtype).removeprefix("torch."))
    device, _ = _on_device(rows, columns, tuple(frequencies), side, dtype, gpu)
    kernel = _gradient_kernel(side, len(frequencies), dtype.name)
    kernel[planes, THREADS, _stream(stream)](
        _array(x_gradient), device["weight"], device["row_bins"], device["row_weight"], device["column_bins"],
        device["row_factor"], device["column_factor"], device["pairs"], _array(mean), _array(high), _array(low),
        _array(positions),
    )  # fmt: skip


def _stream(address: int) -> Any:
    return cuda.external_stream(address) if address else 0


def _array(memory: Any) -> Any:
    """A view for Numba without a copy; the simulator takes arrays of the processor as they are."""
    return cuda.as_cuda_array(memory, sync=False) if hasattr(memory, "__cuda_array_interface__") else np.asarray(memory)


@functools.lru_cache(maxsize=32)
def _on_device(
    rows: int, columns: int, frequencies: tuple[tuple[int, int], ...], side: int, dtype: np.dtype, gpu: int
) -> tuple[dict[str, Any], int]:
    """The plan's arrays on the current GPU, number `gpu`, copied once, and how many row frequencies are distinct."""
    plan = plan_of(rows, columns, frequencies, side, dtype)
    names = ("weight", "row_bins", "row_weight", "column_bins", "row_factor", "column_factor", "pairs")
    indices = {"row_bins", "column_bins", "pairs"}
    arrays = {
        name: cuda.to_device(getattr(plan, name).astype(np.int32 if name in indices else dtype)) for name in names
    }
    return arrays, plan.row_factor.shape[0]


@functools.cache
def _forward_kernel(lines: int, side: int, count: int, dtype: str, wants_positions: bool) -> Any:
    """The kernel for one number of distinct row frequencies, side, number of frequencies and precision."""
    slices = max(1, THREADS // side)
    threads = side * slices
    real = getattr(types, dtype)
    searches = 2 * count
    parts = searches * SEARCHERS
    columns_per_search = -(-side // SEARCHERS)

    @cuda.jit
    def kernel(
        x, weight, row_bins, row_weight, column_bins, row_factor, column_factor, pairs, mean, high, low, positions
    ):  # fmt: skip
        extreme = cuda.shared.array((2, lines, threads), real)
        at = cuda.shared.array((2, lines, threads), types.int32)
        best = cuda.shared.array(parts, real)
        where = cuda.shared.array(parts, types.int32)
        sums = cuda.shared.array(threads, real)
        most = cuda.local.array(lines, real)
        least = cuda.local.array(lines, real)
        most_at = cuda.local.array(lines, types.int32)
        least_at = cuda.local.array(lines, types.int32)
        j, part = cuda.threadIdx.x, cuda.threadIdx.y
        me, q = part * side + j, cuda.blockIdx.x
        columns = x.shape[2]

        total = real(0)
        for cell in range(me, weight.size, threads):
            total += weight[cell] * x[q, cell // columns, cell % columns]
        sums[me] = total

        first, end = column_bins[j, 0], column_bins[j, 1]
        scale = real(1) / real(end - first)
        per_slice = (side + slices - 1) // slices
        begin = part * per_slice
        stop = min(begin + per_slice, side)
        for i in range(begin, stop):
            value = real(0)
            for r in range(row_bins[i, 0], row_bins[i, 1]):
                for c in range(first, end):
                    value += x[q, r, c]
            value *= scale * row_weight[i]
            for u in range(lines):
                p = row_factor[u, i] * value
                if i == begin or p > most[u] or p != p:
                    most[u], most_at[u] = p, i
                if i == begin or p < least[u] or p != p:
                    least[u], least_at[u] = p, i
        for u in range(lines):
            # A slice beyond the last row repeats nothing: its column marks itself as empty.
            extreme[0, u, me], at[0, u, me] = most[u], most_at[u] if begin < stop else -1
            extreme[1, u, me], at[1, u, me] = least[u], least_at[u] if begin < stop else -1
        cuda.syncthreads()

        # Rows of a column are in order of slices, columns of a search in order of columns: a later cell replaces an
        # earlier one only if it is larger, or as large and in an earlier row.
        for search in range(me, parts, threads):
            k, searcher = search // SEARCHERS, search % SEARCHERS
            which, n = k // count, k % count
            u = pairs[n, 0]
            found, cell = real(0), -1
            for c in range(searcher * columns_per_search, min((searcher + 1) * columns_per_search, side)):
                g = column_factor[pairs[n, 1], c]
                # A negative factor makes the column's smallest value its largest.
                side_of = which if g >= 0 else 1 - which
                for s in range(slices):
                    row = at[side_of, u, s * side + c]
                    if row >= 0:
                        value = g * extreme[side_of, u, s * side + c]
                        ahead = value > found if which == 0 else value < found
                        tie = value == found and row * side + c < cell
                        if cell < 0 or ahead or tie or value != value:
                            found, cell = value, row * side + c
            best[search], where[search] = found, cell
        cuda.syncthreads()

        if me < 2:
            result = real(0)
            for n in range(count):
                start = (me * count + n) * SEARCHERS
                found, cell = best[start], where[start]
                for s in range(1, SEARCHERS):
                    value, other = best[start + s], where[start + s]
                    if other >= 0:
                        ahead = value > found if me == 0 else value < found
                        tie = value == found and other < cell
                        if cell < 0 or ahead or tie or value != value:
                            found, cell = value, other
                result += found
                if wants_positions:
                    positions[q, me, n] = cell
            if me == 0:
                high[q] = result / real(count)
            else:
                low[q] = result / real(count)
        if me == 2:
            # In order of the threads, so that the bits do not change from run to run.
            total = real(0)
            for t in range(threads):
                total += sums[t]
            mean[q] = total

    return kernel


@functools.cache
def _gradient_kernel(side: int, count: int, dtype: str) -> Any:
    """The kernel for one side, number of frequencies and precision; every cell looks for the bins that hold it."""
    real = getattr(types, dtype)
    points = 2 * count

    @cuda.jit
    def kernel(
        out, weight, row_bins, row_weight, column_bins, row_factor, column_factor, pairs, mean, high, low, positions
    ):  # fmt: skip
        value = cuda.shared.array(points, real)
        limits = cuda.shared.array((points, 4), types.int32)
        me, q = cuda.threadIdx.x, cuda.blockIdx.x
        columns = out.shape[2]
        for point in range(me, points, cuda.blockDim.x):
            which, n = point // count, point % count
            cell = positions[q, which, n]
            i, j = cell // side, cell % side
            limits[point, 0], limits[point, 1] = row_bins[i, 0], row_bins[i, 1]
            limits[point, 2], limits[point, 3] = column_bins[j, 0], column_bins[j, 1]
            above = high[q] if which == 0 else low[q]
            bin_weight = row_weight[i] / real(limits[point, 3] - limits[point, 2])
            value[point] = above / real(count) * row_factor[pairs[n, 0], i] * column_factor[pairs[n, 1], j] * bin_weight
        cuda.syncthreads()
        for cell in range(me, weight.size, cuda.blockDim.x):
            r, c = cell // columns, cell % columns
            total = mean[q] * weight[cell]
            for point in range(points):
                if limits[point, 0] <= r < limits[point, 1] and limits[point, 2] <= c < limits[point, 3]:
                    total += value[point]
            out[q, r, c] = total

    return kernel
