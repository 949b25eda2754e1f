"""The definition, in NumPy and float64."""

import numpy as np
from numpy.typing import NDArray


def forward(
    x: NDArray, weight: NDArray, bias: NDArray, slope: NDArray, epsilon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Batch norm over samples and positions, then x where x > 0 and slope x elsewhere.

    x         [sample, channel, row, column]      weight, bias, slope   [channel]; a slope of 0 is a ReLU
    returns   the result, and mean and (biased) variance of every channel, float64
    """
    wide = x.astype(np.float64)
    mean, variance = wide.mean(axis=(0, 2, 3)), wide.var(axis=(0, 2, 3))
    scaled = (wide - _shaped(mean)) / np.sqrt(_shaped(variance) + epsilon) * _shaped(weight) + _shaped(bias)
    return np.where(scaled > 0, scaled, _shaped(slope) * scaled), mean, variance


def gradient(
    x: NDArray, weight: NDArray, bias: NDArray, slope: NDArray, epsilon: float, output_gradient: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Transpose of the derivative of forward's first result: gradients of x, weight, bias and slope, float64."""
    wide, axes = x.astype(np.float64), (0, 2, 3)
    inverse = 1 / np.sqrt(wide.var(axis=axes, keepdims=True) + epsilon)
    centred = (wide - wide.mean(axis=axes, keepdims=True)) * inverse
    scaled = centred * _shaped(weight) + _shaped(bias)
    inner = np.where(scaled > 0, 1.0, _shaped(slope)) * output_gradient
    total, moment = inner.sum(axis=axes, keepdims=True), (inner * centred).sum(axis=axes, keepdims=True)
    count = wide.size / wide.shape[1]
    x_gradient = _shaped(weight) * inverse * (inner - total / count - centred * moment / count)
    slope_gradient = (np.minimum(scaled, 0) * output_gradient).sum(axis=axes)
    return x_gradient, moment.reshape(-1), total.reshape(-1), slope_gradient


def _shaped(values: NDArray) -> NDArray[np.float64]:
    return values.astype(np.float64)[:, None, None]
