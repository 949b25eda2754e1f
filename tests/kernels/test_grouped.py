"""The grouped 3x3 convolution: its definition, torch's layer, its op, and when torch does the work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.grouped import cpu, grouped_convolution, op, reference

CASES = [(1, 2, (3, 8, 9, 13)), (2, 4, (2, 8, 5, 7)), (3, 1, (1, 3, 2, 4)), (2, 3, (2, 6, 1, 1))]


def arrays(members: int, shape: tuple[int, ...], dtype: Any = np.float64) -> tuple[NDArray, NDArray, NDArray]:
    """Map, weight and output gradient."""
    random = np.random.default_rng(sum(shape))
    x, gradient = (random.standard_normal(shape).astype(dtype) for _ in range(2))
    return x, random.standard_normal((shape[1], members, 3, 3)).astype(dtype), gradient


def torch_convolution(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """What the op stands for."""
    groups = len(weight) // weight.shape[1]
    return torch.nn.functional.conv2d(x, weight, padding=dilation, dilation=dilation, groups=groups)


@pytest.mark.parametrize(("dilation", "members", "shape"), CASES)
def test_definition_and_loops_are_torchs_convolution(dilation: int, members: int, shape: tuple[int, ...]) -> None:
    x, weight, gradient = arrays(members, shape)
    values = [torch.from_numpy(value).requires_grad_() for value in (x, weight)]
    peer = torch_convolution(values[0], values[1], dilation)
    right = [peer.detach(), *torch.autograd.grad(peer, values, torch.from_numpy(gradient))]
    one, three = (
        [
            cpu.forward(x, weight, dilation, threads=threads),
            *cpu.gradient(x, weight, dilation, gradient, threads=threads),
        ]
        for threads in (1, 3)
    )
    definition = [reference.forward(x, weight, dilation), *reference.gradient(x, weight, dilation, gradient)]
    for own, other, defined, expected in zip(one, three, definition, right, strict=True):
        assert np.array_equal(own, other)
        np.testing.assert_allclose(own, expected.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(defined, expected.numpy(), rtol=0, atol=1e-12)


def test_float32_rounds_as_any_sum_of_as_many_products() -> None:
    x, weight, gradient = arrays(4, (2, 8, 21, 30), np.float32)
    found = [cpu.forward(x, weight, 2), *cpu.gradient(x, weight, 2, gradient)]
    right = [reference.forward(x, weight, 2), *reference.gradient(x, weight, 2, gradient)]
    for part, expected in zip(found, right, strict=True):
        assert part.dtype == np.float32
        assert float(np.linalg.norm(part - expected) / np.linalg.norm(expected)) < 1e-6


def test_what_does_not_fit_is_refused() -> None:
    x, weight, _ = arrays(2, (1, 4, 5, 5))
    with pytest.raises(KernelError, match="float16; give float32 or float64"):
        cpu.forward(x.astype(np.float16), weight, 1)
    with pytest.raises(KernelError, match=r"shape \(3, 2, 3, 3\); give \(4, members, 3, 3\)"):
        cpu.forward(x, weight[:3], 1)


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Map and weight that want gradients."""
    x, weight, _ = (torch.from_numpy(value).to(dtype).requires_grad_() for value in arrays(2, (2, 4, 6, 5)))
    return x, weight


def test_the_op_gives_torchs_values_and_gradients() -> None:
    x, weight = tensors()
    own, peer = grouped_convolution(x, weight, 2), torch_convolution(x, weight, 2)
    torch.testing.assert_close(own, peer, rtol=0, atol=1e-13)
    random = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part, right in zip(*(torch.autograd.grad(y, (x, weight), random) for y in (own, peer)), strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_that_are_asked_for_are_computed(wanted: tuple[bool, bool]) -> None:
    values = tensors()
    for value, want in zip(values, wanted, strict=True):
        value.requires_grad_(want)
    grouped_convolution(*values).sum().backward()
    assert tuple(value.grad is not None for value in values) == wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x.bfloat16(), w.bfloat16()),
        lambda x, w: (x.to("meta"), w.to("meta")),
        lambda x, w: (x.repeat(1, 4, 1, 1), w.repeat(4, 4, 1, 1)),  # large groups
    ],
)
def test_where_there_is_no_kernel_torch_convolves(
    change: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cpu, "forward")
    x, weight = change(*(value.detach() for value in tensors()))
    own = grouped_convolution(x, weight, 3)
    assert (own.shape, own.dtype) == (x.shape, x.dtype)


def test_the_op_is_registered_as_torch_wants_it() -> None:
    torch.library.opcheck(op._convolution, (*tensors(), 2))


def test_compilers_see_through_the_op() -> None:
    values = tensors(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(grouped_convolution, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*values, 2), grouped_convolution(*values, 2), rtol=0, atol=0)
