"""What is optimised, how it is judged, for how long, and what is kept on the way."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hpfwi.inversion.optimise import OptimiserSettings
from hpfwi.inversion.parameterisation import ParameterisationSettings
from hpfwi.inversion.regularise import RegulariseSettings

LBFGS_KINDS = ("pixel", "s-denorm", "pretrain")
"""Parameterisations that nothing but the optimiser's steps changes."""


class InversionSettings(BaseModel):
    """The options of an inversion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(default=300, ge=1, description="Iterations of the optimiser.")
    bands_hz: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(),
        description="Low-pass corners of successive stages, ascending, Hz: gathers and wavelet are filtered alike, and "
        "a last stage takes the whole band. All stages get the same share of the iterations. Empty is one stage.",
    )
    shots_per_iteration: int | None = Field(
        default=None, ge=1, description='Shots drawn at random for each iteration; "none" uses all of them.'
    )
    shots_per_item: int = Field(
        default=1, ge=1, description="Shots that a worker takes at once; the result changes by rounding only."
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of the network's weights and of the draw of shots."
    )
    misfit: Literal["l2", "normalised"] = Field(
        default="l2",
        description='Distance of predicted to observed gathers: "l2" is ½ Σ residual²; "normalised" is the same after '
        "every trace is scaled to one energy, so that strengths, which field records seldom keep, do not count.",
    )
    smooth_gradient_m: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Gaussian width of a filter on the gradient before each step, m; 0 leaves the gradient as it is. "
        "It keeps what is finer than waves can tell out of the model, most of all with pixel; with lbfgs it filters "
        "the steps, what penalties add included.",
    )
    diagnostics_every: int = Field(default=10, ge=1, description="Iterations between diagnostics of model and network.")
    snapshot_every: int = Field(default=10, ge=1, description="Iterations between models kept in the history.")
    checkpoint_every: int = Field(default=20, ge=1, description="Iterations between checkpoints.")
    regularise: RegulariseSettings = RegulariseSettings.model_validate({})
    parameterisation: ParameterisationSettings = ParameterisationSettings.model_validate({})
    optimiser: OptimiserSettings = OptimiserSettings.model_validate({})

    @property
    def items_per_iteration(self) -> int | None:
        """Groups of shots that are drawn for each iteration; None is all of them."""
        shots = self.shots_per_iteration
        return None if shots is None else shots // self.shots_per_item

    @field_validator("bands_hz")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in itertools.pairwise(value)):
            raise ValueError("the corners must ascend, from the lowest band to the widest")
        return value

    @model_validator(mode="after")
    def _a_stage_has_iterations(self) -> InversionSettings:
        if len(self.bands_hz) >= self.iterations:
            raise ValueError(
                f"iterations={self.iterations} are too few for the {len(self.bands_hz) + 1} stages of "
                f"bands_hz={list(self.bands_hz)}; give more iterations or fewer corners"
            )
        return self

    @model_validator(mode="after")
    def _a_line_search_can_compare(self) -> InversionSettings:
        if self.optimiser.kind != "lbfgs":
            return self
        if self.shots_per_iteration is not None:
            raise ValueError(
                f"shots_per_iteration={self.shots_per_iteration} draws other shots for each iteration, and "
                'optimiser.kind="lbfgs" compares the misfit of one with the next; give shots_per_iteration="none", or '
                'optimiser.kind="adam"'
            )
        kind = self.parameterisation.kind
        if kind not in LBFGS_KINDS:
            raise ValueError(
                f'parameterisation.kind="{kind}" changes its background beside the steps, which optimiser.kind="lbfgs" '
                f'cannot follow; give one of {", ".join(LBFGS_KINDS)}, or optimiser.kind="adam"'
            )
        if self.smooth_gradient_m > 0 and kind != "pixel":
            raise ValueError(
                f'smooth_gradient_m={self.smooth_gradient_m:g} has no meaning for optimiser.kind="lbfgs" with '
                f'parameterisation.kind="{kind}", whose weights are no cells to smooth over; give 0'
            )
        return self

    @model_validator(mode="after")
    def _whole_items(self) -> InversionSettings:
        if self.shots_per_iteration is not None and self.shots_per_iteration % self.shots_per_item:
            raise ValueError(
                f"shots_per_iteration={self.shots_per_iteration} is not a multiple of "
                f"shots_per_item={self.shots_per_item}; change one of the two"
            )
        return self
