"""The grouped 3x3 convolution as a torch operation."""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.grouped import cpu

MEMBERS = 4
"""Largest group, in channels, for which loops over pairs of planes beat torch's products of blocks of channels."""


def grouped_convolution(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """torch.nn.functional.conv2d of 3x3 filters within groups of channels, padded by the dilation, without bias.

    x         [sample, channel, row, column]
    weight    [channel, members, 3, 3]; output c sees the `members` channels of its group, c // members
    returns   [sample, channel, row, column], differentiable once in both

    Where there is no kernel (a GPU, half precision, autocast, large groups) this is torch's own convolution.
    """
    if not compiled(x, weight):
        groups = weight.shape[0] // weight.shape[1]
        return F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=groups)
    result: Tensor = _convolution(x, weight, dilation)
    return result


def compiled(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled loops take this layer, and are worth it."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype:
        return False
    fitting = x.dim() == 4 and 0 not in x.shape and tuple(weight.shape[2:]) == (3, 3) and x.shape[1] == len(weight)
    return fitting and weight.shape[1] <= MEMBERS and not torch.is_autocast_enabled("cpu")


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("hpfwi::grouped_convolution", mutates_args=(), device_types="cpu")
def _convolution(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.from_numpy(cpu.forward(_array(x), _array(weight), dilation, threads=torch.get_num_threads()))


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("hpfwi::grouped_convolution_gradient", mutates_args=(), device_types="cpu")
def _convolution_gradient(
    x: Tensor, weight: Tensor, dilation: int, gradient: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; empty where not wanted."""
    parts = cpu.gradient(
        _array(x),
        _array(weight),
        dilation,
        _array(gradient),
        wants_x=wants_x,
        wants_weight=wants_weight,
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


@_convolution_gradient.register_fake
def _(
    x: Tensor, weight: Tensor, dilation: int, gradient: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if wants_x else (0,)), weight.new_empty(weight.shape if wants_weight else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants = ctx.needs_input_grad[:2]
    parts = _convolution_gradient(x, weight, ctx.dilation, gradient, *wants)
    return *(part if wanted else None for part, wanted in zip(parts, wants, strict=True)), None


_convolution.register_autograd(_backward, setup_context=_keep)
