"""The flat field layout that loops.py runs on: where a padded cell lies, and which strips a C-PML touches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.acoustic.regions import LANES, MARGIN

_CACHE_LINE_BYTES = 64


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def aligned(size: int, dtype: DTypeLike, *, skip_lines: int = 0, pool: buffers.Pool | None = None) -> NDArray:
    """Uninitialised 1-D buffer that starts `skip_lines` cache lines after a cache-line boundary."""
    item = np.dtype(dtype).itemsize
    slack = _CACHE_LINE_BYTES * (skip_lines + 1) // item
    raw = buffers.empty(size + slack, dtype) if pool is None else pool.lend(size + slack, dtype)
    start = (-raw.ctypes.data % _CACHE_LINE_BYTES) // item + _CACHE_LINE_BYTES * skip_lines // item
    return raw[start : start + size]


@dataclass(frozen=True)
class Layout:
    """Rows of a zero margin and `columns` padded cells rounded up to `width`, with R guard rows above and below."""

    rows: int
    columns: int
    radius: int

    @property
    def width(self) -> int:
        """Columns rounded up to whole vectors."""
        return _round_up(self.columns, LANES)

    @property
    def stride(self) -> int:
        """Cells from one row to the next; the next row's margin is this row's right-hand guard."""
        return MARGIN + self.width

    @property
    def size(self) -> int:
        """Cells of a field, the last row's right-hand guard included."""
        return (self.rows + 2 * self.radius) * self.stride + MARGIN

    @property
    def box(self) -> tuple[np.uint64, ...]:
        """First and last+1 row, first and last+1 column of the cells that are updated, last+1 column of the model."""
        corners = (self.radius, self.radius + self.rows, MARGIN, MARGIN + self.width, MARGIN + self.columns)
        return tuple(np.uint64(corner) for corner in corners)

    def inner(self, field: NDArray) -> NDArray:
        """View [z, x] of a field's padded cells."""
        first = self.radius * self.stride
        rows = field[first : first + self.rows * self.stride].reshape(self.rows, self.stride)
        return rows[:, MARGIN : MARGIN + self.columns]

    def field_of(self, inner: NDArray, dtype: DTypeLike) -> NDArray:
        """A field that holds `inner` and zeros around it."""
        field = aligned(self.size, dtype)
        field[:] = 0
        self.inner(field)[:] = inner
        return field

    def row_profile(self, values: NDArray, dtype: DTypeLike) -> NDArray:
        """One value per row, guard rows zero."""
        return np.pad(values, self.radius).astype(dtype)

    def column_profile(self, values: NDArray, dtype: DTypeLike) -> NDArray:
        """One value per column of a row, margins and rounded-up columns zero."""
        profile = buffers.zeros(self.stride + MARGIN, dtype)
        profile[MARGIN : MARGIN + self.columns] = values
        return profile

    def cells(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Flat indices of padded cells."""
        return ((row + self.radius) * self.stride + MARGIN + column).astype(np.uint64)

    def row_strips(self, low: int, high: int, reach: int) -> NDArray[np.uint64]:
        """Rows that layers of those widths touch: uint64[strip, 2]; layers that would overlap become one strip."""
        return self._strips(low, high, reach, self.rows, self.rows, 1, self.radius)

    def column_strips(self, low: int, high: int, reach: int) -> NDArray[np.uint64]:
        """Columns that layers of those widths touch, rounded outwards to whole vectors: uint64[strip, 2]."""
        return self._strips(low, high, reach, self.columns, self.width, LANES, MARGIN)

    @staticmethod
    def _strips(low: int, high: int, reach: int, cells: int, end: int, lanes: int, offset: int) -> NDArray[np.uint64]:
        first_ends = min(_round_up(low + reach, lanes), end) if low else 0
        last_starts = max(cells - high - reach, 0) // lanes * lanes if high else end
        if first_ends > last_starts:
            strips = [(0, end)]
        else:
            strips = [(0, first_ends)] * (first_ends > 0) + [(last_starts, end)] * (last_starts < end)
        return np.array(strips, np.uint64).reshape(-1, 2) + np.uint64(offset)
