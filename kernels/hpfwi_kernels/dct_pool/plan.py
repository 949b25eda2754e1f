"""What the loops over planes share: bins, cosines, and the average table, for one size of map and table."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.dct_pool.tables import bins, cosine

# Lines of cosines repeat their last value up to whole vectors, so that the loops have no ends: columns are worked on a
# vector at a time, rows four at a time.
LANES = 16
ROWS_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """What every plane's loop shares; float arrays in the dtype of x, indices uint64."""

    weight: NDArray
    row_bins: NDArray[np.uint64]
    row_weight: NDArray
    column_bins: NDArray[np.uint64]
    widths: NDArray[np.uint64]
    pick: NDArray[np.uint64]
    row_factor: NDArray
    column_factor: NDArray
    pairs: NDArray[np.uint64]


@functools.lru_cache(maxsize=32)
def plan_of(rows: int, columns: int, frequencies: tuple[tuple[int, int], ...], side: int, dtype: np.dtype) -> Plan:
    """The plan for planes of rows x columns pooled to side x side; raises KernelError for an unknown frequency.

    weight                      [rows columns]: what each cell counts in the mean
    row_bins, column_bins       [side, 2]: first cell and one past the last of each bin; row_weight is 1 / its rows
    widths, pick                the distinct widths of column bins, and where a table of moving averages, one row of
                                `columns` cells per width, holds each pooled column
    row_factor, column_factor   [distinct frequency, side and more]: cosines
    pairs                       [frequency, 2]: which lines of the two a frequency multiplies
    """
    row_bins, column_bins = bins(rows, side), bins(columns, side)
    row_widths, column_widths = (np.diff(pair)[:, 0] for pair in (row_bins, column_bins))
    row_lines, column_lines = (sorted({pair[axis] for pair in frequencies}) for axis in (0, 1))
    pairs = [(row_lines.index(row), column_lines.index(column)) for row, column in frequencies]
    average = sum(np.outer(cosine(row, side), cosine(column, side)) for row, column in frequencies)
    # Transposes of the adaptive pooling: what a cell of x counts in the mean.
    spread = [np.zeros((side, size)) for size in (rows, columns)]
    for matrix, limits in zip(spread, (row_bins, column_bins), strict=True):
        for line, (first, end) in zip(matrix, limits, strict=True):
            line[first:end] = 1.0 / (end - first)
    weight = spread[0].T @ average @ spread[1] / (len(frequencies) * side**2)
    widths = np.unique(column_widths)
    pick = np.searchsorted(widths, column_widths) * columns + column_bins[:, 0]
    return Plan(
        weight=weight.reshape(-1).astype(dtype),
        row_bins=row_bins.astype(np.uint64),
        row_weight=(1.0 / row_widths).astype(dtype),
        column_bins=column_bins.astype(np.uint64),
        widths=widths.astype(np.uint64),
        pick=_lengthened(pick[None], LANES)[0].astype(np.uint64),
        row_factor=_lengthened(np.stack([cosine(line, side) for line in row_lines]), ROWS_AT_ONCE).astype(dtype),
        column_factor=_lengthened(np.stack([cosine(line, side) for line in column_lines]), LANES).astype(dtype),
        pairs=np.array(pairs, np.uint64),
    )


def _lengthened(lines: NDArray, block: int) -> NDArray:
    """Rows that repeat their last value up to a whole number of blocks."""
    return np.pad(lines, ((0, 0), (0, -lines.shape[1] % block)), mode="edge")
