"""The definitions, in NumPy and float64; `*_gradient` is the transpose of each one's derivative."""

import numpy as np
from numpy.typing import NDArray


def average_pool(x: NDArray, factor: int) -> NDArray[np.float64]:
    """Means over factor x factor cells of [..., row, column]; rows and columns that fill no cell are left out."""
    rows, columns = x.shape[-2] // factor, x.shape[-1] // factor
    whole = x[..., : rows * factor, : columns * factor].astype(np.float64)
    means: NDArray[np.float64] = whole.reshape(*x.shape[:-2], rows, factor, columns, factor).mean(axis=(-3, -1))
    return means


def average_pool_gradient(shape: tuple[int, int], factor: int, output_gradient: NDArray) -> NDArray[np.float64]:
    """Gradient of x [..., *shape]."""
    spread = np.repeat(np.repeat(output_gradient.astype(np.float64), factor, axis=-2), factor, axis=-1) / factor**2
    beyond = [(0, 0)] * (spread.ndim - 2) + [(0, shape[axis] - spread.shape[axis - 2]) for axis in (0, 1)]
    return np.pad(spread, beyond)


def half_maximum(x: NDArray) -> NDArray[np.float64]:
    """Maxima over 2 x 2 cells of [..., row, column]; an odd side's last cells are maxima of fewer."""
    largest: NDArray[np.float64] = _cells(x).max(axis=-1)
    return largest


def half_maximum_gradient(x: NDArray, output_gradient: NDArray) -> NDArray[np.float64]:
    """Gradient of x: to the first maximum of a cell, row by row."""
    cells = _cells(x)
    chosen = np.arange(4) == cells.argmax(axis=-1)[..., None]
    spread = np.where(chosen, output_gradient[..., None].astype(np.float64), 0.0)
    rows, columns = output_gradient.shape[-2:]
    paired = spread.reshape(*spread.shape[:-1], 2, 2).swapaxes(-2, -3)
    whole: NDArray[np.float64] = paired.reshape(*x.shape[:-2], 2 * rows, 2 * columns)
    return whole[..., : x.shape[-2], : x.shape[-1]]


def bilinear(x: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Resampling of [..., row, column] to `shape` between cell centres at half-integers."""
    return _shares(x.shape[-2], shape[0]) @ x.astype(np.float64) @ _shares(x.shape[-1], shape[1]).T


def bilinear_gradient(shape: tuple[int, int], output_gradient: NDArray) -> NDArray[np.float64]:
    """Gradient of x [..., *shape]."""
    rows, columns = output_gradient.shape[-2:]
    return _shares(shape[0], rows).T @ output_gradient.astype(np.float64) @ _shares(shape[1], columns)


def _cells(x: NDArray) -> NDArray[np.float64]:
    """The four cells behind each output, in a row; minus infinity beyond the border."""
    odd = [(0, 0)] * (x.ndim - 2) + [(0, side % 2) for side in x.shape[-2:]]
    padded = np.pad(x.astype(np.float64), odd, constant_values=-np.inf)
    rows, columns = padded.shape[-2] // 2, padded.shape[-1] // 2
    return padded.reshape(*x.shape[:-2], rows, 2, columns, 2).swapaxes(-2, -3).reshape(*x.shape[:-2], rows, columns, 4)


def _shares(size: int, new: int) -> NDArray[np.float64]:
    """What each of `new` cells takes of each of `size`."""
    place = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(size)))
