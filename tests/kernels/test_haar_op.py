"""The wavelet convolution as a torch op: the published layer, its gradients, precisions, compilation and errors."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.haar import eager_wavelet_convolution, inverse, op, transform, wavelet_convolution

CHANNELS = 2


def tensors(
    shape: tuple[int, int], dtype: torch.dtype, levels: int = 1, k: int = 3, samples: int = 2
) -> tuple[Any, ...]:
    """Arguments of wavelet_convolution, scales in the shapes that the published layer keeps them in."""
    generator = torch.Generator().manual_seed(3)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return (
        random(samples, CHANNELS, *shape),
        random(CHANNELS, 1, k, k),
        random(CHANNELS),
        random(1, CHANNELS, 1, 1),
        [random(4 * CHANNELS, 1, k, k) for _ in range(levels)],
        [random(1, 4 * CHANNELS, 1, 1) for _ in range(levels)],
    )


def leaves(arguments: tuple[Any, ...]) -> list[Tensor]:
    *single, weights, scales = arguments
    return [*single, *weights, *scales]


@pytest.mark.parametrize(("shape", "levels"), [((7, 10), 1), ((12, 9), 2), ((5, 5), 0)])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_result_and_every_gradient_equal_those_of_the_published_layer(
    shape: tuple[int, int], levels: int, wavelet: str
) -> None:
    arguments = tensors(shape, torch.float64, levels)
    out, peer = (f(*arguments, wavelet=wavelet) for f in (wavelet_convolution, eager_wavelet_convolution))
    torch.testing.assert_close(out, peer, rtol=0, atol=1e-13)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    own, expected = (torch.autograd.grad(y, leaves(arguments), weight) for y in (out, peer))
    for part, right in zip(own, expected, strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    arguments = tensors((4, 5), torch.float64)

    def layer(*flat: Tensor) -> Tensor:
        x, base, bias, scale, bands, band_scales = flat
        return wavelet_convolution(x, base, bias, scale, [bands], [band_scales])

    assert torch.autograd.gradcheck(layer, leaves(arguments), fast_mode=True)
    x = arguments[0]
    assert torch.autograd.gradcheck(transform, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda y: inverse(transform(y), (4, 5)), (x,), fast_mode=True)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ops_are_registered_as_torch_wants_them(bias: bool) -> None:
    x, base, offset, *_ = tensors((5, 6), torch.float64)
    bands = torch.randn(1, CHANNELS, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    filters = base.detach().reshape(CHANNELS, 3, 3).requires_grad_()
    torch.library.opcheck(op._convolution, (x, filters, offset if bias else None, bands, "haar"))
    if bias:
        torch.library.opcheck(op._transform, (x, "haar"))
        torch.library.opcheck(op._inverse, (op._transform(x.detach(), "haar").requires_grad_(), 5, 6, "haar"))


def test_only_the_gradients_that_are_asked_for() -> None:
    arguments = tensors((5, 6), torch.float64)
    for argument in leaves(arguments)[1:]:
        argument.requires_grad_(False)
    wavelet_convolution(*arguments).sum().backward()
    grown = [argument.grad is not None for argument in leaves(arguments)]
    assert grown == [True] + [False] * (len(grown) - 1)


def test_no_bias_and_no_scales() -> None:
    x, base, _, _, weights, _ = tensors((6, 5), torch.float64)
    ones = torch.ones(4 * CHANNELS, dtype=torch.float64)
    plain = wavelet_convolution(x, base, None, None, weights, None)
    scaled = wavelet_convolution(x, base, torch.zeros(2).double(), torch.ones(2).double(), weights, [ones])
    assert torch.equal(plain, scaled)


def test_low_precision_rounds_once_where_the_published_layer_rounds_often() -> None:
    """bfloat16 in, float32 weights and sums, bfloat16 out: half a unit of the last place away from float32."""
    x, *weights = tensors((9, 10), torch.float32, k=5)
    low = x.detach().bfloat16().requires_grad_()
    exact = wavelet_convolution(low.detach().float(), *weights)
    with torch.autocast("cpu", torch.bfloat16):
        out = wavelet_convolution(low, *weights)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    out.float().square().sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    assert weights[0].grad is not None
    assert weights[0].grad.dtype == torch.float32


def test_the_layer_compiles_into_one_graph() -> None:
    arguments = tensors((6, 7), torch.float64)

    def loss(*flat: Tensor) -> Tensor:
        x, base, bias, scale, bands, band_scales = flat
        return wavelet_convolution(x, base, bias, scale, [bands], [band_scales]).square().sum()

    graph = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = leaves(arguments)
    own, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (graph, loss))
    for part, right in zip(own, expected, strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-10)
    torch._dynamo.reset()


def test_looking_for_a_gpu_does_not_break_a_graph() -> None:
    def layer(x: Tensor) -> Tensor:
        return x + 1 if op._gpu_is_usable() else x - 1

    torch._dynamo.reset()
    graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(graph(torch.ones(2)), layer(torch.ones(2)))
    torch._dynamo.reset()


@pytest.mark.parametrize("autocast", [False, True])
def test_on_the_meta_device_shapes_and_precision_are_those_of_a_real_layer(autocast: bool) -> None:
    real = tensors((7, 10), torch.bfloat16)
    meta: list[Any] = [
        argument.to("meta") if isinstance(argument, Tensor) else [part.to("meta") for part in argument]
        for argument in real
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, peer = wavelet_convolution(*meta), wavelet_convolution(*real)
    assert (out.shape, out.dtype, out.device.type) == (peer.shape, peer.dtype, "meta")
    assert torch.autograd.grad(out.sum(), meta[0])[0].shape == real[0].shape


def test_filters_without_a_kernel_use_torch() -> None:
    arguments = tensors((6, 7), torch.float64, k=9)
    assert not op.compiled(arguments[0], 9)
    assert torch.equal(wavelet_convolution(*arguments), eager_wavelet_convolution(*arguments))


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (2, 6, 7), "x has shape (2, 6, 7); give [sample, channel, row, column]"),
        (1, (2, 1, 4, 4), "base_weight has shape (2, 1, 4, 4); give (2, 1, k, k) with k odd for 2 channels"),
        (2, (3,), "base_bias has shape (3,); give (2,) or None"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(place: int, shape: tuple[int, ...], message: str) -> None:
    arguments = list(tensors((6, 7), torch.float64))
    arguments[place] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(KernelError, match=re.escape(message)):
        wavelet_convolution(*arguments)


def test_bands_that_do_not_fit_are_refused() -> None:
    arguments = list(tensors((6, 7), torch.float64))
    arguments[4] = [torch.zeros(8, 1, 5, 5, dtype=torch.float64)]
    with pytest.raises(KernelError, match=re.escape("A band weight has shape (8, 1, 5, 5); give (8, 1, 3, 3)")):
        wavelet_convolution(*arguments)
    with pytest.raises(KernelError, match="planes of 6 x 7 need"):
        inverse(torch.zeros(1, 1, 4, 3, 3), (6, 7))
