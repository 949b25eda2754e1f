"""InversionNet: an encoder that ends in one vector, a decoder that unrolls it into a velocity.

Wu and Lin, IEEE Trans. Computational Imaging 6, 2020 (doi 10.1109/TCI.2019.2956866); the list of layers is that of the
public OpenFWI benchmark. No fault of the published code concerns the network.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from hpfwi.networks.blocks import (
    Activation,
    bounded_head,
    convolution,
    half,
    normalised,
    scaled,
    transposed_convolution,
)
from hpfwi.networks.crop import centred, checked_middle
from hpfwi.networks.initialisation import initialise

MAP_SIDE = 80
"""Cells on a side of the decoder's last map: 5, doubled four times."""
DECODER_CHANNELS = (512, 256, 128, 64, 32)


def time_encoder(shots: int, width: float, kind: Activation) -> list[torch.nn.Module]:
    """The seven layers that work along time alone: 4 halvings of the samples, from `shots` to 128 channels."""
    layers: list[torch.nn.Module] = []
    inputs, size = shots, 7
    for count, stride in ((32, 2), (64, 2), (64, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        outputs = scaled(count, width)
        layer = convolution(inputs, outputs, (size, 1), stride=(stride, 1), padding=(size // 2, 0))
        layers.append(normalised(layer, kind))
        inputs, size = outputs, 3
    return layers


def encoded_shape(samples: int, receivers: int) -> tuple[int, int]:
    """Rows and columns after the time encoder.

    >>> encoded_shape(1000, 70)
    (63, 70)
    """
    return half((samples, 1), times=4)[0], receivers


class InversionNet(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx] in (-1, 1).

    Every layer is a convolution with batch norm and leaky ReLU, the last one's is tanh. A sample is one vector in the
    middle, so training needs two samples in a batch: torch's batch norm refuses one.

    raises   ConfigError: a model of more than 80 x 80 cells
    """

    def __init__(
        self,
        records_shape: tuple[int, int, int],
        model_shape: tuple[int, int],
        *,
        width: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        shots, samples, receivers = records_shape
        self.model_shape = checked_middle(MAP_SIDE, model_shape, "InversionNet")
        counts = [scaled(count, width) for count in (128, 128, 256, 256)]
        layers = time_encoder(shots, width, "leaky")
        for (inputs, outputs), stride in zip(pairwise([counts[0], *counts, counts[-1]]), (2, 1, 2, 1, 2), strict=True):
            layers.append(normalised(convolution(inputs, outputs, stride=stride), "leaky"))
        layers.append(normalised(convolution(counts[-1], counts[-1]), "leaky"))
        vector = scaled(512, width)
        rest = half(encoded_shape(samples, receivers), times=3)
        layers.append(normalised(convolution(counts[-1], vector, rest, padding=0), "leaky"))
        self.encoder = torch.nn.Sequential(*layers)
        self.decoder = unrolling_decoder(vector, [scaled(count, width) for count in DECODER_CHANNELS])
        self.head = bounded_head(scaled(DECODER_CHANNELS[-1], width))
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.head(centred(self.decoder(self.encoder(records)), self.model_shape))


def unrolling_decoder(vector: int, counts: list[int]) -> torch.nn.Sequential:
    """From one cell of `vector` channels to 80 x 80 cells, a convolution after every enlargement."""
    layers: list[torch.nn.Module] = []
    for stage, (inputs, outputs) in enumerate(pairwise([vector, *counts])):
        size, padding = (5, 0) if stage == 0 else (4, 1)
        layers.append(normalised(transposed_convolution(inputs, outputs, size, padding=padding), "leaky"))
        layers.append(normalised(convolution(outputs, outputs), "leaky"))
    return torch.nn.Sequential(*layers)
