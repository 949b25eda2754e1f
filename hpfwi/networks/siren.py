"""A coordinate network with sine activations (SIREN) and the coordinates it is fed.

Source of the architecture and of the uniform bounds: Sitzmann et al. 2020, "Implicit neural representations with
periodic activation functions". Width, depth and omega0 for velocity models: Chen et al., ICLR 2026 (arXiv 2603.22362).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.checkpoint import checkpoint

PIECE = 2**19
"""Points whose activations are kept at once: 4 layers of 128 units keep 4 kB a point, 2 GB in all. A section is one
piece; a block of 100 x 100 x 100 cells is two."""

Scaling = Literal["unit", "kilometres"]


class NetworkSettings(BaseModel):
    """The coordinate network that writes a velocity model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=128, ge=1, description="Units in each hidden layer.")
    hidden_layers: int = Field(
        default=4, ge=1, description="Sine layers, the first one included; a linear layer follows."
    )
    omega0: float = Field(
        default=30.0, gt=0, description="Angular frequency in rad that multiplies every sine layer's input."
    )
    zero_last: bool = Field(
        default=False, description="Start the linear layer at zero, so that the first model is exactly the initial one."
    )
    coordinates: Scaling = Field(
        default="unit",
        description="Network input: 'unit' maps each axis to [-1, 1]; 'kilometres' is cell index times spacing / 1000.",
    )


class Siren(torch.nn.Module):
    """sin(omega0 (W x + b)) for each hidden layer, then one linear unit.

    Initial values, drawn from the generator layer by layer, weights before biases:
    first layer W ~ U(±1/in); other weights, the last layer's too, W ~ U(±sqrt(6/width)/omega0); biases of the sine
    layers U(±1/sqrt(fan_in)), the range that the published codes inherit from torch, which spreads the phases. The last
    bias is 0: drawn like the others it would shift the whole first model by up to scale/sqrt(width), 88 m/s of 1000.
    The output over coordinates then has mean about 0 and standard deviation about 1/omega0.

    >>> network = Siren(width=128, hidden_layers=4, omega0=30.0, zero_last=False, generator=torch.Generator())
    >>> sum(parameter.numel() for parameter in network.parameters())
    50049
    """

    def __init__(
        self,
        *,
        in_features: int = 2,
        width: int,
        hidden_layers: int,
        omega0: float,
        zero_last: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.omega0 = omega0
        sizes = [in_features] + [width] * hidden_layers
        self.hidden = torch.nn.ModuleList(
            torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.last = torch.nn.utils.skip_init(torch.nn.Linear, width, 1)
        inner = math.sqrt(6.0 / width) / omega0
        with torch.no_grad():
            for index, layer in enumerate(self.hidden_linears()):
                bound = 1.0 / in_features if index == 0 else inner
                layer.weight.uniform_(-bound, bound, generator=generator)
                spread = 1.0 / math.sqrt(layer.in_features)
                layer.bias.uniform_(-spread, spread, generator=generator)
            self.last.weight.uniform_(-inner, inner, generator=generator)
            self.last.bias.zero_()
        if zero_last:
            self.zero_last_layer()

    def hidden_linears(self) -> list[torch.nn.Linear]:
        """The linear maps inside the sine layers, from input to output."""
        return [layer for layer in self.hidden if isinstance(layer, torch.nn.Linear)]

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Network output, Tensor[point], for coordinates Tensor[point, in_features]."""
        activation = coordinates
        for layer in self.hidden:
            activation = torch.sin(self.omega0 * layer(activation))
        return self.last(activation).squeeze(-1)

    def trace(self, coordinates: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Phases omega0 (W x + b) and activations of every sine layer, each Tensor[point, width], and the output."""
        phases, activations = [], []
        activation = coordinates
        for layer in self.hidden:
            phase = self.omega0 * layer(activation)
            activation = torch.sin(phase)
            phases.append(phase)
            activations.append(activation)
        return phases, activations, self.last(activation).squeeze(-1)

    def zero_last_layer(self) -> None:
        """Make the output exactly zero everywhere; the sine layers keep their weights."""
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()


def build_siren(settings: NetworkSettings, generator: torch.Generator, *, in_features: int = 2) -> Siren:
    """A network of these settings whose initial weights come from the generator alone."""
    return Siren(
        in_features=in_features,
        width=settings.width,
        hidden_layers=settings.hidden_layers,
        omega0=settings.omega0,
        zero_last=settings.zero_last,
        generator=generator,
    )


def evaluate(network: Siren, points: torch.Tensor) -> torch.Tensor:
    """Network output, Tensor[point], for coordinates Tensor[point, axis], in pieces of at most PIECE points.

    A gradient through several pieces computes the activations of each again, in place of keeping those of all.
    """
    if len(points) <= PIECE:
        written: torch.Tensor = network(points)
        return written
    pieces = [
        checkpoint(network, piece, use_reentrant=False, preserve_rng_state=False) for piece in points.split(PIECE)
    ]
    return torch.cat(pieces)


def coordinates(shape: Sequence[int], spacing_m: Sequence[float], scaling: Scaling) -> torch.Tensor:
    """Cell coordinates, float32[cell, axis], row-major in the order of `shape`, hence (z, x) or (z, y, x).

    'unit': each axis runs from -1 at the first cell to 1 at the last. 'kilometres': index times spacing / 1000, so the
    network sees the same length scale along every axis.

    >>> coordinates((2, 2), (10.0, 10.0), "unit").tolist()
    [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    if scaling == "unit":
        axes = [torch.linspace(-1.0, 1.0, cells, dtype=torch.float64) for cells in shape]
    else:
        axes = [
            torch.arange(cells, dtype=torch.float64) * (spacing / 1000.0)
            for cells, spacing in zip(shape, spacing_m, strict=True)
        ]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([grid.reshape(-1) for grid in grids], dim=-1).float()
