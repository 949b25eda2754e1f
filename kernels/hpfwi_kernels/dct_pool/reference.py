"""The definition in NumPy, float64: every product with every table, and the positions of its extremes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.dct_pool.tables import bins, cosine

Array = NDArray[np.float64]
Frequencies = Sequence[tuple[int, int]]


def forward(x: NDArray, frequencies: Frequencies, side: int) -> tuple[Array, Array, Array, NDArray[np.int32]]:
    """Mean, maximum and minimum over space of g·D, averaged over the frequencies, and where the extremes are.

    x         [sample, channel, row, column]; g is x pooled adaptively to side x side
    returns   three [sample, channel], and int32[sample, channel, 2, frequency]: the first cell in row-major order of
              the side x side that holds the maximum (0) and the minimum (1)
    """
    pooled = _averages(x.shape[2], side) @ x.astype(np.float64) @ _averages(x.shape[3], side).T
    products = np.stack([pooled * table for table in tables(frequencies, side)], axis=2)
    flat = products.reshape(*products.shape[:3], -1)
    positions = np.stack([flat.argmax(-1), flat.argmin(-1)], axis=2).astype(np.int32)
    return flat.mean((-1, -2)), flat.max(-1).mean(-1), flat.min(-1).mean(-1), positions


def gradient(
    shape: tuple[int, int],
    positions: NDArray[np.int32],
    frequencies: Frequencies,
    side: int,
    mean_gradient: NDArray,
    high_gradient: NDArray,
    low_gradient: NDArray,
) -> Array:
    """Transpose of forward's derivative: gradient of x [sample, channel, *shape] from those of its three results."""
    samples, channels = mean_gradient.shape
    flat = tables(frequencies, side).reshape(len(frequencies), -1)
    share = mean_gradient[..., None].astype(np.float64) * flat.mean(0) / flat.shape[1]
    for n in range(samples):
        for c in range(channels):
            for k in range(len(frequencies)):
                for which, from_above in enumerate((high_gradient, low_gradient)):
                    cell = positions[n, c, which, k]
                    share[n, c, cell] += from_above[n, c] * flat[k, cell] / len(frequencies)
    grid = share.reshape(samples, channels, side, side)
    return _averages(shape[0], side).T @ grid @ _averages(shape[1], side)


def tables(frequencies: Frequencies, side: int) -> Array:
    """The products of cosines D: [frequency, side, side]."""
    return np.stack([np.outer(cosine(row, side), cosine(column, side)) for row, column in frequencies])


def _averages(size: int, side: int) -> Array:
    """Adaptive average pooling as a matrix [side, size]; the identity where there is nothing to pool."""
    matrix = np.zeros((side, size))
    for row, (first, end) in zip(matrix, bins(size, side), strict=True):
        row[first:end] = 1.0 / (end - first)
    return matrix
