"""The 3x3 convolution as a torch operation."""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.winograd import cpu
from hpfwi_kernels.winograd.tiles import SIDE

WORTH_IT = 0.5
"""Largest share of a plain convolution's products at which the transforms pay."""
FEWEST_TILES = 24
"""Of a batch; below, evaluating the filters costs more than the products save."""


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.conv2d(x, weight, bias, padding=1) for 3x3 filters, by about a third of the products.

    x         [sample, input, row, column]      weight   [output, input, 3, 3]      bias   [output] or None
    returns   [sample, output, row, column], differentiable once in every tensor

    Sums differ from torch's by rounding, relative 1e-6 in float32. Where there is no kernel (a GPU, half precision,
    autocast) or none that pays (small maps, few channels), this is torch's own convolution.
    """
    if not compiled(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    result: Tensor = _convolution(x, weight, bias)
    return result


def compiled(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled loops take this layer, and are worth it."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype:
        return False
    if x.dim() != 4 or 0 in x.shape or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        return False
    if weight.shape[0] % cpu.CHANNELS or weight.shape[1] % cpu.CHANNELS or torch.is_autocast_enabled("cpu"):
        return False
    rows, columns = x.shape[2:]
    tiles = -(-rows // SIDE) * (-(-columns // SIDE) + 1)
    products = (SIDE + 2) ** 2 * tiles
    return products <= WORTH_IT * 9 * rows * columns and x.shape[0] * tiles >= FEWEST_TILES


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("hpfwi::convolution_3x3", mutates_args=(), device_types="cpu")
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    offset = None if bias is None else _array(bias)
    return torch.from_numpy(cpu.forward(_array(x), _array(weight), offset, threads=torch.get_num_threads()))


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


@torch.library.custom_op("hpfwi::convolution_3x3_gradient", mutates_args=(), device_types="cpu")
def _convolution_gradient(
    x: Tensor, weight: Tensor, gradient: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where not wanted."""
    parts = cpu.gradient(
        _array(x),
        _array(weight),
        _array(gradient),
        wants_x=wants_x,
        wants_weight=wants_weight,
        threads=torch.get_num_threads(),
    )
    x_gradient, weight_gradient, bias_gradient = (torch.from_numpy(part) for part in parts)
    return x_gradient, weight_gradient, bias_gradient


@_convolution_gradient.register_fake
def _(x: Tensor, weight: Tensor, gradient: Tensor, wants_x: bool, wants_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        weight.new_empty(weight.shape if wants_weight else (0,)),
        weight.new_empty((weight.shape[0] if wants_weight else 0,)),
    )


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _convolution_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    parts = _convolution_gradient(x, weight, gradient, wants_x, wants_weight or wants_bias)
    return tuple(part if wanted else None for part, wanted in zip(parts, ctx.needs_input_grad, strict=True))


_convolution.register_autograd(_convolution_backward, setup_context=_keep_inputs)
