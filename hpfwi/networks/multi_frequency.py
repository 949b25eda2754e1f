"""AMFMS's decoder attention: channels weighed by what 16 cosine transforms see of them, at three resolutions.

The blocks match those published as MFMSA in MADGNet (Nam et al., CVPR 2024), with the frequency pairs of FcaNet (Qin et
al., ICCV 2021).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from hpfwi.networks import fused
from hpfwi.networks.blocks import convolution, normalised, resized, sequence, size_of, window
from hpfwi.networks.fused import Kernels

FREQUENCY_PAIRS = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0),
    (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2),
)  # fmt: skip
"""Vertical and horizontal frequency on a 7 x 7 grid: the first 16 of FcaNet's "top" list."""
REDUCTION = 16
"""Channels in for one channel inside the bottleneck of the channel attention."""
BRANCHES = 3
GROUPS = 32
NARROWEST = 64
"""Channels of the narrowest branch at full width."""
SMALLEST_SIDE = 8
"""Rows that a branch's pooling must leave; where fewer would be left the branch works at full resolution."""


def frequencies(side: int) -> list[tuple[int, int]]:
    """The 16 pairs on a grid of side x side cells: those above times floor(side / 7).

    >>> frequencies(14)[2]
    (12, 0)
    """
    factor = side // 7
    return [(vertical * factor, horizontal * factor) for vertical, horizontal in FREQUENCY_PAIRS]


def cosine_tables(side: int) -> torch.Tensor:
    """The 16 tables D[k, i, j] = f(u, i) f(v, j), float32[16, side, side], u and v from `frequencies`.

    f(0, t) = 1 / sqrt(side), f(m, t) = sqrt(2 / side) cos(pi m (t + 1/2) / side).
    """
    position = torch.arange(side, dtype=torch.float64) + 0.5
    tables = []
    for pair in frequencies(side):
        rows, columns = (
            math.sqrt((2.0 if frequency else 1.0) / side) * torch.cos(math.pi * frequency * position / side)
            for frequency in pair
        )
        tables.append(torch.outer(rows, columns))
    return torch.stack(tables).float()


def multi_frequency_pool(
    features: torch.Tensor, tables: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, maximum and minimum over positions of features times a table, averaged over the tables.

    features   Tensor[sample, channel, row, column]; averaged to side x side cells first, or cells repeated
    tables     Tensor[table, side, side]
    returns    three Tensor[sample, channel]

    Torch's operators, table by table, as it was published: what the fused pooling must equal.
    """
    shape = features.shape[:2]
    square = functional.adaptive_avg_pool2d(features, tables.shape[-1])
    mean, largest, smallest = (features.new_zeros(shape) for _ in range(3))
    for table in tables:
        product = square * table
        mean = mean + functional.adaptive_avg_pool2d(product, 1).reshape(shape)
        largest = largest + functional.adaptive_max_pool2d(product, 1).reshape(shape)
        smallest = smallest - functional.adaptive_max_pool2d(-product, 1).reshape(shape)
    return mean / len(tables), largest / len(tables), smallest / len(tables)


class MultiFrequencyAttention(torch.nn.Module):
    """Multiply each channel by a gate computed from the mean, maximum and minimum of its 16 cosine products.

    The map is first averaged to side x side cells, or its cells are repeated where it has fewer. One bottleneck without
    biases turns each of the three vectors into gates; their sum goes through a sigmoid. The tables, of magnitude
    1 / side, are neither trained nor saved.
    """

    tables: torch.Tensor

    def __init__(self, channels: int, side: int, *, kernels: Kernels) -> None:
        super().__init__()
        self.side = side
        self.kernels = kernels
        inner = max(1, channels // REDUCTION)
        self.bottleneck = torch.nn.Sequential(
            convolution(channels, inner, 1, padding=0, bias=False),
            torch.nn.ReLU(),
            convolution(inner, channels, 1, padding=0, bias=False),
        )
        self.register_buffer("tables", cosine_tables(side), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.kernels == "fused":
            statistics = fused.multi_frequency_pool(features, frequencies(self.side), self.side)
        else:
            statistics = multi_frequency_pool(features, self.tables)
        mean, largest, smallest = (self.bottleneck(vector[..., None, None]) for vector in statistics)
        return features * torch.sigmoid(mean + largest + smallest)


def grouped_convolution(channels: int, groups: int, dilation: int, *, kernels: Kernels) -> torch.nn.Conv2d:
    """A 3x3 convolution within groups of channels, padded by its dilation, without values yet."""
    kind = fused.GroupedConvolution if kernels == "fused" else torch.nn.Conv2d
    layer = kind(channels, channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=False, device="meta")
    return layer.to_empty(device="cpu")


class ScaleBranch(torch.nn.Module):
    """One resolution of the multi-scale block: 2**scale times coarser, with a window that is dilated by 1 + scale."""

    def __init__(self, channels: int, inner: int, scale: int, side: int, *, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.factor = 2**scale
        grouped = grouped_convolution(channels, math.gcd(GROUPS, channels), 1 + scale, kernels=kernels)
        self.enter = sequence(
            *normalised(grouped, "relu"),
            *normalised(convolution(channels, inner, 1, padding=0, bias=False), "relu"),
            kernels=kernels,
        )
        self.frequencies = MultiFrequencyAttention(inner, side, kernels=kernels)
        self.place = convolution(inner, 1, 1, padding=0, bias=False)
        self.outside = torch.nn.Parameter(torch.ones(1))
        self.inside = torch.nn.Parameter(torch.ones(1))
        self.leave = normalised(window(inner, channels, bias=False, kernels=kernels), "relu", kernels=kernels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        coarse = features
        if features.shape[-2] // self.factor >= SMALLEST_SIDE:
            pool = fused.average_pool if self.kernels == "fused" else functional.avg_pool2d
            coarse = pool(features, self.factor)
        coarse = self.frequencies(self.enter(coarse))
        where = torch.sigmoid(self.place(coarse))
        coarse = coarse * ((1 - where) * self.outside + where * self.inside)
        return resized(self.leave(coarse), size_of(features), self.kernels)


class MultiScaleAttention(torch.nn.Module):
    """The map plus the mean of three branches at full, half and quarter resolution.

    Branch s has channels / 2**s inner channels, at least `narrowest`. Only the number of rows decides whether a branch
    pools, as in the publication: at 18 rows the quarter would have fewer than 8, so that branch stays at full
    resolution.
    """

    def __init__(self, channels: int, side: int, *, narrowest: int, kernels: Kernels) -> None:
        super().__init__()
        self.branches = torch.nn.ModuleList(
            ScaleBranch(channels, max(min(narrowest, channels), channels // 2**scale), scale, side, kernels=kernels)
            for scale in range(BRANCHES)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        total = self.branches[0](features)
        for branch in self.branches[1:]:
            total = total + branch(features)
        return features + total / BRANCHES
