"""DD-Net and DD-Net70: a velocity and, as a second output, where its edges are.

Zhang et al., "Dual decoder network with curriculum learning for full waveform inversion", IEEE TGRS 2024
(doi 10.1109/TGRS.2024.3358492). Faults of the published code, reproduced when `as_published`: one decoder's weights run
twice on the same input, so that the two "decoders" compute the same and only their heads differ (and each batch norm of
it moves its running statistics twice a step); for DD-Net also those of `u_net`. By default there are two decoders with
weights of their own, as in the authors' release of DD-Net. Kept in both: DD-Net70's edge logits pass through tanh, so
they differ by at most 2 and the cross-entropy of its edges cannot fall below ln(1 + exp(-2)) = 0.1269.
"""

from __future__ import annotations

import torch

from hpfwi.networks.blocks import (
    TimeReducer,
    bounded_head,
    convolution,
    double_convolution,
    half_pool,
    plain_mixing,
    resized,
    scaled,
    size_of,
    transposed_convolution,
)
from hpfwi.networks.crop import checked_start, cropped
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.u_net import Decoder, Encoder, decoded_shape

EDGE_CLASSES = 2


class DdNet(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to a velocity and edge logits.

    returns   Tensor[sample, 1, nz, nx], unbounded, and Tensor[sample, 2, nz, nx], logits of no edge and edge
    raises    ConfigError: records with fewer samples or receivers than the model has cells
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
        map_shape = decoded_shape(samples, receivers, as_published=as_published)
        self.start = checked_start(map_shape, model_shape, 1 if as_published else 0, "DD-Net")
        self.model_shape = model_shape
        self.encoder = Encoder(shots, as_published=as_published, width=width)
        self.decoder = Decoder(as_published=as_published, width=width)
        self.edge_decoder = None if as_published else Decoder(as_published=False, width=width)
        self.head = convolution(self.decoder.outputs, 1, 1, padding=0)
        self.edge_head = convolution(self.decoder.outputs, EDGE_CLASSES, 1, padding=0)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centre, skips = self.encoder(records)
        edge_decoder = self.decoder if self.edge_decoder is None else self.edge_decoder
        velocity = cropped(self.decoder(centre, skips), self.model_shape, self.start)
        edges = cropped(edge_decoder(centre, skips), self.model_shape, self.start)
        return self.head(velocity), self.edge_head(edges)


class SmallDecoder(torch.nn.Module):
    """DD-Net70's decoder: two stages with skips and convolutions, two that only enlarge."""

    def __init__(self, counts: list[int], last: int) -> None:
        super().__init__()
        low, middle, high, centre = counts
        self.rises = torch.nn.ModuleList(
            transposed_convolution(inputs, outputs)
            for inputs, outputs in ((centre, high), (high, middle), (middle, low), (low, last))
        )
        self.joins = torch.nn.ModuleList(double_convolution(2 * count, count) for count in (high, middle))

    def forward(self, features: torch.Tensor, shapes: list[tuple[int, int]], skips: list[torch.Tensor]) -> torch.Tensor:
        """The map at the finest of `shapes`, which lists the sizes to reach from coarse to fine; skips likewise."""
        for stage, (rise, shape) in enumerate(zip(self.rises, shapes, strict=True)):
            features = resized(rise(features), shape)
            if stage < len(skips):
                features = self.joins[stage](torch.cat([skips[stage], features], dim=1))
        return features


class DdNet70(torch.nn.Module):
    """The variant for small models: records Tensor[sample, shot, time, receiver] to a velocity and edge logits.

    returns   Tensor[sample, 1, nz, nx] in (-1, 1) and Tensor[sample, 2, nz, nx], logits of no edge and edge, in (-1, 1)

    Here the skips are pooled maps too, but they join maps of their own size, so nothing is misplaced.
    """

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
        counts = [scaled(count, width) for count in (64, 128, 256, 512)]
        self.stages = torch.nn.ModuleList(
            double_convolution(inputs, outputs)
            for inputs, outputs in zip([self.reducer.outputs, *counts[:-1]], counts, strict=True)
        )
        last = scaled(32, width)
        self.decoder = SmallDecoder(counts, last)
        self.edge_decoder = None if as_published else SmallDecoder(counts, last)
        self.head = bounded_head(last)
        self.edge_head = bounded_head(last, EDGE_CLASSES)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.reducer(records)
        pooled = [features]
        for stage in self.stages:
            pooled.append(half_pool(stage(pooled[-1])))
        *finer, centre = pooled
        finer.reverse()
        shapes, skips = [size_of(level) for level in finer], finer[:2]
        edge_decoder = self.decoder if self.edge_decoder is None else self.edge_decoder
        velocity = self.decoder(centre, shapes, skips)
        return self.head(velocity), self.edge_head(edge_decoder(centre, shapes, skips))
