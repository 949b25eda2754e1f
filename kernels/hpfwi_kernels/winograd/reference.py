"""The definition, in NumPy and float64: every product formed where it stands."""

import numpy as np
from numpy.typing import NDArray


def forward(x: NDArray, weight: NDArray, bias: NDArray | None) -> NDArray[np.float64]:
    """3x3 convolution (torch's, a correlation) with a border of zeros.

    x         [sample, input, row, column]      weight   [output, input, 3, 3]      bias   [output] or None
    returns   float64[sample, output, row, column]
    """
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for i, j, seen in _shifted(x):
        out += np.einsum("nkyx,ok->noyx", seen, weight[:, :, i, j].astype(np.float64))
    return out if bias is None else out + bias.astype(np.float64)[:, None, None]


def gradient(
    x: NDArray, weight: NDArray, output_gradient: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Transpose of forward's derivative: gradients of x, weight and bias, float64."""
    turned = np.swapaxes(weight, 0, 1)[:, :, ::-1, ::-1]
    weight_gradient = np.zeros(weight.shape)
    for i, j, seen in _shifted(x):
        weight_gradient[:, :, i, j] = np.einsum("noyx,nkyx->ok", output_gradient.astype(np.float64), seen)
    return (
        forward(output_gradient, turned, None),
        weight_gradient,
        output_gradient.astype(np.float64).sum(axis=(0, 2, 3)),
    )


def _shifted(x: NDArray) -> list[tuple[int, int, NDArray[np.float64]]]:
    """For each cell (i, j) of the filter, x as that cell sees it from every output cell."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = x.shape[2:]
    return [(i, j, padded[:, :, i : i + rows, j : j + columns]) for i in range(3) for j in range(3)]
