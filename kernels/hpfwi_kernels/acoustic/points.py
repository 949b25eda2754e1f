"""Sources and receivers as weighted cells, so that a point may lie between cells.

A point on a cell has one tap of weight 1. A point between cells uses a Kaiser-windowed sinc (Hicks 2002, Geophysics 67,
156-166) with a half-width of 4 cells and b = 6.31, his best choice for wavenumbers up to half the Nyquist wavenumber.
Injection spreads with the same weights that sampling gathers with, so each is the other's transpose.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.errors import GeometryError

AXES = {2: ("z", "x"), 3: ("z", "y", "x")}
HALF_WIDTH = 4
KAISER_B = 6.31


@dataclass(frozen=True, eq=False)
class Points:
    """Taps of every point of every shot.

    cells    int64[shot, point, tap, axis]   (z, x) or (z, y, x) in the model; outside it in the absorbing layer
    weights  float64[shot, point, tap]       0 for an unused tap; a point whose taps are all unused is absent
    shape    cells of the model the points were made for, along each axis
    """

    cells: NDArray[np.int64]
    weights: NDArray[np.float64]
    shape: tuple[int, ...]

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


def on_grid(cells: NDArray, shape: tuple[int, ...]) -> Points:
    """Points that lie on cells.

    cells   integers[shot, point, axis], (z, x) or (z, y, x)
    raises  GeometryError: a cell outside a model of `shape` cells, named with its shot
    """
    cells = np.asarray(cells)
    if not np.issubdtype(cells.dtype, np.integer):
        raise GeometryError(f"Cells must be integers, not {cells.dtype}; use off_grid for points between cells.")
    return off_grid(cells.astype(np.float64), shape, free_surface=False)


def off_grid(positions: NDArray[np.float64], shape: tuple[int, ...], *, free_surface: bool) -> Points:
    """Points anywhere inside the model.

    positions     float64[shot, point, axis], (z, x) or (z, y, x) in cells, fractions allowed; NaN marks an absent point
    free_surface  taps above the first row fold back with the opposite sign, as the field is odd about it
    raises        GeometryError: a position outside a model of `shape` cells, named with its shot
    """
    positions = np.asarray(positions, dtype=np.float64)
    names = AXES.get(len(shape), AXES[2])
    if positions.ndim != 3 or positions.shape[2] != len(names):
        raise GeometryError(
            f"Positions of shape {positions.shape} must be [shot, point, {len(names)}] with ({', '.join(names)}) last."
        )
    absent = np.asarray(np.isnan(positions).any(axis=2))
    beyond = (positions < 0) | (positions > np.array(shape) - 1)
    outside = np.asarray(~absent & beyond.any(axis=2))
    if outside.any():
        shot, point = np.argwhere(outside)[0]
        place = ", ".join(f"{name}={value:g}" for name, value in zip(names, positions[shot, point], strict=True))
        bounds = " and ".join(f"0 <= {name} <= {cells - 1}" for name, cells in zip(names, shape, strict=True))
        raise GeometryError(
            f"Point {point} of shot {shot} lies at cell ({place}), outside the model of "
            f"{' x '.join(map(str, shape))} cells; move it to {bounds}."
        )
    filled = np.where(absent[..., None], 0.0, positions)
    cells, weights = _axis_taps(filled[..., 0])
    cells = cells[..., None]
    for axis in range(1, len(names)):
        more, more_weights = _axis_taps(filled[..., axis])
        before, along = weights.shape[2], more.shape[2]
        repeated = np.repeat(cells, along, axis=2)
        cells = np.concatenate([repeated, np.tile(more, (1, 1, before))[..., None]], axis=3)
        weights = (weights[:, :, :, None] * more_weights[:, :, None, :]).reshape(*absent.shape, before * along)
    if free_surface:
        above = cells[..., 0] < 0
        weights = np.where(above, -weights, weights)
        cells[..., 0] = np.abs(cells[..., 0])
    weights = np.where(absent[..., None], 0.0, weights)
    return Points(cells, weights, tuple(shape))


def _axis_taps(position: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells and weights along one axis: int64[shot, point, tap], float64[shot, point, tap]."""
    base = np.floor(position)
    if np.array_equal(base, position):
        return base.astype(np.int64)[..., None], np.ones((*position.shape, 1))
    offsets = np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)
    cells = base[..., None] + offsets
    distance = position[..., None] - cells
    inside = np.abs(distance) < HALF_WIDTH
    window = np.i0(KAISER_B * np.sqrt(np.where(inside, 1.0 - (distance / HALF_WIDTH) ** 2, 0.0))) / np.i0(KAISER_B)
    weights = np.where(inside, np.sinc(distance) * window, 0.0)
    # Where a point does lie on a cell the window is exactly one tap; sinc leaves rounding noise in the others.
    on_cell = distance == 0
    weights = np.where(on_cell.any(axis=-1, keepdims=True), on_cell.astype(np.float64), weights)
    return cells.astype(np.int64), weights
