"""The grid of an earth model: a rectangle of nodes in depth and distance, or a block of them with y in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpfwi.errors import DataError

MINIMUM_CELLS = 2
"""A grid of one row or column has no spacing that could be measured."""

AXES = {2: ("z", "x"), 3: ("z", "y", "x")}
"""Names of the axes, by how many there are: z points down, a line of shots goes along x, y goes from line to line."""


@dataclass(frozen=True)
class Grid:
    """Nodes at `origin_m + cell * spacing_m` along every axis, (z, x) or (z, y, x); row 0 is the top, z points down.

    One node stands for the cell around it, so a grid of nz rows has nz cells, while the distance from the first node to
    the last is (nz - 1) * dz_m. Positions inside a model lie between the first and the last node.

    raises  DataError: not two or three axes, fewer than 2 cells along one, another number of spacings or origins, a
            spacing that is not positive and finite, an origin not finite

    >>> grid = Grid((80, 200), (15.0, 15.0))
    >>> grid.extent_m
    (1185.0, 2985.0)
    >>> grid.cells_of([[15.0, 30.0]]).tolist()
    [[1.0, 2.0]]
    >>> Grid((20, 30, 40), (10.0, 20.0, 20.0)).last_m
    (190.0, 580.0, 780.0)
    """

    shape: tuple[int, ...]
    """Cells along every axis, (nz, nx) or (nz, ny, nx)."""
    spacing_m: tuple[float, ...]
    """Distance between nodes along every axis, (dz_m, dx_m) or (dz_m, dy_m, dx_m), metres."""
    origin_m: tuple[float, ...] = ()
    """Position of the first node, (z, x) or (z, y, x), metres; zeros where nothing is given."""

    def __post_init__(self) -> None:
        # Plain Python numbers, so that a grid made from array elements prints, compares and serialises like any other.
        object.__setattr__(self, "shape", tuple(int(cells) for cells in self.shape))
        object.__setattr__(self, "spacing_m", tuple(float(step) for step in self.spacing_m))
        object.__setattr__(self, "origin_m", tuple(float(value) for value in self.origin_m or (0.0,) * len(self.shape)))
        if len(self.shape) not in AXES:
            raise DataError(f"A grid of shape {self.shape} cannot be used: give (nz, nx) or (nz, ny, nx) cells.")
        names = self.axes
        if min(self.shape) < MINIMUM_CELLS:
            raise DataError(
                f"A grid of {in_cells(self.shape)} cells is too small: {'both' if len(names) == 2 else 'all'} counts "
                f"must be at least {MINIMUM_CELLS}."
            )
        if len(self.spacing_m) != len(names):
            steps = ", ".join(f"d{name}" for name in names)
            raise DataError(
                f"spacing_m={self.spacing_m} does not fit a model of {in_cells(self.shape)} cells: give ({steps})."
            )
        if not all(math.isfinite(step) and step > 0 for step in self.spacing_m):
            steps = ", ".join(f"d{name}" for name in names)
            raise DataError(
                f"spacing_m={self.spacing_m} cannot be used: {'both' if len(names) == 2 else 'all'} spacings ({steps}) "
                "must be positive and finite metres."
            )
        if len(self.origin_m) != len(names) or not all(math.isfinite(value) for value in self.origin_m):
            raise DataError(
                f"origin_m={self.origin_m} cannot be used: the {len(names)} values ({', '.join(names)}) must be finite "
                "metres."
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, ("z", "x") or ("z", "y", "x")."""
        return AXES[len(self.shape)]

    @property
    def extent_m(self) -> tuple[float, ...]:
        """Distance from the first node to the last along every axis, metres."""
        return tuple((cells - 1) * step for cells, step in zip(self.shape, self.spacing_m, strict=True))

    @property
    def last_m(self) -> tuple[float, ...]:
        """Position of the last node, metres."""
        return tuple(first + length for first, length in zip(self.origin_m, self.extent_m, strict=True))

    @property
    def cell_area_m2(self) -> float:
        """Area dz * dx that one node of a 2-D grid stands for, m²."""
        dz_m, dx_m = self.spacing_m
        return dz_m * dx_m

    def nodes_m(self, axis: int) -> NDArray[np.float64]:
        """Position of every node along an axis, float64[cells], metres."""
        return self.origin_m[axis] + self.spacing_m[axis] * np.arange(self.shape[axis], dtype=np.float64)

    def depths_m(self) -> NDArray[np.float64]:
        """Depth of every row, float64[z], metres."""
        return self.nodes_m(0)

    def distances_m(self) -> NDArray[np.float64]:
        """Distance of every column along the line, float64[x], metres."""
        return self.nodes_m(-1)

    def as_column(self, values: NDArray[Any]) -> NDArray[Any]:
        """One value for each of some rows [z] as an array [z, 1] or [z, 1, 1], which holds for whole rows."""
        return values.reshape(-1, *(1 for _ in self.shape[1:]))

    def cells_of(self, positions_m: ArrayLike) -> NDArray[np.float64]:
        """Positions in cells, float64[..., axis], fractional between nodes; NaN stays NaN.

        positions_m  float[..., axis] (z, x) or (z, y, x), metres

        A position within a millionth of a cell of a node is returned as that node: 0.3 / 0.1 is not 3 in binary, and a
        position on a node must use one grid point, not the dozens of an interpolated one.
        """
        positions = np.asarray(positions_m, dtype=np.float64)
        if positions.ndim == 0 or positions.shape[-1] != len(self.shape):
            raise DataError(
                f"Positions of shape {positions.shape} cannot be used: the last axis must hold "
                f"({', '.join(self.axes)})."
            )
        cells = (positions - np.array(self.origin_m)) / np.array(self.spacing_m)
        nodes = np.round(cells)
        return np.where(np.abs(cells - nodes) <= 1e-6, nodes, cells)

    def refined(self, factor: int) -> Grid:
        """The grid with `factor` steps for every step of this one; old nodes stay nodes, the last node stays last."""
        if factor < 1:
            raise DataError(f"A grid cannot be refined {factor} times: the factor must be a whole number from 1.")
        shape = tuple((cells - 1) * factor + 1 for cells in self.shape)
        return Grid(shape, tuple(step / factor for step in self.spacing_m), self.origin_m)


def in_cells(shape: tuple[int, ...]) -> str:
    """
    >>> in_cells((24, 32, 40))
    '24 x 32 x 40'
    """
    return " x ".join(str(cells) for cells in shape)


def along_axes(size_m: float | tuple[float, ...], axes: int) -> tuple[float, ...]:
    """A cell size along every one of so many axes, where one number stands for all of them.

    >>> along_axes(12.5, 3), along_axes((5.0, 10.0), 2)
    ((12.5, 12.5, 12.5), (5.0, 10.0))
    """
    return size_m if isinstance(size_m, tuple) else (size_m,) * axes
