"""The options of modelling: how waves are computed, and by whom."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import ConfigError
from hpfwi.physics import deepwave_engine
from hpfwi.physics.grid import AXES
from hpfwi.physics.medium import LEAST_VP_VS, Physics


class ModellingSettings(BaseModel):
    """How waves are computed; the defaults suit surface records over a free surface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Literal[2, 4, 6, 8] = Field(default=8, description="Order of the spatial derivatives: 2, 4, 6 or 8.")
    absorbing_cells: int | tuple[int, ...] = Field(
        default=20,
        description="Width of the absorbing edges in cells: one number (the top is left out under a free surface), or "
        "[top, bottom, left, right], in 3-D [top, bottom, front, back, left, right] with the front at low y.",
    )
    boundary: Literal["cpml", "sponge"] = Field(
        default="cpml", description='What absorbs at the edges: "cpml" (convolutional PML) or "sponge" (as in OpenFWI).'
    )
    free_surface: bool = Field(default=True, description="Pressure is zero on the top row, which reflects waves.")
    substeps: int | Literal["auto"] = Field(
        default="auto", description='Time steps per sample; "auto" takes as many as stability needs.'
    )
    pml_hz: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Frequency the C-PML is made for, Hz; None is the wavelet's peak.",
    )
    store_every: int | Literal["auto"] = Field(
        default="auto",
        description='Every how many time steps a snapshot is kept for the gradient; "auto" is as rarely as the '
        "wavelet's frequencies allow, 1 is the exact discrete gradient.",
    )
    memory: Literal["auto", "store", "checkpoint", "boundary"] = Field(
        default="auto",
        description="How the wavefield reaches the gradient: kept (store), computed again (checkpoint: same bits, less "
        'memory, one more forward run), or run backwards (boundary: least memory, no gradient in the layers); "auto" '
        "is store where it fits memory_budget_gb, else checkpoint.",
    )
    memory_budget_gb: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Memory in GB for the wavefields of the shots that are computed together "
        "(inversion.shots_per_item); None is half of the memory that is free, divided by this machine's cores.",
    )
    engine: Literal["hpfwi", "deepwave"] = Field(
        default="hpfwi",
        description='Who computes the waves: "hpfwi" (its own kernels, acoustic) or "deepwave" (every physics).',
    )
    physics: Physics = Field(
        default="acoustic",
        description='What waves feel: "acoustic" (velocity alone), "variable-density", "elastic" or "viscoacoustic" '
        '(attenuation); all but the first need engine = "deepwave".',
    )
    density: float | str = Field(
        default="gardner",
        description='Density: "gardner" is 310 v^0.25 kg/m³ with the P velocity v in m/s; or one number, or a .npy '
        "file [z, x], kg/m³. For every physics but acoustic.",
    )
    vp_vs_ratio: float = Field(
        default=1.7320508,
        gt=LEAST_VP_VS,
        allow_inf_nan=False,
        description="P velocity divided by shear velocity, for elastic physics without shear_velocity.",
    )
    shear_velocity: str | None = Field(
        default=None,
        description="Shear velocity of elastic physics that stays as it is, a .npy file [z, x], m/s (0 in liquids); "
        "None divides the P velocity by vp_vs_ratio.",
    )
    quality_factor: float | str = Field(
        default=50.0,
        description="Quality factor of viscoacoustic physics at quality_hz, 1 or more: one number, or a .npy file "
        "[z, x].",
    )
    quality_hz: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Frequency at which quality_factor and the velocity of viscoacoustic physics hold, Hz; None is the "
        "wavelet's peak.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> ModellingSettings:
        widths = (self.absorbing_cells,) if isinstance(self.absorbing_cells, int) else self.absorbing_cells
        if len(widths) not in (1, *(2 * axes for axes in AXES)):
            raise ValueError(f"absorbing_cells={list(widths)} must be one number, four (2-D) or six (3-D).")
        if min(widths) < 0:
            raise ValueError(f"absorbing_cells={self.absorbing_cells} must not be negative.")
        if self.free_surface and len(widths) > 1 and widths[0] != 0:
            raise ValueError(
                f"absorbing_cells={list(widths)} has {widths[0]} cells at the top, where free_surface=true reflects: "
                "use 0 there, or free_surface=false."
            )
        for name in ("substeps", "store_every"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f'{name}={value} must be at least 1, or "auto".')
        if (refusal := deepwave_engine.unsupported(self)) is not None:
            raise ValueError(refusal)
        return self

    def widths(self, axes: int) -> tuple[int, ...]:
        """Absorbing cells at the low and the high end of each of so many axes: top, bottom, (front, back,) left, right.

        raises  ConfigError: another number of widths
        """
        if isinstance(self.absorbing_cells, int):
            side = self.absorbing_cells
            return (0 if self.free_surface else side, *(side,) * (2 * axes - 1))
        if len(self.absorbing_cells) != 2 * axes:
            raise ConfigError(
                f"modelling.absorbing_cells = {list(self.absorbing_cells)} has {len(self.absorbing_cells)} widths, and "
                f"a {axes}-D model has {2 * axes} sides: give as many, or one number for all."
            )
        return self.absorbing_cells
