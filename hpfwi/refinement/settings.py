"""What a refinement does to every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.config import Origins, load_settings
from hpfwi.inversion.optimise import AdamSettings
from hpfwi.inversion.parameterisation import ParameterisationSettings
from hpfwi.networks.siren import NetworkSettings
from hpfwi.physics.openfwi import FASTEST_MPS, SLOWEST_MPS


class RefinedNetwork(NetworkSettings):
    """The coordinate network of a refinement: the first model is the proposal itself."""

    zero_last: bool = Field(
        default=True, description="Start the linear layer at zero, so that the first model is exactly the proposal."
    )


class RefinedParameterisation(ParameterisationSettings):
    """How a refined velocity is written: as in an inversion, with the rates of a short one."""

    network: RefinedNetwork = Field(default_factory=RefinedNetwork, description="The coordinate network.")
    lr_network: float = Field(default=5e-4, ge=0, description="Adam rate of the network weights.")


class RefinementSettings(BaseModel):
    """The options of a refinement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(
        default=150, ge=0, description="Iterations of the optimiser for each sample; 0 keeps the network's proposals."
    )
    records: Literal["observed", "modelled"] = Field(
        default="observed",
        description='Records of a refined pair: "observed" are those that were refined against; "modelled" are '
        "computed in the refined model, and fit it exactly however good it is.",
    )
    boundary: Literal["sponge", "cpml"] = Field(
        default="cpml",
        description='What absorbs at the edges while a model is refined: "sponge" is as the records were made; "cpml" '
        "takes a layer of 20 cells, which costs far less and absorbs better.",
    )
    bounds_mps: tuple[float, float] = Field(
        default=(SLOWEST_MPS, FASTEST_MPS),
        description="Lowest and highest velocity of a refined model, m/s; proposals are cut to them too.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of the coordinate network, the same for all samples."
    )
    parameterisation: RefinedParameterisation = RefinedParameterisation.model_validate({})
    optimiser: AdamSettings = AdamSettings.model_validate({})

    @model_validator(mode="after")
    def _bounds_hold_velocities(self) -> Self:
        low, high = self.bounds_mps
        if not 0 < low < high:
            raise ValueError(f"bounds_mps=[{low:g}, {high:g}] holds no velocity; give 0 < low < high in m/s")
        return self


def load_refinement(overrides: Sequence[str] = ()) -> tuple[RefinementSettings, Origins]:
    """The settings with some options changed, and where each of their values comes from.

    overrides  "name=value", such as "iterations=100" or "parameterisation.kind=pixel"
    raises     ConfigError: no such option, a value that it cannot take
    """
    return load_settings(RefinementSettings, None, overrides, recipes=(), files={})
