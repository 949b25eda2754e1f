"""The velocity model as a function of trainable numbers: six kinds behind one interface.

Sources: the forms `network * S + M`, `network * S + initial` and an adapted background are those of Chen, Wu, Li and
Yang 2025 (arXiv 2506.05484), called Pretrain, S-Denorm and A-Denorm there. How the background adapts is open; the three
forms in `denormalisation.py` are our readings. The rates of the network and of pixel FWI are from Chen et al. 2026
(arXiv 2603.22362), the scale of 1000 m/s and the mean of 3000 m/s from the public seistorch examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hpfwi.errors import ConfigError, DataError
from hpfwi.networks.siren import NetworkSettings

if TYPE_CHECKING:
    from hpfwi.physics.model import EarthModel

Kind = Literal["pixel", "pretrain", "s-denorm", "a-denorm-joint", "a-denorm-recentre", "a-denorm-moving-mean"]


class PretrainSettings(BaseModel):
    """Stage 1 of 'pretrain': fit the network to the initial model, without waves, before the inversion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int = Field(default=2000, ge=0, description="Adam steps after which the fit ends, reached or not.")
    lr: float = Field(default=1e-4, gt=0, description="Adam rate of the fit.")
    stop_mae_mps: float = Field(
        default=10.0, ge=0, description="Mean absolute velocity error in m/s at which the fit ends."
    )


class ParameterisationSettings(BaseModel):
    """How the velocity model is written, and the Adam rate of everything that is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(
        default="s-denorm",
        description="pixel: every cell is trained. pretrain: mean + scale * network, fitted to the initial model "
        "first. s-denorm: initial + scale * network. a-denorm-joint, a-denorm-recentre, a-denorm-moving-mean: s-denorm "
        "whose background is trained too, replaced by the current model, or moved towards the smoothed current model.",
    )
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="The coordinate network.")
    pretrain: PretrainSettings = Field(default_factory=PretrainSettings, description="Stage 1 of 'pretrain'.")
    scale_mps: float = Field(default=1000.0, gt=0, description="Velocity in m/s of a network output of 1; 0 in water.")
    mean_mps: float = Field(
        default=3000.0, gt=0, description="Constant velocity in m/s under the network of 'pretrain'."
    )
    lr_network: float = Field(default=1e-4, ge=0, description="Adam rate of the network weights.")
    lr_pixel_mps: float = Field(default=5.0, ge=0, description="Adam rate of 'pixel' in m/s per iteration.")
    lr_background_mps: float = Field(
        default=1.0, ge=0, description="Adam rate of the background of 'a-denorm-joint' in m/s per iteration."
    )
    lr_log_scale: float | None = Field(
        default=1e-3,
        ge=0,
        description="Adam rate of the logarithm of the scale of 'a-denorm-joint'; None keeps the scale.",
    )
    recentre_every: int = Field(
        default=50, ge=1, description="Iterations between two re-centrings of 'a-denorm-recentre'."
    )
    moving_mean_rate: float = Field(
        default=0.01, gt=0, le=1, description="Share of the way that 'a-denorm-moving-mean' moves in one iteration."
    )
    moving_mean_sigma_m: float = Field(
        default=357.0,
        ge=0,
        description="Gaussian smoothing length in m of 'a-denorm-moving-mean'; about one wavelength at peak frequency.",
    )


@dataclass(frozen=True)
class PretrainReport:
    """What stage 1 cost and reached; its price belongs to any comparison with a method that has no stage 1."""

    steps: int
    seconds: float
    mae_mps: float
    losses: tuple[float, ...]  # mean absolute error in units of the scale, before each step and after the last


Progress = Callable[[int, float], None]
"""Called with (steps done, mean absolute error in m/s)."""


class Parameterisation(torch.nn.Module):
    """A velocity model that an optimiser can move: Tensor of a grid's shape, m/s, within bounds, the water as it was.

    Everything that iterations change is a parameter or a persistent buffer, so `state_dict` together with the
    optimiser's state continues a run bit for bit. What the configuration alone decides is not in `state_dict`.
    """

    initial: torch.Tensor
    water: torch.Tensor

    def __init__(
        self,
        settings: ParameterisationSettings,
        initial: torch.Tensor,
        bounds_mps: tuple[float, float],
        water: torch.Tensor,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.bounds_mps = bounds_mps
        self.register_buffer("initial", initial.clone(), persistent=False)
        self.register_buffer("water", water.clone(), persistent=False)

    def unbounded(self) -> torch.Tensor:
        """The model before bounds and water, Tensor of the grid's shape in m/s."""
        raise NotImplementedError

    def forward(self) -> torch.Tensor:
        """The model, Tensor of the grid's shape in m/s. Clamped cells and water cells pass no gradient."""
        return self.bounded(self.unbounded())

    def bounded(self, velocity: torch.Tensor) -> torch.Tensor:
        """`velocity` clamped to the bounds, with the initial velocity in water."""
        low, high = self.bounds_mps
        return torch.where(self.water, self.initial, velocity.clamp(low, high))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group per rate: {"params": list, "lr": float, "name": str}, in a fixed order."""
        raise NotImplementedError

    def after_step(self, iteration: int, optimiser: torch.optim.Optimizer) -> None:
        """Change that is no gradient step, made right after the optimiser's step of this iteration (from 0)."""

    def project(self) -> None:
        """Bring what the optimiser wrote back to where it may be."""

    def movable(self, point: NDArray[np.float32], gradient: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Of all trained numbers, flat and in order: False where a step against the gradient would leave the bounds."""
        return np.ones(point.shape, np.bool_)

    def prepare(self, progress: Progress | None = None) -> PretrainReport | None:
        """Work before iteration 0, for a fresh run only; None where there is none."""
        return None

    def describe(self) -> str:
        """One sentence for the log: what is trained, how it becomes velocity, at which rates."""
        raise NotImplementedError


class Pixel(Parameterisation):
    """Conventional FWI: the velocity of every cell is trained."""

    def __init__(
        self,
        settings: ParameterisationSettings,
        initial: torch.Tensor,
        bounds_mps: tuple[float, float],
        water: torch.Tensor,
    ) -> None:
        super().__init__(settings, initial, bounds_mps, water)
        self.pixels = torch.nn.Parameter(initial.clone())

    def unbounded(self) -> torch.Tensor:
        return self.pixels

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.pixels], "lr": self.settings.lr_pixel_mps, "name": "pixels"}]

    def after_step(self, iteration: int, optimiser: torch.optim.Optimizer) -> None:
        self.project()

    def project(self) -> None:
        """A cell left beyond a bound would get no gradient and never come back."""
        with torch.no_grad():
            self.pixels.copy_(self.bounded(self.pixels))

    def movable(self, point: NDArray[np.float32], gradient: NDArray[np.float32]) -> NDArray[np.bool_]:
        low, high = self.bounds_mps
        stuck = ((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0))
        return ~(stuck | self.water.numpy().ravel())

    def describe(self) -> str:
        low, high = self.bounds_mps
        return (
            f"pixel: the velocity of {self.pixels.numel()} cells is trained at {self.settings.lr_pixel_mps:g} m/s, "
            f"projected to {low:g}..{high:g} m/s after each."
        )


def build_parameterisation(
    settings: ParameterisationSettings,
    initial: EarthModel,
    bounds_mps: tuple[float, float],
    water_mask: np.ndarray,
    seed: int,
) -> Parameterisation:
    """The parameterisation that these settings name, at its state before iteration 0.

    initial      the model to start from
    bounds_mps   lowest and highest velocity the inversion may write; water is exempt
    water_mask   bool of the grid's shape; cells that keep their initial velocity exactly
    seed         decides the network's first weights; nothing else is random
    raises       ConfigError: empty bounds, or an initial model beyond them. DataError: a mask of another shape.
    """
    from hpfwi.inversion import denormalisation

    low, high = bounds_mps
    if not 0 < low < high:
        raise ConfigError(f"bounds_mps=({low:g}, {high:g}) holds no velocity. Give 0 < low < high in m/s.")
    velocity = torch.from_numpy(np.array(initial.velocity, dtype=np.float32))
    water = torch.from_numpy(np.array(water_mask, dtype=bool))
    if water.shape != velocity.shape:
        raise DataError(
            f"The water mask has shape {tuple(water.shape)}, the initial model {tuple(velocity.shape)}. "
            "Build the mask on the model's grid."
        )
    inverted = velocity[~water]
    if inverted.numel() == 0:
        raise DataError(f"All {velocity.numel()} cells are water, so nothing is left to invert. Lower water_depth_m.")
    lowest, highest = float(inverted.min()), float(inverted.max())
    if lowest < low or highest > high:
        raise ConfigError(
            f"The initial model spans {lowest:g}..{highest:g} m/s below the water, beyond "
            f"bounds_mps=({low:g}, {high:g}). Widen the bounds or start from another model."
        )
    if settings.kind == "pixel":
        return Pixel(settings, velocity, (low, high), water)
    return denormalisation.build_denormalised(settings, velocity, initial.grid.spacing_m, (low, high), water, seed)
