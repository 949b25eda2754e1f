"""Which cells are water: their velocity is known, and an inversion leaves it as it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import Grid, in_cells
from hpfwi.physics.numpy_file import load_numpy


def water_cells(grid: Grid, depth_m: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """True in cells above the sea floor, bool of the grid's shape.

    depth_m     of the water below the model's top, m: one number, or float64[x], in 3-D [y, x], one for each column

    raises  ConfigError: the water is everywhere as deep as the model
    """
    depths_m = grid.as_column(grid.depths_m() - grid.origin_m[0])
    shallow: NDArray[np.bool_] = depths_m < np.asarray(depth_m) - 1e-6 * grid.spacing_m[0]
    if shallow.all():
        raise ConfigError(
            f"Water {np.min(depth_m):g} m deep leaves nothing to invert: the model is {grid.extent_m[0]:g} m deep; "
            "lower model.water_depth_m, or model.sea_floor."
        )
    return np.broadcast_to(shallow, grid.shape).copy()


def read_sea_floor(path: str | Path, grid: Grid) -> NDArray[np.float64]:
    """Depths of the sea floor below the model's top, m, from a .npy file: float64[x], in 3-D [y, x].

    raises  DataError: no such file, no array of numbers, another number of columns than the grid's, a depth that is
            negative or not finite
    """
    columns = grid.shape[1:]
    try:
        depths_m = np.asarray(load_numpy(Path(path)), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"model.sea_floor = {path} cannot be read ({error}): give a .npy file of depths in m, one for each column."
        ) from error
    if depths_m.shape != columns:
        raise DataError(
            f"model.sea_floor = {path} holds an array of shape {depths_m.shape}, and the model has {in_cells(columns)} "
            "columns: give a depth for each, of the model as it is after resampling."
        )
    wrong = ~(np.isfinite(depths_m) & (depths_m >= 0))
    if wrong.any():
        column = ", ".join(str(index) for index in np.argwhere(wrong)[0])
        raise DataError(
            f"model.sea_floor = {path} holds {depths_m[wrong][0]:g} m at column [{column}]: give depths below the "
            "model's top, none negative."
        )
    return depths_m
