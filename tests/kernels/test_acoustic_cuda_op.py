"""The operation as torch sees it: its own checks, compiled graphs, and a GPU where there is one."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpfwi_kernels.acoustic import Memory, Scheme, off_grid, propagate
from hpfwi_kernels.acoustic import op as acoustic_op
from hpfwi_kernels.errors import ModelError
from tests.kernels.cuda_on_cpu import Survey, right_answers

SHAPE = (12, 14)
RING = Memory(mode="boundary")
SHOTS = 2
SAMPLES = 40


def inputs(**changes: Any) -> tuple[Any, ...]:
    rng = np.random.default_rng(9)
    settings: dict[str, Any] = {
        "spacing_m": (10.0, 12.0), "dt_s": 1.4e-3, "order": 4, "absorbing": (5, 4, 6, 4), "boundary": "cpml",
        "free_surface": False, "pml_hz": 20.0, "max_velocity_mps": 2500.0, "min_velocity_mps": 1500.0,
    }  # fmt: skip
    scheme = Scheme(**(settings | changes))
    places = [rng.uniform(1.0, [SHAPE[0] - 1, SHAPE[1] - 1], (SHOTS, count, 2)) for count in (2, 3)]
    places[0][1, 1] = places[0][1, 0]  # two sources on the same cells
    points = [off_grid(place, SHAPE, free_surface=scheme.free_surface) for place in places]
    models = (SHOTS, *SHAPE) if len(scheme.sponges_mps) > 1 else SHAPE
    velocity = torch.tensor(rng.uniform(1500.0, 2500.0, models), dtype=torch.float32)
    wavelet = torch.tensor(rng.standard_normal((SHOTS, 2, SAMPLES)), dtype=torch.float32)
    return velocity, wavelet, points[0], points[1], scheme


EACH = {"boundary": "sponge", "min_velocity_mps": (1500.0, 800.0)}
"""A sponge for each model."""


@pytest.mark.parametrize("changes", [{}, EACH], ids=["cpml", "sponges"])
def test_the_operation_passes_torchs_own_checks(changes: dict[str, Any]) -> None:
    velocity, wavelet, sources, receivers, scheme = inputs(**changes)
    points = [torch.from_numpy(array) for one in (sources, receivers) for array in (one.cells, one.weights)]
    arguments = (
        velocity.requires_grad_(), wavelet.requires_grad_(), *points,
        *acoustic_op._plain(SHAPE, scheme, Memory()), 1, True,
    )  # fmt: skip
    torch.library.opcheck(acoustic_op._acoustic, arguments)


@pytest.mark.parametrize("changes", [{}, EACH], ids=["cpml", "sponges"])
def test_a_compiled_graph_is_whole_and_gives_the_same_numbers(changes: dict[str, Any]) -> None:
    velocity, wavelet, *rest = inputs(**changes)

    def misfit(model: Tensor, drive: Tensor) -> Tensor:
        return propagate(2.0 * model, drive, *rest).square().sum()

    results = []
    for function in (misfit, torch.compile(misfit, fullgraph=True, backend="aot_eager")):
        model, drive = (0.5 * velocity).requires_grad_(), wavelet.clone().requires_grad_()
        value = function(model, drive)
        results.append((value, *torch.autograd.grad(value, (model, drive))))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0.0)


def test_a_gpu_that_is_not_there_is_not_looked_for() -> None:
    velocity, wavelet, *rest = inputs()
    with pytest.raises(
        ModelError, match="velocity is on cpu and wavelet is on meta; put both on the CPU or on one GPU"
    ):
        propagate(velocity, wavelet.to("meta"), *rest)


CHANGES: dict[str, dict[str, Any]] = {
    "cpml": {},
    "order 8": {"order": 8, "store_every": 3},
    "free surface": {"order": 2, "free_surface": True, "absorbing": (0, 4, 6, 4), "substeps": 2},
    "sponge": {"boundary": "sponge", "order": 6},
    "sponges": EACH,
}


@functools.cache
def right_of(name: str) -> tuple[Tensor, ...]:
    """By the reference, which needs no compiler."""
    velocity, wavelet, sources, receivers, scheme = inputs(**CHANGES[name])
    survey = Survey(scheme, velocity.double().numpy(), wavelet.double().numpy(), sources, receivers)
    return tuple(map(torch.from_numpy, right_answers(survey)[:3]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("memory", [Memory(), Memory(mode="checkpoint"), Memory(half=True), RING], ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_the_operation_on_a_gpu(name: str, memory: Memory) -> None:
    pytest.importorskip("cupy")
    velocity, wavelet, *rest = inputs(**CHANGES[name])
    results = []
    for _ in range(2):
        leaves = [one.to("cuda").requires_grad_() for one in (velocity, wavelet)]
        records = propagate(*leaves, *rest, memory=memory)
        results.append((records, *torch.autograd.grad(0.5 * records.square().sum(), leaves)))
    bounds = (5e-6, 2**-7 if memory.half else 1e-5, 1e-5)
    for found, again, right, bound in zip(*results, right_of(name), bounds, strict=True):
        assert torch.equal(found, again)
        if memory is RING and right.shape == velocity.shape:  # nothing from the layers and what they reach
            edge = rest[-1].radius + 1
            found, right = (one[..., edge:-edge, edge:-edge] for one in (found, right))
        assert torch.linalg.norm(found.double().cpu() - right) < bound * torch.linalg.norm(right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("shape", "shots"), [((70, 70), 5), ((70, 70), 200), ((151, 461), 2), ((301, 921), 2)])
def test_models_of_every_class_on_a_gpu(shape: tuple[int, int], shots: int) -> None:
    """Records of a block, a cluster, a grid of blocks and, where they do not fit, of streaming kernels."""
    pytest.importorskip("cupy")
    rng = np.random.default_rng(1)
    scheme = inputs(absorbing=(20, 20, 20, 20))[-1]
    sources = off_grid(rng.uniform(1.0, [2.0, shape[1] - 2], (shots, 1, 2)), shape, free_surface=False)
    receivers = off_grid(rng.uniform(1.0, [2.0, shape[1] - 2], (shots, 20, 2)), shape, free_surface=False)
    velocity = torch.tensor(rng.uniform(1500.0, 2500.0, shape), dtype=torch.float32)
    wavelet = torch.tensor(rng.standard_normal((shots, 1, 60)), dtype=torch.float32)
    found, right = (
        propagate(velocity.to(device), wavelet.to(device), sources, receivers, scheme, threads=2).cpu()
        for device in ("cuda", "cpu")
    )
    assert torch.linalg.norm(found - right) < 1e-5 * torch.linalg.norm(right)
