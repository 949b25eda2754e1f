"""Pooling and bilinear resampling: their definitions, torch's layers, their ops, and when torch does the work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.resample import average_pool, bilinear, cpu, half_maximum, op, reference

SHAPES = [(2, 3, 9, 7), (1, 2, 8, 10), (1, 1, 5, 33), (1, 3, 4, 4)]
TARGETS = [(18, 14), (17, 15), (5, 3), (1, 1), (9, 40)]


def planes(shape: tuple[int, ...], dtype: Any = np.float64) -> NDArray:
    """Values of which many are equal, so that a cell has several maxima."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).round(1).astype(dtype)


def like(array: NDArray) -> NDArray:
    """A gradient in the shape and dtype of an array."""
    return np.random.default_rng(1).standard_normal(array.shape).astype(array.dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_loops_are_the_definitions(shape: tuple[int, ...], threads: int) -> None:
    x, sides = planes(shape), (shape[2], shape[3])
    for factor in (2, 3, 4):
        mean = cpu.average_pool(x, factor, threads=threads)
        np.testing.assert_allclose(mean, reference.average_pool(x, factor), rtol=0, atol=1e-14)
        np.testing.assert_allclose(
            cpu.average_pool_gradient(sides, factor, like(mean), threads=threads),
            reference.average_pool_gradient(sides, factor, like(mean)),
            rtol=0,
            atol=1e-15,
        )
    largest, chosen = cpu.half_maximum(x, threads=threads)
    assert np.array_equal(largest, reference.half_maximum(x))
    gradient = cpu.half_maximum_gradient(sides, chosen, like(largest), threads=threads)
    assert np.array_equal(gradient, reference.half_maximum_gradient(x, like(largest)))
    for target in TARGETS:
        fine = cpu.bilinear(x, target, threads=threads)
        np.testing.assert_allclose(fine, reference.bilinear(x, target), rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            cpu.bilinear_gradient(sides, like(fine), threads=threads),
            reference.bilinear_gradient(sides, like(fine)),
            rtol=0,
            atol=1e-13,
        )


OPS: list[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    ("average", lambda x: average_pool(x, 2), lambda x: torch.nn.functional.avg_pool2d(x, 2)),
    ("maximum", half_maximum, lambda x: torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)),
    (
        "bilinear",
        lambda x: bilinear(x, (11, 6)),
        lambda x: torch.nn.functional.interpolate(x, (11, 6), mode="bilinear", align_corners=False),
    ),
]


@pytest.mark.parametrize(("own", "torchs"), [case[1:] for case in OPS], ids=[case[0] for case in OPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ops_give_torchs_values_and_gradients(
    own: Callable[[Tensor], Tensor], torchs: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = torch.from_numpy(planes(SHAPES[0])).to(dtype).requires_grad_()
    one, other = own(x), torchs(x)
    # A few roundings of numbers up to 3.
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    weight = torch.randn(other.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for part, right in zip(*(torch.autograd.grad(y, x, weight) for y in (one, other)), strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=tolerance)
    graph = torch.compile(own, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(x), one)
    torch._dynamo.reset()


@pytest.mark.parametrize(("own", "torchs"), [case[1:] for case in OPS], ids=[case[0] for case in OPS])
@pytest.mark.parametrize("place", ["bfloat16", "meta"])
def test_half_precision_and_other_devices_are_left_to_torch(
    own: Callable[[Tensor], Tensor], torchs: Callable[[Tensor], Tensor], place: str
) -> None:
    x = torch.from_numpy(planes(SHAPES[0])).bfloat16()
    x = x.to("meta") if place == "meta" else x
    one, other = own(x), torchs(x)
    assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    assert place == "meta" or torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_with_shares_are_torchs_bilinear_resampling(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = torch.from_numpy(planes(shape)).to(dtype).requires_grad_()
        for target in TARGETS:
            one = op.bilinear_by_products(x, target)
            other = torch.nn.functional.interpolate(x, target, mode="bilinear", align_corners=False)
            assert one.dtype == other.dtype
            # A few roundings of numbers up to 3; gradients add up to the cells that look at one.
            tolerance = 20 * torch.finfo(dtype).eps
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
            weight = torch.randn(other.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            for part, right in zip(*(torch.autograd.grad(y, x, weight) for y in (one, other)), strict=True):
                torch.testing.assert_close(part, right, rtol=0, atol=5 * tolerance)


def test_the_last_of_several_nans_is_the_maximum_as_in_torch() -> None:
    x = torch.tensor([[[[1.0, torch.nan, 2.0], [torch.nan, 5.0, 3.0], [4.0, 4.0, torch.nan]]]], requires_grad=True)
    own, peer = half_maximum(x), torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)
    torch.testing.assert_close(own, peer, equal_nan=True)
    one, other = (torch.autograd.grad(y, x, torch.ones(1, 1, 2, 2))[0] for y in (own, peer))
    assert torch.equal(one, other)


def test_half_precision_is_refused_by_the_loops() -> None:
    with pytest.raises(KernelError, match="float16; give float32 or float64"):
        cpu.bilinear(planes(SHAPES[0]).astype(np.float16), (3, 3))


def test_the_ops_are_registered_as_torch_wants_them() -> None:
    x = torch.from_numpy(planes(SHAPES[0])).requires_grad_()
    torch.library.opcheck(op._average, (x, 2))
    torch.library.opcheck(op._maximum, (x,))
    torch.library.opcheck(op._bilinear, (x, 11, 6))
