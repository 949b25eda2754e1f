"""The wavelet convolution as a torch operation, and the same layer from torch's own operations."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hpfwi_kernels.errors import KernelError
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

    x             [sample, channel, row, column], any size
    base_weight   [channel, 1, k, k], k odd: what a depthwise torch.nn.Conv2d stores
    base_bias     [channel] or None
    base_scale    one factor per channel, any shape that holds as many; None is 1. It scales the bias too
    band_weights  one [4 channel, 1, k, k] per level, finest first; band s of channel c is row 4 c + s, bands in the
                  order low, difference along rows, difference along columns, diagonal
    band_scales   per level, one factor per band (4 channel values, any shape); None is 1
    wavelet       'haar', 'db2', 'db3' or 'db4'
    returns       the shape and dtype of x; differentiable once in every tensor
    raises        KernelError where shapes do not fit each other
    """
    _require_fitting(x, base_weight, base_bias, band_weights)
    return eager_wavelet_convolution(x, base_weight, base_bias, base_scale, band_weights, band_scales, wavelet=wavelet)


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
    pair = filters(wavelet)
    analysis = _bank(pair, channels, x)
    lows, levels = x, []
    for level, weight in enumerate(band_weights):
        shape = lows.shape[2:]
        bands = F.conv2d(_even(lows), analysis, stride=2, padding=pair.pad, groups=channels)
        lows = bands[:, ::4]
        tags = F.conv2d(bands, weight, padding=pad, groups=4 * channels)
        if band_scales is not None:
            tags = tags * band_scales[level].reshape(1, -1, 1, 1)
        levels.append((tags, shape))
    coarse: Tensor | None = None
    for tags, shape in reversed(levels):
        if coarse is not None:
            split = tags.unflatten(1, (channels, 4))
            tags = torch.cat([(split[:, :, 0] + coarse).unsqueeze(2), split[:, :, 1:]], dim=2).flatten(1, 2)
        whole = F.conv_transpose2d(tags, _bank(pair, channels, tags), stride=2, padding=pair.pad, groups=channels)
        coarse = whole[:, :, : shape[0], : shape[1]]
    base = F.conv2d(x, base_weight, base_bias, padding=pad, groups=channels)
    if base_scale is not None:
        base = base * base_scale.reshape(1, -1, 1, 1)
    return base if coarse is None else base + coarse


def _even(x: Tensor) -> Tensor:
    """A zero row below and a zero column at the right where the sides are odd."""
    rows, columns = x.shape[2:]
    return F.pad(x, (0, columns % 2, 0, rows % 2)) if rows % 2 or columns % 2 else x


def _bank(pair: Filters, channels: int, like: Tensor) -> Tensor:
    """The four separable filters, once per channel: [4 channel, 1, length, length] in the dtype of `like`."""
    low, high = (torch.from_numpy(side).to(like.device, like.dtype) for side in pair)
    bank = torch.stack([torch.outer(row, column) for row in (low, high) for column in (low, high)])
    return bank.repeat(channels, 1, 1).unsqueeze(1)
