"""The losses against slow definitions; the critic's on a critic whose slope is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hpfwi.errors import ConfigError
from hpfwi.networks.build import NetworkChoice, build_network
from hpfwi.networks.velocitygan import VelocityGan
from hpfwi.training.losses import (
    LossName,
    LossSettings,
    boundary_error,
    critic_terms,
    edge_error,
    loss_terms,
    near_edges,
    needs_edges,
    total_variation,
)

Array = NDArray[np.float64]


def batch(samples: int = 3, rows: int = 7, columns: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target on [0, 1] with layers and a few zeros, and random edges."""
    draw = torch.Generator().manual_seed(0)
    target = torch.rand((samples, 1, rows, 1), generator=draw).expand(-1, -1, -1, columns).clone()
    target[:, :, 2:] = target[:, :, 2:3] * (1 + 0.03 * torch.rand((samples, 1, rows - 2, columns), generator=draw))
    target[0, 0, :2, :3] = 0.0  # 0 / 0 for the reflection, next to weak ones
    target[0, 0, 1, 3:] = 1.02 * target[0, 0, 0, 3:]
    prediction = target + 0.2 * torch.randn(target.shape, generator=draw)
    edges = torch.rand((samples, rows, columns), generator=draw) < 0.08
    edges[0, 0, 3] = True
    return prediction, target, edges


def arrays(*values: torch.Tensor) -> list[Array]:
    return [value.double().squeeze(1).numpy() for value in values]


def slow_near(edges: Array) -> Array:
    near = np.zeros_like(edges)
    for sample, row, column in np.argwhere(edges > 0):
        near[sample, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 1
    return near


def test_total_variation_is_its_definition() -> None:
    prediction, _, _ = batch()
    (p,) = arrays(prediction)
    total = 0.0
    for sample, i, j in np.ndindex(*p.shape):
        right = p[sample, i, j + 1] - p[sample, i, j] if j + 1 < p.shape[2] else 0.0
        down = p[sample, i, j] - p[sample, i - 1, j] if i else 0.0
        total += math.sqrt(right**2 + down**2 + 1e-6)
    assert float(total_variation(prediction)) == pytest.approx(total / len(p), rel=1e-6)


@pytest.mark.parametrize(("rows", "columns", "floor"), [(70, 70, 4.9), (201, 301, 60.5)])
def test_a_constant_map_varies_by_the_published_floor(rows: int, columns: int, floor: float) -> None:
    assert float(total_variation(torch.full((2, 1, rows, columns), 0.4))) == pytest.approx(floor, rel=1e-3)


def test_edges_are_widened_by_one_cell() -> None:
    _, _, edges = batch()
    assert edges.any()
    np.testing.assert_array_equal(near_edges(edges)[:, 0].numpy(), slow_near(edges.double().numpy()))


def test_the_edge_error_divides_by_samples_and_by_edge_cells() -> None:
    prediction, target, edges = batch()
    p, g = arrays(prediction, target)
    near = slow_near(edges.double().numpy())
    expected = (near * np.abs(p - g)).sum() / (len(p) * near.sum())
    assert float(edge_error(prediction, target, edges)) == pytest.approx(expected, rel=1e-6)


def test_the_boundary_error_is_its_definition() -> None:
    prediction, target, edges = batch()
    p, g = arrays(prediction, target)
    near = slow_near(edges.double().numpy())
    reflection = np.zeros_like(g)
    for sample, i, j in np.ndindex(*g.shape):
        if i:
            above, below = g[sample, i - 1, j], g[sample, i, j]
            reflection[sample, i, j] = abs((below - above) / (below + above)) if below != above else 0.0
    total: float = 0.0
    doubled = 0
    for sample, i, j in np.ndindex(*g.shape):
        along_z = abs((p - g)[sample, i, j] - (p - g)[sample, i - 1, j]) if i else 0.0
        along_x = abs((p - g)[sample, i, j] - (p - g)[sample, i, j - 1]) if j else 0.0
        largest = reflection[sample, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max() * near[sample, i, j]
        weak = 0 < largest < 0.05
        doubled += weak
        total += float((along_z + along_x) * near[sample, i, j] * (2 if weak else 1))
    assert 0 < doubled < near.sum()
    assert float(boundary_error(prediction, target, edges)) == pytest.approx(total / (len(p) * near.sum()), rel=1e-5)


def test_without_edges_the_edge_errors_are_zero_with_finite_gradients() -> None:
    prediction, target, edges = batch()
    none = torch.zeros_like(edges)
    for error in (edge_error, boundary_error):
        free = prediction.clone().requires_grad_()
        value = error(free, target, none)
        (slope,) = torch.autograd.grad(value, free)
        assert float(value.detach()) == 0.0
        assert float(slope.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (LossSettings(name="mse"), {"l2": 1.0}),
        (LossSettings(name="mae"), {"l1": 1.0}),
        (LossSettings(name="l1+l2", l1_weight=3.0, l2_weight=0.5), {"l1": 3.0, "l2": 0.5}),
        (LossSettings(name="mmt"), {"l1": 1.0, "l2": 1.0, "tv": 1e-5}),
        (LossSettings(name="mmt", tv_weight=1e-3), {"l1": 1.0, "l2": 1.0, "tv": 1e-3}),
        (LossSettings(name="mpe"), {"l1": 0.35, "l2": 0.35, "edge": 0.3}),
        (LossSettings(name="l1+l2+rctb"), {"l1": 1.0, "l2": 1.0, "boundary": 1.0}),
        (LossSettings(name="wgan-gp", l1_weight=100, l2_weight=100), {"l1": 100.0, "l2": 100.0}),
    ],
    ids=str,
)
def test_the_terms_have_the_published_weights(settings: LossSettings, weights: dict[str, float]) -> None:
    prediction, target, edges = batch()
    p, g = arrays(prediction, target)
    plain = {
        "l1": np.abs(p - g).mean(),
        "l2": ((p - g) ** 2).mean(),
        "tv": float(total_variation(prediction)),
        "edge": float(edge_error(prediction, target, edges)),
        "boundary": float(boundary_error(prediction, target, edges)),
    }
    terms = loss_terms(settings, prediction, target, edges=edges)
    assert list(terms) == list(weights)
    for name, weight in weights.items():
        assert float(terms[name]) == pytest.approx(weight * plain[name], rel=1e-5)


def test_the_dd_loss_scores_velocity_and_edge_logits() -> None:
    prediction, target, edges = batch()
    logits = torch.randn((3, 2, 7, 6), generator=torch.Generator().manual_seed(1))
    no, yes = logits[:, 0].double().numpy(), logits[:, 1].double().numpy()
    truth = edges.numpy()
    entropy = (np.logaddexp(no, yes) - np.where(truth, yes, no)).mean()
    for weight in (0.01, 1e6):
        terms = loss_terms(LossSettings(name="dd", edge_weight=weight), (prediction, logits), target, edges=edges)
        assert float(terms["edge"]) == pytest.approx(weight * entropy, rel=1e-5)
        assert float(terms["l2"]) == pytest.approx(float((prediction - target).square().mean()))


def test_one_sample_is_enough_for_every_loss() -> None:
    prediction, target, edges = (values[:1] for values in batch())
    logits = torch.zeros(1, 2, 7, 6)
    names: tuple[LossName, ...] = ("mse", "mae", "l1+l2", "mmt", "dd", "mpe", "l1+l2+rctb", "wgan-gp")
    for name in names:
        outputs = (prediction, logits) if name == "dd" else prediction
        terms = loss_terms(LossSettings(name=name), outputs, target, edges=edges)
        assert all(math.isfinite(float(term)) for term in terms.values())


def test_a_loss_without_what_it_reads_is_refused() -> None:
    prediction, target, edges = batch()
    with pytest.raises(ConfigError, match="needs edge logits and this network returns none; take dd-net"):
        loss_terms(LossSettings(name="dd"), prediction, target, edges=edges)
    reading: list[LossName] = ["mpe", "l1+l2+rctb"]
    for name in reading:
        assert needs_edges(LossSettings(name=name))
        with pytest.raises(ConfigError, match="reads edge masks and got none"):
            loss_terms(LossSettings(name=name), prediction, target)
    assert not needs_edges(LossSettings(name="mmt"))


class Plane(torch.nn.Module):
    """A critic with one and the same slope everywhere: the given value in every cell."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, velocities: torch.Tensor) -> torch.Tensor:
        return (self.slope * velocities).flatten(start_dim=1).sum(dim=1, keepdim=True)


def test_the_critic_s_loss_is_the_gap_and_the_penalty_of_its_slope() -> None:
    prediction, target, _ = batch()
    critic = Plane(0.25)
    prediction.requires_grad_()
    terms = critic_terms(LossSettings(name="wgan-gp"), critic, prediction, target, torch.Generator().manual_seed(0))
    steepness = 0.25 * math.sqrt(7 * 6)
    values = {name: float(term.detach()) for name, term in terms.items()}
    assert values["penalty"] == pytest.approx(10 * (steepness - 1) ** 2, rel=1e-5)
    gap = 0.25 * float((prediction.detach() - target).sum()) / 3
    assert values["critic"] == pytest.approx(gap, rel=1e-4)
    sum(terms.values(), start=torch.zeros(())).backward()
    assert prediction.grad is None
    assert critic.slope.grad is not None
    # d/ds of 10 (s sqrt(n) - 1)² and of the gap
    expected = 20 * (steepness - 1) * math.sqrt(42) + gap / 0.25
    assert float(critic.slope.grad) == pytest.approx(expected, rel=1e-4)


def test_the_generator_s_loss_rises_as_the_critic_likes_it_less() -> None:
    prediction, target, _ = batch()
    terms = loss_terms(LossSettings(name="wgan-gp"), prediction, target, critic=Plane(0.5))
    assert float(terms["adversarial"].detach()) == pytest.approx(-0.5 * float(prediction.sum()) / 3, rel=1e-5)


def test_the_penalised_points_lie_between_target_and_prediction() -> None:
    prediction, target, _ = batch()
    seen: list[torch.Tensor] = []

    class Watching(Plane):
        def forward(self, velocities: torch.Tensor) -> torch.Tensor:
            seen.append(velocities.detach())
            return super().forward(velocities)

    critic_terms(LossSettings(name="wgan-gp"), Watching(1.0), prediction, target, torch.Generator().manual_seed(0))
    shares = ((seen[0] - prediction) / (target - prediction)).flatten(start_dim=1)
    assert float((shares.amax(dim=1) - shares.amin(dim=1)).max()) < 1e-3
    assert 0 <= float(shares.min()) < float(shares.max()) <= 1
    assert len({round(float(share), 4) for share in shares[:, 0]}) == 3


def test_velocitygan_s_critic_learns() -> None:
    """Its loss falls; mostly the penalty's share, because batch norm in the last layer levels the scores of a batch."""
    network = build_network(
        NetworkChoice(name="velocitygan", width=0.125, records_shape=(2, 32, 8), model_shape=(16, 16))
    )
    assert isinstance(network, VelocityGan)
    draw = torch.Generator().manual_seed(0)
    target = functional.interpolate(torch.rand((4, 1, 2, 2), generator=draw), (16, 16), mode="bilinear")
    prediction = torch.rand((4, 1, 16, 16), generator=draw)
    optimiser = torch.optim.Adam(network.critic.parameters(), lr=3e-3)
    losses = []
    for step in range(10):
        terms = critic_terms(LossSettings(name="wgan-gp"), network.critic, prediction, target, draw)
        loss = terms["critic"] + terms["penalty"]
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for key, value in network.critic.named_parameters():
                assert value.grad is not None, key
                assert torch.isfinite(value.grad).all(), key
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
