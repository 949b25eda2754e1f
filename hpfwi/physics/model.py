"""Earth models: a velocity on a grid, the starting models made from one, and the settings that choose both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from scipy.ndimage import gaussian_filter

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import AXES, Grid, along_axes, in_cells
from hpfwi.physics.water import read_sea_floor, water_cells

DEFAULT_SPACING_M = 15.0
"""Cell size of a model that comes from no file: that of the published Marmousi experiments."""

WIDEST = 10
"""A Gaussian filter of more than so many times the longest side of a model leaves its mean, and takes long for it."""


@dataclass(frozen=True, eq=False)
class EarthModel:
    """A velocity for every node of a grid; the array is a read-only copy.

    raises  DataError: neither 2-D nor 3-D, another shape than the grid, a velocity that is NaN, infinite, zero or
            negative
    """

    velocity: NDArray[np.float32]
    """float32[z, x] or [z, y, x], m/s, > 0."""
    grid: Grid

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            velocity = np.array(self.velocity, dtype=np.float32, order="C")
        if velocity.ndim not in AXES:
            raise DataError(f"A velocity model must be 2-D [z, x] or 3-D [z, y, x], not of shape {velocity.shape}.")
        if velocity.shape != self.grid.shape:
            raise DataError(
                f"The velocity has shape {velocity.shape} and its grid {self.grid.shape}: they must be the same."
            )
        usable = np.isfinite(velocity) & (velocity > 0)
        if not usable.all():
            cell = tuple(int(index) for index in np.argwhere(~usable)[0])
            where = ", ".join(f"{axis}={index}" for axis, index in zip(self.grid.axes, cell, strict=True))
            raise DataError(
                f"The velocity in cell ({where}) is {velocity[cell]:g} m/s, and "
                f"{int((~usable).sum())} cell(s) in all are not positive finite numbers: repair the model first."
            )
        velocity.setflags(write=False)
        object.__setattr__(self, "velocity", velocity)

    @property
    def slowest_mps(self) -> float:
        return float(self.velocity.min())

    @property
    def fastest_mps(self) -> float:
        return float(self.velocity.max())

    def resampled(self, shape: tuple[int, ...]) -> EarthModel:
        """The same piece of earth cut into another number of cells.

        Along an axis that gets fewer cells a new cell takes the mean velocity of the old cells it covers, in proportion
        to the overlap, so nothing aliases; along an axis that gets more, values are interpolated linearly between
        cell centres and held beyond the outermost. The spacing becomes (cells * spacing) / new cells.

        raises  DataError: another number of axes
        """
        if len(shape) != len(self.grid.shape):
            raise DataError(
                f"A model of {in_cells(self.grid.shape)} cells cannot be resampled to {in_cells(shape)}: give "
                f"{len(self.grid.shape)} counts."
            )
        steps = zip(self.grid.spacing_m, self.grid.shape, shape, strict=True)
        grid = Grid(shape, tuple(step * old / new for step, old, new in steps), self.grid.origin_m)
        return EarthModel(self._weighed(lambda axis, cells: _axis_weights(cells, shape[axis])), grid)

    def with_spacing(self, spacing_m: tuple[float, ...]) -> EarthModel:
        """The same numbers on cells of another size (a re-labelled model: every structure scales with the cells)."""
        return EarthModel(self.velocity, Grid(self.grid.shape, spacing_m, self.grid.origin_m))

    def clipped(self, low_mps: float, high_mps: float) -> EarthModel:
        """The same model with its velocities limited to a range, m/s."""
        return EarthModel(np.clip(self.velocity, low_mps, high_mps), self.grid)

    def refined(self, factor: int) -> EarthModel:
        """The model on a grid `factor` times as fine, velocity linear between the old nodes, which keep their values.

        The nodes of the old grid are nodes of the new one, so a position in metres that was on a node stays on one.
        """
        fine = self.grid.refined(factor)
        return EarthModel(self._weighed(lambda axis, cells: _node_weights(cells, factor)), fine)

    def _weighed(self, weights: Callable[[int, int], NDArray[np.float64]]) -> NDArray[np.float32]:
        """The velocity after a matrix weights(axis, cells) float64[new, cells] along every axis in turn, in float64."""
        velocity = self.velocity.astype(np.float64)
        for axis, cells in enumerate(self.velocity.shape):
            velocity = np.moveaxis(np.tensordot(weights(axis, cells), velocity, (1, axis)), 0, axis)
        return velocity.astype(np.float32)


def _axis_weights(old: int, new: int) -> NDArray[np.float64]:
    """float64[new, old], rows adding to 1: overlap of cells if new <= old, else interpolation between cell centres."""
    if new <= old:
        edges = np.linspace(0.0, old, new + 1)
        cells = np.arange(old, dtype=np.float64)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        return np.maximum(overlap, 0.0) * (new / old)
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0.0, old - 1.0)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(old)))


def _node_weights(nodes: int, factor: int) -> NDArray[np.float64]:
    """float64[(nodes - 1) * factor + 1, nodes]: linear interpolation that returns the old nodes unchanged."""
    positions = np.arange((nodes - 1) * factor + 1) / factor
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(nodes)))


def smooth(model: EarthModel, sigma_cells: float) -> EarthModel:
    """The model after a Gaussian filter of `sigma_cells` cells along every axis; the edge values continue outside.

    raises  ConfigError: sigma_cells is negative, or far more than the model has
    """
    most = WIDEST * max(model.grid.shape)
    if not 0 <= sigma_cells <= most:
        raise ConfigError(
            f"smooth_sigma_cells={sigma_cells:g} cannot be used: it must be 0 (no smoothing) or more, and at most "
            f"{most}, which is {WIDEST} times the model's longest side."
        )
    smoothed = gaussian_filter(model.velocity.astype(np.float64), sigma_cells, mode="nearest")
    return EarthModel(smoothed.astype(np.float32), model.grid)


def linear_gradient(grid: Grid, top_mps: float, bottom_mps: float) -> EarthModel:
    """A velocity linear in depth, from `top_mps` in row 0 to `bottom_mps` in the last row, the same in all columns."""
    column = np.linspace(top_mps, bottom_mps, grid.shape[0], dtype=np.float32)
    return EarthModel(np.broadcast_to(grid.as_column(column), grid.shape), grid)


def constant(grid: Grid, velocity_mps: float) -> EarthModel:
    """One velocity everywhere."""
    return EarthModel(np.full(grid.shape, velocity_mps, dtype=np.float32), grid)


class ModelSettings(BaseModel):
    """The true model (when there is one), the starting model, and what is known about the velocity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    true: str | None = Field(
        default="procedural",
        description='The earth to be found: "procedural" (a built-in synthetic model), a file (.npy, .npz, .zarr, '
        ".segy, .sgy), or None for field records; with data.observed None unless set.",
    )
    initial: str = Field(
        default="smooth",
        description='The starting model: "smooth" (the true model after a Gaussian filter), "linear" (a gradient with '
        'depth), "constant", or a file.',
    )
    shape: tuple[int, ...] = Field(
        default=(80, 200),
        description="Cells (nz, nx), or (nz, ny, nx) in 3-D, of a procedural model, or of a model without a file.",
    )
    spacing_m: float | tuple[float, ...] | None = Field(
        default=None,
        description="Cell size (dz, dx), in 3-D (dz, dy, dx), m, or one number for all; needed for .npy and .npz "
        "files, which do not hold it. None takes the file's own, or 15 m where there is no file.",
    )
    velocity_unit: str | None = Field(
        default=None,
        description='Unit of the velocities in files: "m/s" or "km/s". None means m/s, and refuses values that look '
        "like km/s.",
    )
    resample: tuple[int, ...] | None = Field(
        default=None,
        description="Cut models from files into this many cells (nz, nx) or (nz, ny, nx); None keeps theirs.",
    )
    relabel_spacing_m: float | tuple[float, ...] | None = Field(
        default=None,
        description="Cell size (dz, dx) or (dz, dy, dx), m, or one number for all, given to models from files after "
        "resampling: the structures scale with it. None keeps the true size.",
    )
    clip_mps: tuple[float, float] | None = Field(
        default=None,
        description="Limit the velocities of models from files to this range (low, high), m/s; None leaves them.",
    )
    smooth_sigma_cells: float = Field(
        default=10.0, ge=0, allow_inf_nan=False, description="Gaussian width of the smooth starting model, cells."
    )
    linear_mps: tuple[float, float] = Field(
        default=(1500.0, 4500.0),
        description="Velocity at the top (below the water) and the bottom of the linear starting model, m/s.",
    )
    constant_mps: float = Field(
        default=3000.0, gt=0, allow_inf_nan=False, description="Velocity of the constant starting model, m/s."
    )
    water_depth_m: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Rows shallower than this keep their starting velocity, m."
    )
    sea_floor: str | None = Field(
        default=None,
        min_length=1,
        description="Depth of an uneven sea floor below the model's top, m: a .npy file with a number for every column "
        "of the model, [x], in 3-D [y, x]. Cells above it keep their starting velocity. In place of water_depth_m.",
    )
    water_mps: float = Field(
        default=1500.0,
        gt=0,
        allow_inf_nan=False,
        description="Velocity of the water in linear and constant starting models when there is no true model, m/s.",
    )
    bounds_mps: tuple[float, float] = Field(
        default=(1400.0, 5600.0),
        description="Lowest and highest velocity that the inversion may reach, m/s; the time step and the absorbing "
        "edges are made for the highest.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the procedural model.")

    @field_validator("spacing_m", "relabel_spacing_m")
    @classmethod
    def _positive_sizes(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        if value is None:
            return None
        sizes = value if isinstance(value, tuple) else (value, value)
        if len(sizes) not in AXES or not all(0 < size < float("inf") for size in sizes):
            raise ValueError(f"{value} must be two positive numbers of metres (dz, dx), three (dz, dy, dx), or one.")
        return value

    @field_validator("shape", "resample")
    @classmethod
    def _enough_cells(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (len(value) not in AXES or min(value) < 2):
            raise ValueError(f"{value} must be at least 2 rows and 2 columns (nz, nx), or (nz, ny, nx) likewise.")
        return value

    @field_validator("clip_mps", "bounds_mps")
    @classmethod
    def _ordered_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] < value[1] < float("inf"):
            raise ValueError(f"{value} must be a range (low, high) of positive velocities with low < high, m/s.")
        return value

    @field_validator("linear_mps")
    @classmethod
    def _positive_velocities(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 < velocity < float("inf") for velocity in value):
            raise ValueError(f"{value} must be two positive velocities (top, bottom), m/s.")
        return value

    @field_validator("velocity_unit")
    @classmethod
    def _known_unit(cls, value: str | None) -> str | None:
        if value not in (None, "m/s", "km/s"):
            raise ValueError(f'{value!r} must be "m/s" or "km/s".')
        return value

    @model_validator(mode="after")
    def _start_exists(self) -> ModelSettings:
        if self.true is None and self.initial == "smooth":
            raise ValueError(
                'initial="smooth" needs a true model to smooth: give a file, "linear" or "constant" for field records.'
            )
        return self

    @model_validator(mode="after")
    def _one_sea_floor(self) -> ModelSettings:
        if self.sea_floor is not None and (self.water_depth_m > 0 or self.true == "procedural"):
            other = f"water_depth_m={self.water_depth_m:g}" if self.water_depth_m > 0 else 'true="procedural"'
            raise ValueError(
                f'sea_floor="{self.sea_floor}" cannot go with {other}: leave out one of the two; a made-up model has a '
                "flat sea floor."
            )
        return self


@dataclass(frozen=True, eq=False)
class ModelPair:
    """The models of a run, on one grid."""

    true: EarthModel | None
    """The earth to be found, None for field records."""
    initial: EarthModel
    """Where the inversion starts."""
    water_mask: NDArray[np.bool_]
    """bool of the models' shape, True where the velocity is known and keeps its initial value."""


def load_models(settings: ModelSettings) -> ModelPair:
    """The true and the starting model that the settings describe.

    Files are read, converted to m/s, resampled, re-labelled and clipped, in this order. A starting model from a file
    may have the shape of the true model's file (it is then treated alike) or the final shape. In the water every
    starting model takes the true model's velocities; smoothing happens below it only, so the sea floor stays sharp.

    raises  ConfigError: water that leaves nothing to invert
            DataError: a file that cannot be read, shapes that disagree, velocities outside bounds_mps
    """
    true = None if settings.true is None else _true_model(settings, settings.true)
    if settings.initial in ("smooth", "linear", "constant"):
        grid = true.grid if true is not None else _gridded(settings)
        mask = water_of(settings, grid)
        initial = _derived_start(settings, grid, true, mask)
    else:
        initial = _from_file(settings, settings.initial, None if true is None else true.grid)
        mask = water_of(settings, initial.grid)
    low, high = settings.bounds_mps
    for name, model in (("true", true), ("starting", initial)):
        if model is not None and not (low <= model.slowest_mps and model.fastest_mps <= high):
            raise DataError(
                f"The {name} model spans {model.slowest_mps:g} to {model.fastest_mps:g} m/s, outside "
                f"bounds_mps=({low:g}, {high:g}): widen the bounds or set clip_mps."
            )
    return ModelPair(true, initial, mask)


def _gridded(settings: ModelSettings) -> Grid:
    return Grid(settings.shape, along_axes(settings.spacing_m or DEFAULT_SPACING_M, len(settings.shape)))


def _true_model(settings: ModelSettings, true: str) -> EarthModel:
    if true != "procedural":
        return _from_file(settings, true, None)
    # Imported here: the model families import nothing from this layer, but a run on files needs none of them.
    from hpfwi.synthetic.velocity import procedural_marmousi_like

    grid = _gridded(settings)
    velocity = procedural_marmousi_like(
        grid.shape, grid.spacing_m, settings.seed, water_depth_m=settings.water_depth_m, water_mps=settings.water_mps
    )
    return EarthModel(velocity, grid)


def _from_file(settings: ModelSettings, path: str, final: Grid | None) -> EarthModel:
    """A model from a file, on the grid `final` if one is given."""
    # Imported here because the store builds EarthModel objects: at module level the two would import each other.
    from hpfwi.store.models import read_model

    if not Path(path.partition(":")[0]).suffix and not Path(path).exists():  # of a model in a group: the group's
        raise DataError(
            f'"{Path(path).name}" is neither a file nor a model that needs none: those are true = "procedural" and '
            'initial = "smooth", "linear" or "constant".'
        )
    spacing_m = settings.spacing_m
    if spacing_m is None and final is not None:
        spacing_m = final.spacing_m
    model = read_model(path, spacing_m=spacing_m, velocity_unit=settings.velocity_unit)
    already_final = final is not None and model.grid.shape == final.shape
    if settings.resample is not None and not already_final:
        model = model.resampled(settings.resample)
    if settings.relabel_spacing_m is not None:
        model = model.with_spacing(along_axes(settings.relabel_spacing_m, len(model.grid.shape)))
    if settings.clip_mps is not None:
        model = model.clipped(*settings.clip_mps)
    if final is None:
        return model
    if model.grid.shape != final.shape:
        raise DataError(
            f"The starting model {path} has {model.grid.shape} cells and the true model {final.shape}: they must cover "
            "the same cells; resample the file or set model.resample."
        )
    return EarthModel(model.velocity, final)


def water_of(settings: ModelSettings, grid: Grid) -> NDArray[np.bool_]:
    """True in cells above the sea floor that the settings describe; raises as `water_cells` and `read_sea_floor`."""
    return water_cells(
        grid, settings.water_depth_m if settings.sea_floor is None else read_sea_floor(settings.sea_floor, grid)
    )


def _derived_start(
    settings: ModelSettings, grid: Grid, true: EarthModel | None, water: NDArray[np.bool_]
) -> EarthModel:
    velocity = np.full(grid.shape, settings.water_mps, np.float32) if true is None else true.velocity.copy()
    if settings.initial == "linear":
        rows_of = water.sum(axis=0)
        for rows in np.unique(rows_of).tolist():
            column = np.linspace(*settings.linear_mps, grid.shape[0] - rows)
            velocity[rows:, rows_of == rows] = column[:, None]
    elif settings.initial == "constant":
        velocity[~water] = settings.constant_mps
    elif true is None:
        raise ConfigError('initial="smooth" needs a true model to smooth: give a file, "linear" or "constant".')
    else:
        # The sea floor goes on upwards, so that no water is smoothed into it.
        floor = np.minimum(water.sum(axis=0), grid.shape[0] - 1)[None]
        raised = np.where(water, np.take_along_axis(true.velocity, floor, axis=0), true.velocity)
        smoothed = smooth(EarthModel(raised, grid), settings.smooth_sigma_cells).velocity
        velocity = np.where(water, true.velocity, smoothed)
    return EarthModel(velocity, grid)
