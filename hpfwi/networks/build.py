"""Which data-driven network, for which shapes, from which seed."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.networks.fused import Kernels

NetworkName = Literal[
    "amfms",
    "amfms-seg",
    "inversionnet",
    "fcnvmb",
    "dd-net",
    "dd-net70",
    "aba-fwi",
    "aba-fwi+",
    "tu-net",
    "tu-net-seg",
    "velocitygan",
]
Shapes = tuple[tuple[int, int, int], tuple[int, int]]
OPENFWI_SHAPES: Shapes = ((5, 1000, 70), (70, 70))
"""Records [shot, time, receiver] and model [z, x] of OpenFWI and of the Marmousi slices."""
SEG_SHAPES: Shapes = ((29, 400, 301), (201, 301))
"""The same for the SEG salt and SEG simulation sets."""


class NetworkChoice(BaseModel):
    """A network that maps records to velocities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: NetworkName = Field(default="amfms", description="The network.")
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="Seed of the first weights, where training.initial_weights names no others.",
    )
    width: float = Field(
        default=1.0,
        gt=0,
        le=8,
        description="Factor on every inner channel count, rounded to multiples of 8; 1 is the published network.",
    )
    kernels: Kernels = Field(
        default="fused",
        description="The layers that cost most by our kernels ('fused') or, as published, by torch's operators one "
        "after the other ('eager').",
    )
    as_published: bool = Field(
        default=False,
        description="Reproduce the faults of the published code; each network's file says which it has.",
    )
    ablation: bool = Field(
        default=False, description="ABA-FWI without its wavelet convolutions and attention; for no other network."
    )
    records_shape: tuple[int, int, int] | None = Field(
        default=None, description="Shots, time samples and receivers of a sample's records; none: as published."
    )
    model_shape: tuple[int, int] | None = Field(
        default=None, description="Cells along z and x of a sample's velocity; none: as published."
    )

    @model_validator(mode="after")
    def _ablation_is_of_aba_fwi(self) -> Self:
        if self.ablation and self.name != "aba-fwi":
            raise ValueError(f"ablation is defined for 'aba-fwi' alone, not for {self.name!r}; leave it out")
        return self


def fewest_samples(name: NetworkName) -> int:
    """Samples that batch norm needs to take statistics from: InversionNet makes one cell of each."""
    return 2 if name in ("inversionnet", "velocitygan") else 1


def published_shapes(name: NetworkName) -> Shapes:
    """Shapes of records and model that a network was published for; FCNVMB also ran with OPENFWI_SHAPES."""
    if name in ("amfms-seg", "fcnvmb", "dd-net", "aba-fwi+", "tu-net-seg"):
        return SEG_SHAPES
    return OPENFWI_SHAPES


def build_network(settings: NetworkChoice) -> torch.nn.Module:
    """The network with its first weights, on the CPU in float32.

    Called with records Tensor[sample, shot, time, receiver] it returns velocities Tensor[sample, 1, nz, nx] on the
    scale of the targets that it was trained with; the two DD-Nets return edge logits Tensor[sample, 2, nz, nx] as well.
    VelocityGAN holds `generator` and `critic`.

    raises   ConfigError: shapes that the network cannot be built for
    """
    published_records, published_model = published_shapes(settings.name)
    records = settings.records_shape or published_records
    model = settings.model_shape or published_model
    generator = torch.Generator().manual_seed(settings.seed)
    width, kernels, as_published = settings.width, settings.kernels, settings.as_published
    match settings.name:
        case "amfms":
            from hpfwi.networks.amfms import Amfms

            return Amfms(records[0], model, width=width, kernels=kernels, generator=generator)
        case "amfms-seg":
            from hpfwi.networks.amfms import AmfmsSeg

            return AmfmsSeg(
                records, model, as_published=as_published, width=width, kernels=kernels, generator=generator
            )
        case "inversionnet":
            from hpfwi.networks.inversionnet import InversionNet

            return InversionNet(records, model, width=width, generator=generator)
        case "fcnvmb":
            from hpfwi.networks.fcnvmb import Fcnvmb

            return Fcnvmb(records, model, as_published=as_published, width=width, generator=generator)
        case "dd-net":
            from hpfwi.networks.ddnet import DdNet

            return DdNet(records, model, as_published=as_published, width=width, generator=generator)
        case "dd-net70":
            from hpfwi.networks.ddnet import DdNet70

            return DdNet70(records[0], model, as_published=as_published, width=width, generator=generator)
        case "aba-fwi":
            from hpfwi.networks.aba_fwi import AbaFwi

            return AbaFwi(records, model, ablation=settings.ablation, width=width, kernels=kernels, generator=generator)
        case "aba-fwi+":
            from hpfwi.networks.aba_fwi import AbaFwiPlus

            return AbaFwiPlus(
                records, model, as_published=as_published, width=width, kernels=kernels, generator=generator
            )
        case "tu-net":
            from hpfwi.networks.tu_net import TuNet

            return TuNet(records[0], model, as_published=as_published, width=width, generator=generator)
        case "tu-net-seg":
            from hpfwi.networks.tu_net import TuNetSeg

            return TuNetSeg(records, model, as_published=as_published, width=width, generator=generator)
        case "velocitygan":
            from hpfwi.networks.velocitygan import VelocityGan

            return VelocityGan(records, model, width=width, generator=generator)
