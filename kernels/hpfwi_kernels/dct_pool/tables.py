"""Cosine tables, pooling bins and the frequencies that AMFMS takes."""

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.errors import KernelError

# Sixteen index pairs (row, column) of a 7 x 7 transform, best first in FcaNet (Qin et al., ICCV 2021).
TOP_16 = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
)


def published_frequencies(side: int) -> tuple[tuple[int, int], ...]:
    """The sixteen pairs (row, column) that AMFMS takes from a transform of side x side: TOP_16 times side // 7.

    >>> published_frequencies(28)[2]
    (24, 0)
    """
    if side < 7:
        raise KernelError(f"side={side} is smaller than the 7 x 7 transform of the frequencies: give at least 7.")
    return tuple((row * (side // 7), column * (side // 7)) for row, column in TOP_16)


def cosine(frequency: int, side: int) -> NDArray[np.float64]:
    """Row `frequency` of the orthonormal DCT-II matrix: float64[side].

    >>> cosine(0, 4).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if not 0 <= frequency < side:
        raise KernelError(f"frequency {frequency} does not exist for side={side}: give 0 to {side - 1}.")
    scale = np.sqrt((1.0 if frequency == 0 else 2.0) / side)
    return scale * np.cos(np.pi * frequency * (np.arange(side) + 0.5) / side)


def bins(size: int, side: int) -> NDArray[np.int64]:
    """First cell and one past the last cell of each of `side` adaptive bins over `size` cells: int64[side, 2].

    As torch pools adaptively: bins of equal length in real numbers, rounded outwards, so neighbours share cells and
    more bins than cells repeat them.

    >>> bins(5, 3).tolist()
    [[0, 2], [1, 4], [3, 5]]
    """
    first = np.arange(side) * size // side
    end = -(-(np.arange(1, side + 1) * size) // side)
    return np.stack([first, end], axis=1)
