"""The Numba implementation, float32 or float64: channels on threads."""

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.batch_norm import loops
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.threads import share


def forward(
    x: NDArray, weight: NDArray, bias: NDArray, slope: NDArray, epsilon: float, *, threads: int = 1
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float64]]:
    """Batch norm over samples and positions, then x where x > 0 and slope x elsewhere.

    x         float32 or float64 [sample, channel, row, column]
    weight, bias, slope   [channel], in the dtype of x; a slope of 0 is a ReLU
    threads   channels worked on at the same time; the bits do not depend on it
    returns   the result in the dtype of x, and float64 mean and (biased) variance of every channel
    raises    KernelError for another dtype
    """
    sizes = _sizes(x)
    channels = x.shape[1]
    out, mean, variance = buffers.empty(x.shape, x.dtype), *(buffers.empty(channels, np.float64) for _ in range(2))
    flat = np.ascontiguousarray(x).reshape(-1)

    def run(space: None, first: int, end: int) -> None:
        loops.forward_channels(
            flat, weight, bias, slope, epsilon, np.uint64(first), np.uint64(end), *sizes, out.reshape(-1), mean,
            variance,
        )  # fmt: skip

    share(run, channels, threads, lambda: None)
    return out, mean, variance


def gradient(
    x: NDArray,
    weight: NDArray,
    bias: NDArray,
    slope: NDArray,
    epsilon: float,
    output_gradient: NDArray,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    *,
    threads: int = 1,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Transpose of the derivative of forward's first result: gradients of x, weight, bias and slope, dtype of x.

    mean, variance   what forward returned for x
    """
    sizes = _sizes(x)
    channels = x.shape[1]
    out = buffers.empty(x.shape, x.dtype)
    parts = [buffers.empty(channels, np.float64) for _ in range(3)]
    flat, given = (np.ascontiguousarray(array, x.dtype).reshape(-1) for array in (x, output_gradient))

    def run(space: None, first: int, end: int) -> None:
        loops.gradient_channels(
            flat, given, weight, bias, slope, epsilon, mean, variance, np.uint64(first), np.uint64(end), *sizes,
            out.reshape(-1), *parts,
        )  # fmt: skip

    share(run, channels, threads, lambda: None)
    of_weight, of_bias, of_slope = (part.astype(x.dtype) for part in parts)
    return out, of_weight, of_bias, of_slope


def _sizes(x: NDArray) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Samples, channels, cells of a plane."""
    if x.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {x.dtype}; give float32 or float64.")
    return np.uint64(x.shape[0]), np.uint64(x.shape[1]), np.uint64(x.shape[2] * x.shape[3])
