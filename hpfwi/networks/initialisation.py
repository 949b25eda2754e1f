"""First weights of a convolutional network, drawn from one generator and nothing global.

torch's layers draw their weights from the global generator when they are made. Here layers are made without values
(`blocks.convolution`, `blocks.transposed_convolution`) and `initialise` draws all of them afterwards, in the order in
which the layers were made, so a seed alone decides a network.
"""

from __future__ import annotations

import math

import torch


class OwnInitialisation(torch.nn.Module):
    """A block that overrides some of the values which `initialise` has drawn for its layers."""

    def initialise(self, generator: torch.Generator) -> None:
        """Set this block's own values; called after those of the layers inside it."""
        raise NotImplementedError


def initialise(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw all weights and biases of convolutions, then let the blocks with values of their own set them.

    Weights and biases are uniform in ±1/sqrt(fan-in), which is what torch's default (Kaiming uniform with a = sqrt 5)
    amounts to. The fan-in is the size of one slice of the weight along its first axis; for a transposed convolution
    that slice runs over outputs, as in torch. Norms (1 and 0), PReLU slopes and learned scales keep the values which
    they were made with.
    """
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                spread = 1.0 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-spread, spread, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-spread, spread, generator=generator)
        for block in network.modules():
            if isinstance(block, OwnInitialisation):
                block.initialise(generator)
