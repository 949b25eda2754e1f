"""The CUDA implementation, float32 or float64: one block of threads per plane, compiled by CuPy.

Memory is the caller's: arguments are addresses on GPU number `device`, and everything runs in the caller's stream.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.dct_pool.plan import Plan, plan_of
from hpfwi_kernels.gpu import compiled, launching_on

Frequencies = Sequence[tuple[int, int]]
SOURCE = Path(__file__).with_name("pooling.cu")
REALS = {"float32": "float", "float64": "double"}
THREADS = 128
MOST_THREADS = 256
SEARCHERS = 4
"""Threads that look for one frequency's extreme among the columns, as in the source."""
LEAST_SHARED_BYTES = 99 * 1024
"""Of shared memory that every GPU of compute capability 8.0 and above gives a block."""
_TABLES = ("weight", "row_bins", "row_weight", "column_bins", "row_factor", "column_factor", "pairs")
_ALIGNMENT_BYTES = 16


def takes(frequencies: Frequencies, side: int) -> bool:
    """Whether the kernels' blocks have the threads and the shared memory for it, on any GPU."""
    lines = len({row for row, _ in frequencies})
    return side <= MOST_THREADS and _forward_bytes(lines, side, len(frequencies), 8) <= LEAST_SHARED_BYTES


def tables(shape: tuple[int, int], frequencies: Frequencies, side: int, dtype: str) -> NDArray[np.uint8]:
    """What every plane's loop shares, as bytes that the caller puts on the GPU, at a multiple of 16."""
    arrays, places, size = _tables_of(shape, tuple(frequencies), side, dtype)
    block = np.zeros(size, np.uint8)
    for array, place in zip(arrays, places, strict=True):
        block[place : place + array.nbytes] = array.ravel().view(np.uint8)
    return block


def forward(
    x: int, shared: int, mean: int, high: int, low: int, positions: int, *, planes: int, shape: tuple[int, int],
    frequencies: Frequencies, side: int, dtype: str, device: int, stream: int,
) -> None:  # fmt: skip
    """Fill mean, high and low [plane] and int32 positions [plane, 2, frequency] for x [plane, row, column].

    shared      `tables`        positions   0: not looked for        shape   rows and columns of a plane
    """
    plan = _plan(shape, tuple(frequencies), side, dtype)
    lines, count = len(plan.row_factor), len(frequencies)
    slices = max(1, THREADS // side)
    _launch(
        f"forward<{REALS[dtype]}, {lines}>", planes, side * slices,
        _forward_bytes(lines, side, count, np.dtype(dtype).itemsize), device, stream,
        (x, *_addresses(shared, shape, frequencies, side, dtype), mean, high, low, positions),
        _sizes(plan, shape, side, count),
    )  # fmt: skip


def gradient(
    x_gradient: int, shared: int, mean: int, high: int, low: int, positions: int, *, planes: int,
    shape: tuple[int, int], frequencies: Frequencies, side: int, dtype: str, device: int, stream: int,
) -> None:  # fmt: skip
    """Fill the gradient of x [plane, row, column] from those of mean, maximum and minimum [plane]."""
    plan, count = _plan(shape, tuple(frequencies), side, dtype), len(frequencies)
    _launch(
        f"gradient<{REALS[dtype]}>", planes, THREADS, 2 * count * (np.dtype(dtype).itemsize + 16), device, stream,
        (x_gradient, *_addresses(shared, shape, frequencies, side, dtype), mean, high, low, positions),
        _sizes(plan, shape, side, count),
    )  # fmt: skip


def _plan(shape: tuple[int, int], frequencies: tuple[tuple[int, int], ...], side: int, dtype: str) -> Plan:
    return plan_of(*shape, frequencies, side, np.dtype(dtype))


@functools.lru_cache(maxsize=32)
def _tables_of(
    shape: tuple[int, int], frequencies: tuple[tuple[int, int], ...], side: int, dtype: str
) -> tuple[list[NDArray], list[int], int]:
    """The plan's arrays as the kernels take them, where each begins in one block, and the block's size."""
    arrays = [getattr(_plan(shape, frequencies, side, dtype), name) for name in _TABLES]
    arrays = [array.astype(np.int32) if array.dtype == np.uint64 else array for array in arrays]
    ends = np.cumsum([-(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for array in arrays]).tolist()
    return arrays, [0, *ends[:-1]], ends[-1]


def _addresses(shared: int, shape: tuple[int, int], frequencies: Frequencies, side: int, dtype: str) -> tuple[int, ...]:
    return tuple(shared + place for place in _tables_of(shape, tuple(frequencies), side, dtype)[1])


def _sizes(plan: Plan, shape: tuple[int, int], side: int, count: int) -> tuple[int, ...]:
    """The kernels' last arguments, in order."""
    return (*shape, side, max(1, THREADS // side), count, plan.row_factor.shape[1], plan.column_factor.shape[1])


def _forward_bytes(lines: int, side: int, count: int, itemsize: int) -> int:
    """Shared memory of a block; the layout is in the kernel."""
    threads, searches = side * max(1, THREADS // side), 2 * count * SEARCHERS
    return (2 * lines * threads + searches) * (itemsize + 4) + threads * itemsize


@functools.cache
def _kernel(device: int, name: str) -> Any:
    """An instance, compiled once per GPU."""
    return compiled(SOURCE.read_text("utf-8"), (name,))[name]


def _launch(
    name: str, blocks: int, threads: int, shared: int, device: int, stream: int, addresses: tuple[int, ...],
    numbers: tuple[int, ...],
) -> None:  # fmt: skip
    if blocks == 0:  # of no sample; CuPy would launch one block
        return
    arguments = (*map(np.uint64, addresses), *map(np.int32, numbers))
    with launching_on(device, stream):
        _kernel(device, name)((blocks,), (threads,), arguments, shared_mem=shared)
