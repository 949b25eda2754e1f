"""How maps are cut into tiles, and where what the transforms make of them lies in memory.

A tile is 4 x 4 output cells and the 6 x 6 input cells they see; both transforms turn it into 36 numbers. The map, with
one row and column of zeros around it, is cut into 16 planes by row and column modulo 4, each a flat run of
(rows + 1) x pitch cells, so that cell (i, j) of all tiles is one contiguous run: tile q = row pitch + column reads
plane (i mod 4, j mod 4) at q + (i / 4) pitch + j / 4. The last of the pitch columns holds no tile.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpfwi_kernels.vectors import VECTOR_BYTES

SIDE = 4
"""Output cells along a side of a tile."""
TERMS = (SIDE + 2) ** 2
"""Numbers that a tile is turned into."""
CHUNK_BYTES = 12 << 20
"""Transformed maps in memory at a time, of input and output together: what a core's share of the last cache holds."""


@dataclass(frozen=True)
class Tiles:
    """Sizes in cells for maps of rows x columns, `samples` of them at a time."""

    rows: int
    columns: int
    samples: int
    pitch: int
    tiles: int
    phase: int
    lanes: int
    vectors: int
    stride: int

    def plane(self, channels: int) -> int:
        """Cells from one of the 36 numbers of all tiles to the next; multiples of 4 KiB would share cache sets."""
        return channels * self.stride + self.lanes


@lru_cache(maxsize=64)
def tiles_of(rows: int, columns: int, samples: int, inputs: int, outputs: int, dtype: np.dtype) -> Tiles:
    """Tiles of maps of rows x columns with so many channels before and after.

    samples   of the batch; the result has as many as fit into CHUNK_BYTES, at least 1
    pitch     tiles of a row and one; tiles: of a map, with those that are none; phase: cells of one of the 16 planes
    vectors   to work on for all tiles of `samples` maps; stride: cells from one channel's tiles to the next one's
    """
    lanes = VECTOR_BYTES // dtype.itemsize
    down, across = -(-rows // SIDE), -(-columns // SIDE)
    pitch = across + 1
    tiles = down * pitch
    fitting = CHUNK_BYTES // (TERMS * (inputs + outputs) * tiles * dtype.itemsize)
    count = max(1, min(samples, fitting))
    count = -(-samples // -(-samples // count))  # chunks of equal size
    vectors = -(-count * tiles // lanes)
    # The last map's vectors may reach beyond its tiles; an odd number of vectors spreads channels over cache sets.
    whole = -(-((count - 1) * tiles + -(-tiles // lanes) * lanes) // lanes)
    return Tiles(
        rows=rows,
        columns=columns,
        samples=count,
        pitch=pitch,
        tiles=tiles,
        phase=(down + 1) * pitch + (-(-pitch // lanes) + 2) * lanes,
        lanes=lanes,
        vectors=vectors,
        stride=(whole + 1 - whole % 2) * lanes,
    )
