"""Where the shots and receivers are, and how long and how finely they record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import DataError
from hpfwi.physics.grid import Grid


@dataclass(frozen=True, eq=False)
class Survey:
    """Positions and sampling of every shot.

    Shots may have different numbers of sources or receivers: the shorter lists are padded with NaN positions, which
    stand for "absent" (an absent receiver records zeros). The arrays are read-only copies.

    raises  DataError: wrong shapes, a half-NaN position, a shot with no source or no receiver, dt_s or samples not
            positive
    """

    sources_m: NDArray[np.float64]
    """float64[shot, source, 2], (z, x) in metres, NaN = absent."""
    receivers_m: NDArray[np.float64]
    """float64[shot, receiver, 2], (z, x) in metres, NaN = absent."""
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

        raises  DataError: names the shot, the position and the model's extent
        """
        low = np.array(grid.origin_m)
        high = np.array(grid.last_m)
        slack = 1e-6 * np.array(grid.spacing_m)
        for name, positions in (("source", self.sources_m), ("receiver", self.receivers_m)):
            # Comparisons with NaN are False, so absent points are never reported.
            outside = ((positions < low - slack) | (positions > high + slack)).any(axis=-1)
            if outside.any():
                shot, point = (int(index) for index in np.argwhere(outside)[0])
                z, x = positions[shot, point]
                raise DataError(
                    f"Shot {shot}: {name} {point} at z={z:g} m, x={x:g} m is outside the model, which spans "
                    f"z={low[0]:g} to {high[0]:g} m and x={low[1]:g} to {high[1]:g} m; move it inside or enlarge the "
                    "model."
                )


def _checked_positions(positions: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    array = np.array(positions, dtype=np.float64)
    if array.ndim != 3 or array.shape[-1] != 2 or 0 in array.shape:
        raise DataError(
            f"The {name} positions have shape {array.shape}: they must be [shot, {name}, 2] with (z, x) last and "
            f"at least one shot and one {name}."
        )
    if np.isinf(array).any():
        shot = int(np.argwhere(np.isinf(array))[0][0])
        raise DataError(f"Shot {shot} has an infinite {name} position: use finite metres, or NaN for an absent one.")
    absent = np.isnan(array)
    halves = absent[..., 0] != absent[..., 1]
    if halves.any():
        shot, point = (int(index) for index in np.argwhere(halves)[0])
        raise DataError(
            f"Shot {shot}: {name} {point} has one coordinate missing: give both z and x, or NaN for both if it is "
            "absent."
        )
    empty = absent[..., 0].all(axis=1)
    if empty.any():
        shot = int(np.argmax(empty))
        raise DataError(f"Shot {shot} has no {name}: every position is absent; leave the shot out of the survey.")
    array.setflags(write=False)
    return array


class SurveySettings(BaseModel):
    """A line of shots along the surface, recorded by receivers that stay in place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int = Field(default=12, ge=1, description="Number of shots.")
    first_source_m: float | None = Field(
        default=None,
        description="Distance of the first source along the line, m; None centres the sources on the line.",
    )
    source_spacing_m: float | None = Field(
        default=None, gt=0, description="Distance between sources, m; None spreads them evenly over the line."
    )
    source_depth_m: float | None = Field(
        default=None, ge=0, description="Depth of the sources below the top of the model, m; None is one cell."
    )
    receivers: int | None = Field(
        default=None,
        ge=1,
        description="Number of receivers, spread evenly from end to end; None puts one in every column.",
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

    @model_validator(mode="after")
    def _finite(self) -> SurveySettings:
        for name in ("first_source_m", "source_spacing_m", "source_depth_m", "receiver_depth_m", "dt_s"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number.")
        return self


def build_survey(settings: SurveySettings, grid: Grid) -> Survey:
    """The survey that the settings describe over a model's grid.

    Sources that are spread evenly stand in the middle of equal parts of the line, at the nearest column: a source on a
    node is exact and cheap, one between nodes has to be interpolated. Positions that are given are used as given.

    raises  DataError: a source or receiver outside the model, a shot without a receiver within max_offset_m
    """
    top, left = grid.origin_m
    dz_m, dx_m = grid.spacing_m
    source_z = top + (dz_m if settings.source_depth_m is None else settings.source_depth_m)
    receiver_z = top + (dz_m if settings.receiver_depth_m is None else settings.receiver_depth_m)

    source_x = _source_distances(settings, grid)
    if settings.receivers is None:
        receiver_x = grid.distances_m()
    elif settings.receivers == 1:
        receiver_x = np.array([left + dx_m * ((grid.shape[1] - 1) // 2)])
    else:
        receiver_x = np.linspace(left, grid.last_m[1], settings.receivers)

    sources = np.empty((settings.shots, 1, 2))
    sources[..., 0] = source_z
    sources[:, 0, 1] = source_x
    receivers = np.empty((settings.shots, len(receiver_x), 2))
    receivers[..., 0] = receiver_z
    receivers[..., 1] = receiver_x
    if settings.max_offset_m is not None:
        receivers[np.abs(receiver_x[None, :] - source_x[:, None]) > settings.max_offset_m] = np.nan
    survey = Survey(sources, receivers, settings.dt_s, settings.samples)
    survey.check(grid)
    return survey


def _source_distances(settings: SurveySettings, grid: Grid) -> NDArray[np.float64]:
    """float64[shot], metres along the line."""
    left = grid.origin_m[1]
    length = grid.extent_m[1]
    counts = np.arange(settings.shots, dtype=np.float64)
    if settings.source_spacing_m is not None:
        if settings.first_source_m is not None:
            return settings.first_source_m + settings.source_spacing_m * counts
        wanted = left + length / 2 + settings.source_spacing_m * (counts - (settings.shots - 1) / 2)
    elif settings.first_source_m is not None:
        # The last source mirrors the first; a single one stays where it was put.
        margin = settings.first_source_m - left
        if settings.shots == 1:
            return np.array([settings.first_source_m])
        return np.linspace(left + margin, left + length - margin, settings.shots)
    else:
        wanted = left + length * (counts + 0.5) / settings.shots
    return left + np.round((wanted - left) / grid.spacing_m[1]) * grid.spacing_m[1]
