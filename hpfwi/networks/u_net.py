"""The five-level U-Net of FCNVMB, which DD-Net and ABA-FWI+ build on.

Faults of the published code, reproduced when `as_published`: a skip is the *pooled* output of its stage, half the size
of the map that it joins, and zeros are put around it, so it lands in the middle quarter of that map, away from where it
belongs; and the velocity is cut from row and column 1 on. By default a skip is taken before pooling, where it has the
size of the map that it joins (a surplus row or column of the latter is cut), and the velocity starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch.nn import functional

from hpfwi.networks.blocks import double_convolution, half, half_pool, scaled, size_of, transposed_convolution

CHANNELS = (64, 128, 256, 512, 1024)
"""Channels of the four stages that leave a skip and of the centre."""

Extra = Callable[[int], torch.nn.Module]
"""Makes the layer that follows a double convolution of so many channels."""


def nothing(channels: int) -> torch.nn.Module:
    """The extra layer of the plain U-Net: none."""
    return torch.nn.Identity()


class Encoder(torch.nn.Module):
    """Four double convolutions, each pooled to half the sides, and a fifth one as centre."""

    def __init__(self, shots: int, *, as_published: bool, width: float, extra: Extra = nothing) -> None:
        super().__init__()
        self.as_published = as_published
        counts = [scaled(count, width) for count in CHANNELS]
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(double_convolution(inputs, outputs), extra(outputs))
            for inputs, outputs in pairwise([shots, *counts[:-1]])
        )
        self.centre = double_convolution(counts[-2], counts[-1])

    def forward(self, records: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The centre's output and the skips, finest first: pooled ones when as published, else those before pooling."""
        features, skips = records, []
        for stage in self.stages:
            whole = stage(features)
            features = half_pool(whole)
            skips.append(features if self.as_published else whole)
        return self.centre(features), skips


class Decoder(torch.nn.Module):
    """Four times: double the sides, join the skip, double convolution. The output has 64 channels."""

    def __init__(self, *, as_published: bool, width: float, extra: Extra = nothing) -> None:
        super().__init__()
        self.as_published = as_published
        counts = [scaled(count, width) for count in reversed(CHANNELS)]
        self.rises = torch.nn.ModuleList(
            transposed_convolution(inputs, outputs) for inputs, outputs in pairwise(counts)
        )
        self.joins = torch.nn.ModuleList(
            torch.nn.Sequential(double_convolution(2 * outputs, outputs), extra(outputs)) for outputs in counts[1:]
        )
        self.outputs = counts[-1]

    def forward(self, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for rise, join, skip in zip(self.rises, self.joins, reversed(skips), strict=True):
            fine = rise(features)
            if self.as_published:
                skip = zeros_around(skip, size_of(fine))
            else:
                rows, columns = size_of(skip)
                fine = fine[..., :rows, :columns]
            features = join(torch.cat([skip, fine], dim=1))
        return features


def zeros_around(features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The map in the middle of a larger one; of an odd surplus the larger half lies below and to the right."""
    rows, columns = (want - have for have, want in zip(size_of(features), shape, strict=True))
    return functional.pad(features, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def decoded_shape(samples: int, receivers: int, *, as_published: bool) -> tuple[int, int]:
    """Rows and columns of the decoder's output.

    >>> decoded_shape(400, 301, as_published=True), decoded_shape(400, 301, as_published=False)
    ((400, 304), (400, 301))
    """
    if not as_published:
        return samples, receivers
    rows, columns = half((samples, receivers), times=len(CHANNELS) - 1)
    factor: int = 2 ** (len(CHANNELS) - 1)
    return rows * factor, columns * factor
