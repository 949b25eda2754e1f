"""The definition, in NumPy and float64."""

import numpy as np
from numpy.typing import NDArray


def forward(x: NDArray, weight: NDArray, dilation: int) -> NDArray[np.float64]:
    """3x3 convolution within groups of channels, its cells `dilation` apart, with a border of as many zeros.

    x         [sample, channel, row, column]
    weight    [channel, members, 3, 3]; output c sees the `members` channels of its group, c // members
    returns   float64 [sample, channel, row, column]
    """
    out = np.zeros(x.shape)
    members = weight.shape[1]
    for i, j, seen in _shifted(x, dilation):
        grouped = seen.reshape(len(x), -1, members, *x.shape[2:])
        cell = weight[:, :, i, j].astype(np.float64).reshape(-1, members, members)
        out += np.einsum("ngkyx,gok->ngoyx", grouped, cell).reshape(x.shape)
    return out


def gradient(
    x: NDArray, weight: NDArray, dilation: int, output_gradient: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transpose of forward's derivative: gradients of x and weight, float64."""
    members = weight.shape[1]
    given = output_gradient.astype(np.float64).reshape(len(x), -1, members, *x.shape[2:])
    weight_gradient = np.zeros(weight.shape)
    for i, j, seen in _shifted(x, dilation):
        grouped = seen.reshape(len(x), -1, members, *x.shape[2:])
        weight_gradient[:, :, i, j] = np.einsum("ngoyx,ngkyx->gok", given, grouped).reshape(-1, members)
    return forward(output_gradient, turned(weight), dilation), weight_gradient


def turned(weight: NDArray) -> NDArray:
    """The filters that carry a gradient back: by half a turn, from outputs to inputs within each group."""
    members = weight.shape[1]
    grouped = weight.reshape(-1, members, members, 3, 3)
    return np.ascontiguousarray(grouped.swapaxes(1, 2)[..., ::-1, ::-1]).reshape(weight.shape)


def _shifted(x: NDArray, dilation: int) -> list[tuple[int, int, NDArray[np.float64]]]:
    """For each cell (i, j) of the filter, x as that cell sees it from every output cell."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (dilation, dilation), (dilation, dilation)))
    rows, columns, d = *x.shape[2:], dilation
    places = [(i, j) for i in range(3) for j in range(3)]
    return [(i, j, padded[:, :, i * d : i * d + rows, j * d : j * d + columns]) for i, j in places]
