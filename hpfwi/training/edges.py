"""Where a velocity has edges: the labels and masks of the edge losses and of the edge-local errors.

Canny's detector as OpenCV runs it with an aperture of 3 and the L1 gradient, since the published labels came from
there: Sobel derivatives with repeated borders, thinning across the gradient in four directions with a fixed-point
tangent of 22.5 degrees, and two thresholds, of which the lower one counts where it is connected to the upper one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LOW, HIGH = 10, 15
"""Thresholds on |d/dx| + |d/dz| of Sobel derivatives of the 8-bit map."""
TANGENT_BITS = 15
TANGENT = round((2**0.5 - 1) * 2**TANGENT_BITS)
"""tan 22.5 degrees in fixed point; tan 67.5 degrees is 2 more."""


def edge_masks(models: NDArray[np.floating]) -> NDArray[np.bool_]:
    """True where a velocity map has an edge, bool[sample, z, x]; a constant map has none.

    models   floating[sample, z, x] in m/s or on any linear scale, because each map is first brought to 0 .. 255 by its
             own extremes, in float32, and cut to 8 bits, as in the published labels
    """
    return np.stack([_canny(_eight_bit(model)) for model in models])


def dilated(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True within one cell of an edge, diagonals included, bool[sample, z, x]."""
    return ndimage.binary_dilation(masks, np.ones((1, 3, 3), dtype=bool))


def _eight_bit(model: NDArray[np.floating]) -> NDArray[np.int32]:
    values = model.astype(np.float32)
    low, high = values.min(), values.max()
    if not high > low:
        return np.zeros(values.shape, dtype=np.int32)
    return ((values - low) / (high - low) * np.float32(255)).astype(np.uint8).astype(np.int32)


def _canny(image: NDArray[np.int32]) -> NDArray[np.bool_]:
    smooth = np.array([1, 2, 1])
    across = ndimage.correlate1d(ndimage.correlate1d(image, [-1, 0, 1], 1, mode="nearest"), smooth, 0, mode="nearest")
    along = ndimage.correlate1d(ndimage.correlate1d(image, [-1, 0, 1], 0, mode="nearest"), smooth, 1, mode="nearest")
    strength = np.abs(across) + np.abs(along)
    thin = _thinned(across.astype(np.int64), along.astype(np.int64), strength) & (strength > LOW)
    regions, count = ndimage.label(thin, np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[regions[thin & (strength > HIGH)]] = True
    return strong[regions]


def _thinned(across: NDArray[np.int64], along: NDArray[np.int64], strength: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Cells whose gradient is the largest across the edge; of two equal ones the upper or left one stays.

    On the two diagonals a cell must exceed both neighbours.
    """
    ring = np.pad(strength, 1)

    def neighbour(down: int, right: int) -> NDArray[np.int32]:
        return ring[1 + down : ring.shape[0] - 1 + down, 1 + right : ring.shape[1] - 1 + right]

    width, height = np.abs(across), np.abs(along) << TANGENT_BITS
    flat, steep = width * TANGENT, width * (TANGENT + (2 << TANGENT_BITS))
    falling = (across < 0) != (along < 0)
    diagonal = np.where(
        falling,
        (strength > neighbour(-1, 1)) & (strength > neighbour(1, -1)),
        (strength > neighbour(-1, -1)) & (strength > neighbour(1, 1)),
    )
    horizontal = (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1))
    vertical = (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0))
    return np.where(height < flat, horizontal, np.where(height > steep, vertical, diagonal))
