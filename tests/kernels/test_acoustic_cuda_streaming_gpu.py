"""The streaming kernels on a GPU, for models small enough that on-chip kernels would take them: against the
reference."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi_kernels.acoustic import Memory, Scheme, cuda, off_grid, propagate
from tests.kernels.cuda_on_cpu import Survey, right_answers

CASES: dict[str, dict[str, Any]] = {
    "2-D": {},
    "2-D order 8": {"order": 8, "store_every": 3},
    "2-D order 2 free surface": {"order": 2, "free_surface": True, "absorbing": (0, 5, 4, 7, 3, 6)},
    "2-D sponge": {"boundary": "sponge", "order": 6},
    "2-D a sponge for each model": {"boundary": "sponge", "min_velocity_mps": (1500.0, 800.0)},
    "3-D": {"dimensions": 3},
    "3-D order 8": {"dimensions": 3, "order": 8, "store_every": 3},
    "3-D order 2 free surface": {
        "dimensions": 3, "order": 2, "free_surface": True, "absorbing": (0, 5, 4, 7, 3, 6),
    },
    "3-D a sponge for each model": {
        "dimensions": 3, "boundary": "sponge", "order": 6, "min_velocity_mps": (1500.0, 800.0),
    },
}  # fmt: skip
RING = Memory(mode="boundary")
SHAPES = {2: (70, 266), 3: (40, 36, 133)}


def survey_of(name: str) -> Survey:
    changes = dict(CASES[name])
    dimensions = changes.pop("dimensions", 2)
    base: dict[str, Any] = {
        "spacing_m": (10.0, 11.0, 12.0)[:dimensions], "dt_s": 1.2e-3, "order": 4, "absorbing": (6, 5, 4, 7, 3, 6),
        "boundary": "cpml", "free_surface": False, "pml_hz": 20.0, "max_velocity_mps": 2500.0,
        "min_velocity_mps": 1500.0,
    }  # fmt: skip
    settings = base | changes
    scheme = Scheme(**(settings | {"absorbing": settings["absorbing"][: 2 * dimensions]}))
    shape, rng = SHAPES[dimensions], np.random.default_rng(3)
    places = [rng.uniform(0.0, np.array(shape) - 1, (2, count, dimensions)) for count in (3, 9)]
    sources, receivers = (off_grid(place, shape, free_surface=scheme.free_surface) for place in places)
    models = (2, *shape) if len(scheme.sponges_mps) > 1 else shape
    velocity = rng.uniform(1500.0, 2500.0, models)
    return Survey(scheme, velocity, rng.standard_normal((2, 3, 50)), sources, receivers)


@functools.cache
def right_of(name: str) -> tuple[torch.Tensor, ...]:
    """By the reference, which needs no compiler."""
    records, velocity, wavelet, _ = right_answers(survey_of(name))
    return tuple(map(torch.from_numpy, (records, velocity, wavelet)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("memory", [Memory(), Memory(mode="checkpoint"), Memory(half=True), RING], ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_streaming_on_a_gpu(name: str, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    streaming = cuda.Choice("X", None, 0, "asked for by a test")
    monkeypatch.setattr(cuda, "choose", lambda *_, **__: streaming)
    survey = survey_of(name)
    results = []
    for _ in range(2):
        leaves = [
            torch.tensor(one, dtype=torch.float32, device="cuda").requires_grad_()
            for one in (survey.velocity, survey.wavelet)
        ]
        points = survey.sources, survey.receivers
        records = propagate(leaves[0], leaves[1], *points, survey.scheme, memory=memory)
        results.append((records, *torch.autograd.grad(0.5 * records.square().sum(), leaves)))
    bounds = (1e-5, 2**-7 if memory.half else 1e-5, 1e-5)
    for found, again, right, bound in zip(*results, right_of(name), bounds, strict=True):
        assert torch.equal(found, again)
        if memory is RING and right.shape == survey.velocity.shape:  # nothing from the layers and what they reach
            reach = survey.scheme.radius + 1
            inner = (..., *(slice(reach, -reach),) * survey.scheme.dimensions)
            found, right = found[inner], right[inner]
        assert torch.linalg.norm(found.double().cpu() - right) < bound * torch.linalg.norm(right)
