"""Penalties on the roughness of the model: total variation, which spares edges, and first-order Tikhonov.

With the velocity m[z, x] below the water, its mean m̄ over the initial model, the depth H of the model and the
dimensionless slope g = (H / m̄) ∇m, by differences of neighbours that are both below the water:

    tv = mean of sqrt(|g|² + ε²) - ε          tikhonov = mean of |g|²

Both are about 1 where the velocity changes by its mean over the depth of the model, whatever the grid and the units.
What is minimised is the misfit, the residual's share of the observed energy, plus weight * penalty; so a weight says
which share of the observed energy such a model costs. Total variation: Rudin, Osher and Fatemi 1992.
"""

from __future__ import annotations

import math

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

    initial     float32[z, x], m/s, where the inversion starts
    spacing_m   (dz, dx)
    water       bool[z, x]; slopes into it do not count
    """

    def __init__(
        self,
        settings: RegulariseSettings,
        initial: NDArray[np.float32],
        spacing_m: tuple[float, float],
        water: NDArray[np.bool_],
    ) -> None:
        self.settings = settings
        dry = ~water
        self._cells = int(dry.sum())
        # An exact sum: replicas on processors that add up in another order would take other steps.
        mean_mps = math.fsum(initial[dry].tolist()) / self._cells
        depth_m = initial.shape[0] * spacing_m[0]
        self._per_mps = (
            depth_m / (spacing_m[0] * mean_mps) * (dry[1:] & dry[:-1]),
            depth_m / (spacing_m[1] * mean_mps) * (dry[:, 1:] & dry[:, :-1]),
        )

    def penalties(self, model: NDArray[np.floating]) -> dict[str, float]:
        """The weighted penalties of a model[z, x] in m/s by name, in units of the misfit, without those of weight 0."""
        down, across = self._slopes(model)
        squares = down**2 + across**2
        found = {
            "tv": self.settings.tv * float(np.sum(np.sqrt(squares + EPSILON**2) - EPSILON)) / self._cells,
            "tikhonov": self.settings.tikhonov * float(np.sum(squares)) / self._cells,
        }
        return {name: value for name, value in found.items() if getattr(self.settings, name) > 0}

    def gradient(self, model: NDArray[np.floating]) -> NDArray[np.float64]:
        """Derivative of the sum of the weighted penalties, float64[z, x] per m/s."""
        down, across = self._slopes(model)
        stiffness = 2 * self.settings.tikhonov + self.settings.tv / np.sqrt(down**2 + across**2 + EPSILON**2)
        pull_down = (stiffness * down)[:-1] * self._per_mps[0]
        pull_across = (stiffness * across)[:, :-1] * self._per_mps[1]
        gradient = np.zeros(model.shape)
        gradient[1:] += pull_down
        gradient[:-1] -= pull_down
        gradient[:, 1:] += pull_across
        gradient[:, :-1] -= pull_across
        return gradient / self._cells

    def _slopes(self, model: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Dimensionless differences to the next cell below and to the right, float64[z, x] each; 0 at the edges."""
        wide = np.asarray(model, dtype=np.float64)
        down, across = np.zeros(wide.shape), np.zeros(wide.shape)
        down[:-1] = np.diff(wide, axis=0) * self._per_mps[0]
        across[:, :-1] = np.diff(wide, axis=1) * self._per_mps[1]
        return down, across
