"""One velocity made to fit one sample's records, beginning with what a network proposes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.inversion.misfit import l2
from hpfwi.inversion.optimise import build_adam
from hpfwi.inversion.parameterisation import build_parameterisation
from hpfwi.physics.model import EarthModel
from hpfwi.physics.openfwi import OpenFwiSimulator
from hpfwi.refinement.settings import RefinementSettings


@dataclass(frozen=True, eq=False)
class Refined:
    """The model that fits best of all that were met.

    velocity    float32[z, x], m/s
    proposed    misfit of the proposal, as a share of the observed energy: Σ residual² / Σ observed²
    refined     misfit of `velocity`, at most that of the proposal
    iteration   after which it was met; 0 is the proposal itself
    """

    velocity: NDArray[np.float32]
    proposed: float
    refined: float
    iteration: int

    def or_better(self, velocity: torch.Tensor, share: float, iteration: int) -> Refined:
        """The one of the two that fits better; the earlier one where they fit alike."""
        if not share < self.refined:
            return self
        return replace(self, velocity=velocity.numpy().copy(), refined=share, iteration=iteration)


def refine(
    proposal: NDArray[np.float32],
    records: NDArray[np.float32],
    simulator: OpenFwiSimulator,
    settings: RefinementSettings,
    *,
    look: Callable[[], None] = lambda: None,
) -> Refined:
    """Move a proposed model until it explains the records; nothing but records and proposal has a say.

    What is minimised is J = ½ Σ ((predicted - observed) / rms)², rms of the observed samples, as in an inversion.

    proposal    float32[z, x], m/s; cut to the settings' bounds first
    records     float32[shot, time, receiver], in the unit of the simulator's
    look        called before every iteration; what it raises ends the work

    raises      DataError: records without a signal, or not finite
    """
    observed = torch.from_numpy(records)
    energy = float(observed.double().square().sum())
    if not 0 < energy < float("inf"):
        raise DataError(f"Records of energy {energy:g} hold no signal, or NaN or infinity; leave them out.")

    def misfit_of(velocity: torch.Tensor) -> torch.Tensor:
        return l2(simulator.predict(velocity), observed) * (observed.numel() / energy)

    def share_of(misfit: torch.Tensor) -> float:
        return 2.0 * float(misfit.detach()) / observed.numel()

    bounds = np.float32(settings.bounds_mps[0]), np.float32(settings.bounds_mps[1])
    start = np.clip(proposal, *bounds)
    with torch.no_grad():
        share = share_of(misfit_of(torch.from_numpy(start)))
    best = Refined(start, share, share, 0)
    if not settings.iterations:
        return best
    parameterisation = build_parameterisation(
        settings.parameterisation,
        EarthModel(start, simulator.grid),
        (float(bounds[0]), float(bounds[1])),
        np.zeros(start.shape, np.bool_),
        settings.seed,
    )
    parameterisation.prepare()
    optimiser = build_adam(parameterisation.parameter_groups(), settings.optimiser)
    for iteration in range(settings.iterations):
        look()
        model = parameterisation()
        velocity = model.detach().clone().requires_grad_()
        misfit = misfit_of(velocity)
        (gradient,) = torch.autograd.grad(misfit, velocity)
        best = best.or_better(velocity.detach(), share_of(misfit), iteration)
        optimiser.zero_grad()
        model.backward(gradient)
        optimiser.step()
        parameterisation.after_step(iteration, optimiser)
    with torch.no_grad():
        velocity = parameterisation()
        return best.or_better(velocity, share_of(misfit_of(velocity)), settings.iterations)
