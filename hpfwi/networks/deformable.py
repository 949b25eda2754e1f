"""Modulated deformable convolution in plain torch: a 3x3 window whose nine taps move and are weighed at every position.

    out(y, x) = bias + sum over channels and taps n of
                weight_n * mask_n(y, x) * features(y - 1 + n // 3 + dy_n(y, x), x - 1 + n % 3 + dx_n(y, x))

with bilinear sampling and zero outside the map. Groups of channels move together.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hpfwi.networks.blocks import convolution
from hpfwi.networks.initialisation import OwnInitialisation

TAPS = 9
OFFSET_GROUPS = 4


def deformable_convolution(
    features: torch.Tensor, offsets: torch.Tensor, masks: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The convolution above.

    features   Tensor[sample, channel, row, column]; channels are split over the groups in order
    offsets    Tensor[sample, 2 x 9 x group, row, column] in cells; tap n of group g moves down by channel 2 (9 g + n)
               and right by the next one
    masks      Tensor[sample, 9 x group, row, column]
    weight     Tensor[output, channel, 3, 3], bias Tensor[output]
    returns    Tensor[sample, output, row, column]

    torch's grid sampling does the bilinear part. Its gradient on a GPU adds in no fixed order, so where
    `torch.use_deterministic_algorithms` is on, gathers do it there.
    """
    samples, channels, rows, columns = features.shape
    groups = masks.shape[1] // TAPS
    moves = offsets.reshape(samples * groups, TAPS, 2, rows, columns)
    tap = torch.arange(TAPS, device=features.device)
    row = torch.arange(rows, device=features.device).reshape(1, 1, rows, 1)
    column = torch.arange(columns, device=features.device).reshape(1, 1, 1, columns)
    down = moves[:, :, 0] + (row + (tap // 3 - 1).reshape(1, TAPS, 1, 1))
    right = moves[:, :, 1] + (column + (tap % 3 - 1).reshape(1, TAPS, 1, 1))
    grouped = features.reshape(samples * groups, channels // groups, rows, columns)
    fixed_order = features.is_cuda and torch.are_deterministic_algorithms_enabled()
    sample = sampled_by_gather if fixed_order else sampled_by_grid
    taken = sample(grouped, down.reshape(samples * groups, -1), right.reshape(samples * groups, -1))
    taken = taken.reshape(samples * groups, channels // groups, TAPS, rows * columns)
    taken = taken * masks.reshape(samples * groups, 1, TAPS, rows * columns)
    taken = taken.reshape(samples, channels * TAPS, rows * columns)
    output = torch.matmul(weight.reshape(len(weight), channels * TAPS), taken) + bias.reshape(-1, 1)
    return output.reshape(samples, len(weight), rows, columns)


def sampled_by_grid(features: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Bilinear values at fractional cells, zero outside.

    features        Tensor[sample, channel, row, column]
    rows, columns   Tensor[sample, point] in cells
    returns         Tensor[sample, channel, point]
    """
    height, width = features.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1).unsqueeze(1)
    return functional.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def sampled_by_gather(features: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The same as `sampled_by_grid`, slower, with a gradient that torch can add in a fixed order on a GPU."""
    height, width = features.shape[-2:]
    flat = features.flatten(start_dim=2)
    top, left = rows.floor(), columns.floor()
    total = torch.zeros_like(flat[..., :1])
    for row, share_down in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, share_right in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            corner = flat.gather(2, cell.unsqueeze(1).expand(-1, flat.shape[1], -1))
            total = total + corner * (share_down * share_right * inside).unsqueeze(1)
    return total


class DeformableConvolution(OwnInitialisation):
    """The convolution with its weights, moved and weighed by a second map.

    A plain 3x3 convolution of the guidance gives offsets (channels 0-71 of 108) and, through a sigmoid, masks. It
    starts at zero, so the layer starts as half a plain convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steering = convolution(channels, 3 * TAPS * OFFSET_GROUPS)
        self.window = convolution(channels, channels)

    def initialise(self, generator: torch.Generator) -> None:
        assert self.steering.bias is not None
        assert self.window.bias is not None
        for values in (self.steering.weight, self.steering.bias, self.window.bias):
            values.zero_()

    def forward(self, features: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        assert self.window.bias is not None
        moves, masks = self.steering(guidance).split([2 * TAPS * OFFSET_GROUPS, TAPS * OFFSET_GROUPS], dim=1)
        return deformable_convolution(features, moves, torch.sigmoid(masks), self.window.weight, self.window.bias)
