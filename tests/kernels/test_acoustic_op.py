"""The torch op: gradients against finite differences, graphs that use it twice, and no storage where none is wanted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpfwi_kernels.acoustic import Scheme, cpu, off_grid, propagate
from hpfwi_kernels.errors import ModelError

SHAPE = (6, 7)
SAMPLES = 30
DT_S = 1.6e-3

Inputs = tuple[Any, ...]  # velocity, wavelet, sources, receivers, scheme


def inputs(dtype: torch.dtype = torch.float64, **options: Any) -> Inputs:
    rng = np.random.default_rng(71)
    base: dict[str, Any] = {"absorbing": (3, 4, 2, 3), "free_surface": False}
    scheme = Scheme(
        spacing_m=(10.0, 12.0),
        dt_s=DT_S,
        order=4,
        boundary="cpml",
        pml_hz=20.0,
        max_velocity_mps=2500.0,
        **(base | options),
    )
    places = [rng.uniform(0.0, [SHAPE[0] - 1, SHAPE[1] - 1], (2, count, 2)) for count in (1, 3)]
    points = [off_grid(place, SHAPE, free_surface=scheme.free_surface) for place in places]
    velocity = torch.tensor(rng.uniform(1500.0, 2500.0, SHAPE), dtype=dtype)
    wavelet = torch.tensor(rng.standard_normal((2, 1, SAMPLES)), dtype=dtype)
    return velocity, wavelet, points[0], points[1], scheme


@pytest.mark.parametrize(
    "options",
    [{}, {"absorbing": (0, 4, 2, 3), "free_surface": True}, {"substeps": 2}],
    ids=["cpml", "free-surface", "substeps"],
)
def test_gradients_equal_finite_differences(options: dict[str, Any]) -> None:
    velocity, wavelet, *rest = inputs(**options)

    def scaled(relative: Tensor, drive: Tensor) -> Tensor:  # gradcheck's step of 1e-6 suits numbers near one
        return propagate(velocity * relative, drive, *rest)

    ones = torch.ones_like(velocity).requires_grad_()
    assert torch.autograd.gradcheck(scaled, (ones, wavelet.requires_grad_()), rtol=1e-5, atol=1e-6, fast_mode=True)


def test_one_model_per_shot_is_differentiable() -> None:
    velocity, wavelet, *rest = inputs()
    both = torch.stack([velocity, 1.02 * velocity])

    def scaled(relative: Tensor) -> Tensor:
        return propagate(both * relative, wavelet, *rest)

    assert torch.autograd.gradcheck(
        scaled, torch.ones_like(both).requires_grad_(), rtol=1e-5, atol=1e-6, fast_mode=True
    )


def test_gradient_flows_through_a_graph_that_uses_the_op_twice() -> None:
    velocity, wavelet, *rest = inputs()
    velocity.requires_grad_()
    first, second = propagate(velocity, wavelet, *rest), propagate(velocity, 2.0 * wavelet, *rest)
    (first.square().sum() + second.square().sum()).backward()
    together = velocity.grad
    assert together is not None
    alone = torch.autograd.grad(propagate(velocity, wavelet, *rest).square().sum(), velocity)[0]
    torch.testing.assert_close(together, 5.0 * alone, rtol=1e-12, atol=0.0)


def test_backward_can_run_again_when_the_graph_is_kept() -> None:
    velocity, wavelet, *rest = inputs()
    velocity.requires_grad_()
    misfit = propagate(velocity, wavelet, *rest).square().sum()
    once = torch.autograd.grad(misfit, velocity, retain_graph=True)[0]
    again = torch.autograd.grad(misfit, velocity)[0]
    assert torch.equal(once, again)


def test_an_expanded_record_gradient_is_understood() -> None:
    """sum() hands back a gradient with strides of zero."""
    velocity, wavelet, *rest = inputs()
    velocity.requires_grad_()
    summed = torch.autograd.grad(propagate(velocity, wavelet, *rest).sum(), velocity)[0]
    weighted = propagate(velocity, wavelet, *rest)
    full = torch.autograd.grad(weighted, velocity, torch.ones_like(weighted))[0]
    assert torch.equal(summed, full)


def test_inputs_that_are_not_contiguous_give_the_same_bits() -> None:
    velocity, wavelet, *rest = inputs(torch.float32)
    strided = velocity.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(propagate(strided, wavelet.flip(-1).flip(-1), *rest), propagate(velocity, wavelet, *rest))


@pytest.fixture
def storing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every forward call was told about storing."""
    told: list[bool] = []
    forward: Callable[..., Any] = cpu.forward

    def spy(*args: Any, store: bool, **kwargs: Any) -> Any:
        told.append(store)
        return forward(*args, store=store, **kwargs)

    monkeypatch.setattr(cpu, "forward", spy)
    return told


def test_nothing_is_stored_where_no_gradient_is_wanted(storing: list[bool]) -> None:
    velocity, wavelet, *rest = inputs()
    records = propagate(velocity, wavelet, *rest)
    with torch.no_grad():
        propagate(velocity.clone().requires_grad_(), wavelet, *rest)
    assert storing == [False, False]
    assert not records.requires_grad


def test_only_the_gradients_asked_for_come_back(storing: list[bool]) -> None:
    velocity, wavelet, *rest = inputs()
    wavelet.requires_grad_()
    propagate(velocity, wavelet, *rest).sum().backward()
    assert velocity.grad is None
    assert wavelet.grad is not None
    velocity.requires_grad_()
    propagate(velocity, wavelet.detach(), *rest).sum().backward()
    assert velocity.grad is not None
    assert storing[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_of_the_velocity_is_kept(dtype: torch.dtype) -> None:
    velocity, wavelet, *rest = inputs(dtype)
    velocity.requires_grad_()
    records = propagate(velocity, wavelet, *rest)
    records.sum().backward()
    assert records.dtype == dtype
    assert velocity.grad is not None
    assert velocity.grad.dtype == dtype


def test_threads_do_not_change_the_bits() -> None:
    velocity, wavelet, *rest = inputs(torch.float32)
    assert torch.equal(propagate(velocity, wavelet, *rest), propagate(velocity, wavelet, *rest, threads=2))


def test_mixed_precision_is_refused() -> None:
    velocity, wavelet, *rest = inputs()
    with pytest.raises(ModelError, match=r"torch.float32 and wavelet is torch.float64; give both the same"):
        propagate(velocity.float(), wavelet, *rest)
    with pytest.raises(ModelError, match="give float32 or float64"):
        propagate(velocity.half(), wavelet.half(), *rest)
