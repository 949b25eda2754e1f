"""The fused layers of `hpfwi_kernels`: the only file of the science layer that imports them, and only when one runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard

import torch

Kernels = Literal["eager", "fused"]
"""Who computes the layers that cost most: torch operator by operator, or our kernels."""


class Convolution(torch.nn.Conv2d):
    """A 3x3 convolution with a border of zeros, by fewer products where that pays; weights as in torch's layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Tensor[sample, input, row, column] to Tensor[sample, output, row, column]."""
        from hpfwi_kernels.winograd import convolution

        return convolution(features, self.weight, self.bias)


class GroupedConvolution(torch.nn.Conv2d):
    """A 3x3 convolution within small groups of channels, padded by its dilation; weights as in torch's layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Tensor[sample, channel, row, column] of the same shape."""
        from hpfwi_kernels.grouped import grouped_convolution

        return grouped_convolution(features, self.weight, self.dilation[0])


class Layers(torch.nn.Sequential):
    """Layers one after the other, in training each batch norm in one pass with the ReLU or PReLU behind it."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What torch.nn.Sequential returns, to rounding; running statistics are updated as its batch norms do."""
        layers = list(self)
        index = 0
        while index < len(layers):
            pair = layers[index : index + 2]
            if len(pair) == 2 and _is_training_norm(pair[0]) and type(pair[1]) in (torch.nn.ReLU, torch.nn.PReLU):
                features = _normalised_activation(features, pair[0], getattr(pair[1], "weight", None))
                index += 2
            else:
                features = layers[index](features)
                index += 1
        return features


def _is_training_norm(layer: torch.nn.Module) -> TypeGuard[torch.nn.BatchNorm2d]:
    """Whether it is a batch norm as torch makes it by default, at work on batches; no other kind."""
    return type(layer) is torch.nn.BatchNorm2d and layer.training and layer.affine and layer.momentum is not None


def _normalised_activation(
    features: torch.Tensor, norm: torch.nn.BatchNorm2d, slope: torch.Tensor | None
) -> torch.Tensor:
    """The norm and what follows it, and the norm's running statistics brought up to date."""
    from hpfwi_kernels.batch_norm import normalised_activation

    if slope is not None and len(slope) != norm.num_features:
        slope = slope.expand(norm.num_features)
    out, mean, variance = normalised_activation(features, norm.weight, norm.bias, slope, norm.eps)
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        count = features.numel() // norm.num_features
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(variance.to(norm.running_var.dtype) * (count / max(1, count - 1)), norm.momentum)
            norm.num_batches_tracked.add_(1)
    return out


def average_pool(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Means over factor x factor cells; rows and columns that fill no cell are left out."""
    from hpfwi_kernels.resample import average_pool as fused_pool

    return fused_pool(features, factor)


def half_maximum(features: torch.Tensor) -> torch.Tensor:
    """Maximum over 2x2 cells; an odd side n becomes (n + 1) / 2."""
    from hpfwi_kernels.resample import half_maximum as fused_maximum

    return fused_maximum(features)


def bilinear(features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Bilinear resampling to (rows, columns) between cell centres at half-integers, without antialiasing."""
    from hpfwi_kernels.resample import bilinear as fused_bilinear

    return fused_bilinear(features, shape)


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
