"""The wavelet convolution and the transform as torch operations, and the same from torch's own."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.gpu import available
from hpfwi_kernels.haar import cpu, cuda
from hpfwi_kernels.haar.filtering import SIDES
from hpfwi_kernels.haar.filters import Filters, filters


def wavelet_convolution(
    x: Tensor,
    base_weight: Tensor,
    base_bias: Tensor | None,
    base_scale: Tensor | None,
    band_weights: Sequence[Tensor],
    band_scales: Sequence[Tensor] | None,
    *,
    wavelet: str = "haar",
) -> Tensor:
    """Depthwise convolution plus a depthwise convolution of wavelet coefficients, in one pass over x.

    x             [sample, channel, row, column], any size, float32, float64, bfloat16 or float16
    base_weight   [channel, 1, k, k], k odd: what a depthwise torch.nn.Conv2d stores
    base_bias     [channel] or None
    base_scale    one factor per channel, any shape that holds as many; None is 1. It scales the bias too
    band_weights  one [4 channel, 1, k, k] per level, finest first; band s of channel c is row 4 c + s, bands in the
                  order low, difference along rows, difference along columns, diagonal
    band_scales   per level, one factor per band (4 channel values, any shape); None is 1
    wavelet       'haar', 'db2', 'db3' or 'db4'
    returns       the shape and dtype of x, sums taken in float32 at least; differentiable once in every tensor
    raises        KernelError where shapes do not fit each other

    Weights may be of a higher precision than x, as under autocast, where x comes from a low-precision layer.
    """
    _require_fitting(x, base_weight, base_bias, band_weights)
    arguments = (x, base_weight, base_bias, base_scale, band_weights, band_scales)
    if not compiled(x, base_weight.shape[-1], len(band_weights), wavelet):
        with _no_autocast(x.device.type):
            low = _in(x.dtype, arguments[1:])
            return eager_wavelet_convolution(x, *low, wavelet=wavelet)
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels, k = x.shape[1], base_weight.shape[-1]
    base = base_weight.reshape(channels, k, k)
    if base_scale is not None:
        base = base * base_scale.reshape(-1, 1, 1)
        base_bias = None if base_bias is None else base_bias * base_scale.reshape(-1)
    bands = [weight.reshape(channels, 4, k, k) for weight in band_weights]
    if band_scales is not None:
        bands = [band * scale.reshape(channels, 4, 1, 1) for band, scale in zip(bands, band_scales, strict=True)]
    empty = base.new_empty((0, channels, 4, k, k))
    stacked = bands[0].unsqueeze(0) if len(bands) == 1 else torch.stack(bands) if bands else empty
    result: Tensor = _convolution(
        x,
        base.to(precision),
        None if base_bias is None else base_bias.to(precision),
        stacked.to(precision),
        wavelet,
    )
    return result


def transform(x: Tensor, wavelet: str = "haar") -> Tensor:
    """One level of wavelet coefficients: [sample, channel, row, column] to [sample, channel, 4, row/2, column/2].

    Odd sides are rounded up. Bands: low, difference along rows, difference along columns, diagonal; x is zero outside.
    Its gradient is `inverse`.
    """
    if x.dim() != 4 or 0 in x.shape:
        raise KernelError(f"x has shape {tuple(x.shape)}; give [sample, channel, row, column], none of them zero.")
    if not compiled(x):
        return eager_transform(x, wavelet)
    result: Tensor = _transform(x, wavelet)
    return result


def inverse(bands: Tensor, shape: tuple[int, int], wavelet: str = "haar") -> Tensor:
    """Planes [sample, channel, *shape] from what `transform` returns: its transpose, which for 'haar' is its inverse.

    The longer wavelets reach over the border, where their transform of a bounded plane loses what lies outside; they
    are inverted exactly away from it.
    """
    sides = (4, -(-shape[0] // 2), -(-shape[1] // 2))
    if bands.dim() != 5 or tuple(bands.shape[2:]) != sides:
        raise KernelError(
            f"bands has shape {tuple(bands.shape)}; planes of {shape[0]} x {shape[1]} need (sample, channel, *{sides})."
        )
    if not compiled(bands):
        return eager_inverse(bands, shape, wavelet)
    result: Tensor = _inverse(bands, shape[0], shape[1], wavelet)
    return result


def compiled(x: Tensor, k: int | None = None, levels: int = 1, wavelet: str = "haar") -> bool:
    """Whether there is a kernel for x's device and precision and this layer (or, without k, for the transform).

    Where there is none, torch's own operations do the work.
    """
    if x.device.type == "cpu":
        return k is None or k in SIDES
    if not x.is_cuda or k is None or levels != 1 or wavelet != "haar":
        return False
    return k in cuda.SIDES and str(x.dtype).removeprefix("torch.") in cuda.PIXEL_TYPES and _gpu_is_usable()


@torch.compiler.assume_constant_result  # a compiler is not to follow what looks for a GPU
def _gpu_is_usable() -> bool:
    return available()


def _require_fitting(x: Tensor, base_weight: Tensor, base_bias: Tensor | None, band_weights: Sequence[Tensor]) -> None:
    if x.dim() != 4 or 0 in x.shape:
        raise KernelError(f"x has shape {tuple(x.shape)}; give [sample, channel, row, column], none of them zero.")
    channels, k = x.shape[1], base_weight.shape[-1]
    if tuple(base_weight.shape) != (channels, 1, k, k) or k % 2 == 0:
        raise KernelError(
            f"base_weight has shape {tuple(base_weight.shape)}; give ({channels}, 1, k, k) with k odd for {channels} "
            "channels."
        )
    if base_bias is not None and tuple(base_bias.shape) != (channels,):
        raise KernelError(f"base_bias has shape {tuple(base_bias.shape)}; give ({channels},) or None.")
    for weight in band_weights:
        if tuple(weight.shape) != (4 * channels, 1, k, k):
            raise KernelError(
                f"A band weight has shape {tuple(weight.shape)}; give ({4 * channels}, 1, {k}, {k}) at every level."
            )


def _array(tensor: Tensor) -> NDArray:
    """The tensor's memory as an array; precisions that NumPy has not become float32."""
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return wide.detach().contiguous().numpy()


@torch.library.custom_op("hpfwi::wavelet_convolution", mutates_args=(), device_types="cpu")
def _convolution(x: Tensor, base: Tensor, bias: Tensor | None, bands: Tensor, wavelet: str) -> Tensor:
    """Scales already in the filters: base [channel, k, k], bands [level, channel, 4, k, k]."""
    offset = None if bias is None else _array(bias)
    out = cpu.forward(_array(x), _array(base), offset, _array(bands), wavelet, threads=torch.get_num_threads())
    return torch.from_numpy(out).to(x.dtype)


@_convolution.register_kernel("cuda")
def _convolution_on_gpu(x: Tensor, base: Tensor, bias: Tensor | None, bands: Tensor, wavelet: str) -> Tensor:
    offset = None if bias is None else bias.contiguous()
    return _convolved(x.contiguous(), base.contiguous(), offset, bands.contiguous())


def _convolved(x: Tensor, base: Tensor, bias: Tensor | None, bands: Tensor) -> Tensor:
    """One Haar level on the GPU; every tensor contiguous."""
    y = torch.empty_like(x)
    cuda.forward(
        x.data_ptr(), base.data_ptr(), 0 if bias is None else bias.data_ptr(), bands.data_ptr(), y.data_ptr(),
        **_launch(x, base),
    )  # fmt: skip
    return y


def _launch(x: Tensor, base: Tensor) -> dict[str, Any]:
    """What every launch on the GPU is told."""
    place = {"device": x.device.index, "stream": torch.cuda.current_stream(x.device).cuda_stream}
    return {"shape": tuple(x.shape), "k": base.shape[-1], "dtype": str(x.dtype).removeprefix("torch."), **place}


@_convolution.register_fake
def _(x: Tensor, base: Tensor, bias: Tensor | None, bands: Tensor, wavelet: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("hpfwi::wavelet_convolution_gradient", mutates_args=(), device_types="cpu")
def _convolution_gradient(
    x: Tensor, base: Tensor, bands: Tensor, gradient: Tensor, wavelet: str, wants_x: bool, wants_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, base, bias and bands; empty where not wanted."""
    parts = cpu.gradient(
        _array(x),
        _array(base),
        _array(bands),
        _array(gradient),
        wavelet,
        wants_x=wants_x,
        wants_weights=wants_weights,
        threads=torch.get_num_threads(),
    )
    x_gradient, base_gradient, bias_gradient, band_gradient = (torch.from_numpy(part) for part in parts)
    return x_gradient.to(x.dtype), base_gradient, bias_gradient, band_gradient


@_convolution_gradient.register_kernel("cuda")
def _convolution_gradient_on_gpu(
    x: Tensor, base: Tensor, bands: Tensor, gradient: Tensor, wavelet: str, wants_x: bool, wants_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, gradient = x.contiguous(), gradient.to(x.dtype).contiguous()
    k, channels = base.shape[-1], x.shape[1]
    x_gradient = x.new_empty((0,))
    if wants_x:
        x_gradient = _convolved(gradient, base.flip(-1, -2).contiguous(), None, bands.flip(-1, -2).contiguous())
    if not wants_weights:
        return x_gradient, base.new_empty((0,)), base.new_empty((0,)), bands.new_empty((0,))
    space, terms = cuda.gradient_terms((x.shape[0], channels, x.shape[2], x.shape[3]), k)
    partial, total = base.new_empty(space), base.new_empty((channels, terms))
    cuda.filter_gradient(x.data_ptr(), gradient.data_ptr(), partial.data_ptr(), total.data_ptr(), **_launch(x, base))
    area = k * k
    # Copies: the results of an op may not share memory.
    base_gradient, bias_gradient = total[:, :area].clone(), total[:, -1].clone()
    band_gradient = total[:, area:-1].clone()
    return (
        x_gradient,
        base_gradient.view(channels, k, k),
        bias_gradient,
        band_gradient.view(1, channels, 4, k, k),
    )


@_convolution_gradient.register_fake
def _(
    x: Tensor, base: Tensor, bands: Tensor, gradient: Tensor, wavelet: str, wants_x: bool, wants_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        base.new_empty(base.shape if wants_weights else (0,)),
        base.new_empty((x.shape[1] if wants_weights else 0,)),
        bands.new_empty(bands.shape if wants_weights else (0,)),
    )


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, base, _, bands, ctx.wavelet = inputs
    ctx.save_for_backward(x, base, bands)


def _convolution_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, base, bands = ctx.saved_tensors
    wants_x, wants_base, wants_bias, wants_bands, _ = ctx.needs_input_grad
    wants_weights = wants_base or wants_bias or wants_bands
    parts = _convolution_gradient(x, base, bands, gradient, ctx.wavelet, wants_x, wants_weights)
    return *(part if wanted else None for part, wanted in zip(parts, ctx.needs_input_grad[:4], strict=True)), None


_convolution.register_autograd(_convolution_backward, setup_context=_keep_inputs)


@torch.library.custom_op("hpfwi::wavelet_transform", mutates_args=(), device_types="cpu")
def _transform(x: Tensor, wavelet: str) -> Tensor:
    out = cpu.transform(_array(x), wavelet, threads=torch.get_num_threads())
    return torch.from_numpy(out).to(x.dtype)


@_transform.register_fake
def _(x: Tensor, wavelet: str) -> Tensor:
    return x.new_empty((*x.shape[:2], 4, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2))


@torch.library.custom_op("hpfwi::wavelet_inverse", mutates_args=(), device_types="cpu")
def _inverse(bands: Tensor, rows: int, columns: int, wavelet: str) -> Tensor:
    out = cpu.inverse(_array(bands), (rows, columns), wavelet, threads=torch.get_num_threads())
    return torch.from_numpy(out).to(bands.dtype)


@_inverse.register_fake
def _(bands: Tensor, rows: int, columns: int, wavelet: str) -> Tensor:
    return bands.new_empty((*bands.shape[:2], rows, columns))


def _keep_shape(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.wavelet = inputs
    ctx.rows, ctx.columns = x.shape[2:]


def _keep_wavelet(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.wavelet = inputs[-1]


def _transform_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _inverse(gradient, ctx.rows, ctx.columns, ctx.wavelet), None


def _inverse_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return _transform(gradient, ctx.wavelet), None, None, None


_transform.register_autograd(_transform_backward, setup_context=_keep_shape)
_inverse.register_autograd(_inverse_backward, setup_context=_keep_wavelet)


def eager_wavelet_convolution(
    x: Tensor,
    base_weight: Tensor,
    base_bias: Tensor | None,
    base_scale: Tensor | None,
    band_weights: Sequence[Tensor],
    band_scales: Sequence[Tensor] | None,
    *,
    wavelet: str = "haar",
) -> Tensor:
    """wavelet_convolution from torch's own operations, as the published layer puts them together."""
    channels, pad = x.shape[1], base_weight.shape[-1] // 2
    lows, levels = x, []
    for level, weight in enumerate(band_weights):
        shape = (lows.shape[2], lows.shape[3])
        bands = eager_transform(lows, wavelet)
        lows = bands[:, :, 0]
        tags = F.conv2d(bands.flatten(1, 2), weight, padding=pad, groups=4 * channels)
        if band_scales is not None:
            tags = tags * band_scales[level].reshape(1, -1, 1, 1)
        levels.append((tags.unflatten(1, (channels, 4)), shape))
    coarse: Tensor | None = None
    for tags, shape in reversed(levels):
        if coarse is not None:
            tags = torch.cat([(tags[:, :, 0] + coarse).unsqueeze(2), tags[:, :, 1:]], dim=2)
        coarse = eager_inverse(tags, shape, wavelet)
    base = F.conv2d(x, base_weight, base_bias, padding=pad, groups=channels)
    if base_scale is not None:
        base = base * base_scale.reshape(1, -1, 1, 1)
    return base if coarse is None else base + coarse


def eager_transform(x: Tensor, wavelet: str = "haar") -> Tensor:
    """Compute `transform` by a strided convolution, after a row and a column of zeros where the sides are odd."""
    rows, columns = x.shape[2:]
    if rows % 2 or columns % 2:
        x = F.pad(x, (0, columns % 2, 0, rows % 2))
    pair = filters(wavelet)
    bands = F.conv2d(x, _bank(pair, x.shape[1], x), stride=2, padding=pair.pad, groups=x.shape[1])
    return bands.unflatten(1, (x.shape[1], 4))


def eager_inverse(bands: Tensor, shape: tuple[int, int], wavelet: str = "haar") -> Tensor:
    """Compute `inverse` by a transposed convolution, cropped to `shape`."""
    pair, channels = filters(wavelet), bands.shape[1]
    bank = _bank(pair, channels, bands)
    whole = F.conv_transpose2d(bands.flatten(1, 2), bank, stride=2, padding=pair.pad, groups=channels)
    return whole[:, :, : shape[0], : shape[1]]


def _bank(pair: Filters, channels: int, like: Tensor) -> Tensor:
    """The four separable filters, once per channel: [4 channel, 1, length, length] in the dtype of `like`."""
    low, high = (torch.from_numpy(side).to(like.device, like.dtype) for side in pair)
    bank = torch.stack([torch.outer(row, column) for column in (low, high) for row in (low, high)])
    return bank.repeat(channels, 1, 1).unsqueeze(1)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    """Leave the precision to the caller, on devices that have autocast at all: the meta device has none."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _in(dtype: torch.dtype, arguments: Any) -> Any:
    """The same arguments with every tensor in one dtype."""
    if isinstance(arguments, Tensor):
        return arguments.to(dtype)
    return arguments if arguments is None else [_in(dtype, argument) for argument in arguments]
