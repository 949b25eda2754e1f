"""FCNVMB: a plain U-Net from records to velocities.

Yang and Ma, Geophysics 84(4), 2019 (doi 10.1190/geo2018-0249.1). Faults of the published code, reproduced when
`as_published`: the misplaced skips and the crop from cell 1 on of `u_net`. The map has the records' size, its rows
continue the time axis, and a velocity of nz rows is read off the first nz of them.
"""

from __future__ import annotations

import torch

from hpfwi.networks.blocks import convolution
from hpfwi.networks.crop import checked_start, cropped
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.u_net import Decoder, Encoder, decoded_shape


class Fcnvmb(torch.nn.Module):
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
        map_shape = decoded_shape(samples, receivers, as_published=as_published)
        self.start = checked_start(map_shape, model_shape, 1 if as_published else 0, "FCNVMB")
        self.model_shape = model_shape
        self.encoder = Encoder(shots, as_published=as_published, width=width)
        self.decoder = Decoder(as_published=as_published, width=width)
        self.head = convolution(self.decoder.outputs, 1, 1, padding=0)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.head(cropped(self.decoder(*self.encoder(records)), self.model_shape, self.start))
