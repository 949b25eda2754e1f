"""What networks are trained to reduce: AMFMS's loss and those of its rivals.

p is the prediction and g the target, both Tensor[sample, 1, z, x] on the network's scale; means run over all values.

    mse           mean (p - g)²                                                             InversionNet
    mae           mean |p - g|                                                              FCNVMB
    l1+l2         both, each times its weight                                               VelocityGAN's validation
    mmt           mean |p - g| + mean (p - g)² + tv_weight * TV(p)                          AMFMS, AMFMS_SEG
    dd            mean (p - g)² + edge_weight * cross-entropy of the edges                  DD-Net, DD-Net70
    mpe           0.7 (0.5 mean |p - g| + 0.5 mean (p - g)²) + 0.3 * edge error             TU-Net, TU-Net-SEG
    l1+l2+rctb    mean |p - g| + mean (p - g)² + boundary error                             ABA-FWI, ABA-FWI+
    wgan-gp       l1_weight mean |p - g| + l2_weight mean (p - g)² - mean critic(p)         VelocityGAN

As published, the edge and the boundary error divide by the number of samples as well as by the number of edge cells of
the batch, so they shrink as a batch grows: what is one batch to these functions is part of a recipe.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from hpfwi.errors import ConfigError

LossName = Literal["mse", "mae", "l1+l2", "mmt", "dd", "mpe", "l1+l2+rctb", "wgan-gp"]
Outputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

TV_FLOOR = 1e-6
"""Added under the root of the total variation: a constant map of n cells has a variation of 1e-3 n."""
WEAK_REFLECTION = 0.05
"""Reflection coefficient below which the boundary error counts an edge cell twice."""


class LossSettings(BaseModel):
    """The loss and its weights; a weight that the chosen loss has not is not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LossName = Field(default="mmt", description="The loss.")
    l1_weight: float = Field(default=1.0, ge=0, description="Weight of the mean absolute error in l1+l2 and wgan-gp.")
    l2_weight: float = Field(default=1.0, ge=0, description="Weight of the mean squared error in l1+l2 and wgan-gp.")
    tv_weight: float = Field(
        default=1e-5, ge=0, description="Weight of the total variation in mmt; published: 1e-5, for SEG 1e-3."
    )
    edge_weight: float = Field(
        default=0.01, ge=0, description="Weight of the cross-entropy in dd; published: 0.01, for SEG (in m/s) 1e6."
    )
    penalty_weight: float = Field(default=10.0, ge=0, description="Weight of the critic's gradient penalty in wgan-gp.")


def needs_edges(settings: LossSettings) -> bool:
    """Whether the loss reads edge masks."""
    return settings.name in ("dd", "mpe", "l1+l2+rctb")


def loss_terms(
    settings: LossSettings,
    outputs: Outputs,
    target: torch.Tensor,
    *,
    edges: torch.Tensor | None = None,
    critic: torch.nn.Module | None = None,
) -> dict[str, torch.Tensor]:
    """The weighted terms of the loss by name, scalars; the loss is their sum.

    outputs   Tensor[sample, 1, z, x], or that and edge logits Tensor[sample, 2, z, x]
    target    Tensor[sample, 1, z, x]
    edges     bool[sample, z, x] of `edges.edge_masks`, where `needs_edges`
    critic    VelocityGAN's, for wgan-gp; without one only the two errors are returned, as in validation
    raises    ConfigError: a loss that reads edge logits for a network that has none
    """
    prediction, logits = outputs if isinstance(outputs, tuple) else (outputs, None)
    error = prediction - target
    l1, l2 = error.abs().mean(), error.square().mean()
    match settings.name:
        case "mse":
            return {"l2": l2}
        case "mae":
            return {"l1": l1}
        case "l1+l2":
            return {"l1": settings.l1_weight * l1, "l2": settings.l2_weight * l2}
        case "mmt":
            return {"l1": l1, "l2": l2, "tv": settings.tv_weight * total_variation(prediction)}
        case "dd":
            if logits is None:
                raise ConfigError(
                    "Loss 'dd' needs edge logits and this network returns none; take dd-net or dd-net70, or another "
                    "loss."
                )
            return {"l2": l2, "edge": settings.edge_weight * edge_entropy(logits, _given(edges))}
        case "mpe":
            return {"l1": 0.35 * l1, "l2": 0.35 * l2, "edge": 0.3 * edge_error(prediction, target, _given(edges))}
        case "l1+l2+rctb":
            return {"l1": l1, "l2": l2, "boundary": boundary_error(prediction, target, _given(edges))}
        case "wgan-gp":
            terms = {"l1": settings.l1_weight * l1, "l2": settings.l2_weight * l2}
            return terms if critic is None else terms | {"adversarial": -critic(prediction).mean()}


def total_variation(prediction: torch.Tensor) -> torch.Tensor:
    """Isotropic total variation, summed over cells and averaged over samples, a scalar.

    sqrt(a² + b² + 1e-6) with a the forward difference along x (last column 0) and b the backward one along z (first row
    0), as published.
    """
    right = functional.pad(prediction.diff(dim=-1), (0, 1))
    down = functional.pad(prediction.diff(dim=-2), (0, 0, 1, 0))
    return torch.sqrt(right.square() + down.square() + TV_FLOOR).sum() / len(prediction)


def edge_entropy(logits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits Tensor[sample, 2, z, x] with bool[sample, z, x], a scalar.

    Of two classes it is softplus(wrong - right). torch's operator for any number adds in no fixed order on a GPU.
    """
    edge_ahead = logits[:, 1] - logits[:, 0]
    return functional.softplus(torch.where(edges, -edge_ahead, edge_ahead)).mean()


def near_edges(edges: torch.Tensor) -> torch.Tensor:
    """1 within one cell of an edge, else 0: float32[sample, 1, z, x] from bool[sample, z, x]."""
    return functional.max_pool2d(edges.float().unsqueeze(1), 3, stride=1, padding=1)


def edge_error(prediction: torch.Tensor, target: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """TU-Net's: mean |p - g| near edges, divided by the number of samples; 0 for a batch without edges."""
    near = near_edges(edges)
    return (near * (prediction - target).abs()).sum() / (len(near) * near.sum().clamp(min=1))


def boundary_error(prediction: torch.Tensor, target: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """ABA-FWI's: how much first differences of p and g differ near edges, divided by the number of samples.

    Both differences are backward ones, 0 in the first row or column. A cell counts twice where the largest vertical
    reflection coefficient |(g_i - g_{i-1}) / (g_i + g_{i-1})| within one cell is above 0 and below 0.05. As published,
    that coefficient is computed from g on the network's scale, which for normalised velocities is no physical one; 0/0
    counts as 0. A batch without edges gives 0.
    """
    near = near_edges(edges)
    error = prediction - target
    differences = functional.pad(error.diff(dim=-2).abs(), (0, 0, 1, 0)) + functional.pad(
        error.diff(dim=-1).abs(), (1, 0)
    )
    above, below = target[..., :-1, :], target[..., 1:, :]
    coefficient = torch.nan_to_num((below - above) / (below + above), nan=0.0).abs()
    coefficient = functional.pad(coefficient, (0, 0, 1, 0))
    largest = near * functional.max_pool2d(coefficient, 3, stride=1, padding=1)
    weight = torch.where((largest > 0) & (largest < WEAK_REFLECTION), 2.0, 1.0) * near
    return (differences * weight).sum() / (len(near) * near.sum().clamp(min=1))


def critic_terms(
    settings: LossSettings,
    critic: torch.nn.Module,
    prediction: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """The terms of the critic's own loss in a WGAN with gradient penalty; the loss is their sum.

    prediction   Tensor[sample, 1, z, x]; no gradient flows into it
    generator    draws the point between target and prediction at which each sample's slope is penalised

    mean critic(p) - mean critic(g) + penalty_weight * mean (|slope| - 1)².
    """
    prediction = prediction.detach()
    share = torch.rand((len(target), 1, 1, 1), generator=generator, device=generator.device).to(target)
    between = (share * target + (1 - share) * prediction).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    steepness = torch.linalg.vector_norm(slope.flatten(start_dim=1), dim=1)
    return {
        "critic": critic(prediction).mean() - critic(target).mean(),
        "penalty": settings.penalty_weight * (steepness - 1).square().mean(),
    }


def _given(edges: torch.Tensor | None) -> torch.Tensor:
    if edges is None:
        raise ConfigError("This loss reads edge masks and got none; pass `edges.edge_masks` of the target velocities.")
    return edges
