"""The gradient that the optimiser gets is the derivative of the misfit: a Taylor test from the weights to the waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpfwi.inversion.misfit import l2
from hpfwi.inversion.parameterisation import Parameterisation, ParameterisationSettings, build_parameterisation
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import ricker
from hpfwi.physics.survey import Survey
from hpfwi.physics.water import water_cells

SHAPE, SPACING_M, DT_S, SAMPLES = (20, 28), (12.0, 10.0), 0.002, 90
BOUNDS_MPS = (1400.0, 3200.0)
STEPS = 0.5 ** np.arange(4, 10)
KINDS = ["pixel", "pretrain", "s-denorm", "a-denorm-joint", "a-denorm-recentre", "a-denorm-moving-mean"]


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    sources = np.array([[[12.0, 60.0]], [[12.0, 203.5]]])
    receivers = np.array([[[24.0, 10.0 * column] for column in range(1, 27, 5)]] * 2)
    survey = Survey(sources, receivers, DT_S, SAMPLES)
    wavelet = np.tile(ricker(18.0, DT_S, SAMPLES, 0.05).astype(np.float32), (2, 1, 1)) * 1e6
    settings = ModellingSettings(absorbing_cells=6, store_every=1)
    return Simulator(Grid(SHAPE, SPACING_M), survey, wavelet, settings, BOUNDS_MPS[1], BOUNDS_MPS[0])


def build(kind: str) -> Parameterisation:
    """Return a parameterisation in float64, with a water layer, in a state that iterations would have led to."""
    grid = Grid(SHAPE, SPACING_M)
    velocity = np.repeat(np.linspace(1500.0, 2800.0, SHAPE[0])[:, None], SHAPE[1], axis=1).astype(np.float32)
    settings = ParameterisationSettings.model_validate(
        {"kind": kind, "network": {"width": 16, "hidden_layers": 2}, "mean_mps": 2100.0}
    )
    written = build_parameterisation(settings, EarthModel(velocity, grid), BOUNDS_MPS, water_cells(grid, 24.0), 3)
    return written.double()


def misfit(written: Parameterisation, simulator: Simulator, observed: torch.Tensor) -> torch.Tensor:
    return l2(simulator.predict(written(), [1, 0]), observed)


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_order_two_from_the_weights(kind: str, simulator: Simulator) -> None:
    written = build(kind)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        bump = 1.0 + 0.05 * torch.rand(SHAPE, generator=generator, dtype=torch.float64)
        observed = simulator.predict(written() * bump, [1, 0])
    parameters = [parameter for group in written.parameter_groups() for parameter in group["params"]]
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in written.parameters()}
    start = misfit(written, simulator, observed)
    gradients = torch.autograd.grad(start, parameters)
    # Each parameter moves in proportion to what is usual for its kind, so that every one of them shows in the misfit.
    directions = [
        torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale(parameter)
        for parameter in parameters
    ]
    slope = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, directions, strict=True))
    assert slope != 0.0
    before = [parameter.detach().clone() for parameter in parameters]
    rests = []
    for step in STEPS:
        with torch.no_grad():
            for parameter, value, way in zip(parameters, before, directions, strict=True):
                parameter.copy_(value + step * way)
            rests.append(abs(float(misfit(written, simulator, observed)) - float(start.detach()) - step * slope))
    order = np.polyfit(np.log(STEPS), np.log(rests), 1)[0]
    assert order == pytest.approx(2.0, abs=0.05)


def scale(parameter: torch.Tensor) -> float:
    """Return 10 m/s for velocities, 0.01 for everything else."""
    return 10.0 if parameter.shape == SHAPE else 0.01


def test_the_taylor_test_can_fail(simulator: Simulator) -> None:
    """A gradient 2 % too large leaves a remainder of order one."""
    velocity = build("pixel")().detach()
    observed = simulator.predict(velocity * 1.02, [0])
    velocity.requires_grad_()
    start = l2(simulator.predict(velocity, [0]), observed)
    (gradient,) = torch.autograd.grad(start, velocity)
    way = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 10.0
    slope = float((1.02 * gradient * way).sum())
    with torch.no_grad():
        rests = [
            abs(float(l2(simulator.predict(velocity + step * way, [0]), observed) - start) - step * slope)
            for step in STEPS
        ]
    assert np.polyfit(np.log(STEPS), np.log(rests), 1)[0] < 1.5
