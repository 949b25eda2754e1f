"""Where the shots and receivers are, and how long and how finely they record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import AXES, Grid


@dataclass(frozen=True, eq=False)
class Survey:
    """Positions and sampling of every shot.

    Shots may have different numbers of sources or receivers: the shorter lists are padded with NaN positions, which
    stand for "absent" (an absent receiver records zeros). The arrays are read-only copies.

    raises  DataError: wrong shapes, a half-NaN position, a shot with no source or no receiver, dt_s or samples not
            positive
    """

    sources_m: NDArray[np.float64]
    """float64[shot, source, axis], (z, x) or (z, y, x) in metres, NaN = absent."""
    receivers_m: NDArray[np.float64]
    """float64[shot, receiver, axis], (z, x) or (z, y, x) in metres, NaN = absent."""
    dt_s: float
    """Time between samples, seconds."""
    samples: int
    """Samples per trace; sample n is at n * dt_s after the shot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dt_s", float(self.dt_s))
        object.__setattr__(self, "samples", int(self.samples))
        if not (math.isfinite(self.dt_s) and self.dt_s > 0):
            raise DataError(f"dt_s={self.dt_s:g} cannot be used: the sample interval must be positive seconds.")
        if self.samples < 2:
            raise DataError(f"samples={self.samples} cannot be used: a trace needs at least 2 samples.")
        for name in ("sources_m", "receivers_m"):
            object.__setattr__(self, name, _checked_positions(getattr(self, name), name.removesuffix("s_m")))
        if len(self.sources_m) != len(self.receivers_m):
            raise DataError(
                f"The survey has sources for {len(self.sources_m)} shots and receivers for {len(self.receivers_m)}: "
                "both arrays need one entry for every shot."
            )
        if self.sources_m.shape[-1] != self.receivers_m.shape[-1]:
            raise DataError(
                f"The survey's sources have {self.sources_m.shape[-1]} coordinates and its receivers "
                f"{self.receivers_m.shape[-1]}: give both (z, x), or both (z, y, x)."
            )

    @property
    def shots(self) -> int:
        """Number of shots."""
        return len(self.sources_m)

    @property
    def receivers(self) -> int:
        """Receiver slots per shot, absent ones included."""
        return self.receivers_m.shape[1]

    @property
    def duration_s(self) -> float:
        """Time of the last sample, seconds."""
        return (self.samples - 1) * self.dt_s

    def live_receivers(self) -> NDArray[np.bool_]:
        """bool[shot, receiver], False where a receiver is absent."""
        return ~np.isnan(self.receivers_m[..., 0])

    def subset(self, indices: Sequence[int]) -> Survey:
        """The survey of some shots, in the order given.

        raises  DataError: no index, or one outside 0 … shots - 1
        """
        chosen = [int(index) for index in indices]
        if not chosen:
            raise DataError("A subset of a survey needs at least one shot index.")
        outside = [index for index in chosen if not 0 <= index < self.shots]
        if outside:
            raise DataError(f"Shot {outside[0]} does not exist: the survey has shots 0 to {self.shots - 1}.")
        return Survey(self.sources_m[chosen], self.receivers_m[chosen], self.dt_s, self.samples)

    def check(self, grid: Grid) -> None:
        """Refuse a position outside the model.

        raises  DataError: names the shot, the position and the model's extent; or says that one is 2-D, the other 3-D
        """
        given = AXES[self.sources_m.shape[-1]]
        if len(given) != len(grid.shape):
            raise DataError(
                f"The survey's positions are ({', '.join(given)}) and the model is [{', '.join(grid.axes)}]: a "
                f"{len(given)}-D survey needs a {len(given)}-D model."
            )
        low = np.array(grid.origin_m)
        high = np.array(grid.last_m)
        slack = 1e-6 * np.array(grid.spacing_m)
        for name, positions in (("source", self.sources_m), ("receiver", self.receivers_m)):
            # Comparisons with NaN are False, so absent points are never reported.
            outside = ((positions < low - slack) | (positions > high + slack)).any(axis=-1)
            if outside.any():
                shot, point = (int(index) for index in np.argwhere(outside)[0])
                place = ", ".join(f"{axis}={at:g} m" for axis, at in zip(given, positions[shot, point], strict=True))
                spans = " and ".join(f"{axis}={a:g} to {b:g} m" for axis, a, b in zip(given, low, high, strict=True))
                raise DataError(
                    f"Shot {shot}: {name} {point} at {place} is outside the model, which spans {spans}; move it inside "
                    "or enlarge the model."
                )


def _checked_positions(positions: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    array = np.array(positions, dtype=np.float64)
    if array.ndim != 3 or array.shape[-1] not in AXES or 0 in array.shape:
        raise DataError(
            f"The {name} positions have shape {array.shape}: they must be [shot, {name}, axis] with (z, x) or "
            f"(z, y, x) last and at least one shot and one {name}."
        )
    if np.isinf(array).any():
        shot = int(np.argwhere(np.isinf(array))[0][0])
        raise DataError(f"Shot {shot} has an infinite {name} position: use finite metres, or NaN for an absent one.")
    absent = np.isnan(array)
    halves = absent.any(axis=-1) != absent.all(axis=-1)
    if halves.any():
        shot, point = (int(index) for index in np.argwhere(halves)[0])
        names = " and ".join(AXES[array.shape[-1]])
        raise DataError(
            f"Shot {shot}: {name} {point} has one coordinate missing: give {names}, or NaN for all of them if it is "
            "absent."
        )
    empty = absent[..., 0].all(axis=1)
    if empty.any():
        shot = int(np.argmax(empty))
        raise DataError(f"Shot {shot} has no {name}: every position is absent; leave the shot out of the survey.")
    array.setflags(write=False)
    return array


def horizontal_m(positions_m: NDArray[np.float64], others_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horizontal distance between positions [..., axis], (z, x) or (z, y, x), m, float64[...]; NaN for absent ones.

    >>> horizontal_m(np.array([5.0, 30.0, 40.0]), np.zeros(3)).item()
    50.0
    """
    return np.asarray(np.hypot.reduce(np.abs(positions_m[..., 1:] - others_m[..., 1:]), axis=-1))


class SurveySettings(BaseModel):
    """Lines of shots along x on the surface, recorded by receivers that stay in place; over a 2-D model one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int = Field(default=12, ge=1, description="Number of shots, in a 3-D survey of every line.")
    first_source_m: float | None = Field(
        default=None,
        description="Distance of the first source along the line, m; None centres the sources on the line.",
    )
    source_spacing_m: float | None = Field(
        default=None, gt=0, description="Distance between sources, m; None spreads them evenly over the line."
    )
    source_lines: int = Field(
        default=1, ge=1, description="Lines of shots over a 3-D model, one behind the other in y."
    )
    first_source_line_m: float | None = Field(
        default=None, description="y of the first line of shots, m; None centres the lines on the model."
    )
    source_line_spacing_m: float | None = Field(
        default=None, gt=0, description="Distance between lines of shots, m; None spreads them evenly."
    )
    source_depth_m: float | None = Field(
        default=None, ge=0, description="Depth of the sources below the top of the model, m; None is one cell."
    )
    receivers: int | None = Field(
        default=None,
        ge=1,
        description="Number of receivers, in a 3-D survey of every line, spread evenly from end to end; None puts one "
        "in every column.",
    )
    receiver_lines: int | None = Field(
        default=None,
        ge=1,
        description="Lines of receivers over a 3-D model, spread evenly from the lowest y to the highest; None puts "
        "one at every y of the grid.",
    )
    receiver_depth_m: float | None = Field(
        default=None, ge=0, description="Depth of the receivers below the top of the model, m; None is one cell."
    )
    max_offset_m: float | None = Field(
        default=None,
        gt=0,
        description="Receivers farther from the source than this do not record, m; None: all record.",
    )
    dt_s: float = Field(default=0.002, gt=0, description="Time between samples of the records, s.")
    samples: int = Field(default=750, ge=2, description="Samples per trace.")

    @property
    def every_shot(self) -> int:
        """Number of shots of all lines."""
        return self.shots * self.source_lines

    @model_validator(mode="after")
    def _finite(self) -> SurveySettings:
        for name in (
            "first_source_m",
            "source_spacing_m",
            "first_source_line_m",
            "source_line_spacing_m",
            "source_depth_m",
            "receiver_depth_m",
            "dt_s",
        ):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number.")
        return self


def build_survey(settings: SurveySettings, grid: Grid) -> Survey:
    """The survey that the settings describe over a model's grid.

    Sources that are spread evenly stand in the middle of equal parts of the line, at the nearest column: a source on a
    node is exact and cheap, one between nodes has to be interpolated. Positions that are given are used as given. Over
    a 3-D model, lines are spread in y as shots are along x; shots and receivers are numbered along one line after the
    other.

    raises  ConfigError: several lines over a 2-D model
            DataError: a source or receiver outside the model, a shot without a receiver within max_offset_m
    """
    top, dz_m = grid.origin_m[0], grid.spacing_m[0]
    source_z = top + (dz_m if settings.source_depth_m is None else settings.source_depth_m)
    receiver_z = top + (dz_m if settings.receiver_depth_m is None else settings.receiver_depth_m)
    # Of every horizontal axis, x last: how many, where the first is, how far it is to the next.
    sources = [(settings.shots, settings.first_source_m, settings.source_spacing_m)]
    receivers = [settings.receivers]
    if len(grid.shape) == 3:
        sources.insert(0, (settings.source_lines, settings.first_source_line_m, settings.source_line_spacing_m))
        receivers.insert(0, settings.receiver_lines)
    else:
        _refuse_lines(settings)
    source_m = _all_combinations(
        [np.array([source_z]), *(_spread(grid, axis, *wish) for axis, wish in enumerate(sources, start=1))]
    )
    receiver_m = _all_combinations(
        [np.array([receiver_z]), *(_end_to_end(grid, axis, count) for axis, count in enumerate(receivers, start=1))]
    )
    every_receiver = np.repeat(receiver_m[None], len(source_m), axis=0)
    if settings.max_offset_m is not None:
        every_receiver[horizontal_m(every_receiver, source_m[:, None]) > settings.max_offset_m] = np.nan
    survey = Survey(source_m[:, None], every_receiver, settings.dt_s, settings.samples)
    survey.check(grid)
    return survey


def _refuse_lines(settings: SurveySettings) -> None:
    """Raise ConfigError where options that place lines in y are set for a model that has no y."""
    for name in ("source_lines", "first_source_line_m", "source_line_spacing_m", "receiver_lines"):
        value = getattr(settings, name)
        if value != SurveySettings.model_fields[name].default:
            raise ConfigError(
                f"survey.{name} = {value} places lines in y, which a 2-D model [z, x] does not have: leave it out, or "
                "give a 3-D model."
            )


def _all_combinations(along: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Positions float64[point, axis] at every combination of the coordinates along the axes, the last axis fastest."""
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(along))


def _end_to_end(grid: Grid, axis: int, count: int | None) -> NDArray[np.float64]:
    """Coordinates of so many receivers, float64[count], m; one at every node for None."""
    first = grid.origin_m[axis]
    if count is None:
        return grid.nodes_m(axis)
    if count == 1:
        return np.array([first + grid.spacing_m[axis] * ((grid.shape[axis] - 1) // 2)])
    return np.linspace(first, grid.last_m[axis], count)


def _spread(grid: Grid, axis: int, count: int, first_m: float | None, spacing_m: float | None) -> NDArray[np.float64]:
    """Coordinates of so many sources along an axis, float64[count], m."""
    left = grid.origin_m[axis]
    length = grid.extent_m[axis]
    counts = np.arange(count, dtype=np.float64)
    if spacing_m is not None:
        if first_m is not None:
            return first_m + spacing_m * counts
        wanted = left + length / 2 + spacing_m * (counts - (count - 1) / 2)
    elif first_m is not None:
        # The last source mirrors the first; a single one stays where it was put.
        margin = first_m - left
        if count == 1:
            return np.array([first_m])
        return np.linspace(left + margin, left + length - margin, count)
    else:
        wanted = left + length * (counts + 0.5) / count
    return left + np.round((wanted - left) / grid.spacing_m[axis]) * grid.spacing_m[axis]
