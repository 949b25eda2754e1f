"""Batch norm with its activation: its definition, torch's layers, its op, and when torch does the work."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.batch_norm import cpu, normalised_activation, op, reference
from hpfwi_kernels.errors import KernelError

EPSILON = 1e-5


def arrays(shape: tuple[int, ...], dtype: Any = np.float64) -> tuple[NDArray, ...]:
    """Map far from zero, weight, bias, slope and output gradient."""
    random = np.random.default_rng(sum(shape))
    vectors = [random.standard_normal(shape[1]).astype(dtype) for _ in range(3)]
    x = (3 * random.standard_normal(shape) + 7).astype(dtype)
    return x, *vectors, random.standard_normal(shape).astype(dtype)


def results(module: Any, values: tuple[NDArray, ...], **options: Any) -> list[NDArray]:
    """Result, mean, variance and the four gradients."""
    *inputs, gradient = values
    forward = module.forward(*inputs, EPSILON, **options)
    kept = () if module is reference else forward[1:]
    return [*forward, *module.gradient(*inputs, EPSILON, gradient, *kept, **options)]


def torch_layers(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None) -> Tensor:
    """What the op stands for."""
    out = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, EPSILON)
    return torch.relu(out) if slope is None else torch.nn.functional.prelu(out, slope)


@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 2, 1, 3), (4, 1, 16, 33)])
@pytest.mark.parametrize("threads", [1, 3])
def test_result_and_gradients_are_those_of_the_definition(shape: tuple[int, ...], threads: int) -> None:
    values = arrays(shape)
    found, right = results(cpu, values, threads=threads), results(reference, values)
    for part, expected in zip(found, right, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_float32_is_as_exact_as_torch_far_from_zero() -> None:
    values = arrays((4, 6, 20, 31), np.float32)
    right = results(reference, values)
    found = results(cpu, values)
    x, weight, bias, slope, gradient = (torch.from_numpy(value).requires_grad_() for value in values)
    out = torch_layers(x, weight, bias, slope)
    peer = [out.detach(), *torch.autograd.grad(out, (x, weight, bias, slope), gradient)]

    def distance(part: NDArray, expected: NDArray) -> float:
        return float(np.linalg.norm(part - expected) / np.linalg.norm(expected))

    own = [distance(part, expected) for part, expected in zip(found, right, strict=True)]
    assert max(own) < 2e-6
    assert own[0] < 1.5 * distance(peer[0].numpy(), right[0])


def test_the_bits_do_not_depend_on_threads() -> None:
    values = arrays((5, 7, 9, 10), np.float32)
    one, three = (results(cpu, values, threads=threads) for threads in (1, 3))
    for part, other in zip(one, three, strict=True):
        assert np.array_equal(part, other)


def test_half_precision_is_refused_by_the_loops() -> None:
    x, weight, bias, slope, _ = arrays((2, 3, 4, 5))
    with pytest.raises(KernelError, match="float16; give float32 or float64"):
        cpu.forward(x.astype(np.float16), weight, bias, slope, EPSILON)


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Map, weight, bias and slope that want gradients."""
    return [torch.from_numpy(value).to(dtype).requires_grad_() for value in arrays((3, 4, 6, 5))[:4]]


@pytest.mark.parametrize("slope", [True, False])
def test_the_op_gives_torchs_values_and_gradients(slope: bool) -> None:
    x, weight, bias, steep = tensors()
    wanted = [x, weight, bias, steep] if slope else [x, weight, bias]
    inputs = (x, weight, bias, steep if slope else None)
    own, mean, variance = normalised_activation(*inputs, EPSILON)
    peer = torch_layers(*inputs)
    torch.testing.assert_close(own, peer, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean, x.mean(dim=(0, 2, 3)).detach())
    torch.testing.assert_close(variance, x.var(dim=(0, 2, 3), correction=0).detach())
    random = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part, right in zip(*(torch.autograd.grad(y, wanted, random) for y in (own, peer)), strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-11)


def test_a_nan_is_not_lost() -> None:
    x, weight, bias, _ = (value.detach() for value in tensors())
    x[0, 1, 2, 3] = torch.nan
    out = normalised_activation(x, weight, bias, None, EPSILON)[0]
    assert bool(out[:, 1].isnan().all())
    assert not bool(out[:, [0, 2, 3]].isnan().any())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_half_precision_and_other_devices_are_left_to_torch(device: str) -> None:
    x, weight, bias, slope = (value.detach() for value in tensors(torch.float32))
    low = x.bfloat16().to(device)
    out, mean, _ = normalised_activation(low, weight.to(device), bias.to(device), slope.to(device), EPSILON)
    assert out.dtype == torch.bfloat16
    assert (out.shape, mean.shape) == (x.shape, weight.shape)
    if device == "cpu":
        exact = normalised_activation(low.float(), weight, bias, slope, EPSILON)[0]
        assert float((out.float() - exact).norm() / exact.norm()) < 2e-2


def test_the_op_is_registered_as_torch_wants_it() -> None:
    torch.library.opcheck(op._normalised, (*tensors(), EPSILON))


def test_compilers_see_through_the_op() -> None:
    values = tensors(torch.float32)
    torch._dynamo.reset()
    x, weight, bias, slope = values
    compiled = torch.compile(normalised_activation, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        *(layers(x, weight, bias, slope, EPSILON) for layers in (compiled, normalised_activation)), strict=True
    ):
        assert torch.equal(one, other)
