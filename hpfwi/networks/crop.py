"""Cutting a velocity model out of a map that is larger than it."""

from __future__ import annotations

import torch

from hpfwi.errors import ConfigError


def checked_start(map_shape: tuple[int, int], model_shape: tuple[int, int], start: int, network: str) -> int:
    """The start of a crop, once it is known to fit; ConfigError where a side of the map is too short."""
    for axis, have, want in zip("zx", map_shape, model_shape, strict=True):
        if start + want > have:
            raise ConfigError(
                f"{network} cannot cut {want} cells along {axis} from cell {start} on out of a map of {have}; "
                f"give records of at least {start + want} samples along that axis or a model of at most "
                f"{have - start} cells."
            )
    return start


def cropped(features: torch.Tensor, model_shape: tuple[int, int], start: int) -> torch.Tensor:
    """Rows start .. start + nz - 1 and columns start .. start + nx - 1 of every map."""
    return features[..., start : start + model_shape[0], start : start + model_shape[1]]


def centred(features: torch.Tensor, model_shape: tuple[int, int]) -> torch.Tensor:
    """The middle nz rows and nx columns of every map; of an odd surplus the larger half goes below and to the right."""
    rows, columns = ((have - want) // 2 for have, want in zip(features.shape[-2:], model_shape, strict=True))
    return features[..., rows : rows + model_shape[0], columns : columns + model_shape[1]]
