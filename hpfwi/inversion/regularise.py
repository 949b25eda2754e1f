"""Penalties on the roughness of the model: total variation, which spares edges, and first-order Tikhonov.

With the velocity m[z, x] or m[z, y, x] below the water, its mean m̄ over the initial model, the depth H of the
model and the dimensionless slope g = (H / m̄) ∇m, by differences of neighbours that are both below the water:

    tv = mean of sqrt(|g|² + ε²) - ε          tikhonov = mean of |g|²

Both are about 1 where the velocity changes by its mean over the depth of the model, whatever the grid and the units.
What is minimised is the misfit, the residual's share of the observed energy, plus weight * penalty; so a weight says
which share of the observed energy such a model costs. Total variation: Rudin, Osher and Fatemi 1992.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

EPSILON = 0.1
"""Slope below which total variation counts as its square, so that it has a gradient everywhere: a tenth of the mean
velocity over the depth of the model, far below that of a reflector."""


class RegulariseSettings(BaseModel):
    """Weights of penalties on the model, as shares of the observed energy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tv: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of total variation, which makes layers of one velocity with sharp edges. The weight is the "
        "share of the observed energy that a model costs whose velocity changes by its mean over the model's depth; "
        "try 0.03, and 3 times more or less.",
    )
    tikhonov: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the squared slope (Tikhonov of first order), which makes everything smooth; the same "
        "unit, but steep slopes count by their square, so try 0.003 first.",
    )

    @property
    def active(self) -> bool:
        return self.tv > 0 or self.tikhonov > 0


class Regulariser:
    """The weighted penalties of one inversion as functions of its model.

    initial     [z, x] or [z, y, x], m/s, where the inversion starts
    spacing_m   (dz, dx)
    water       bool of the same shape; slopes into it do not count
    """

    def __init__(
        self,
        settings: RegulariseSettings,
        initial: NDArray[np.float32],
        spacing_m: tuple[float, ...],
        water: NDArray[np.bool_],
    ) -> None:
        self.settings = settings
        dry = ~water
        self._cells = int(dry.sum())
        # An exact sum: replicas on processors that add up in another order would take other steps.
        mean_mps = math.fsum(initial[dry].tolist()) / self._cells
        depth_m = initial.shape[0] * spacing_m[0]
        self._per_mps = [
            depth_m / (step_m * mean_mps) * (_later(dry, axis) & _earlier(dry, axis))
            for axis, step_m in enumerate(spacing_m)
        ]

    def penalties(self, model: NDArray[np.floating]) -> dict[str, float]:
        """The weighted penalties of a model in m/s by name, in units of the misfit, without those of weight 0."""
        squares = sum(slope**2 for slope in self._slopes(model))
        found = {
            "tv": self.settings.tv * float(np.sum(np.sqrt(squares + EPSILON**2) - EPSILON)) / self._cells,
            "tikhonov": self.settings.tikhonov * float(np.sum(squares)) / self._cells,
        }
        return {name: value for name, value in found.items() if getattr(self.settings, name) > 0}

    def gradient(self, model: NDArray[np.floating]) -> NDArray[np.float64]:
        """Derivative of the sum of the weighted penalties, float64 of the model's shape, per m/s."""
        slopes = self._slopes(model)
        squares = sum(slope**2 for slope in slopes)
        stiffness = 2 * self.settings.tikhonov + self.settings.tv / np.sqrt(squares + EPSILON**2)
        gradient = np.zeros(model.shape)
        for axis, slope in enumerate(slopes):
            pull = _earlier(stiffness * slope, axis) * self._per_mps[axis]
            _later(gradient, axis)[...] += pull
            _earlier(gradient, axis)[...] -= pull
        return gradient / self._cells

    def _slopes(self, model: NDArray[np.floating]) -> list[NDArray[np.float64]]:
        """Dimensionless differences to the next cell along every axis, float64 of the model's shape; 0 at its end."""
        slopes = []
        for axis, per_mps in enumerate(self._per_mps):
            slope = np.zeros(model.shape)
            _earlier(slope, axis)[...] = np.diff(np.asarray(model, dtype=np.float64), axis=axis) * per_mps
            slopes.append(slope)
        return slopes


def _earlier(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """A view without the last cells along an axis: the first of every pair of neighbours."""
    return values[(slice(None),) * axis + (slice(None, -1),)]


def _later(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """A view without the first cells along an axis: the second of every pair of neighbours."""
    return values[(slice(None),) * axis + (slice(1, None),)]
