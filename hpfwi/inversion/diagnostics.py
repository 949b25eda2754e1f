"""Everything one looks at during an inversion, as flat numbers with names that TensorBoard groups by their prefix."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.inversion import plasticity, signatures, spectra
from hpfwi.inversion.denormalisation import Denormalised
from hpfwi.inversion.metrics import model_metrics, rms_mps
from hpfwi.inversion.parameterisation import Parameterisation

UNIT_POINTS = 2048
"""Coordinates at which the activity of units is looked at; spread evenly over the model."""
KERNEL_POINTS = 1000


def reference_state(parameterisation: Parameterisation) -> dict[str, torch.Tensor]:
    """A copy of the state to compare with later; take it when the inversion starts, after any pretraining."""
    return {name: value.detach().clone() for name, value in parameterisation.state_dict().items()}


def diagnose(
    parameterisation: Parameterisation,
    reference: Mapping[str, torch.Tensor],
    model: NDArray[np.floating],
    initial: NDArray[np.floating],
    *,
    spacing_m: Sequence[float],
    wavelength_m: float,
    true: NDArray[np.floating] | None = None,
    gradient: NDArray[np.floating] | None = None,
    tangent_kernel: bool = False,
) -> dict[str, float]:
    """Scores of the current model and network. What cannot be measured is left out, so every value is finite.

    reference        `reference_state` at the start of the inversion
    model, initial   floating[z, x] or [z, y, x] in m/s: the current model and the one the run started from
    wavelength_m     mean velocity / peak frequency: sets the wavenumber bands
    true             in m/s; adds errors (metrics/), and band amplitude, coherence and error (spectra/)
    gradient         dJ/dm: adds dormancy by gradient and the conflict with the initial model, for
                     one network pass forward and two back over all cells
    tangent_kernel   also the rank and the drift of the tangent kernel, which take longer than all the rest
    """
    water = parameterisation.water.numpy()
    scores = _of_model(model, initial, true, ~water, spacing_m, wavelength_m)
    low, high = parameterisation.bounds_mps
    scores["model/bound_share"] = signatures.bound_share(model, (low, high), ~water)
    scores |= _of_travel(parameterisation, reference)
    if isinstance(parameterisation, Denormalised):
        scores |= _of_network(parameterisation, reference, tangent_kernel)
    if gradient is not None:
        scores |= _of_gradient(parameterisation, gradient)
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _of_model(
    model: NDArray[np.floating],
    initial: NDArray[np.floating],
    true: NDArray[np.floating] | None,
    include: NDArray[np.bool_],
    spacing_m: Sequence[float],
    wavelength_m: float,
) -> dict[str, float]:
    scores = {"model/update_rms_mps": rms_mps(model - initial, include)}
    if true is None:
        for number, share in enumerate(spectra.band_shares(model - initial, spacing_m, wavelength_m)):
            scores[f"spectra/update_share_{number}"] = share
        return scores
    scores["model/wanted_rms_mps"] = rms_mps(true - initial, include)
    scores |= {f"metrics/{name}": value for name, value in model_metrics(model, true).items()}
    halves = {"": (model, initial, true), "_deep": tuple(spectra.deep_half(field) for field in (model, initial, true))}
    for suffix, (found, start, wanted) in halves.items():
        bands = spectra.band_scores(found, start, wanted, spacing_m, wavelength_m)
        for number in range(spectra.BANDS):
            scores[f"spectra/amplitude{suffix}_{number}"] = bands.amplitude[number]
            scores[f"spectra/coherence{suffix}_{number}"] = bands.coherence[number]
            scores[f"spectra/error{suffix}_{number}"] = bands.error[number]
    return scores


def _of_travel(parameterisation: Parameterisation, reference: Mapping[str, torch.Tensor]) -> dict[str, float]:
    named = [(name, value.detach()) for name, value in parameterisation.named_parameters()]
    if isinstance(parameterisation, Denormalised):
        # Background and gain have units of their own; one norm over them and the weights would mean nothing.
        named = [(name, value) for name, value in named if name.startswith("network.")]
    now, then = [value for _, value in named], [reference[name] for name, _ in named]
    return {
        "plasticity/cosine": plasticity.cosine_similarity(now, then),
        "plasticity/travel": plasticity.relative_travel(now, then),
    }


def _of_network(
    parameterisation: Denormalised, reference: Mapping[str, torch.Tensor], tangent_kernel: bool
) -> dict[str, float]:
    network = parameterisation.network
    then = {name.removeprefix("network."): value for name, value in reference.items() if name.startswith("network.")}
    with torch.no_grad():
        phases, activations, _ = network.trace(_spread(parameterisation.coordinates, UNIT_POINTS))
    scores = {
        f"plasticity/travel_layer_{index}": travel
        for index, travel in enumerate(plasticity.travel_by_layer(network, then))
    }
    scores["plasticity/inactive_share"] = plasticity.inactive_share(
        plasticity.weights_by_layer(network, network.state_dict()), plasticity.weights_by_layer(network, then)
    )
    scores["plasticity/dormant_share_activation"] = plasticity.dormant_share_by_activation(activations)
    scores["plasticity/linearised_share"] = plasticity.linearised_share(phases)
    scores["plasticity/feature_rank"] = plasticity.effective_rank(activations[-1])
    if tangent_kernel:
        points = _spread(parameterisation.coordinates, KERNEL_POINTS)
        kernel = plasticity.tangent_kernel(network, points)
        scores["plasticity/kernel_rank"] = plasticity.kernel_rank(kernel)
        start = copy.deepcopy(network)
        start.load_state_dict(dict(then))
        scores["plasticity/kernel_drift"] = plasticity.kernel_drift(kernel, plasticity.tangent_kernel(start, points))
    return scores


def _of_gradient(parameterisation: Parameterisation, gradient: NDArray[np.floating]) -> dict[str, float]:
    """Both gradients by one network pass forward and two back; no `.grad` is touched."""
    velocity = parameterisation()
    waves = torch.from_numpy(np.array(gradient)).to(velocity.dtype)
    to_initial = torch.sign(velocity.detach() - parameterisation.initial)
    scores = {"model/gradient_rms": rms_mps(gradient)}
    if not isinstance(parameterisation, Denormalised):
        scores["plasticity/gradient_conflict"] = plasticity.cosine_similarity([waves], [to_initial])
        return scores
    names, weights = zip(*parameterisation.network.named_parameters(), strict=True)
    of_waves = torch.autograd.grad(velocity, weights, waves, retain_graph=True)
    of_initial = torch.autograd.grad(velocity, weights, to_initial)
    scores["plasticity/gradient_conflict"] = plasticity.cosine_similarity(of_waves, of_initial)
    layers = plasticity.weights_by_layer(parameterisation.network, dict(zip(names, of_waves, strict=True)))
    scores["plasticity/dormant_share_gradient"] = plasticity.dormant_share_by_gradient(layers)
    return scores


def _spread(coordinates: torch.Tensor, points: int) -> torch.Tensor:
    """At most `points` rows of coordinates[cell, axis], evenly spaced in memory."""
    count = min(points, len(coordinates))
    return coordinates[torch.linspace(0, len(coordinates) - 1, count, dtype=torch.float64).round().long()]
