"""Models written by a network: background + scale * network, and what may happen to the background.

With N the network over the coordinates, S the scale (0 in water) and m the model before bounds:

    pretrain               m = S N + M,              M constant; N fitted to (initial - M) / S first
    s-denorm               m = S N + initial
    a-denorm-joint         m = S exp(g) N + b,       b trained from initial, g trained from 0
    a-denorm-recentre      m = S N + b,              every K iterations b <- m, N <- 0, optimiser forgets
    a-denorm-moving-mean   m = S N + b + o,          b <- (1 - a) b + a smooth(m), N <- (1 - a) N, o keeps m unchanged
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from hpfwi.errors import NumericsError
from hpfwi.inversion.parameterisation import Parameterisation, ParameterisationSettings, PretrainReport, Progress
from hpfwi.networks.siren import build_siren, coordinates, evaluate

INSIDE_MPS = 0.01
"""How far inside the bounds a projected cell lands: more than the rounding of the sum that forms the model."""


class Denormalised(Parameterisation):
    """background + scale * network(coordinates); this class never changes the background."""

    coordinates: torch.Tensor
    scale: torch.Tensor
    background: torch.Tensor

    def __init__(
        self,
        settings: ParameterisationSettings,
        initial: torch.Tensor,
        spacing_m: Sequence[float],
        bounds_mps: tuple[float, float],
        water: torch.Tensor,
        seed: int,
        background: torch.Tensor,
    ) -> None:
        super().__init__(settings, initial, bounds_mps, water)
        self.spacing_m = tuple(spacing_m)
        self.network = build_siren(settings.network, torch.Generator().manual_seed(seed), in_features=initial.ndim)
        where = coordinates(initial.shape, spacing_m, settings.network.coordinates)
        self.register_buffer("coordinates", where, persistent=False)
        self.register_buffer("scale", torch.where(water, 0.0, settings.scale_mps).to(initial.dtype))
        self._hold_background(background)

    def _hold_background(self, background: torch.Tensor) -> None:
        self.register_buffer("background", background.clone())

    def perturbation(self) -> torch.Tensor:
        """scale * network, Tensor of the model's shape in m/s."""
        return self.scale * evaluate(self.network, self.coordinates).reshape(self.initial.shape)

    def unbounded(self) -> torch.Tensor:
        return self.background + self.perturbation()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.settings.lr_network, "name": "network"}]

    def describe(self) -> str:
        trained = sum(parameter.numel() for parameter in self.network.parameters())
        low, high = self.bounds_mps
        return (
            f"{self.settings.kind}: {trained} network weights are trained at {self.settings.lr_network:g}; "
            f"{self._form()}, clamped to {low:g}..{high:g} m/s."
        )

    def _form(self) -> str:
        return f"the model is the initial one plus {self.settings.scale_mps:g} m/s times the network"


class Pretrained(Denormalised):
    """Constant background; the network is fitted to the initial model before the inversion."""

    def prepare(self, progress: Progress | None = None) -> PretrainReport:
        """Fit N to (initial - M) / S by its mean absolute error over the cells that are no water, full batch.

        raises  NumericsError: an error that is not finite
        """
        settings = self.settings.pretrain
        started = time.perf_counter()
        inverted = ~self.water.reshape(-1)
        where = self.coordinates[inverted]
        target = ((self.initial - self.background) / self.settings.scale_mps).reshape(-1)[inverted]
        optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.lr, foreach=False)
        losses: list[float] = []
        while True:
            optimiser.zero_grad()
            loss = (evaluate(self.network, where) - target).abs().mean()
            losses.append(float(loss.detach()))
            mae_mps = losses[-1] * self.settings.scale_mps
            steps = len(losses) - 1
            if not math.isfinite(losses[-1]):
                raise NumericsError(
                    f"Pretraining gave a mean error of {losses[-1]} after {steps} steps: lower "
                    f"inversion.parameterisation.pretrain.lr = {settings.lr:g}."
                )
            if progress is not None:
                progress(steps, mae_mps)
            if mae_mps <= settings.stop_mae_mps or steps == settings.max_steps:
                break
            loss.backward()
            optimiser.step()
        optimiser.zero_grad()
        return PretrainReport(steps, time.perf_counter() - started, mae_mps, tuple(losses))

    def _form(self) -> str:
        pretrain = self.settings.pretrain
        return (
            f"the model is {self.settings.mean_mps:g} m/s plus {self.settings.scale_mps:g} m/s times the network, "
            f"which is first fitted to the initial model ({pretrain.stop_mae_mps:g} m/s or {pretrain.max_steps} steps)"
        )


class Joint(Denormalised):
    """The background is trained beside the network, and so, if asked, is one factor of the scale.

    With a network rate of 0 this is pixel FWI, so it inherits some of pixel FWI's trouble with a poor start.
    """

    log_gain: torch.Tensor

    def _hold_background(self, background: torch.Tensor) -> None:
        self.background = torch.nn.Parameter(background.clone())
        gain = torch.zeros((), dtype=background.dtype)
        if self.settings.lr_log_scale is None:
            self.register_buffer("log_gain", gain)
        else:
            self.log_gain = torch.nn.Parameter(gain)

    def perturbation(self) -> torch.Tensor:
        return super().perturbation() * self.log_gain.exp()

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        groups.append({"params": [self.background], "lr": self.settings.lr_background_mps, "name": "background"})
        if self.settings.lr_log_scale is not None:
            groups.append({"params": [self.log_gain], "lr": self.settings.lr_log_scale, "name": "log_gain"})
        return groups

    def after_step(self, iteration: int, optimiser: torch.optim.Optimizer) -> None:
        """Bring cells back through the background: beyond a bound neither it nor the network has a gradient."""
        low, high = self.bounds_mps
        with torch.no_grad():
            model = self.unbounded()
            inside = model.clamp(low + INSIDE_MPS, high - INSIDE_MPS)
            beyond = ((model < low) | (model > high)) & ~self.water
            self.background.add_(torch.where(beyond, inside - model, 0.0))

    def _form(self) -> str:
        scale = (
            "fixed"
            if self.settings.lr_log_scale is None
            else f"its logarithm trained at {self.settings.lr_log_scale:g}"
        )
        return (
            f"the model is a background, trained at {self.settings.lr_background_mps:g} m/s per step from the initial "
            f"model, plus {self.settings.scale_mps:g} m/s ({scale}) times the network"
        )


class Recentred(Denormalised):
    """Every K iterations the current model becomes the background and the network starts again from zero."""

    def after_step(self, iteration: int, optimiser: torch.optim.Optimizer) -> None:
        """Re-centre after every K-th step. The sine layers keep their weights; only the linear layer is emptied."""
        if (iteration + 1) % self.settings.recentre_every:
            return
        with torch.no_grad():
            self.background.copy_(self.forward())
        self.network.zero_last_layer()
        optimiser.state.clear()

    def _form(self) -> str:
        return (
            f"the model is a background plus {self.settings.scale_mps:g} m/s times the network; every "
            f"{self.settings.recentre_every} iterations the background becomes the current model and the network's "
            "output 0"
        )


class MovingMean(Denormalised):
    """The background follows the smoothed model while the network's share of the model fades at the same rate.

    An offset that merely undid the background's motion would leave background + offset constant, that is s-denorm
    under another name. So the linear layer is scaled by (1 - a) as well: the network gives its perturbation away to
    background (the smooth part) and offset (the rest) with a memory of 1/a iterations, re-centring made continuous.
    """

    offset: torch.Tensor

    def _hold_background(self, background: torch.Tensor) -> None:
        super()._hold_background(background)
        self.register_buffer("offset", torch.zeros_like(background))

    def unbounded(self) -> torch.Tensor:
        # Small numbers first: only the last addition rounds at the size of a velocity.
        return self.background + (self.offset + self.perturbation())

    def after_step(self, iteration: int, optimiser: torch.optim.Optimizer) -> None:
        rate = self.settings.moving_mean_rate
        with torch.no_grad():
            before = self.perturbation()
            moved = self.background + rate * (self._smooth(self.forward()) - self.background)
            self.network.last.weight.mul_(1.0 - rate)
            self.network.last.bias.mul_(1.0 - rate)
            self.offset.add_((self.background - moved) + (before - self.perturbation()))
            self.background.copy_(moved)

    def _smooth(self, velocity: torch.Tensor) -> torch.Tensor:
        """Gaussian average with the edge value repeated outside; SciPy's is the same for any number of threads."""
        from scipy.ndimage import gaussian_filter

        sigma = [self.settings.moving_mean_sigma_m / spacing for spacing in self.spacing_m]
        return torch.from_numpy(gaussian_filter(velocity.numpy(), sigma, mode="nearest"))

    def _form(self) -> str:
        return (
            f"the model is a background plus {self.settings.scale_mps:g} m/s times the network; each iteration moves "
            f"the background by {self.settings.moving_mean_rate:g} of the way to the model smoothed over "
            f"{self.settings.moving_mean_sigma_m:g} m and hands the same share of the network's output over to it"
        )


def build_denormalised(
    settings: ParameterisationSettings,
    initial: torch.Tensor,
    spacing_m: Sequence[float],
    bounds_mps: tuple[float, float],
    water: torch.Tensor,
    seed: int,
) -> Denormalised:
    """The network kind that the settings name; arguments as checked by `build_parameterisation`."""
    kind: type[Denormalised] = Denormalised
    background = initial
    if settings.kind == "pretrain":
        kind = Pretrained
        background = torch.full_like(initial, settings.mean_mps)
    elif settings.kind == "a-denorm-joint":
        kind = Joint
    elif settings.kind == "a-denorm-recentre":
        kind = Recentred
    elif settings.kind == "a-denorm-moving-mean":
        kind = MovingMean
    return kind(settings, initial, spacing_m, bounds_mps, water, seed, background)
