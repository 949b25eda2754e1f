"""Which part of the gathers counts: mutes along straight lines of time over offset, and a window of offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.physics.survey import Survey, horizontal_m


class MuteSettings(BaseModel):
    """What of observed and predicted gathers is compared; by default all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_s: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="Only what comes later than this time plus offset / after_mps counts, s.",
    )
    after_mps: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Velocity of that line, m/s; None is one time everywhere."
    )
    before_s: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Only what comes earlier than this time plus offset / before_mps counts, s; None is no limit.",
    )
    before_mps: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Velocity of that line, m/s; None is one time everywhere."
    )
    taper_s: float = Field(
        default=0.1,
        ge=0,
        allow_inf_nan=False,
        description="Time over which a trace rises from nothing at a line to its full strength, s.",
    )
    min_offset_m: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Traces nearer to their source than this do not count, m."
    )
    max_offset_m: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Traces farther from their source than this do not count, m; None is no limit.",
    )
    offset_taper_m: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Distance over which traces rise from nothing at those offsets to their full strength, m.",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> MuteSettings:
        if self.before_mps is not None and self.before_s is None:
            raise ValueError(f"before_mps={self.before_mps:g} is a line without a beginning; give before_s too")
        if self.max_offset_m is not None and self.max_offset_m <= self.min_offset_m:
            raise ValueError(
                f"max_offset_m={self.max_offset_m:g} must be more than min_offset_m={self.min_offset_m:g}; no trace "
                "would count"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether anything at all is left out."""
        timed = self.after_s > 0 or self.after_mps is not None or self.before_s is not None
        return timed or self.min_offset_m > 0 or self.max_offset_m is not None


def trace_weights(settings: MuteSettings, survey: Survey, shots: Sequence[int]) -> NDArray[np.float64]:
    """What every trace of some shots is multiplied by, float64[shot, receiver], 0 to 1; 0 for absent receivers."""
    offsets, present = _offsets(survey, shots)
    found = np.asarray(present, dtype=np.float64)
    if settings.min_offset_m > 0:
        found *= _rise(offsets - settings.min_offset_m, settings.offset_taper_m)
    if settings.max_offset_m is not None:
        found *= _rise(settings.max_offset_m - offsets, settings.offset_taper_m)
    return found


def time_window(
    settings: MuteSettings, survey: Survey, shots: Sequence[int], later_s: float = 0.0
) -> NDArray[np.float64]:
    """What every sample of some shots is multiplied by, float64[shot, receiver, time], 0 to 1.

    later_s     by which the gathers, and so the lines, are later than the settings say: the delay of a filter
    """
    offsets, _ = _offsets(survey, shots)
    times = survey.dt_s * np.arange(survey.samples) - later_s
    found = np.ones((*offsets.shape, survey.samples))
    if settings.after_s > 0 or settings.after_mps is not None:
        line = settings.after_s + offsets * (0.0 if settings.after_mps is None else 1.0 / settings.after_mps)
        found *= _rise(times - line[..., None], settings.taper_s)
    if settings.before_s is not None:
        line = settings.before_s + offsets * (0.0 if settings.before_mps is None else 1.0 / settings.before_mps)
        found *= _rise(line[..., None] - times, settings.taper_s)
    return found


def _offsets(survey: Survey, shots: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Horizontal distance to the nearest source, m, float64[shot, receiver], and bool[shot, receiver]: who is there."""
    chosen = list(shots)
    distances = horizontal_m(survey.receivers_m[chosen][:, :, None], survey.sources_m[chosen][:, None])
    nearest = np.fmin.reduce(distances, axis=-1)  # NaN, of absent points, loses against a number
    present = ~np.isnan(nearest)
    return np.where(present, nearest, 0.0), present


def _rise(beyond: NDArray[np.float64], taper: float) -> NDArray[np.float64]:
    """0 up to the edge, 1 from `taper` beyond it on.

    The ramp is 3 x² - 2 x³: half a cosine to a per cent, and unlike a cosine the same bits on every processor.

    >>> _rise(np.array([-1.0, 0.0, 1.0, 2.0]), 2.0).tolist(), _rise(np.array([-1.0, 0.0, 1.0]), 0.0).tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    """
    if taper == 0:
        return np.asarray(beyond >= 0, dtype=np.float64)
    share = np.clip(beyond / taper, 0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share))
