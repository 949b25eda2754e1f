"""The one place where kernels take uninitialised memory.

Kernels call `buffers.empty` through the module, so that a test can replace it by a version that returns NaN: a cell
that no loop wrote then shows in the result at once.
"""

import numpy as np
from numpy.typing import DTypeLike, NDArray

Shape = int | tuple[int, ...]


def empty(shape: Shape, dtype: DTypeLike) -> NDArray:
    """Uninitialised array of the given shape and dtype."""
    return np.empty(shape, dtype)


def zeros(shape: Shape, dtype: DTypeLike) -> NDArray:
    """Array of zeros: for state that the equations start from zero, such as wavefields and absorbing-layer memory."""
    return np.zeros(shape, dtype)
