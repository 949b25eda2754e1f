"""Batch norm with its activation as a torch operation."""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.batch_norm import cpu


def normalised_activation(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm over samples and positions and, behind it, a ReLU or a PReLU with a slope for each channel.

    x         [sample, channel, row, column]      weight, bias   [channel]
    slope     [channel], or None for a ReLU
    returns   the result, differentiable once in every tensor; and mean and (biased) variance of every channel, for
              running statistics, which are not differentiable

    Of what the two layers keep for the gradient one map is left, x. Where there is no kernel (a GPU, half precision),
    torch's own operations do the work.
    """
    if not compiled(x, weight):
        out = F.batch_norm(x, None, None, weight, bias, True, 0.0, epsilon)
        variance, mean = torch.var_mean(x.detach().to(weight.dtype), dim=(0, 2, 3), correction=0)
        return F.relu(out) if slope is None else F.prelu(out, slope.to(out.dtype)), mean, variance
    out, mean, variance = _normalised(
        x, weight, bias, weight.new_zeros(len(weight)) if slope is None else slope, epsilon
    )
    return out, mean.to(weight.dtype), variance.to(weight.dtype)


def compiled(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled loops take this map."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dtype == weight.dtype


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("hpfwi::normalised_activation", mutates_args=(), device_types="cpu")
def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, and float64 mean and variance."""
    threads = torch.get_num_threads()
    out, mean, variance = cpu.forward(_array(x), _array(weight), _array(bias), _array(slope), epsilon, threads=threads)
    return torch.from_numpy(out), torch.from_numpy(mean), torch.from_numpy(variance)


@_normalised.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty((x.shape[1],), dtype=torch.float64) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, variance


@torch.library.custom_op("hpfwi::normalised_activation_gradient", mutates_args=(), device_types="cpu")
def _normalised_gradient(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, epsilon: float, gradient: Tensor, mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and slope."""
    parts = cpu.gradient(
        _array(x), _array(weight), _array(bias), _array(slope), epsilon, _array(gradient), _array(mean),
        _array(variance), threads=torch.get_num_threads(),
    )  # fmt: skip
    of_x, of_weight, of_bias, of_slope = (torch.from_numpy(part) for part in parts)
    return of_x, of_weight, of_bias, of_slope


@_normalised_gradient.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, epsilon: float, gradient: Tensor, mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return of_x, weight.new_empty(weight.shape), bias.new_empty(bias.shape), slope.new_empty(slope.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope, mean, variance = ctx.saved_tensors
    parts = _normalised_gradient(x, weight, bias, slope, ctx.epsilon, gradient, mean, variance)
    return *(part if wanted else None for part, wanted in zip(parts, ctx.needs_input_grad[:4], strict=True)), None


_normalised.register_autograd(_backward, setup_context=_keep)
