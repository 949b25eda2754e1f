"""The grid of an earth model: a rectangle of nodes in depth and distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpfwi.errors import DataError

MINIMUM_CELLS = 2
"""A grid of one row or column has no spacing that could be measured."""


@dataclass(frozen=True)
class Grid:
    """Nodes at `origin_m + (row * dz_m, column * dx_m)`; row 0 is the top, z points down.

    One node stands for the cell around it, so a grid of nz rows has nz cells, while the distance from the first node to
    the last is (nz - 1) * dz_m. Positions inside a model lie between the first and the last node.

    raises  DataError: fewer than 2 rows or columns, a spacing that is not positive and finite, an origin not finite

    >>> grid = Grid((80, 200), (15.0, 15.0))
    >>> grid.extent_m
    (1185.0, 2985.0)
    >>> grid.cells_of([[15.0, 30.0]]).tolist()
    [[1.0, 2.0]]
    """

    shape: tuple[int, int]
    """Rows and columns (nz, nx)."""
    spacing_m: tuple[float, float]
    """Distance between rows and between columns (dz_m, dx_m), metres."""
    origin_m: tuple[float, float] = (0.0, 0.0)
    """Depth and distance (z, x) of row 0, column 0, metres."""

    def __post_init__(self) -> None:
        # Plain Python numbers, so that a grid made from array elements prints, compares and serialises like any other.
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        object.__setattr__(self, "spacing_m", (float(self.spacing_m[0]), float(self.spacing_m[1])))
        object.__setattr__(self, "origin_m", (float(self.origin_m[0]), float(self.origin_m[1])))
        if min(self.shape) < MINIMUM_CELLS:
            raise DataError(
                f"A grid of {self.shape[0]} x {self.shape[1]} cells is too small: both counts must be at least "
                f"{MINIMUM_CELLS}."
            )
        if not all(math.isfinite(step) and step > 0 for step in self.spacing_m):
            raise DataError(
                f"spacing_m={self.spacing_m} cannot be used: both spacings (dz, dx) must be positive and finite metres."
            )
        if not all(math.isfinite(value) for value in self.origin_m):
            raise DataError(f"origin_m={self.origin_m} cannot be used: both values (z, x) must be finite metres.")

    @property
    def extent_m(self) -> tuple[float, float]:
        """Distance (z, x) from the first node to the last, metres."""
        return ((self.shape[0] - 1) * self.spacing_m[0], (self.shape[1] - 1) * self.spacing_m[1])

    @property
    def last_m(self) -> tuple[float, float]:
        """Depth and distance (z, x) of the last node, metres."""
        return (self.origin_m[0] + self.extent_m[0], self.origin_m[1] + self.extent_m[1])

    @property
    def cell_area_m2(self) -> float:
        """Area dz * dx that one node stands for, m²."""
        return self.spacing_m[0] * self.spacing_m[1]

    def depths_m(self) -> NDArray[np.float64]:
        """Depth of every row, float64[z], metres."""
        return self.origin_m[0] + self.spacing_m[0] * np.arange(self.shape[0], dtype=np.float64)

    def distances_m(self) -> NDArray[np.float64]:
        """Distance of every column along the line, float64[x], metres."""
        return self.origin_m[1] + self.spacing_m[1] * np.arange(self.shape[1], dtype=np.float64)

    def cells_of(self, positions_m: ArrayLike) -> NDArray[np.float64]:
        """Positions in cells, float64[..., 2] (z, x), fractional between nodes; NaN stays NaN.

        positions_m  float[..., 2] (z, x), metres

        A position within a millionth of a cell of a node is returned as that node: 0.3 / 0.1 is not 3 in binary, and a
        position on a node must use one grid point, not the dozens of an interpolated one.
        """
        positions = np.asarray(positions_m, dtype=np.float64)
        if positions.ndim == 0 or positions.shape[-1] != 2:
            raise DataError(f"Positions of shape {positions.shape} cannot be used: the last axis must hold (z, x).")
        cells = (positions - np.array(self.origin_m)) / np.array(self.spacing_m)
        nodes = np.round(cells)
        return np.where(np.abs(cells - nodes) <= 1e-6, nodes, cells)

    def refined(self, factor: int) -> Grid:
        """The grid with `factor` steps for every step of this one; old nodes stay nodes, the last node stays last."""
        if factor < 1:
            raise DataError(f"A grid cannot be refined {factor} times: the factor must be a whole number from 1.")
        shape = ((self.shape[0] - 1) * factor + 1, (self.shape[1] - 1) * factor + 1)
        return Grid(shape, (self.spacing_m[0] / factor, self.spacing_m[1] / factor), self.origin_m)
