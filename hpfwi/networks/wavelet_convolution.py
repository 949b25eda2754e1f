"""The wavelet convolution of AMFMS and ABA-FWI: small windows on the Haar bands of a map, plus small windows on it.

With a, b above c, d the cells of a 2x2 block, the four orthonormal Haar bands are

    (a+b+c+d)/2, (a+b-c-d)/2, (a-b+c-d)/2, (a-b-c+d)/2

and bands of channel c are channels 4c .. 4c+3. Each goes through its own 5x5 window and is scaled; the inverse
transform (the same signs) brings them back, and the scaled 5x5 convolution of the map itself is added. There is no
shortcut, norm or activation. The layer was published as WTConv (Finder et al. 2024, "Wavelet convolutions for large
receptive fields").
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hpfwi.networks import fused
from hpfwi.networks.blocks import convolution
from hpfwi.networks.fused import Kernels

WINDOW = 5
"""Cells on a side of every learned window."""
FIRST_BAND_SCALE = 0.1
"""Value at which the scales of the bands start; that of the base path starts at 1."""


def haar_filters(channels: int) -> torch.Tensor:
    """The four analysis filters for each channel, float32[4 channels, 1, 2, 2]; they are the synthesis filters too."""
    bands = [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]
    return (0.5 * torch.tensor(bands, dtype=torch.float32)).unsqueeze(1).repeat(channels, 1, 1, 1)


def wavelet_convolution(
    features: torch.Tensor,
    base_weight: torch.Tensor,
    base_bias: torch.Tensor,
    base_scale: torch.Tensor,
    band_weight: torch.Tensor,
    band_scale: torch.Tensor,
    filters: torch.Tensor,
) -> torch.Tensor:
    """The layer out of torch's operators, one after the other, as it was published: what the fused one must equal.

    features      Tensor[sample, channel, row, column]
    base_weight   Tensor[channel, 1, 5, 5], base_bias Tensor[channel], base_scale Tensor[channel]
    band_weight   Tensor[4 channel, 1, 5, 5], band_scale Tensor[4 channel]
    filters       Tensor[4 channel, 1, 2, 2] from `haar_filters`
    returns       Tensor[sample, channel, row, column]; odd sides are padded with a zero row or column and cut again
    """
    channels, rows, columns = features.shape[1:]
    even = functional.pad(features, (0, columns % 2, 0, rows % 2))
    bands = functional.conv2d(even, filters, stride=2, groups=channels)
    bands = functional.conv2d(bands, band_weight, padding=WINDOW // 2, groups=4 * channels)
    bands = bands * band_scale.reshape(-1, 1, 1)
    detail = functional.conv_transpose2d(bands, filters, stride=2, groups=channels)[..., :rows, :columns]
    base = functional.conv2d(features, base_weight, base_bias, padding=WINDOW // 2, groups=channels)
    return base * base_scale.reshape(-1, 1, 1) + detail


class WaveletConvolution(torch.nn.Module):
    """The layer with its weights, 131 values for each channel; the Haar filters are neither trained nor saved."""

    filters: torch.Tensor

    def __init__(self, channels: int, *, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.base = convolution(channels, channels, WINDOW, padding=WINDOW // 2, groups=channels)
        self.base_scale = torch.nn.Parameter(torch.ones(channels))
        self.bands = convolution(
            4 * channels, 4 * channels, WINDOW, padding=WINDOW // 2, groups=4 * channels, bias=False
        )
        self.band_scale = torch.nn.Parameter(torch.full((4 * channels,), FIRST_BAND_SCALE))
        self.register_buffer("filters", haar_filters(channels), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        assert self.base.bias is not None
        weights = (self.base.weight, self.base.bias, self.base_scale, self.bands.weight, self.band_scale)
        if self.kernels == "fused":
            return fused.wavelet_convolution(features, *weights)
        return wavelet_convolution(features, *weights, self.filters)
