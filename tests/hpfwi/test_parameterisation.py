"""The six parameterisations: start, gradient, bounds, water, resume, and what happens between iterations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from hpfwi.errors import ConfigError, DataError
from hpfwi.inversion.optimise import AdamSettings, build_adam, load_optimiser_state, optimiser_state
from hpfwi.inversion.parameterisation import (
    Kind,
    Parameterisation,
    ParameterisationSettings,
    PretrainReport,
    PretrainSettings,
    build_parameterisation,
)
from hpfwi.networks.siren import NetworkSettings
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel

KINDS = get_args(Kind)
NETWORK_KINDS = tuple(kind for kind in KINDS if kind != "pixel")
SHAPE = (9, 12)
BOUNDS = (1500.0, 4500.0)
WATER_ROWS = 2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def initial_model() -> EarthModel:
    depth = np.linspace(1600.0, 4400.0, SHAPE[0])[:, None] + np.linspace(-60.0, 60.0, SHAPE[1])[None, :]
    depth[:WATER_ROWS] = 1480.0
    return EarthModel(depth.astype(np.float32), Grid(SHAPE, (10.0, 12.5)))


def water_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:WATER_ROWS] = True
    return mask


def build(kind: str, seed: int = 0, **changes: Any) -> Parameterisation:
    settings = ParameterisationSettings.model_validate(
        {
            "kind": kind,
            "network": {"width": 16, "hidden_layers": 2, **changes.pop("network", {})},
            "pretrain": {"max_steps": 5},
            "recentre_every": 3,
            "moving_mean_sigma_m": 20.0,
            "moving_mean_rate": 0.2,
            **changes,
        }
    )
    return build_parameterisation(settings, initial_model(), BOUNDS, water_mask(), seed)


def target() -> torch.Tensor:
    return torch.from_numpy(initial_model().velocity[:, ::-1].copy()) + 200.0


def iterate(parameterisation: Parameterisation, optimiser: torch.optim.Adam, first: int, last: int) -> None:
    goal = target()
    for iteration in range(first, last):
        optimiser.zero_grad()
        ((parameterisation() - goal) / 100.0).square().sum().backward()
        optimiser.step()
        parameterisation.after_step(iteration, optimiser)


def adam(parameterisation: Parameterisation) -> torch.optim.Adam:
    return build_adam(parameterisation.parameter_groups(), AdamSettings())


def test_defaults_are_those_of_the_published_runs() -> None:
    settings = ParameterisationSettings()
    assert (settings.kind, settings.lr_network, settings.lr_pixel_mps) == ("s-denorm", 1e-4, 5.0)
    assert (settings.scale_mps, settings.mean_mps, settings.recentre_every) == (1000.0, 3000.0, 50)
    assert (settings.lr_background_mps, settings.lr_log_scale, settings.moving_mean_rate) == (1.0, 1e-3, 0.01)
    assert settings.network == NetworkSettings(width=128, hidden_layers=4, omega0=30.0, zero_last=False)
    assert settings.pretrain == PretrainSettings(max_steps=2000, lr=1e-4, stop_mae_mps=10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_float32_within_bounds_with_the_water_untouched(kind: str) -> None:
    parameterisation = build(kind, scale_mps=60_000.0)
    velocity = parameterisation().detach()
    assert (velocity.dtype, tuple(velocity.shape)) == (torch.float32, SHAPE)
    assert torch.equal(velocity[:WATER_ROWS], torch.full((WATER_ROWS, SHAPE[1]), 1480.0))
    assert float(velocity[WATER_ROWS:].min()) >= BOUNDS[0]
    assert float(velocity[WATER_ROWS:].max()) <= BOUNDS[1]
    assert "trained" in parameterisation.describe()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pretrain"])
def test_a_zero_last_layer_starts_at_the_initial_model_exactly(kind: str) -> None:
    velocity = build(kind, network={"zero_last": True})().detach()
    assert torch.equal(velocity, torch.from_numpy(initial_model().velocity.copy()))


def test_the_scale_turns_an_output_of_one_into_that_velocity() -> None:
    for kind, start in (("s-denorm", initial_model().velocity), ("pretrain", np.full(SHAPE, 3000.0, np.float32))):
        small, large = build(kind, scale_mps=100.0), build(kind, scale_mps=300.0)
        step = (small().detach().numpy() - start)[WATER_ROWS:]
        assert np.abs(step).max() > 1.0
        np.testing.assert_allclose((large().detach().numpy() - start)[WATER_ROWS:], 3.0 * step, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_central_differences_through_clamp_and_mask(kind: str) -> None:
    # A scale that pushes some cells over each bound, so the clamp takes part.
    parameterisation = build(kind, scale_mps=30_000.0, mean_mps=3000.0, network={"omega0": 10.0}).double()
    generator = torch.Generator().manual_seed(1)
    if kind == "pixel":
        with torch.no_grad():
            for parameter in parameterisation.parameters():
                parameter.add_(3000.0 * torch.randn(SHAPE, generator=generator, dtype=torch.float64))
    weights = torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    def value() -> torch.Tensor:
        return (weights * (parameterisation() / 1000.0) ** 2).sum()

    raw = parameterisation.unbounded().detach()[WATER_ROWS:]
    clamped = int(((raw < BOUNDS[0]) | (raw > BOUNDS[1])).sum())
    assert 0 < clamped < raw.numel()
    value().backward()
    for group in parameterisation.parameter_groups():
        for parameter in group["params"]:
            assert parameter.grad is not None
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            step = 1e-7 * float(parameter.detach().abs().max() + 1e-2)
            values = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter.add_(sign * step * direction)
                    values.append(float(value()))
                    parameter.sub_(sign * step * direction)
            slope = float((parameter.grad * direction).sum())
            assert slope != 0.0
            # Central differences: rounding of values of about 1e3 over a step of 1e-7 leaves some 1e-6.
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-5, abs=1e-5), group["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_comes_from_the_water(kind: str) -> None:
    parameterisation = build(kind)
    (parameterisation()[:WATER_ROWS] ** 2).sum().backward()
    for parameter in parameterisation.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_moves_towards_its_target(kind: str) -> None:
    parameterisation = build(kind, lr_network=3e-3, lr_pixel_mps=20.0)
    goal = target()[WATER_ROWS:].clamp(*BOUNDS)
    before = float((parameterisation().detach()[WATER_ROWS:] - goal).square().mean())
    iterate(parameterisation, adam(parameterisation), 0, 40)
    after = parameterisation().detach()
    assert float((after[WATER_ROWS:] - goal).square().mean()) < 0.9 * before
    assert torch.equal(after[:WATER_ROWS], torch.full((WATER_ROWS, SHAPE[1]), 1480.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind: str) -> None:
    straight = build(kind)
    straight.prepare()
    iterate(straight, adam(straight), 0, 10)

    begun = build(kind)
    begun.prepare()
    optimiser = adam(begun)
    iterate(begun, optimiser, 0, 5)
    weights = {name: value.numpy().copy() for name, value in begun.state_dict().items()}
    moments = optimiser_state(optimiser)

    resumed = build(kind, seed=99)
    resumed.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    optimiser = adam(resumed)
    load_optimiser_state(optimiser, moments)
    iterate(resumed, optimiser, 5, 10)
    assert torch.equal(resumed(), straight())
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_start_and_global_randomness_does_not(kind: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = build(kind, seed=4), build(kind, seed=4), build(kind, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(), second())
    assert torch.equal(first(), other()) == (kind == "pixel")


@pytest.mark.parametrize("kind", ["a-denorm-recentre", "a-denorm-moving-mean"])
def test_moving_the_background_leaves_the_model_continuous(kind: str) -> None:
    parameterisation = build(kind, lr_network=3e-3, scale_mps=3000.0, recentre_every=1)
    optimiser = adam(parameterisation)
    goal = target()
    background = dict(parameterisation.named_buffers())["background"]
    for iteration in range(12):
        optimiser.zero_grad()
        ((parameterisation() - goal) / 100.0).square().sum().backward()
        optimiser.step()
        before, held = parameterisation().detach(), background.clone()
        parameterisation.after_step(iteration, optimiser)
        assert float((parameterisation().detach() - before).abs().max()) < 1e-3
        assert float((background - held).abs().max()) > 1.0


def test_recentring_empties_network_and_memory_every_k_iterations() -> None:
    parameterisation = build("a-denorm-recentre", lr_network=3e-3)
    optimiser = adam(parameterisation)
    for iteration in range(7):
        iterate(parameterisation, optimiser, iteration, iteration + 1)
        background = dict(parameterisation.named_buffers())["background"]
        output = float((parameterisation.unbounded().detach() - background).abs().max())
        assert (output == 0.0) == (iteration in (2, 5))
        assert (len(optimiser.state) == 0) == (iteration in (2, 5))


def test_the_moving_mean_is_another_method_than_s_denorm() -> None:
    static, moving = build("s-denorm", lr_network=3e-3), build("a-denorm-moving-mean", lr_network=3e-3)
    assert torch.equal(static(), moving())
    for parameterisation in (static, moving):
        iterate(parameterisation, adam(parameterisation), 0, 20)
    assert float((static() - moving()).detach().abs().max()) > 5.0


def test_the_moving_mean_follows_the_smoothed_model() -> None:
    parameterisation = build("a-denorm-moving-mean", moving_mean_rate=1.0, moving_mean_sigma_m=0.0)
    before = parameterisation().detach()
    parameterisation.after_step(0, adam(parameterisation))
    buffers = dict(parameterisation.named_buffers())
    torch.testing.assert_close(buffers["background"], before, atol=1e-3, rtol=0)
    parameterisation = build("a-denorm-moving-mean", moving_mean_rate=1.0, moving_mean_sigma_m=1e5)
    mean = float(parameterisation().detach().mean())
    parameterisation.after_step(0, adam(parameterisation))
    spread = dict(parameterisation.named_buffers())["background"]
    assert float(spread.std()) < 30.0
    assert float(spread.mean()) == pytest.approx(mean, rel=0.05)


def test_joint_trains_background_network_and_scale_at_their_own_rates() -> None:
    parameterisation = build("a-denorm-joint", lr_background_mps=2.0, lr_log_scale=0.01, scale_mps=10.0)
    before = {name: value.clone() for name, value in parameterisation.state_dict().items()}
    iterate(parameterisation, adam(parameterisation), 0, 1)
    moved = {name: float((value - before[name]).abs().max()) for name, value in parameterisation.state_dict().items()}
    # The first Adam step has the size of the rate, up to eps and rounding.
    assert moved["background"] == pytest.approx(2.0, rel=1e-3)
    assert moved["log_gain"] == pytest.approx(0.01, rel=1e-3)
    assert moved["network.last.weight"] == pytest.approx(1e-4, rel=1e-2)


def test_joint_can_keep_its_scale() -> None:
    parameterisation = build("a-denorm-joint", lr_log_scale=None)
    iterate(parameterisation, adam(parameterisation), 0, 3)
    assert float(parameterisation.state_dict()["log_gain"]) == 0.0
    assert [group["name"] for group in parameterisation.parameter_groups()] == ["network", "background"]


@pytest.mark.parametrize("kind", ["pixel", "a-denorm-joint"])
def test_cells_pushed_over_a_bound_come_back_when_the_gradient_turns(kind: str) -> None:
    parameterisation = build(kind, lr_pixel_mps=500.0, lr_background_mps=500.0, lr_network=0.0)
    optimiser = adam(parameterisation)
    for iteration in range(12):
        optimiser.zero_grad()
        (-parameterisation().sum()).backward()
        optimiser.step()
        parameterisation.after_step(iteration, optimiser)
    assert float(parameterisation.unbounded().detach()[WATER_ROWS:].max()) <= BOUNDS[1]
    assert float(parameterisation().detach()[WATER_ROWS:].min()) > BOUNDS[1] - 1.0
    optimiser.zero_grad()
    parameterisation().sum().backward()
    for group in parameterisation.parameter_groups():
        if group["name"] in ("pixels", "background"):
            assert float(group["params"][0].grad[WATER_ROWS:].min()) == 1.0


def test_pretraining_reaches_its_stop_rule_and_reports_the_cost() -> None:
    parameterisation = build(
        "pretrain", pretrain={"max_steps": 3000, "lr": 3e-3, "stop_mae_mps": 20.0}, network={"width": 32}
    )
    seen: list[tuple[int, float]] = []
    report = parameterisation.prepare(lambda steps, mae_mps: seen.append((steps, mae_mps)))
    assert isinstance(report, PretrainReport)
    assert 0 < report.steps < 3000
    assert report.mae_mps <= 20.0
    assert len(report.losses) == report.steps + 1
    assert seen[-1] == (report.steps, report.mae_mps)
    assert report.seconds > 0
    start = torch.from_numpy(initial_model().velocity.copy())
    fitted = (parameterisation.unbounded().detach() - start)[WATER_ROWS:]
    assert float(fitted.abs().mean()) == pytest.approx(report.mae_mps, rel=1e-3)
    assert all(parameter.grad is None for parameter in parameterisation.parameters())


def test_pretraining_stops_at_its_last_step_and_the_others_have_none() -> None:
    report = build("pretrain").prepare()
    assert report is not None
    assert (report.steps, len(report.losses)) == (5, 6)
    assert report.losses[-1] < report.losses[0]
    assert [build(kind).prepare() for kind in KINDS if kind != "pretrain"] == [None] * 5


def test_a_copy_does_not_share_state() -> None:
    parameterisation = build("a-denorm-joint")
    twin = copy.deepcopy(parameterisation)
    iterate(parameterisation, adam(parameterisation), 0, 2)
    assert not torch.equal(twin(), parameterisation())


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="lr_networks"):
        ParameterisationSettings.model_validate({"lr_networks": 1.0})


def test_contradictions_are_refused_with_value_limit_and_remedy() -> None:
    settings, start = ParameterisationSettings(kind="pixel"), initial_model()
    with pytest.raises(ConfigError, match=r"2240\.\.4460 m/s below the water, beyond bounds_mps=\(1500, 4000\)"):
        build_parameterisation(settings, start, (1500.0, 4000.0), water_mask(), 0)
    with pytest.raises(ConfigError, match="holds no velocity"):
        build_parameterisation(settings, start, (3000.0, 3000.0), water_mask(), 0)
    with pytest.raises(DataError, match=r"shape \(9, 11\), the initial model \(9, 12\)"):
        build_parameterisation(settings, start, BOUNDS, water_mask()[:, :-1], 0)
    with pytest.raises(DataError, match="All 108 cells are water"):
        build_parameterisation(settings, start, BOUNDS, np.ones(SHAPE, dtype=bool), 0)
