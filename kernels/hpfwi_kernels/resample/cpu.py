"""The Numba implementation, float32 or float64: planes on threads. Bits do not depend on the number of threads."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.resample import loops
from hpfwi_kernels.resample.plan import looks
from hpfwi_kernels.threads import share


def average_pool(x: NDArray, factor: int, *, threads: int = 1) -> NDArray:
    """Means over factor x factor cells of [..., row, column]; rows and columns that fill no cell are left out.

    x        float32 or float64; raises KernelError for another dtype
    """
    rows, columns = x.shape[-2:]
    out = buffers.empty((*x.shape[:-2], rows // factor, columns // factor), x.dtype)
    sizes = _sizes(rows, columns, factor)
    _share(x, loops.average_planes, lambda: (buffers.empty(columns, x.dtype),), sizes, out, threads)
    return out


def average_pool_gradient(
    shape: tuple[int, int], factor: int, output_gradient: NDArray, *, threads: int = 1
) -> NDArray:
    """Gradient of x [..., *shape]."""
    out = buffers.empty((*output_gradient.shape[:-2], *shape), output_gradient.dtype)
    sizes = _sizes(*shape, factor)
    work = lambda: (buffers.empty(shape[1], out.dtype),)  # noqa: E731
    _share(output_gradient, loops.spread_planes, work, sizes, out, threads)
    return out


def half_maximum(x: NDArray, *, threads: int = 1) -> tuple[NDArray, NDArray[np.uint8]]:
    """Maxima over 2 x 2 cells of [..., row, column], sides rounded up, and which of the four cells holds each."""
    rows, columns = x.shape[-2:]
    shape = (*x.shape[:-2], -(-rows // 2), -(-columns // 2))
    out, chosen = buffers.empty(shape, x.dtype), buffers.empty(shape, np.uint8)
    flat = chosen.reshape(-1)
    _share(x, loops.maximum_planes, lambda: (flat,), _sizes(rows, columns), out, threads)
    return out, chosen


def half_maximum_gradient(
    shape: tuple[int, int], chosen: NDArray[np.uint8], output_gradient: NDArray, *, threads: int = 1
) -> NDArray:
    """Gradient of x [..., *shape] for what `half_maximum` chose."""
    out = buffers.empty((*output_gradient.shape[:-2], *shape), output_gradient.dtype)
    picks = np.ascontiguousarray(chosen).reshape(-1)

    def planes(
        gradient: NDArray, first: np.uint64, end: np.uint64, rows: np.uint64, columns: np.uint64, to: NDArray
    ) -> None:
        loops.choose_planes(gradient, picks, first, end, rows, columns, to)

    _share(output_gradient, planes, tuple, _sizes(*shape), out, threads)
    return out


def bilinear(x: NDArray, shape: tuple[int, int], *, threads: int = 1) -> NDArray:
    """Resampling of [..., row, column] to `shape` between cell centres at half-integers."""
    rows, columns = x.shape[-2:]
    out = buffers.empty((*x.shape[:-2], *shape), x.dtype)
    sizes = (*_sizes(rows, columns), *looks(rows, shape[0], x.dtype), *looks(columns, shape[1], x.dtype))
    _share(x, loops.resample_planes, lambda: (buffers.empty(columns, x.dtype),), sizes, out, threads)
    return out


def bilinear_gradient(shape: tuple[int, int], output_gradient: NDArray, *, threads: int = 1) -> NDArray:
    """Gradient of x [..., *shape]."""
    dtype, (new_rows, new_columns) = output_gradient.dtype, output_gradient.shape[-2:]
    out = buffers.empty((*output_gradient.shape[:-2], *shape), dtype)
    sizes = (*_sizes(*shape), *looks(shape[0], new_rows, dtype), *looks(shape[1], new_columns, dtype))
    work = lambda: (buffers.empty((shape[0], new_columns), dtype),)  # noqa: E731
    _share(output_gradient, loops.gather_planes, work, sizes, out, threads)
    return out


def _sizes(*values: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(value) for value in values)


def _share(
    source: NDArray, loop: Callable[..., None], work: Callable[[], tuple[NDArray, ...]], sizes: tuple, out: NDArray,
    threads: int,
) -> None:  # fmt: skip
    """Run a loop over the planes of source and out on threads, each with its own work space."""
    if source.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {source.dtype}; give float32 or float64.")
    flat, to = np.ascontiguousarray(source).reshape(-1), out.reshape(-1)

    def run(space: tuple[NDArray, ...], first: int, end: int) -> None:
        loop(flat, np.uint64(first), np.uint64(end), *sizes, to, *space)

    planes = source.size // (source.shape[-2] * source.shape[-1])
    share(run, planes, threads, work)
