"""AMFMS and AMFMS_SEG: a U-Net with wavelet convolutions on the way down and multi-frequency attention on the way up.

"Enhancing Seismic Inversion Fidelity via Adaptive Multi-Frequency and Multi-Scale Fusion", public code of February
2026. Fault of the published code: AMFMS_SEG cuts the velocity out of its map from row and column 1 on, one cell off the
receivers; only `as_published` does so here, the default starts at 0. In both the map's rows continue the time axis, and
a velocity of nz rows is read off the first nz of them. AMFMS has no fault to reproduce.
"""

from __future__ import annotations

import torch

from hpfwi.networks.blocks import (
    PixelShuffle,
    TimeReducer,
    convolution,
    double_convolution,
    half,
    half_pool,
    normalised,
    resized,
    scaled,
    sequence,
    size_of,
    transposed_convolution,
    window,
)
from hpfwi.networks.crop import checked_start, cropped
from hpfwi.networks.fused import Kernels
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.multi_frequency import NARROWEST, MultiScaleAttention
from hpfwi.networks.wavelet_convolution import WaveletConvolution

CHANNELS = (64, 128, 256, 512)
"""Channels of the three stages that leave a skip and of the centre."""
COSINE_SIDES = {64: 56, 128: 28, 256: 14}
"""Side of the cosine tables for a decoder stage, by its channels at full width: 3584 / channels, whatever the map."""


def wavelet_stage(inputs: int, outputs: int, kernels: Kernels) -> torch.nn.Sequential:
    """A double convolution with PReLU, then a wavelet convolution."""
    return sequence(
        *double_convolution(inputs, outputs, "prelu-per-channel", kernels=kernels),
        WaveletConvolution(outputs, kernels=kernels),
        kernels=kernels,
    )


class AttentionStage(torch.nn.Module):
    """Double the coarse map's sides, join the skip, and weigh the result by the multi-scale attention."""

    def __init__(self, inputs: int, outputs: int, side: int, *, narrowest: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.rise = transposed_convolution(inputs, outputs)
        self.join = normalised(window(2 * outputs, outputs, kernels=kernels), "prelu-per-channel", kernels=kernels)
        self.attention = MultiScaleAttention(outputs, side, narrowest=narrowest, kernels=kernels)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        fine = resized(self.rise(coarse), size_of(skip), self.kernels)
        return self.attention(self.join(torch.cat([skip, fine], dim=1)))


class AttentionUNet(torch.nn.Module):
    """What both networks share: from 32 channels down to 512 at an eighth of the sides, and up again to 64."""

    def __init__(self, inputs: int, *, width: float, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        counts = [scaled(count, width) for count in CHANNELS]
        skips = counts[:-1]
        self.down = torch.nn.ModuleList(
            wavelet_stage(before, after, kernels) for before, after in zip([inputs, *skips[:-1]], skips, strict=True)
        )
        self.centre = double_convolution(counts[-2], counts[-1], "prelu-per-channel", kernels=kernels)
        self.up = torch.nn.ModuleList(
            AttentionStage(
                counts[stage + 1],
                counts[stage],
                COSINE_SIDES[CHANNELS[stage]],
                narrowest=scaled(NARROWEST, width),
                kernels=kernels,
            )
            for stage in (2, 1, 0)
        )
        self.outputs = counts[0]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        skips = []
        for stage in self.down:
            features = stage(features)
            skips.append(features)
            features = half_pool(features, self.kernels)
        features = self.centre(features)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            features = stage(skip, features)
        return features


class Amfms(torch.nn.Module):
    """AMFMS: records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx], unbounded.

    Records of any length and any number of receivers are first resampled to 8 nz by nx.
    """

    def __init__(
        self, shots: int, model_shape: tuple[int, int], *, width: float, kernels: Kernels, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.reducer = TimeReducer(
            shots,
            model_shape,
            width=width,
            mixing=lambda channels: WaveletConvolution(channels, kernels=kernels),
            kernels=kernels,
        )
        self.body = AttentionUNet(self.reducer.outputs, width=width, kernels=kernels)
        last = self.body.outputs
        self.head = torch.nn.Sequential(
            PixelShuffle(last, last, 1, kernels=kernels),
            PixelShuffle(last, last, 1, kernels=kernels),
            convolution(last, 1, 1, padding=0),
        )
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.reducer(records)))


class AmfmsSeg(torch.nn.Module):
    """AMFMS_SEG: like AMFMS without the reducer; the velocity is cut out of a map of the records' own size.

    raises   ConfigError: records with fewer samples or receivers than the model has cells
    """

    def __init__(
        self,
        records_shape: tuple[int, int, int],
        model_shape: tuple[int, int],
        *,
        as_published: bool,
        width: float,
        kernels: Kernels,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        shots, samples, receivers = records_shape
        rows, columns = half((samples, receivers))
        self.model_shape = model_shape
        self.start = checked_start((2 * rows, 2 * columns), model_shape, 1 if as_published else 0, "AMFMS_SEG")
        first = scaled(32, width)
        self.enter = wavelet_stage(shots, first, kernels)
        self.body = AttentionUNet(first, width=width, kernels=kernels)
        last = self.body.outputs
        self.rise = torch.nn.Sequential(
            PixelShuffle(last, last, 2, kernels=kernels), PixelShuffle(last, last, 1, kernels=kernels)
        )
        self.head = convolution(last, 1, 1, padding=0)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        features = self.body(half_pool(self.enter(records), self.kernels))
        return self.head(cropped(self.rise(features), self.model_shape, self.start))
