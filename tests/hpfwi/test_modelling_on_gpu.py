"""Where gathers are computed: on the GPU of this process if it has one, and with the CPU's numbers."""

import numpy as np
import pytest
import torch

from hpfwi.physics import modelling
from hpfwi.physics.grid import Grid
from hpfwi.physics.modelling import ModellingSettings, Simulator
from hpfwi.physics.survey import Survey


def simulator() -> Simulator:
    grid = Grid(shape=(30, 40), spacing_m=(10.0, 10.0))
    sources = np.array([[[20.0, 50.0]], [[20.0, 300.0]]])
    receivers = np.tile(np.stack([np.full(8, 10.0), np.linspace(0.0, 390.0, 8)], axis=1), (2, 1, 1))
    survey = Survey(sources_m=sources, receivers_m=receivers, samples=120, dt_s=1e-3)
    time_s = np.arange(120) * 1e-3 - 0.04
    phase = (np.pi * 25.0 * time_s) ** 2
    wavelet = np.tile(((1 - 2 * phase) * np.exp(-phase)).astype(np.float32), (2, 1, 1))
    return Simulator(grid, survey, wavelet, ModellingSettings(order=4), 2500.0)


def gradient(work: Simulator) -> tuple[torch.Tensor, torch.Tensor]:
    velocity = torch.linspace(1500.0, 2500.0, 1200).reshape(30, 40).requires_grad_()
    gathers = work.predict(velocity, [0, 1])
    (found,) = torch.autograd.grad(gathers.square().sum(), velocity)
    assert gathers.device == found.device == velocity.device
    return gathers.detach(), found


def test_a_process_without_a_usable_gpu_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelling, "gpus_usable", lambda: False)
    assert simulator().device == torch.device("cpu")
    monkeypatch.setattr(modelling, "gpus_usable", lambda: True)
    assert simulator().device == torch.device("cuda")


@pytest.mark.skipif(not modelling.gpus_usable(), reason="needs an NVIDIA GPU and CuPy")
def test_gathers_and_gradients_of_a_gpu_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gradient(simulator())
    monkeypatch.setattr(modelling, "gpus_usable", lambda: False)
    for one, right in zip(found, gradient(simulator()), strict=True):
        assert torch.linalg.norm(one - right) < 1e-5 * torch.linalg.norm(right)
