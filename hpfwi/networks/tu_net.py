"""TU-Net and TU-Net-SEG: a U-Net whose skips are warped towards the texture of its first map.

Wang et al., Computers & Geosciences 206, 106028, 2025 (doi 10.1016/j.cageo.2025.106028). There is no self-attention in
it: the T is for texture. Faults of the published code, reproduced when `as_published`: before the condition of a warp
is resampled to the skip's size it is resampled to a few cells more than it has, two, one and none (a division meant for
the sum applies to the 2 alone: 2 // q with q = 1, 2, 4); and TU-Net-SEG cuts the velocity from row and column 1 on. By
default the condition is resampled once, to the skip's size, and the velocity starts at 0.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from hpfwi.networks.blocks import (
    PixelShuffle,
    ResidualBlock,
    TimeReducer,
    bounded_head,
    convolution,
    double_convolution,
    half,
    half_pool,
    plain_mixing,
    resized,
    scaled,
    size_of,
    transposed_convolution,
)
from hpfwi.networks.crop import checked_start, cropped
from hpfwi.networks.deformable import DeformableConvolution
from hpfwi.networks.initialisation import initialise

CHANNELS = (64, 128, 256, 512)
"""Channels of the three stages that leave a skip and of the centre."""
SHRINKAGE = (1, 2, 4)
"""q of each skip: how much smaller than the condition it is."""
NORM_GROUPS = 32
NORM_EPSILON = 1e-6


def group_normalised(layer: torch.nn.Conv2d) -> torch.nn.Sequential:
    """The layer, group norm in 32 groups, SiLU."""
    channels = layer.out_channels
    return torch.nn.Sequential(
        layer, torch.nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=NORM_EPSILON), torch.nn.SiLU()
    )


class TextureWarp(torch.nn.Module):
    """Warp a skip by a deformable convolution that the skip and the condition steer together."""

    def __init__(self, channels: int, condition: int, shrinkage: int, *, as_published: bool) -> None:
        super().__init__()
        self.surplus = 2 // shrinkage if as_published else 0
        self.guide = torch.nn.Sequential(
            group_normalised(convolution(channels + condition, channels, 1, padding=0)),
            group_normalised(convolution(channels, channels, 7, padding=3, groups=channels)),
            convolution(channels, channels, 1, padding=0),
            group_normalised(convolution(channels, channels)),
        )
        self.warp = DeformableConvolution(channels)

    def forward(self, skip: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        rows, columns = size_of(condition)
        enlarged = resized(condition, (rows + self.surplus, columns + self.surplus))
        guidance = self.guide(torch.cat([resized(enlarged, size_of(skip)), skip], dim=1))
        return self.warp(skip, guidance)


class WarpingUNet(torch.nn.Module):
    """What both networks share: three stages down, a centre, three up with warped skips. The output has 64 channels."""

    def __init__(self, inputs: int, *, as_published: bool, width: float) -> None:
        super().__init__()
        counts = [scaled(count, width) for count in CHANNELS]
        *skips, centre = counts
        self.down = torch.nn.ModuleList(
            double_convolution(before, after) for before, after in pairwise([inputs, *skips])
        )
        self.centre = double_convolution(skips[-1], centre)
        self.warps = torch.nn.ModuleList(
            TextureWarp(count, inputs, shrinkage, as_published=as_published)
            for count, shrinkage in zip(skips, SHRINKAGE, strict=True)
        )
        self.rises = torch.nn.ModuleList(transposed_convolution(before, after) for after, before in pairwise(counts))
        self.joins = torch.nn.ModuleList(double_convolution(2 * count, count) for count in skips)
        self.outputs = counts[0]

    def forward(self, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map of the size of `features`, steered by the condition, Tensor[sample, 32, any rows, any columns]."""
        skips = []
        for stage in self.down:
            features = stage(features)
            skips.append(features)
            features = half_pool(features)
        features = self.centre(features)
        for level in reversed(range(len(skips))):
            fine = resized(self.rises[level](features), size_of(skips[level]))
            warped = self.warps[level](skips[level], condition)
            features = self.joins[level](torch.cat([warped, fine], dim=1))
        return features


def finish(channels: int, factor: int) -> torch.nn.Sequential:
    """A pixel shuffle and three residual blocks."""
    return torch.nn.Sequential(PixelShuffle(channels, channels, factor), *(ResidualBlock(channels) for _ in range(3)))


class TuNet(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx] in (-1, 1)."""

    def __init__(
        self,
        shots: int,
        model_shape: tuple[int, int],
        *,
        as_published: bool,
        width: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.reducer = TimeReducer(shots, model_shape, width=width, mixing=plain_mixing)
        self.body = WarpingUNet(self.reducer.outputs, as_published=as_published, width=width)
        self.finish = finish(self.body.outputs, 1)
        self.head = bounded_head(self.body.outputs)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        reduced = self.reducer(records)
        return self.head(self.finish(self.body(reduced, reduced)))


class TuNetSeg(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx], unbounded.

    raises   ConfigError: records with fewer samples or receivers than the model has cells
    """

    def __init__(
        self,
        records_shape: tuple[int, int, int],
        model_shape: tuple[int, int],
        *,
        as_published: bool,
        width: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        shots, samples, receivers = records_shape
        rows, columns = half((samples, receivers))
        self.model_shape = model_shape
        self.start = checked_start((2 * rows, 2 * columns), model_shape, 1 if as_published else 0, "TU-Net-SEG")
        first = scaled(32, width)
        self.enter = double_convolution(shots, first)
        self.body = WarpingUNet(first, as_published=as_published, width=width)
        self.finish = finish(self.body.outputs, 2)
        self.head = convolution(self.body.outputs, 1, 1, padding=0)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        condition = self.enter(records)
        features = self.finish(self.body(half_pool(condition), condition))
        return self.head(cropped(features, self.model_shape, self.start))
