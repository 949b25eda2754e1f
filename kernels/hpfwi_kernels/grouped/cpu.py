"""The Numba implementation, float32 or float64: groups on threads."""

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.grouped import loops
from hpfwi_kernels.grouped.reference import turned
from hpfwi_kernels.threads import share


def forward(x: NDArray, weight: NDArray, dilation: int, *, threads: int = 1) -> NDArray:
    """3x3 convolution within groups of channels, its cells `dilation` apart, with a border of as many zeros.

    x         float32 or float64 [sample, channel, row, column]
    weight    [channel, members, 3, 3]; output c sees the `members` channels of its group, c // members
    threads   groups worked on at the same time; the bits do not depend on it
    returns   [sample, channel, row, column] in the dtype of x
    raises    KernelError for another dtype or a weight of another shape
    """
    sizes, groups = _sizes(x, weight, dilation)
    members = weight.shape[1]
    out = buffers.empty(x.shape, x.dtype)
    flat, filters = (np.ascontiguousarray(array, x.dtype).reshape(-1) for array in (x, weight))

    def run(space: tuple[NDArray, NDArray], first: int, end: int) -> None:
        loops.forward_groups(
            flat, filters, np.uint64(members), np.uint64(first), np.uint64(end), *sizes, out.reshape(-1), *space
        )

    share(run, groups, threads, lambda: _workspace(x, members, dilation))
    return out


def gradient(
    x: NDArray,
    weight: NDArray,
    dilation: int,
    output_gradient: NDArray,
    *,
    wants_x: bool = True,
    wants_weight: bool = True,
    threads: int = 1,
) -> tuple[NDArray, NDArray]:
    """Transpose of forward's derivative: gradients of x and weight; what is not wanted comes back empty.

    The weight's is summed over a plane in the dtype of x, and over samples in float64.
    """
    sizes, groups = _sizes(x, weight, dilation)
    members = weight.shape[1]
    none = buffers.empty((0,), x.dtype)
    given = np.ascontiguousarray(output_gradient, x.dtype)
    x_gradient = forward(given, turned(weight), dilation, threads=threads) if wants_x else none
    if not wants_weight:
        return x_gradient, none
    sums = buffers.zeros(weight.size, np.float64)
    flat = np.ascontiguousarray(x).reshape(-1)

    def run(space: tuple[NDArray, NDArray], first: int, end: int) -> None:
        loops.correlate_groups(
            flat, given.reshape(-1), np.uint64(members), np.uint64(first), np.uint64(end), *sizes, sums, *space
        )

    share(run, groups, threads, lambda: _workspace(x, members, dilation))
    return x_gradient, sums.reshape(weight.shape).astype(x.dtype)


def _sizes(x: NDArray, weight: NDArray, dilation: int) -> tuple[tuple[np.uint64, ...], int]:
    """What the loops are told of x, and the number of groups."""
    if x.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {x.dtype}; give float32 or float64.")
    channels, members = weight.shape[:2]
    if channels != x.shape[1] or channels % members or weight.shape[2:] != (3, 3):
        raise KernelError(
            f"The weight has shape {weight.shape}; give ({x.shape[1]}, members, 3, 3) with members a divisor of "
            f"{x.shape[1]}."
        )
    return tuple(np.uint64(size) for size in (*x.shape, dilation)), channels // members


def _workspace(x: NDArray, members: int, dilation: int) -> tuple[NDArray, NDArray]:
    """A group's planes with zeros around them, and a plane with zeros between its rows."""
    rows, columns = x.shape[2:]
    pitch = columns + dilation
    # The last row's cells look one border beyond the last plane.
    plane = (rows + 2 * dilation) * pitch + dilation
    return buffers.zeros(members * plane + dilation, x.dtype), buffers.zeros(rows * pitch, x.dtype)
