"""What the earth is made of besides its P velocity: density, shear velocity, attenuation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import Grid
from hpfwi.physics.numpy_file import load_numpy

if TYPE_CHECKING:
    from hpfwi.physics.modelling_settings import ModellingSettings

Physics = Literal["acoustic", "variable-density", "elastic", "viscoacoustic"]

GARDNER = (310.0, 0.25)
"""Density in kg/m³ is GARDNER[0] v^GARDNER[1] with v in m/s (Gardner, Gardner and Gregory 1974, Geophysics 39, 770)."""

LEAST_DENSITY_KGPM3 = 100.0
"""No rock or liquid is lighter; a density file whose values are all below it is in g/cm³."""

LEAST_VP_VS = 2 / math.sqrt(3)
"""Below this ratio of P to S velocity the bulk modulus of an isotropic solid is negative."""


@dataclass(frozen=True, eq=False)
class Medium:
    """What the earth is made of, given its P velocity.

    density    kg/m³: float64[z, x], or None for Gardner's relation
    shear      m/s: float64[z, x], or None for the P velocity divided by `vp_vs_ratio`; of elastic media
    quality    quality factor at `reference_hz`: float64[z, x]; of viscoacoustic media
    """

    physics: Physics
    density: torch.Tensor | None
    shear: torch.Tensor | None
    vp_vs_ratio: float
    quality: torch.Tensor | None
    reference_hz: float

    def density_of(self, velocity: torch.Tensor) -> torch.Tensor:
        """Density in kg/m³ for a velocity [z, x]."""
        if self.density is None:
            return GARDNER[0] * velocity ** GARDNER[1]
        return self.density.to(velocity.dtype)

    def shear_of(self, velocity: torch.Tensor) -> torch.Tensor:
        """Shear velocity in m/s for a velocity [z, x]."""
        return velocity / self.vp_vs_ratio if self.shear is None else self.shear.to(velocity.dtype)

    def relaxed(self) -> torch.Tensor:
        """Velocity at zero frequency divided by the phase velocity at the reference frequency, float64[z, x].

        A standard linear solid with relaxation times τσ = a/ω and τε = 1/(aω), a = √(1 + 1/Q²) - 1/Q, has the complex
        modulus (1 + i/a)/(1 + ia) = (2 + 2i/Q)/(1 + a²) times the relaxed one at ω, and travels with the inverse of
        the real part of √(density/modulus).
        """
        assert self.quality is not None
        a = self._root()
        modulus = torch.complex(2 / (1 + a**2), 2 / (self.quality * (1 + a**2)))
        return (1 / modulus.sqrt()).real

    def _root(self) -> torch.Tensor:
        assert self.quality is not None
        return (1 + self.quality**-2).sqrt() - 1 / self.quality

    def density_contrast(self, min_velocity_mps: float | None, max_velocity_mps: float) -> float:
        """Highest density divided by the lowest, for models between two velocities.

        raises  ConfigError: the density follows the velocity and there is no lowest velocity
        """
        if self.density is not None:
            return float(self.density.max() / self.density.min())
        if min_velocity_mps is None:
            raise ConfigError(
                f'physics="{self.physics}" with density="gardner" needs the lowest velocity of the run as '
                "min_velocity_mps, because the contrast of density decides the time step."
            )
        return (max_velocity_mps / min_velocity_mps) ** GARDNER[1]

    def fastest_mps(self, velocity_mps: float) -> float:
        """Speed of the fastest wave where the P velocity is at most this: attenuation makes high frequencies faster."""
        if self.physics != "viscoacoustic":
            return velocity_mps
        # deepwave computes the same in the model's precision and refuses a bound that is a rounding too low.
        return velocity_mps * float((self.relaxed() / self._root()).max()) * (1 + 1e-6)

    def slowest_mps(self, velocity_mps: float) -> float:
        """Speed of the slowest wave where the P velocity is at least this; liquids carry no shear wave."""
        if self.physics != "elastic":
            return velocity_mps
        if self.shear is None:
            return velocity_mps / self.vp_vs_ratio
        solid = self.shear[self.shear > 0]
        return min(velocity_mps, float(solid.min())) if solid.numel() else velocity_mps


def build_medium(settings: ModellingSettings, grid: Grid, peak_hz: float) -> Medium:
    """The medium that the settings describe on a grid.

    Arrays in files lie on this grid or on one that it refines; they are linear in between.

    peak_hz  of the wavelet, where a viscoacoustic medium without quality_hz has its velocity and quality factor
    raises   DataError: a file that cannot be read, does not fit the grid, or holds values that make no sense
    """
    physics = settings.physics
    density = shear = quality = None
    if physics != "acoustic" and settings.density != "gardner":
        density = _field(settings.density, "density", grid)
        if not bool((density > 0).all()):
            raise DataError(
                f"modelling.density = {settings.density} holds {float(density.min()):g} kg/m³: give densities > 0."
            )
        if float(density.max()) < LEAST_DENSITY_KGPM3:
            raise DataError(
                f"modelling.density = {settings.density} is {float(density.max()):g} at most, which looks like g/cm³: "
                "give kg/m³."
            )
    if physics == "elastic" and settings.shear_velocity is not None:
        shear = _field(settings.shear_velocity, "shear_velocity", grid)
        lowest_mps = float(shear.min())
        if lowest_mps < 0 or (settings.free_surface and lowest_mps == 0):
            limit = "> 0 under a free surface, where deepwave takes a liquid for air" if lowest_mps == 0 else ">= 0"
            raise DataError(
                f"modelling.shear_velocity = {settings.shear_velocity} holds {lowest_mps:g} m/s: give values {limit}."
            )
    if physics == "viscoacoustic":
        quality = _field(settings.quality_factor, "quality_factor", grid)
        if not float(quality.min()) >= 1:
            raise DataError(
                f"modelling.quality_factor = {settings.quality_factor} holds {float(quality.min()):g}: give 1 or more."
            )
    return Medium(physics, density, shear, settings.vp_vs_ratio, quality, settings.quality_hz or peak_hz)


def _field(value: float | str, name: str, grid: Grid) -> torch.Tensor:
    """A number or the array of a .npy file, float64[z, x] on the grid."""
    if not isinstance(value, str):
        return torch.full(grid.shape, float(value), dtype=torch.float64)
    try:
        array = load_numpy(Path(value))
    except ValueError as error:
        raise DataError(f"modelling.{name} = {value} cannot be read ({error}): give a .npy file [z, x].") from error
    fits = isinstance(array, np.ndarray) and array.ndim == 2 and np.issubdtype(array.dtype, np.number)
    steps = (
        {(new - 1) / (old - 1) if old > 1 else 0.0 for new, old in zip(grid.shape, array.shape, strict=True)}
        if fits
        else set()
    )
    if len(steps) != 1 or not next(iter(steps)).is_integer():
        shape = getattr(array, "shape", "several arrays")
        raise DataError(
            f"modelling.{name} = {value} holds an array of shape {shape}, which does not fit the model of {grid.shape} "
            "cells: give one real value for every cell."
        )
    values = torch.from_numpy(array.astype(np.float64))
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"modelling.{name} = {value} holds NaN or infinity: give finite values.")
    if values.shape != grid.shape:
        values = torch.nn.functional.interpolate(values[None, None], grid.shape, mode="bilinear", align_corners=True)[
            0, 0
        ]
    return values
