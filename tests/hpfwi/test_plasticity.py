"""Plasticity measures on networks made to order, and the flat summary of a whole state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.inversion import plasticity
from hpfwi.inversion.diagnostics import diagnose, reference_state
from hpfwi.inversion.parameterisation import Parameterisation, ParameterisationSettings, build_parameterisation
from hpfwi.networks.siren import NetworkSettings, Siren, build_siren, coordinates
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel

SHAPE = (20, 24)
POINTS = coordinates(SHAPE, (10.0, 10.0), "unit")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0, **changes: Any) -> Siren:
    settings = NetworkSettings(**{"width": 16, "hidden_layers": 2, **changes})
    return build_siren(settings, torch.Generator().manual_seed(seed))


def test_cosine_and_travel_are_those_of_one_long_vector() -> None:
    first = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert plasticity.cosine_similarity(first, [2 * tensor for tensor in first]) == pytest.approx(1.0)
    assert plasticity.cosine_similarity(first, [-tensor for tensor in first]) == pytest.approx(-1.0)
    assert plasticity.cosine_similarity(first, [torch.tensor([0.0, 7.0]), torch.tensor([[0.0]])]) == 0.0
    assert math.isnan(plasticity.cosine_similarity(first, [torch.zeros(2), torch.zeros(1, 1)]))
    moved = [torch.tensor([3.0, 1.0]), torch.tensor([[4.0]])]
    assert plasticity.relative_travel(moved, first) == pytest.approx(0.2)


def test_travel_by_layer_sees_the_layer_that_moved() -> None:
    moving, start = network(), network()
    with torch.no_grad():
        moving.hidden_linears()[1].weight.mul_(1.1)
        moving.hidden_linears()[1].bias.mul_(1.1)
        moving.last.weight.mul_(1.5)
    first, second, last = plasticity.travel_by_layer(moving, start.state_dict())
    assert first == 0.0
    assert second == pytest.approx(0.1)
    assert last == pytest.approx(0.5)


def test_inactive_units_are_those_that_lag_behind_their_layer() -> None:
    start = [torch.zeros(10, 4), torch.zeros(10, 4)]
    now = [torch.ones(10, 4), torch.ones(10, 4)]
    assert plasticity.inactive_share(now, start) == 0.0
    now[1][:3] = 0.05
    assert plasticity.inactive_share(now, start) == pytest.approx(3 / 20)
    assert math.isnan(plasticity.inactive_share(start, start))


def test_a_unit_cut_off_from_the_coordinates_is_dormant() -> None:
    healthy, cut = network(), network()
    with torch.no_grad():
        cut.hidden_linears()[0].weight[:4] = 0.0
    assert plasticity.dormant_share_by_activation(healthy.trace(POINTS)[1]) == 0.0
    assert plasticity.dormant_share_by_activation(cut.trace(POINTS)[1]) == pytest.approx(4 / 32)


def test_a_unit_nobody_listens_to_has_no_gradient() -> None:
    cut = network()
    with torch.no_grad():
        cut.last.weight[0, :5] = 0.0
    gradients = torch.autograd.grad(cut(POINTS).sum(), [layer.weight for layer in cut.hidden_linears()])
    assert plasticity.dormant_share_by_gradient(gradients) == pytest.approx(5 / 32)


def test_small_phases_make_linear_units() -> None:
    phases = [torch.full((10, 4), 0.5), torch.full((10, 4), 0.5)]
    phases[0][3, 1] = 0.53  # pi/6 is 0.5236
    assert plasticity.linearised_share(phases) == pytest.approx(7 / 8)
    assert plasticity.linearised_share(network().trace(POINTS)[0]) < 0.2


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(50, 8, generator=generator, dtype=torch.float64))[0]
    features = directions * torch.tensor([1.0] * rank + [0.0] * (8 - rank))
    assert plasticity.effective_rank(features) == pytest.approx(rank, rel=1e-5)


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    assert plasticity.effective_rank(features) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
    assert plasticity.effective_rank(torch.zeros(5, 3)) == 0.0


def test_numbers_out_of_range_have_no_rank() -> None:
    wild = torch.full((4, 3), torch.inf)
    assert math.isnan(plasticity.effective_rank(wild))
    assert math.isnan(plasticity.kernel_rank(wild[:3]))


def test_the_tangent_kernel_is_the_product_of_parameter_derivatives() -> None:
    small, points = network(width=5, hidden_layers=3).double(), POINTS[::60].double()
    rows = []
    for point in points:
        derivatives = torch.autograd.grad(small(point[None]).sum(), list(small.parameters()))
        rows.append(torch.cat([derivative.reshape(-1) for derivative in derivatives]))
    jacobian = torch.stack(rows)
    kernel = plasticity.tangent_kernel(small, points)
    torch.testing.assert_close(kernel, jacobian @ jacobian.T, rtol=1e-10, atol=1e-10)
    assert plasticity.kernel_drift(kernel, kernel) == 0.0
    assert plasticity.kernel_drift(1.5 * kernel, kernel) == pytest.approx(0.5)
    assert 1.0 <= plasticity.kernel_rank(kernel) <= len(points)


def test_a_damaged_network_adapts_worse_than_a_fresh_one() -> None:
    target = torch.sin(3.0 * POINTS[:, 0]) * torch.cos(2.0 * POINTS[:, 1])
    damaged = network(seed=1)
    with torch.no_grad():
        # One of sixteen units left: its linear layer can no longer combine features.
        damaged.hidden_linears()[1].weight[1:] = 0.0
        damaged.hidden_linears()[1].bias[1:] = 0.0
    before = {name: value.clone() for name, value in damaged.state_dict().items()}
    ratio = plasticity.adaptability(damaged, network(seed=2), POINTS, target, lr=1e-3, steps=60)
    healthy = plasticity.adaptability(network(seed=1), network(seed=2), POINTS, target, lr=1e-3, steps=60)
    assert ratio > 1.5 * healthy
    assert all(torch.equal(value, before[name]) for name, value in damaged.state_dict().items())


def parameterised(kind: str) -> Parameterisation:
    velocity = np.linspace(1600.0, 4000.0, SHAPE[0])[:, None] * np.ones(SHAPE[1])
    water = np.zeros(SHAPE, dtype=bool)
    water[:2] = True
    settings = ParameterisationSettings.model_validate({"kind": kind, "network": {"width": 16, "hidden_layers": 2}})
    model = EarthModel(velocity.astype(np.float32), Grid(SHAPE, (10.0, 10.0)))
    return build_parameterisation(settings, model, (1500.0, 4500.0), water, 0)


def summary(kind: str, *, moved: float, **changes: Any) -> dict[str, float]:
    parameterisation = parameterised(kind)
    start = reference_state(parameterisation)
    initial = parameterisation.initial.numpy().copy()
    with torch.no_grad():
        for parameter in parameterisation.parameters():
            parameter.mul_(1.0 + moved)
    rng = np.random.default_rng(0)
    true = initial + rng.normal(0, 100, SHAPE).astype(np.float32)
    given = {"true": true, "gradient": rng.normal(0, 1, SHAPE).astype(np.float32), **changes}
    model = parameterisation().detach().numpy()
    return diagnose(parameterisation, start, model, initial, spacing_m=(10.0, 10.0), wavelength_m=60.0, **given)


@pytest.mark.parametrize("kind", ["pixel", "s-denorm", "a-denorm-joint", "a-denorm-recentre"])
def test_the_summary_is_flat_and_finite(kind: str) -> None:
    scores = summary(kind, moved=0.01, tangent_kernel=True)
    assert all(isinstance(value, float) and math.isfinite(value) for value in scores.values())
    names = {
        "metrics/mse_kmps2",
        "metrics/ssim_deep",
        "spectra/error_3",
        "spectra/amplitude_deep_2",
        "model/bound_share",
    }
    names |= {"model/update_rms_mps", "plasticity/cosine", "plasticity/travel", "plasticity/gradient_conflict"}
    if kind != "pixel":
        names |= {"plasticity/travel_layer_2", "plasticity/feature_rank", "plasticity/kernel_rank"}
        names |= {"plasticity/dormant_share_gradient", "plasticity/inactive_share"}
        # Weights of 1 + 0.01 throughout: layers after the first see other inputs, but none that are far away.
        assert 0.0 < scores["plasticity/kernel_drift"] < 1.0
    assert names <= scores.keys()
    assert scores["plasticity/travel"] == pytest.approx(0.01, rel=1e-3)
    assert scores["plasticity/cosine"] == pytest.approx(1.0, abs=1e-6)


def test_without_truth_or_gradient_the_summary_says_less() -> None:
    scores = summary("s-denorm", moved=0.01, true=None, gradient=None)
    assert not [name for name in scores if name.startswith("metrics/") or "gradient" in name or "error" in name]
    assert sum(scores[f"spectra/update_share_{band}"] for band in range(5)) == pytest.approx(1.0)


def test_the_conflict_is_negative_when_the_data_drive_the_model_away_from_its_start() -> None:
    parameterisation = parameterised("s-denorm")
    start, initial = reference_state(parameterisation), parameterisation.initial.numpy().copy()
    model = parameterisation().detach().numpy()
    for sign, expected in ((1.0, 1.0), (-1.0, -1.0)):
        scores = diagnose(
            parameterisation,
            start,
            model,
            initial,
            spacing_m=(10.0, 10.0),
            wavelength_m=60.0,
            gradient=sign * np.sign(model - initial),
        )
        assert scores["plasticity/gradient_conflict"] == pytest.approx(expected, abs=1e-5)
    assert all(parameter.grad is None for parameter in parameterisation.parameters())


def test_the_reference_is_a_copy() -> None:
    parameterisation = parameterised("pixel")
    start = reference_state(parameterisation)
    with torch.no_grad():
        next(iter(parameterisation.parameters())).add_(5.0)
    assert float((start["pixels"] - parameterisation.initial).abs().max()) == 0.0
