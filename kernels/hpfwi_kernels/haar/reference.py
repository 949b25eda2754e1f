"""The definition in NumPy, float64: the transform as matrices, the wavelet convolution and its transpose from them."""

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.haar.filters import filters

Array = NDArray[np.float64]


def transform(x: NDArray, wavelet: str = "haar") -> Array:
    """One level of wavelet coefficients, [..., row, column] to [..., 4, ceil(row/2), ceil(column/2)].

    Bands: low, difference along rows (vertical), difference along columns, diagonal. Samples outside x are zero.
    """
    rows, columns = _matrices(x.shape[-2], wavelet), _matrices(x.shape[-1], wavelet)
    return np.stack([row @ x.astype(np.float64) @ column.T for column in columns for row in rows], axis=-3)


def inverse(bands: NDArray, shape: tuple[int, int], wavelet: str = "haar") -> Array:
    """Transpose of `transform`, [..., 4, row, column] to [..., *shape]; for the Haar wavelet it is the inverse."""
    rows, columns = _matrices(shape[0], wavelet), _matrices(shape[1], wavelet)
    pairs = [(row, column) for column in columns for row in rows]
    return np.sum([row.T @ bands[..., s, :, :] @ column for s, (row, column) in enumerate(pairs)], axis=0)


def forward(
    x: NDArray, base_weight: NDArray, base_bias: NDArray | None, band_weights: NDArray, wavelet: str = "haar"
) -> Array:
    """Depthwise convolution of x plus that of its wavelet coefficients.

    x             [sample, channel, row, column]
    base_weight   [channel, k, k], k odd            base_bias   [channel] or None
    band_weights  [level, channel, 4, k, k], finest level first; each level works on the low band of the one before
    """
    base = _convolve(x, base_weight)
    if base_bias is not None:
        base = base + base_bias[:, None, None]
    coarse, shapes, tags = x, [], []
    for weight in band_weights:
        bands = transform(coarse, wavelet)
        shapes.append((coarse.shape[-2], coarse.shape[-1]))
        tags.append(_convolve(bands, weight))
        coarse = bands[:, :, 0]
    below = np.zeros_like(coarse, np.float64)
    for tag, shape in zip(reversed(tags), reversed(shapes), strict=True):
        tag[:, :, 0] += below
        below = inverse(tag, shape, wavelet)
    return base + below if shapes else base


def gradient(
    x: NDArray, base_weight: NDArray, band_weights: NDArray, output_gradient: NDArray, wavelet: str = "haar"
) -> tuple[Array, Array, Array, Array]:
    """Transpose of forward's derivative: gradients of x, base_weight, base_bias and band_weights."""
    base_gradient = _correlate(output_gradient, x, base_weight.shape[-1])
    x_gradient = _convolve_transposed(output_gradient, base_weight)
    band_gradient = np.zeros(band_weights.shape)
    coarse, coarse_gradient, shapes, parts = x, output_gradient.astype(np.float64), [], []
    for level, weight in enumerate(band_weights):
        shapes.append((coarse.shape[-2], coarse.shape[-1]))
        bands, tag_gradient = transform(coarse, wavelet), transform(coarse_gradient, wavelet)
        band_gradient[level] = _correlate(tag_gradient, bands, weight.shape[-1])
        parts.append(_convolve_transposed(tag_gradient, weight))
        coarse, coarse_gradient = bands[:, :, 0], tag_gradient[:, :, 0]
    below = np.zeros_like(coarse, np.float64)
    for part, shape in zip(reversed(parts), reversed(shapes), strict=True):
        part[:, :, 0] += below
        below = inverse(part, shape, wavelet)
    bias_gradient = output_gradient.sum((0, 2, 3), dtype=np.float64)
    return x_gradient + below if shapes else x_gradient, base_gradient, bias_gradient, band_gradient


def _matrices(size: int, wavelet: str) -> list[Array]:
    """Low-pass and high-pass analysis, [ceil(size/2), size] each: row i holds the filter from sample 2 i - pad on."""
    pair = filters(wavelet)
    matrices = []
    for taps in pair:
        matrix = np.zeros((-(-size // 2), size))
        for i in range(matrix.shape[0]):
            for k, tap in enumerate(taps):
                if 0 <= 2 * i + k - pair.pad < size:
                    matrix[i, 2 * i + k - pair.pad] = tap
        matrices.append(matrix)
    return matrices


def _shifted(x: NDArray, k: int) -> list[list[Array]]:
    """x moved by every offset of a k x k filter, zeros moving in: entry [y][x] is the sample that tap (y, x) reads."""
    pad = k // 2
    padded = np.pad(x.astype(np.float64), [(0, 0)] * (x.ndim - 2) + [(pad, pad)] * 2)
    rows, columns = x.shape[-2:]
    return [[padded[..., y : y + rows, z : z + columns] for z in range(k)] for y in range(k)]


def _convolve(x: NDArray, weight: NDArray) -> Array:
    """Filter each plane with its own taps, as torch does: x [sample, ..., row, column], weight [..., k, k]."""
    k = weight.shape[-1]
    shifted = _shifted(x, k)
    return np.sum([weight[..., y, z, None, None] * shifted[y][z] for y in range(k) for z in range(k)], axis=0)


def _convolve_transposed(x: NDArray, weight: NDArray) -> Array:
    k = weight.shape[-1]
    shifted = _shifted(x, k)
    reach = k - 1
    return np.sum(
        [weight[..., reach - y, reach - z, None, None] * shifted[y][z] for y in range(k) for z in range(k)], axis=0
    )


def _correlate(output_gradient: NDArray, x: NDArray, k: int) -> Array:
    """Gradient of _convolve in its weight, summed over samples."""
    shifted = _shifted(x, k)
    sums = [[(output_gradient * shifted[y][z]).sum((0, -2, -1)) for z in range(k)] for y in range(k)]
    return np.moveaxis(np.array(sums), (0, 1), (-2, -1))
