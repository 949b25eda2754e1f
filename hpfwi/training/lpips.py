"""LPIPS, the perceptual distance, with weights that the user brings: nothing is ever downloaded.

Zhang et al. 2018, version 0.1 on AlexNet: the five rectified feature maps of both pictures are normalised over
channels, their squared differences weighed per channel, averaged over positions and summed. As in the published
scores, a velocity map on [0, 1] is repeated over the three colours and not mapped to [-1, 1].

The weights are one safetensors file of 15 float32 tensors: `features.N.weight` and `features.N.bias` for N = 0, 3, 6,
8, 10, as torchvision's pretrained AlexNet names its convolutions, and `linN.weight` for N = 0 .. 4, of shape
[1, channel, 1, 1], which the LPIPS package calls `linN.model.1.weight`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hpfwi.errors import DataError

CONVOLUTIONS = (
    ("features.0", 64, 3, 11, 4, 2),
    ("features.3", 192, 64, 5, 1, 2),
    ("features.6", 384, 192, 3, 1, 1),
    ("features.8", 256, 384, 3, 1, 1),
    ("features.10", 256, 256, 3, 1, 1),
)
"""Name, output and input channels, side, stride and padding of AlexNet's convolutions."""
POOLED_BEFORE = ("features.3", "features.6")
"""Convolutions with a maximum pool (3 cells, stride 2) before them."""
COLOUR_SHIFT = (-0.030, -0.088, -0.188)
COLOUR_SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
BATCH = 32
"""Maps in one pass: the features of 32 maps of 70 x 70 cells take 25 MB."""
SMALLEST_SIDE = 31
"""Fewest cells along an axis with which the second pool has a whole window."""


class Lpips:
    """The distance with one set of weights."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def distances(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance of each pair, float64[sample], of maps floating[sample, z, x].

        raises   DataError: maps with fewer than 31 cells along an axis
        """
        if min(true.shape[1:]) < SMALLEST_SIDE:
            raise DataError(
                f"LPIPS needs maps of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} cells and these have "
                f"{true.shape[1]} x {true.shape[2]}; leave it out."
            )
        parts = []
        with torch.no_grad():
            for first in range(0, len(true), BATCH):
                pair = [
                    self._features(torch.from_numpy(maps[first : first + BATCH].astype(np.float32)))
                    for maps in (predicted, true)
                ]
                total = torch.zeros(len(pair[0][0]))
                for level, (one, other) in enumerate(zip(*pair, strict=True)):
                    difference = (one - other).square()
                    total += functional.conv2d(difference, self.weights[f"lin{level}.weight"]).mean(dim=(1, 2, 3))
                parts.append(total.double().numpy())
        return np.concatenate(parts)

    def _features(self, maps: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (COLOUR_SHIFT, COLOUR_SCALE))
        features = (maps.unsqueeze(1) - shift) / scale
        levels = []
        for name, _, _, _, stride, padding in CONVOLUTIONS:
            if name in POOLED_BEFORE:
                features = functional.max_pool2d(features, 3, stride=2)
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            features = torch.relu(functional.conv2d(features, weight, bias, stride=stride, padding=padding))
            levels.append(features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON))
        return levels


def read_lpips(path: str | Path) -> Lpips:
    """The distance with the weights of a safetensors file.

    raises   DataError: a file that is missing or damaged, a tensor that is missing or has another shape
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"The LPIPS weights {path} cannot be read ({error}); give a whole safetensors file.") from error
    weights = {}
    for name, shape in _shapes().items():
        found = tuple(stored[name].shape) if name in stored else "nothing"
        if found != shape:
            raise DataError(
                f"The LPIPS weights {path} hold {found} under {name!r} where {shape} belongs; convert AlexNet's and "
                "LPIPS version 0.1's weights with those names."
            )
        weights[name] = stored[name].float()
    return Lpips(weights)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for level, (name, outputs, inputs, side, _, _) in enumerate(CONVOLUTIONS):
        shapes[f"{name}.weight"] = (outputs, inputs, side, side)
        shapes[f"{name}.bias"] = (outputs,)
        shapes[f"lin{level}.weight"] = (1, outputs, 1, 1)
    return shapes
