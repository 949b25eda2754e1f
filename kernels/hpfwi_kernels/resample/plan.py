"""Where a bilinear resampling looks, and what it takes from there."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=64)
def looks(size: int, new: int, dtype: np.dtype) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray]:
    """For each of `new` cells: the two old cells it lies between, and the share of the second.

    Cell centres are at half-integers and what lies beyond the first or last centre is that cell's (torch's
    `align_corners=False`). The place is computed in the dtype, as torch does, so that shares have its bits.
    """
    scale = dtype.type(size) / dtype.type(new)
    half = dtype.type(0.5)
    place = np.maximum(scale * (np.arange(new).astype(dtype) + half) - half, dtype.type(0))
    first = np.minimum(place.astype(np.uint64), np.uint64(size - 1))
    second = np.minimum(first + np.uint64(1), np.uint64(size - 1))
    return first, second, np.minimum(place - first.astype(dtype), dtype.type(1)).astype(dtype)


def shares(size: int, new: int, dtype: np.dtype) -> NDArray:
    """What each of `new` cells takes of each of `size`, [new, size]: `looks` as a matrix."""
    first, second, share = looks(size, new, dtype)
    matrix = np.zeros((new, size), dtype)
    line = np.arange(new)
    np.add.at(matrix, (line, first), 1 - share)
    np.add.at(matrix, (line, second), share)
    return matrix
