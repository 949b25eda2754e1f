"""Layers that several of the convolutional networks share.

Batches are Tensor[sample, channel, row, column]: rows are time for records and depth for velocities, columns are
receivers or lateral positions. A layer made here holds no values until `initialisation.initialise` has drawn them,
which every network does at the end of its construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

from hpfwi.networks import fused
from hpfwi.networks.fused import Convolution, Kernels, Layers

Activation = Literal["relu", "leaky", "prelu", "prelu-per-channel"]
Size = int | tuple[int, int]
LEAKY_SLOPE = 0.2
"""Slope of the leaky ReLU below zero, as in InversionNet's public code."""


def scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8, at least 8.

    >>> scaled(64, 1.0), scaled(64, 0.25), scaled(32, 0.125)
    (64, 16, 8)
    """
    return max(8, 8 * round(channels * width / 8))


def convolution(
    inputs: int,
    outputs: int,
    size: Size = 3,
    *,
    stride: Size = 1,
    padding: Size = 1,
    groups: int = 1,
    bias: bool = True,
) -> torch.nn.Conv2d:
    """A 2-D convolution without values yet."""
    layer = torch.nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=bias, device="meta")
    return layer.to_empty(device="cpu")


def window(inputs: int, outputs: int, *, bias: bool = True, kernels: Kernels = "eager") -> torch.nn.Conv2d:
    """A plain 3x3 convolution with a border of zeros, without values yet."""
    if kernels == "eager":
        return convolution(inputs, outputs, bias=bias)
    return Convolution(inputs, outputs, 3, padding=1, bias=bias, device="meta").to_empty(device="cpu")


def transposed_convolution(inputs: int, outputs: int, size: int = 2, *, padding: int = 0) -> torch.nn.ConvTranspose2d:
    """A 2-D transposed convolution without values yet; as it stands it doubles both sides."""
    return torch.nn.ConvTranspose2d(inputs, outputs, size, 2, padding, device="meta").to_empty(device="cpu")


def activation(kind: Activation, channels: int) -> torch.nn.Module:
    """ReLU, leaky ReLU, or a PReLU that starts at 0.25, with one slope or one for each channel."""
    match kind:
        case "relu":
            return torch.nn.ReLU()
        case "leaky":
            return torch.nn.LeakyReLU(LEAKY_SLOPE)
        case "prelu":
            return torch.nn.PReLU()
        case "prelu-per-channel":
            return torch.nn.PReLU(channels)


def sequence(*layers: torch.nn.Module, kernels: Kernels = "eager") -> torch.nn.Sequential:
    """The layers one after the other; fused, batch norms run together with their activations."""
    return torch.nn.Sequential(*layers) if kernels == "eager" else Layers(*layers)


def normalised(
    layer: torch.nn.Conv2d | torch.nn.ConvTranspose2d, kind: Activation, *, kernels: Kernels = "eager"
) -> torch.nn.Sequential:
    """The layer, batch norm, activation."""
    norm = torch.nn.BatchNorm2d(layer.out_channels)
    return sequence(layer, norm, activation(kind, int(layer.out_channels)), kernels=kernels)


def double_convolution(
    inputs: int, outputs: int, kind: Activation = "relu", *, kernels: Kernels = "eager"
) -> torch.nn.Sequential:
    """Twice a 3x3 convolution with batch norm and activation."""
    return sequence(
        *normalised(window(inputs, outputs, kernels=kernels), kind),
        *normalised(window(outputs, outputs, kernels=kernels), kind),
        kernels=kernels,
    )


def bounded_head(inputs: int, outputs: int = 1) -> torch.nn.Sequential:
    """A 3x3 convolution, batch norm and tanh: output in (-1, 1)."""
    return torch.nn.Sequential(convolution(inputs, outputs), torch.nn.BatchNorm2d(outputs), torch.nn.Tanh())


def half_pool(features: torch.Tensor, kernels: Kernels = "eager") -> torch.Tensor:
    """Maximum over 2x2 cells; an odd side n becomes (n + 1) / 2."""
    if kernels == "fused":
        return fused.half_maximum(features)
    return functional.max_pool2d(features, 2, ceil_mode=True)


def resized(features: torch.Tensor, shape: tuple[int, int], kernels: Kernels = "eager") -> torch.Tensor:
    """Bilinear resampling to (rows, columns): half-pixel centres, no antialiasing; the same size is the identity."""
    if features.shape[-2:] == shape:
        return features
    if kernels == "fused":
        return fused.bilinear(features, shape)
    return functional.interpolate(features, shape, mode="bilinear", align_corners=False)


def size_of(features: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a batch of maps."""
    return features.shape[-2], features.shape[-1]


def half(shape: tuple[int, int], times: int = 1) -> tuple[int, int]:
    """Size after `times` pools that round odd sides up.

    >>> half((201, 301), 2)
    (51, 76)
    """
    for _ in range(times):
        shape = ((shape[0] + 1) // 2, (shape[1] + 1) // 2)
    return shape


class PixelShuffle(torch.nn.Sequential):
    """A 3x3 convolution to factor² times the channels, then depth to space: sides grow by the factor."""

    def __init__(self, inputs: int, outputs: int, factor: int, *, kernels: Kernels = "eager") -> None:
        super().__init__(window(inputs, outputs * factor**2, kernels=kernels))
        if factor > 1 or kernels == "eager":  # by 1 it is a copy
            self.append(torch.nn.PixelShuffle(factor))


class ResidualBlock(torch.nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = normalised(convolution(channels, channels), "relu")
        self.second = torch.nn.Sequential(convolution(channels, channels), torch.nn.BatchNorm2d(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(features + self.second(self.first(features)))


class SpatialAttention(torch.nn.Module):
    """Weighs every position by a sigmoid of its channel mean and channel maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = convolution(2, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        summary = torch.cat([features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)], dim=1)
        return features * torch.sigmoid(self.mix(summary))


class TimeReducer(torch.nn.Module):
    """Bring records to the velocity's size: Tensor[sample, shot, time, receiver] to Tensor[sample, channel, z, x].

    The time axis is resampled to 8 nz and the receivers to nx; three strided convolutions, each followed by a mixing
    layer, halve the time axis to nz. `mixing` makes that layer for a number of channels.
    """

    def __init__(
        self,
        shots: int,
        model_shape: tuple[int, int],
        *,
        width: float,
        mixing: Callable[[int], torch.nn.Module],
        kernels: Kernels = "eager",
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.resampled_shape = (8 * model_shape[0], model_shape[1])
        layers: list[torch.nn.Module] = []
        inputs = shots
        for count in (8, 16, 32):
            outputs = scaled(count, width)
            strided = convolution(inputs, outputs, (3, 1), stride=(2, 1), padding=(1, 0))
            layers.append(normalised(strided, "relu", kernels=kernels))
            layers.append(mixing(outputs))
            inputs = outputs
        self.outputs = inputs
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.layers(resized(records, self.resampled_shape, self.kernels))


def plain_mixing(channels: int) -> torch.nn.Module:
    """The mixing layer of DD-Net70's and TU-Net's reducer: a 3x3 convolution, batch norm, ReLU."""
    return normalised(convolution(channels, channels), "relu")
