"""ABA-FWI and ABA-FWI+: wavelet convolutions on the way down, spatial attention on the way up.

Xu et al., IEEE TGRS 2024 (doi 10.1109/TGRS.2024.3496854). ABA-FWI is InversionNet without the vector in its middle,
with two skips; ABA-FWI+ is FCNVMB's U-Net. Faults of the published code: none in ABA-FWI; in ABA-FWI+ those of `u_net`,
reproduced when `as_published`.
"""

from __future__ import annotations

import torch

from hpfwi.errors import ConfigError
from hpfwi.networks.blocks import (
    SpatialAttention,
    bounded_head,
    convolution,
    normalised,
    scaled,
    transposed_convolution,
)
from hpfwi.networks.crop import centred, checked_middle, checked_start, cropped
from hpfwi.networks.fused import Kernels
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.inversionnet import MAP_SIDE, encoded_shape, time_encoder
from hpfwi.networks.u_net import Decoder, Encoder, decoded_shape
from hpfwi.networks.wavelet_convolution import WaveletConvolution

ALIGNED_SIDE = 40
"""Cells on a side to which zeros and a stride of 2 bring the encoded records, whatever their size."""


def aligning_padding(cells: int) -> int:
    """Zeros on both ends with which a window of 3 and a stride of 2 leave 40 cells.

    >>> aligning_padding(63), aligning_padding(70)
    (9, 6)
    """
    padding = (2 * ALIGNED_SIDE + 2 - cells) // 2
    if padding < 0:
        raise ConfigError(
            f"ABA-FWI brings encoded records to {ALIGNED_SIDE} x {ALIGNED_SIDE} cells and takes at most "
            f"{2 * ALIGNED_SIDE + 2} receivers and {16 * (2 * ALIGNED_SIDE + 2)} samples, but a side has {cells} cells "
            "after encoding; decimate the records, or take ABA-FWI+."
        )
    return padding


class AbaFwi(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx] in (-1, 1).

    `ablation` leaves out wavelet convolutions and attention: the published control that isolates the loss.

    raises   ConfigError: a model of more than 80 x 80 cells, records of more than 1312 samples or 82 receivers
    """

    def __init__(
        self,
        records_shape: tuple[int, int, int],
        model_shape: tuple[int, int],
        *,
        ablation: bool,
        width: float,
        kernels: Kernels,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        shots, samples, receivers = records_shape
        self.model_shape = checked_middle(MAP_SIDE, model_shape, "ABA-FWI")
        c32, c64, c128, c256, c512 = (scaled(count, width) for count in (32, 64, 128, 256, 512))
        rows, columns = encoded_shape(samples, receivers)
        padding = (aligning_padding(rows), aligning_padding(columns))

        def wavelet(channels: int) -> torch.nn.Module:
            return torch.nn.Identity() if ablation else WaveletConvolution(channels, kernels=kernels)

        def attention() -> torch.nn.Module:
            return torch.nn.Identity() if ablation else SpatialAttention()

        def down(inputs: int, outputs: int, padding: int | tuple[int, int] = 1) -> list[torch.nn.Module]:
            first = convolution(inputs, outputs, stride=2, padding=padding)
            return [normalised(first, "prelu"), normalised(convolution(outputs, outputs), "prelu")]

        def up(inputs: int, outputs: int) -> torch.nn.Sequential:
            return normalised(transposed_convolution(inputs, outputs, 4, padding=1), "prelu")

        def refine(channels: int) -> torch.nn.Sequential:
            return torch.nn.Sequential(normalised(convolution(channels, channels), "prelu"), attention())

        def squeeze(inputs: int, outputs: int) -> torch.nn.Conv2d:
            return convolution(inputs, outputs, 1, padding=0)

        self.to_quarter = torch.nn.Sequential(
            *time_encoder(shots, width, "prelu"),
            wavelet(c128),
            *down(c128, c128, padding),
            wavelet(c128),
            *down(c128, c256),
            wavelet(c256),
        )
        self.to_eighth = torch.nn.Sequential(*down(c256, c256))
        self.to_sixteenth = torch.nn.Sequential(*down(c256, c512))
        self.up_eighth, self.join_eighth, self.refine_eighth = up(c512, c256), squeeze(2 * c256, c256), refine(c256)
        self.up_quarter, self.skip_quarter = up(c256, c128), squeeze(c256, c128)
        self.join_quarter, self.refine_quarter = squeeze(2 * c128, c128), refine(c128)
        self.finish = torch.nn.Sequential(up(c128, c64), refine(c64), up(c64, c32), refine(c32))
        self.head = bounded_head(c32)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        quarter = self.to_quarter(records)
        eighth = self.to_eighth(quarter)
        features = self.up_eighth(self.to_sixteenth(eighth))
        features = self.refine_eighth(self.join_eighth(torch.cat([eighth, features], dim=1)))
        joined = torch.cat([self.skip_quarter(quarter), self.up_quarter(features)], dim=1)
        features = self.refine_quarter(self.join_quarter(joined))
        return self.head(centred(self.finish(features), self.model_shape))


class AbaFwiPlus(torch.nn.Module):
    """Records Tensor[sample, shot, time, receiver] to velocities Tensor[sample, 1, nz, nx], unbounded.

    FCNVMB with a wavelet convolution after each encoder stage and spatial attention after each decoder stage.

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
        shots, samples, receivers = records_shape
        map_shape = decoded_shape(samples, receivers, as_published=as_published)
        self.start = checked_start(map_shape, model_shape, 1 if as_published else 0, "ABA-FWI+")
        self.model_shape = model_shape
        self.encoder = Encoder(
            shots,
            as_published=as_published,
            width=width,
            extra=lambda channels: WaveletConvolution(channels, kernels=kernels),
        )
        self.decoder = Decoder(as_published=as_published, width=width, extra=lambda channels: SpatialAttention())
        self.head = convolution(self.decoder.outputs, 1, 1, padding=0)
        initialise(self, generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.head(cropped(self.decoder(*self.encoder(records)), self.model_shape, self.start))
