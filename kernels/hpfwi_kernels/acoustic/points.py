"""Sources and receivers as weighted cells, so that a point may lie between cells.

A point on a cell has one tap of weight 1. A point between cells uses a Kaiser-windowed sinc (Hicks 2002, Geophysics 67,
156-166) with a half-width of 4 cells and b = 6.31, his best choice for wavenumbers up to half the Nyquist wavenumber.
Injection spreads with the same weights that sampling gathers with, so each is the other's transpose.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0

from hpfwi_kernels.errors import GeometryError

HALF_WIDTH = 4
KAISER_B = 6.31


@dataclass(frozen=True, eq=False)
class Points:
    """Taps of every point of every shot.

    cells    int64[shot, point, tap, 2]    row and column in the model; outside it in the absorbing layer
    weights  float64[shot, point, tap]     0 for an unused tap; a point whose taps are all unused is absent
    shape    rows and columns of the model the points were made for
    """

    cells: NDArray[np.int64]
    weights: NDArray[np.float64]
    shape: tuple[int, int]

    @property
    def shots(self) -> int:
        """Number of shots."""
        return self.cells.shape[0]

    @property
    def per_shot(self) -> int:
        """Number of points of each shot, absent ones included."""
        return self.cells.shape[1]

    def of_shots(self, shots: NDArray[np.int64] | list[int] | slice) -> "Points":
        """The points of some shots, in the given order."""
        return Points(self.cells[shots], self.weights[shots], self.shape)


def on_grid(cells: NDArray, shape: tuple[int, int]) -> Points:
    """Points that lie on cells.

    cells   integers[shot, point, 2], row and column
    raises  GeometryError: a cell outside a model of `shape` cells, named with its shot
    """
    cells = np.asarray(cells)
    if not np.issubdtype(cells.dtype, np.integer):
        raise GeometryError(f"Cells must be integers, not {cells.dtype}; use off_grid for points between cells.")
    return off_grid(cells.astype(np.float64), shape, free_surface=False)


def off_grid(positions: NDArray[np.float64], shape: tuple[int, int], *, free_surface: bool) -> Points:
    """Points anywhere inside the model.

    positions     float64[shot, point, 2], row and column in cells, fractions allowed; NaN marks an absent point
    free_surface  taps above the first row fold back with the opposite sign, as the field is odd about it
    raises        GeometryError: a position outside a model of `shape` cells, named with its shot
    """
    positions = np.asarray(positions, dtype=np.float64)
    if positions.ndim != 3 or positions.shape[2] != 2:
        raise GeometryError(f"Positions of shape {positions.shape} must be [shot, point, 2] with (z, x) last.")
    absent = np.asarray(np.isnan(positions).any(axis=2))
    beyond = (positions < 0) | (positions > np.array(shape) - 1)
    outside = np.asarray(~absent & beyond.any(axis=2))
    if outside.any():
        shot, point = np.argwhere(outside)[0]
        z, x = positions[shot, point]
        raise GeometryError(
            f"Point {point} of shot {shot} lies at cell (z={z:g}, x={x:g}), outside the model of {shape[0]} x "
            f"{shape[1]} cells; move it to 0 <= z <= {shape[0] - 1} and 0 <= x <= {shape[1] - 1}."
        )
    filled = np.where(absent[..., None], 0.0, positions)
    rows, row_weights = _axis_taps(filled[..., 0])
    columns, column_weights = _axis_taps(filled[..., 1])
    shots, points = absent.shape
    taps = rows.shape[2] * columns.shape[2]
    cells = np.empty((shots, points, taps, 2), np.int64)
    cells[..., 0] = np.repeat(rows, columns.shape[2], axis=2)
    cells[..., 1] = np.tile(columns, (1, 1, rows.shape[2]))
    weights = (row_weights[:, :, :, None] * column_weights[:, :, None, :]).reshape(shots, points, taps)
    if free_surface:
        above = cells[..., 0] < 0
        weights = np.where(above, -weights, weights)
        cells[..., 0] = np.abs(cells[..., 0])
    weights = np.where(absent[..., None], 0.0, weights)
    return Points(cells, weights, (shape[0], shape[1]))


def _axis_taps(position: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells and weights along one axis: int64[shot, point, tap], float64[shot, point, tap]."""
    base = np.floor(position)
    if np.array_equal(base, position):
        return base.astype(np.int64)[..., None], np.ones((*position.shape, 1))
    offsets = np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)
    cells = base[..., None] + offsets
    distance = position[..., None] - cells
    inside = np.abs(distance) < HALF_WIDTH
    window = i0(KAISER_B * np.sqrt(np.where(inside, 1.0 - (distance / HALF_WIDTH) ** 2, 0.0))) / i0(KAISER_B)
    weights = np.where(inside, np.sinc(distance) * window, 0.0)
    # Where a point does lie on a cell the window is exactly one tap; sinc leaves rounding noise in the others.
    on_cell = distance == 0
    weights = np.where(on_cell.any(axis=-1, keepdims=True), on_cell.astype(np.float64), weights)
    return cells.astype(np.int64), weights
