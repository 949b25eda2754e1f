"""Pooling and resampling as torch operations."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.resample import cpu
from hpfwi_kernels.resample.plan import shares


def average_pool(x: Tensor, factor: int) -> Tensor:
    """torch.nn.functional.avg_pool2d(x, factor) of [sample, channel, row, column], differentiable once."""
    if not compiled(x) or min(x.shape[2:]) < factor:
        return F.avg_pool2d(x, factor)
    result: Tensor = _average(x, factor)
    return result


def half_maximum(x: Tensor) -> Tensor:
    """torch.nn.functional.max_pool2d(x, 2, ceil_mode=True) of [sample, channel, row, column], differentiable once."""
    if not compiled(x):
        return F.max_pool2d(x, 2, ceil_mode=True)
    result: Tensor = _maximum(x)[0]
    return result


def bilinear(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch.nn.functional.interpolate(x, shape, mode="bilinear") of [sample, channel, row, column].

    Without aligned corners and antialiasing, as is torch's default; differentiable once.
    """
    if compiled(x):
        result: Tensor = _bilinear(x, *shape)
        return result
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return bilinear_by_products(x, shape)
    return F.interpolate(x, shape, mode="bilinear", align_corners=False)


def bilinear_by_products(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """`bilinear` as R x Cᵀ: torch's operator adds its gradient on a GPU in no fixed order, and matrix products do not.

    Half precision is computed in float32, as torch's operator does.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows, columns = (_shares_on(x.device, wide.dtype, *sizes) for sizes in zip(x.shape[2:], shape, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        return (rows @ (wide @ columns.T)).to(x.dtype)


@torch.compiler.assume_constant_result
def _shares_on(device: torch.device, dtype: torch.dtype, size: int, new: int) -> Tensor:
    return _kept_shares(device, dtype, size, new)


@lru_cache(maxsize=64)
def _kept_shares(device: torch.device, dtype: torch.dtype, size: int, new: int) -> Tensor:
    # Kept where they are used: a copy from this machine's memory in every step would make it wait for the GPU.
    return torch.from_numpy(shares(size, new, np.dtype(np.float64 if dtype == torch.float64 else np.float32))).to(
        device
    )


def compiled(x: Tensor) -> bool:
    """Whether the compiled loops take this map; torch's own operations take the others."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dim() == 4 and 0 not in x.shape


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("hpfwi::average_pool", mutates_args=(), device_types="cpu")
def _average(x: Tensor, factor: int) -> Tensor:
    return torch.from_numpy(cpu.average_pool(_array(x), factor, threads=torch.get_num_threads()))


@_average.register_fake
def _(x: Tensor, factor: int) -> Tensor:
    return x.new_empty((*x.shape[:2], x.shape[2] // factor, x.shape[3] // factor))


@torch.library.custom_op("hpfwi::average_pool_gradient", mutates_args=(), device_types="cpu")
def _average_gradient(gradient: Tensor, factor: int, rows: int, columns: int) -> Tensor:
    threads = torch.get_num_threads()
    return torch.from_numpy(cpu.average_pool_gradient((rows, columns), factor, _array(gradient), threads=threads))


@_average_gradient.register_fake
def _(gradient: Tensor, factor: int, rows: int, columns: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], rows, columns))


def _keep_factor(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.factor = inputs
    ctx.rows, ctx.columns = x.shape[2:]


def _average_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _average_gradient(gradient, ctx.factor, ctx.rows, ctx.columns), None


_average.register_autograd(_average_backward, setup_context=_keep_factor)


@torch.library.custom_op("hpfwi::half_maximum", mutates_args=(), device_types="cpu")
def _maximum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima, and which of the four cells holds each, uint8."""
    largest, chosen = cpu.half_maximum(_array(x), threads=torch.get_num_threads())
    return torch.from_numpy(largest), torch.from_numpy(chosen)


@_maximum.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)


@torch.library.custom_op("hpfwi::half_maximum_gradient", mutates_args=(), device_types="cpu")
def _maximum_gradient(chosen: Tensor, gradient: Tensor, rows: int, columns: int) -> Tensor:
    threads = torch.get_num_threads()
    shape = (rows, columns)
    return torch.from_numpy(cpu.half_maximum_gradient(shape, _array(chosen), _array(gradient), threads=threads))


@_maximum_gradient.register_fake
def _(chosen: Tensor, gradient: Tensor, rows: int, columns: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], rows, columns))


def _keep_choices(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.rows, ctx.columns = inputs[0].shape[2:]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _maximum_backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
    (chosen,) = ctx.saved_tensors
    result: Tensor = _maximum_gradient(chosen, gradient, ctx.rows, ctx.columns)
    return result


_maximum.register_autograd(_maximum_backward, setup_context=_keep_choices)


@torch.library.custom_op("hpfwi::bilinear", mutates_args=(), device_types="cpu")
def _bilinear(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.from_numpy(cpu.bilinear(_array(x), (rows, columns), threads=torch.get_num_threads()))


@_bilinear.register_fake
def _(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:2], rows, columns))


@torch.library.custom_op("hpfwi::bilinear_gradient", mutates_args=(), device_types="cpu")
def _bilinear_gradient(gradient: Tensor, rows: int, columns: int) -> Tensor:
    threads = torch.get_num_threads()
    return torch.from_numpy(cpu.bilinear_gradient((rows, columns), _array(gradient), threads=threads))


@_bilinear_gradient.register_fake
def _(gradient: Tensor, rows: int, columns: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], rows, columns))


def _keep_shape(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rows, ctx.columns = inputs[0].shape[2:]


def _bilinear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _bilinear_gradient(gradient, ctx.rows, ctx.columns), None, None


_bilinear.register_autograd(_bilinear_backward, setup_context=_keep_shape)
