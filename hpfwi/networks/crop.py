"""Cutting a velocity model out of a map that is larger than it."""

from __future__ import annotations

import torch

from hpfwi.errors import ConfigError


def checked_start(map_shape: tuple[int, int], model_shape: tuple[int, int], start: int, network: str) -> int:
    """The start of a crop out of a map of the records' size, once it fits; ConfigError where a side is too short."""
    for axis, samples, have, want in zip("zx", ("samples", "receivers"), map_shape, model_shape, strict=True):
        if start + want > have:
            raise ConfigError(
                f"{network} reads the velocity out of a map as large as the records, from cell {start} on, and for "
                f"{want} cells along {axis} that map has {have}; give records of at least {start + want} {samples} "
                f"or a model of at most {have - start} cells along {axis}."
            )
    return start


def checked_middle(side: int, model_shape: tuple[int, int], network: str) -> tuple[int, int]:
    """The model's shape, once it fits into a map of side x side cells; ConfigError where it does not."""
    if max(model_shape) > side:
        raise ConfigError(
            f"{network} writes maps of {side} x {side} cells and cannot give a model of "
            f"{model_shape[0]} x {model_shape[1]}; resample the models to at most {side} cells on a side or take "
            "another network."
        )
    return model_shape


def cropped(features: torch.Tensor, model_shape: tuple[int, int], start: int) -> torch.Tensor:
    """Rows start .. start + nz - 1 and columns start .. start + nx - 1 of every map."""
    return features[..., start : start + model_shape[0], start : start + model_shape[1]]


def centred(features: torch.Tensor, model_shape: tuple[int, int]) -> torch.Tensor:
    """The middle nz rows and nx columns of every map; of an odd surplus the larger half goes below and to the right."""
    rows, columns = ((have - want) // 2 for have, want in zip(features.shape[-2:], model_shape, strict=True))
    return features[..., rows : rows + model_shape[0], columns : columns + model_shape[1]]
