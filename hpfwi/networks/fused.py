"""The fused layers of `hpfwi_kernels`: the only file of the science layer that imports them, and only when one runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Kernels = Literal["eager", "fused"]
"""Who computes the layers that cost most: torch operator by operator, or our kernels."""


class Convolution(torch.nn.Conv2d):
    """A 3x3 convolution with a border of zeros, by fewer products where that pays; weights as in torch's layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Tensor[sample, input, row, column] to Tensor[sample, output, row, column]."""
        from hpfwi_kernels.winograd import convolution

        return convolution(features, self.weight, self.bias)


def wavelet_convolution(
    features: torch.Tensor,
    base_weight: torch.Tensor,
    base_bias: torch.Tensor,
    base_scale: torch.Tensor,
    band_weight: torch.Tensor,
    band_scale: torch.Tensor,
) -> torch.Tensor:
    """`hpfwi.networks.wavelet_convolution.wavelet_convolution` in one pass; same arguments, the filters built in."""
    from hpfwi_kernels.haar import wavelet_convolution as fused_layer

    return fused_layer(features, base_weight, base_bias, base_scale, [band_weight], [band_scale])


def multi_frequency_pool(
    features: torch.Tensor, frequencies: Sequence[tuple[int, int]], side: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`hpfwi.networks.multi_frequency.multi_frequency_pool` in one pass, for these frequencies of side x side cells."""
    from hpfwi_kernels.dct_pool import multi_frequency_pool as fused_pool

    return fused_pool(features, frequencies, side)
