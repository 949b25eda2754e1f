"""The scales on which networks see records and velocities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import ConfigError


class NormalisationSettings(BaseModel):
    """How records and velocities are scaled before a network sees them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalisation: Literal["range", "per-sample", "none"] = Field(
        default="range",
        description="Velocities: 'range' maps the data set's fixed range to [0, 1]; 'per-sample' each sample's own "
        "range, as AMFMS and its rivals were published, so absolute velocities are lost; 'none' leaves m/s, as "
        "published for SEG.",
    )
    range_mps: tuple[float, float] | None = Field(
        default=None,
        description="Velocities in m/s that 'range' maps to the ends; none: least and largest of the training data.",
    )
    signed: bool = Field(
        default=False,
        description="Map to [-1, 1] instead of [0, 1], as OpenFWI's benchmark does with 1500 .. 4500 m/s.",
    )
    records: Literal["none", "log"] = Field(
        default="none",
        description="Records: 'none' leaves them; 'log' maps sign(x) ln(1 + |x|) of the amplitudes' range to [-1, 1], "
        "as OpenFWI's benchmark does.",
    )
    amplitudes: tuple[float, float] | None = Field(
        default=None,
        description="Amplitudes that 'log' maps to the ends, in the records' unit; none: those of the training data.",
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name, ends in (("range_mps", self.range_mps), ("amplitudes", self.amplitudes)):
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name} runs from {ends[0]:g} to {ends[1]:g}; give the smaller value first")
        return self


def scale_in_words(settings: NormalisationSettings) -> str:
    """The scale of velocities, for reports: which one, and its ends where they are fixed.

    >>> scale_in_words(NormalisationSettings(range_mps=(1500, 4500)))
    'range: 1500 to 4500 m/s on [0, 1]'
    """
    unit = "[-1, 1]" if settings.signed else "[0, 1]"
    if settings.normalisation == "per-sample":
        return f"per-sample: each true model's own range on {unit}, so scores take that range from the answer"
    if settings.normalisation == "none":
        return "none: m/s"
    if settings.range_mps is None:
        return f"range: that of the training split on {unit}"
    low, high = settings.range_mps
    return f"range: {low:g} to {high:g} m/s on {unit}"


@dataclass(frozen=True, eq=False)
class VelocityScale:
    """The linear scale of a batch: low_mps is mapped to 0, or -1 if signed, and high_mps to 1.

    low_mps, high_mps   Tensor[sample, 1, 1, 1] in m/s, or Tensor[1, 1, 1, 1] for a scale that all samples share
    """

    low_mps: torch.Tensor
    high_mps: torch.Tensor
    signed: bool

    def normalised(self, models_mps: torch.Tensor) -> torch.Tensor:
        """Velocities on the network's scale, shape and dtype of `models_mps`, Tensor[sample, 1, z, x]."""
        unit = (models_mps - self.low_mps) / self._span()
        return 2 * unit - 1 if self.signed else unit

    def in_mps(self, values: torch.Tensor) -> torch.Tensor:
        """A network's output Tensor[sample, 1, z, x] in m/s."""
        unit = (values + 1) / 2 if self.signed else values
        return unit * self._span() + self.low_mps

    def _span(self) -> torch.Tensor:
        """Velocity between the ends; 1 m/s for a constant sample, which is thereby mapped to the lower end."""
        span = self.high_mps - self.low_mps
        return torch.where(span > 0, span, torch.ones_like(span))


def velocity_scale(
    settings: NormalisationSettings, models_mps: torch.Tensor, data_range_mps: tuple[float, float]
) -> VelocityScale:
    """The scale of a batch.

    models_mps       Tensor[sample, 1, z, x] in m/s; only 'per-sample' reads its values
    data_range_mps   least and largest velocity of the training data, for 'range' without a range of its own
    raises           ConfigError: a range of no extent
    """
    if settings.normalisation == "per-sample":
        low, high = models_mps.amin(dim=(-2, -1), keepdim=True), models_mps.amax(dim=(-2, -1), keepdim=True)
        return VelocityScale(low, high, settings.signed)
    if settings.normalisation == "none":
        ends = (0.0, 1.0)
    else:
        ends = settings.range_mps or data_range_mps
        if not ends[0] < ends[1]:
            raise ConfigError(
                f"The training data's velocities run from {ends[0]:g} to {ends[1]:g} m/s, which is no range to "
                "normalise by; give normalisation.range_mps."
            )
    low, high = (models_mps.new_full((1, 1, 1, 1), end) for end in ends)
    return VelocityScale(low, high, settings.signed and settings.normalisation == "range")


def normalised_records(
    settings: NormalisationSettings, records: torch.Tensor, data_amplitudes: tuple[float, float]
) -> torch.Tensor:
    """Records on the network's scale, shape and dtype of `records`, Tensor[sample, shot, time, receiver].

    data_amplitudes   least and largest amplitude of the training data, for 'log' without amplitudes of its own
    raises            ConfigError: amplitudes of no extent
    """
    if settings.records == "none":
        return records
    ends = settings.amplitudes or data_amplitudes
    if not ends[0] < ends[1]:
        raise ConfigError(
            f"The training data's amplitudes run from {ends[0]:g} to {ends[1]:g}, which is no range to normalise by; "
            "give normalisation.amplitudes."
        )
    low, high = _signed_log(torch.tensor(ends, dtype=torch.float64)).tolist()
    return (_signed_log(records) - low) * (2.0 / (high - low)) - 1.0


def _signed_log(values: torch.Tensor) -> torch.Tensor:
    return torch.sign(values) * torch.log1p(values.abs())
