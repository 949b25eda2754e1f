"""Where the loops keep a plane: padded with zeros and cut by rows into four phases.

Padded row r (the plane's rows start at k // 2) lies in phase r mod 4 at block r // 4. A filter of k rows over four
neighbouring output rows then reads k + 3 streams that all advance together, so one loop without an inner end runs over
all rows of a phase, and a sample once loaded serves up to four outputs. Rows of a phase are `stride` apart, with
max(k // 2, 1) zeros in front of each that are the right-hand padding of the row before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.compiling import hot

PHASES = 4
# Loops run over whole multiples of this many cells, so none has a remainder; what they write too much is never read.
LANES = 16
LINE_BYTES = 64
# Columns of the table that loops read, one line per level.
ROWS, COLUMNS, STRIDE, PHASE, CELLS, PAD, START = (np.uint64(n) for n in range(7))
TWO, THREE = np.uint64(2), np.uint64(3)


@hot
def row_start(line, r):
    """Where padded row r of the first plane of a level starts."""
    return line[START] + (r & THREE) * line[PHASE] + (r >> TWO) * line[STRIDE]


@dataclass(frozen=True)
class Layout:
    """Cells of one plane [rows, columns] for filters of k x k."""

    rows: int
    columns: int
    k: int

    @property
    def pad(self) -> int:
        """Zero rows above the plane, and zero columns in front of it."""
        return self.k // 2

    @property
    def stride(self) -> int:
        """From one row of a phase to the next; at least one zero follows a row, which an odd width needs."""
        return self.columns + max(self.pad, 1)

    @property
    def cells(self) -> int:
        """Cells that a convolution's loop runs over in each phase."""
        return _round_up(-(-self.rows // PHASES) * self.stride)

    @property
    def phase(self) -> int:
        """From one phase to the next: an odd number of lanes, so that phases do not share cache sets."""
        blocks = -(-self.rows // PHASES) + (self.k + PHASES) // PHASES
        lanes = _round_up(blocks * self.stride + 4 * LANES) // LANES
        return (lanes + 1 - lanes % 2) * LANES

    @property
    def size(self) -> int:
        """Cells of the whole plane."""
        return PHASES * self.phase


def levels(rows: int, columns: int, k: int, count: int) -> list[Layout]:
    """The layout of a plane and of the coefficients of each of its levels."""
    layouts = [Layout(rows, columns, k)]
    for _ in range(count):
        rows, columns = -(-rows // 2), -(-columns // 2)
        layouts.append(Layout(rows, columns, k))
    return layouts


def table(layouts: list[Layout]) -> NDArray[np.uint64]:
    """What the loops read of each layout, in the columns ROWS to START.

    START is where its first plane starts: the plane itself is followed by four planes of coefficients per level.
    """
    lines, start = [], 0
    for level, layout in enumerate(layouts):
        lines.append((layout.rows, layout.columns, layout.stride, layout.phase, layout.cells, layout.pad, start))
        start += layout.size * (4 if level else 1)
    return np.array(lines, np.uint64)


def halves(layouts: list[Layout], dtype: DTypeLike) -> NDArray:
    """The Haar transform's factor for each level and column: 1/2 on the plane, 0 beyond it."""
    widest = _round_up(max(layout.columns for layout in layouts))
    return np.stack([np.where(np.arange(widest) < layout.columns, 0.5, 0.0) for layout in layouts]).astype(dtype)


def workspace(layouts: list[Layout], dtype: DTypeLike) -> NDArray:
    """Zeros for the plane and all its coefficients, on a cache line."""
    size = layouts[0].size + 4 * sum(layout.size for layout in layouts[1:])
    spare = LINE_BYTES // np.dtype(dtype).itemsize
    memory = buffers.zeros(size + spare, dtype)
    first = -memory.ctypes.data % LINE_BYTES // memory.itemsize
    return memory[first : first + size]


def _round_up(cells: int) -> int:
    return -(-cells // LANES) * LANES
