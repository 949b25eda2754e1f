"""The pooling as a torch op: the published layer, its gradients with ties, precisions, compilation and errors."""

import pytest
import torch
from torch import Tensor

from hpfwi_kernels.dct_pool import eager_multi_frequency_pool, multi_frequency_pool, op, published_frequencies
from hpfwi_kernels.errors import KernelError


def planes(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Random planes, and one of zeros, in which every cell is an extreme."""
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0, 1] = 0
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize(("shape", "side"), [((18, 17), 14), ((14, 14), 14), ((5, 9), 28), ((9, 9), 7)])
def test_results_and_gradient_equal_those_of_the_published_layer(shape: tuple[int, int], side: int) -> None:
    x, frequencies = planes(shape), published_frequencies(side)
    own, peer = multi_frequency_pool(x, frequencies, side), eager_multi_frequency_pool(x, frequencies, side)
    generator = torch.Generator().manual_seed(2)
    above = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    for part, right in zip(own, peer, strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-15)
    for weights in (above, [above[0], torch.zeros(2, 3).double(), above[2]]):
        gradient, expected = (torch.autograd.grad(parts, x, weights, retain_graph=True)[0] for parts in (own, peer))
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


def test_gradient_equals_finite_differences() -> None:
    x = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda y: multi_frequency_pool(y, published_frequencies(7), 7), (x,), fast_mode=True, eps=1e-7, atol=1e-7
    )


def test_the_op_is_registered_as_torch_wants_it() -> None:
    flat = [index for pair in published_frequencies(7) for index in pair]
    torch.library.opcheck(op._pool, (planes((6, 9)), flat, 7, True))
    torch.library.opcheck(op._pool, (planes((6, 9)).detach(), flat, 7, False))


def test_one_result_alone_has_a_gradient() -> None:
    x = planes((9, 9))
    multi_frequency_pool(x, published_frequencies(7), 7)[1].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_without_a_gradient_no_positions_are_looked_for() -> None:
    x, flat = planes((9, 9)), [0, 0, 1, 2]
    assert op._pool(x.detach(), flat, 7, False)[3].numel() == 0
    with torch.no_grad():
        assert not multi_frequency_pool(x, [(0, 0)], 7)[0].requires_grad
    blind = op._pool(x, flat, 7, False)[0].sum()
    with pytest.raises(KernelError, match="This pooling kept no positions"):
        blind.backward()


def test_low_precision_in_and_out() -> None:
    x = planes((18, 17), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        own = multi_frequency_pool(x, published_frequencies(14), 14)
    exact = multi_frequency_pool(x.detach().float(), published_frequencies(14), 14)
    for part, right in zip(own, exact, strict=True):
        assert part.dtype == torch.bfloat16
        assert torch.equal(part, right.bfloat16())
    torch.stack(own).float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_the_pooling_compiles_into_one_graph() -> None:
    def loss(x: Tensor) -> Tensor:
        mean, high, low = multi_frequency_pool(x, published_frequencies(7), 7)
        return (mean + 2 * high + 3 * low).square().sum()

    x = planes((9, 8))
    own = torch.compile(loss, backend="aot_eager", fullgraph=True)(x)
    gradient, expected = (torch.autograd.grad(value, x)[0] for value in (own, loss(x)))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)
    torch._dynamo.reset()


def test_looking_for_a_gpu_does_not_break_a_graph() -> None:
    def layer(x: Tensor) -> Tensor:
        return x + 1 if op._gpu_is_usable() else x - 1

    torch._dynamo.reset()
    graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(graph(torch.ones(2)), layer(torch.ones(2)))
    torch._dynamo.reset()


def test_on_the_meta_device_shapes_are_those_of_a_real_pooling() -> None:
    real = planes((6, 9))
    meta = real.detach().to("meta").requires_grad_()
    out, peer = (multi_frequency_pool(x, published_frequencies(7), 7) for x in (meta, real))
    for part, right in zip(out, peer, strict=True):
        assert (part.shape, part.dtype, part.device.type) == (right.shape, right.dtype, "meta")
    assert torch.autograd.grad(torch.stack(out).sum(), meta)[0].shape == real.shape


def test_what_cannot_be_pooled_is_refused() -> None:
    x = planes((9, 9))
    with pytest.raises(KernelError, match="frequencies is empty"):
        multi_frequency_pool(x, [], 7)
    with pytest.raises(KernelError, match="does not exist for side=7: give 0 to 6"):
        multi_frequency_pool(x, [(7, 0)], 7)
    with pytest.raises(KernelError, match="x has shape"):
        multi_frequency_pool(x[0], [(0, 0)], 7)
