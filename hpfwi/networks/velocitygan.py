"""VelocityGAN: InversionNet as generator, and a critic that scores velocities.

Zhang, Wu, Zhou and Lin, IEEE WACV 2019 (doi 10.1109/WACV.2019.00080). Kept from the published code and from the OpenFWI
benchmark, which agree on it: the critic's last layer too has batch norm and leaky ReLU. In training a score therefore
depends on the other samples of its batch, one sample alone cannot be scored, the gradient penalty mixes samples, and a
batch of true and one of predicted velocities have the same mean before the last ReLU, so the critic's gap stays small.
There is no other fault to reproduce.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from hpfwi.networks.blocks import convolution, half, normalised, scaled
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.inversionnet import InversionNet


class Critic(torch.nn.Module):
    """Velocities Tensor[sample, 1, nz, nx] to scores Tensor[sample, 1]; higher means more like a true one."""

    def __init__(self, model_shape: tuple[int, int], *, width: float, generator: torch.Generator) -> None:
        super().__init__()
        counts = [scaled(count, width) for count in (32, 64, 128, 256)]
        layers: list[torch.nn.Module] = []
        for inputs, outputs in pairwise([1, *counts]):
            layers.append(normalised(convolution(inputs, outputs, stride=2), "leaky"))
            layers.append(normalised(convolution(outputs, outputs), "leaky"))
        rest = half(model_shape, times=len(counts))
        layers.append(normalised(convolution(counts[-1], 1, rest, padding=0), "leaky"))
        self.layers = torch.nn.Sequential(*layers)
        initialise(self, generator)

    def forward(self, velocities: torch.Tensor) -> torch.Tensor:
        return self.layers(velocities).flatten(start_dim=1)


class VelocityGan(torch.nn.Module):
    """Both networks; as a function it is the generator: records to velocities Tensor[sample, 1, nz, nx] in (-1, 1).

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
        self.generator = InversionNet(records_shape, model_shape, width=width, generator=generator)
        self.critic = Critic(model_shape, width=width, generator=generator)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.generator(records)
