"""How much of a network still moves and can move: travel, dormancy, rank, conflict, adaptability.

Definitions follow the project's working specification; the dormant share by activation adapts Sokar et al. 2023 ("The
dormant neuron phenomenon") to sine units, whose mean absolute value never vanishes, by taking the standard deviation
over coordinates instead. Healthy runs keep cosine similarities above 0.998 and few dormant units: compare methods at
equal iterations rather than reading the numbers as alarms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch

from hpfwi.networks.siren import Siren

DORMANT_ACTIVATION = 0.025
DORMANT_GRADIENT = 0.1
INACTIVE_UPDATE = 0.1
LINEAR_PHASE_RAD = torch.pi / 6

State = Mapping[str, torch.Tensor]


def cosine_similarity(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Cosine of the angle between two lists of tensors read as one vector each; NaN when one of them is zero."""
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))
    norms = _norm(first) * _norm(second)
    return dot / norms if norms > 0 else float("nan")


def relative_travel(current: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """|current - reference| / |reference| over all tensors; NaN when the reference is zero."""
    start = _norm(reference)
    moved = _norm([a.double() - b.double() for a, b in zip(current, reference, strict=True)])
    return moved / start if start > 0 else float("nan")


def weights_by_layer(network: Siren, state: State, prefix: str = "") -> list[torch.Tensor]:
    """One tensor[unit, input + 1] for each sine layer, biases in the last column, read from a state dict."""
    return [
        torch.cat([state[f"{prefix}hidden.{index}.weight"], state[f"{prefix}hidden.{index}.bias"][:, None]], dim=1)
        for index in range(len(network.hidden))
    ]


def travel_by_layer(network: Siren, reference: State, prefix: str = "") -> list[float]:
    """Relative travel of each sine layer and, last, of the linear layer since the reference state."""
    now, then = network.state_dict(), {name.removeprefix(prefix): value for name, value in reference.items()}
    travel = [
        relative_travel([a], [b])
        for a, b in zip(weights_by_layer(network, now), weights_by_layer(network, then), strict=True)
    ]
    last = ("last.weight", "last.bias")
    return [*travel, relative_travel([now[name] for name in last], [then[name] for name in last])]


def inactive_share(current: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Share of units whose weights moved at most 0.1 of the median of their layer; tensors[unit, input] by layer.

    NaN when nothing moved at all, as at the reference itself.
    """
    if all(torch.equal(now, then) for now, then in zip(current, reference, strict=True)):
        return float("nan")
    inactive = []
    for now, then in zip(current, reference, strict=True):
        moved = (now - then).double().norm(dim=1)
        inactive.append(moved <= INACTIVE_UPDATE * moved.median())
    return float(torch.cat(inactive).double().mean())


def dormant_share_by_activation(activations: Sequence[torch.Tensor]) -> float:
    """Share of units whose output hardly varies: std over coordinates <= 0.025 of their layer's mean std.

    activations   Tensor[point, unit] by layer
    """
    dormant = []
    for activation in activations:
        spread = activation.double().std(dim=0)
        dormant.append(spread <= DORMANT_ACTIVATION * spread.mean())
    return float(torch.cat(dormant).double().mean())


def dormant_share_by_gradient(gradients: Sequence[torch.Tensor]) -> float:
    """Share of units whose weight gradient has a norm <= 0.1 of their layer's mean; tensors[unit, input] by layer."""
    dormant = []
    for gradient in gradients:
        size = gradient.double().norm(dim=1)
        dormant.append(size <= DORMANT_GRADIENT * size.mean())
    return float(torch.cat(dormant).double().mean())


def linearised_share(phases: Sequence[torch.Tensor]) -> float:
    """Share of units that use the sine as a straight line: max over coordinates of |phase| < pi/6 rad.

    phases   Tensor[point, unit] in rad by layer
    """
    return float(torch.cat([phase.abs().amax(dim=0) < LINEAR_PHASE_RAD for phase in phases]).double().mean())


def effective_rank(features: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values of features[point, unit]: 1 to the number of units.

    NaN where a feature is not finite.
    """
    matrix = features.double()
    return _entropy_rank(_eigenvalues(matrix.T @ matrix).sqrt())


def tangent_kernel(network: Siren, coordinates: torch.Tensor) -> torch.Tensor:
    """Neural tangent kernel float64[point, point]: inner products of dN/dtheta at pairs of coordinates[point, axis].

    Layer by layer: the derivative for the weights of a layer is the product of what enters it and what its output means
    for N, so its kernel is the elementwise product of two small Gram matrices.
    """
    phases, activations, output = network.trace(coordinates)
    sensitivities = torch.autograd.grad(output.sum(), phases)
    entering = [coordinates, *activations]
    ones = torch.ones_like(output)[:, None]
    leaving = [network.omega0 * sensitivity for sensitivity in sensitivities] + [ones]
    kernel = torch.zeros(len(coordinates), len(coordinates), dtype=torch.float64)
    for inputs, meaning in zip(entering, leaving, strict=True):
        before, after = inputs.detach().double(), meaning.detach().double()
        kernel += (before @ before.T + 1.0) * (after @ after.T)
    return kernel


def kernel_rank(kernel: torch.Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of a kernel[point, point]; NaN where it is not finite."""
    return _entropy_rank(_eigenvalues(kernel))


def kernel_drift(kernel: torch.Tensor, reference: torch.Tensor) -> float:
    """|kernel - reference| / |reference| (Frobenius), for kernels at the same coordinates."""
    return float(torch.linalg.norm(kernel - reference) / torch.linalg.norm(reference))


def adaptability(
    network: Siren,
    fresh: Siren,
    coordinates: torch.Tensor,
    target: torch.Tensor,
    *,
    lr: float,
    steps: int = 200,
) -> float:
    """Loss of `network` over loss of `fresh` after both are fitted to the same target; above 2 means lost plasticity.

    The direct test of plasticity, for use on checkpoints after a run: it costs 2 x `steps` network passes. Both
    networks are copied, not changed. The linear layer starts at zero in both, so that neither has a lead.

    coordinates   Tensor[point, axis]
    target        Tensor[point], in units of the network's output, e.g. (true - initial) / scale
    """
    losses = []
    for start in (network, fresh):
        probe = copy.deepcopy(start)
        probe.zero_last_layer()
        optimiser = torch.optim.Adam(probe.parameters(), lr=lr, foreach=False)
        for _ in range(steps):
            optimiser.zero_grad()
            (probe(coordinates) - target).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            losses.append(float((probe(coordinates) - target).square().mean()))
    return losses[0] / losses[1] if losses[1] > 0 else float("nan")


def _eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """Of a symmetric matrix that has none below zero but by rounding; one NaN where it is not finite."""
    if not bool(torch.isfinite(matrix).all()):  # steps that were far too long; LAPACK raises
        return torch.full((1,), torch.nan, dtype=matrix.dtype)
    return torch.linalg.eigvalsh(matrix).clamp(min=0.0)


def _entropy_rank(values: torch.Tensor) -> float:
    total = float(values.sum())
    if math.isnan(total):
        return total
    if total <= 0:
        return 0.0
    shares = values / total
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())
