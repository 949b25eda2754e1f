"""Samples mirrored from left to right: a second set of training data where the spread is its own mirror image.

The earth mirrored and shot from the other end gives the mirrored gathers, the last shot and the last receiver first.
That is exact for a spread that is symmetric about the middle of the model. OpenFWI's five sources stand on cells 0, 17,
34, 52 and 69 of 70, so the middle one is one cell off, which is the most that is accepted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import ConfigError

MOST_CELLS = 1.0
"""Distance between a source or receiver and the mirror image of its counterpart that is accepted, in cells."""


def mirror(records: torch.Tensor, models: torch.Tensor, which: NDArray[np.bool_]) -> None:
    """Mirror some samples in place.

    records     Tensor[sample, shot, time, receiver]
    models      Tensor[sample, 1, z, x]
    which       bool[sample]

    >>> records, models = torch.arange(8.0).reshape(1, 2, 2, 2), torch.arange(3.0).reshape(1, 1, 1, 3)
    >>> mirror(records, models, np.array([True]))
    >>> records.flatten().tolist(), models.flatten().tolist()
    ([5.0, 4.0, 7.0, 6.0, 1.0, 0.0, 3.0, 2.0], [2.0, 1.0, 0.0])
    """
    for row in np.flatnonzero(which).tolist():
        records[row] = records[row].flip(0, 2)
        models[row] = models[row].flip(2)


def require_symmetric(physics: Mapping[str, Any], columns: int, store: object) -> None:
    """Raise ConfigError where a store says positions that are not their own mirror image; unknown ones pass.

    physics     of the store: dx_m, sources_m [shot][z, x], receivers_m [receiver][z, x], each None where not known
    columns     of a model
    store       its name, for the message
    """
    dx_m = physics.get("dx_m")
    for name in ("sources", "receivers"):
        positions_m = physics.get(f"{name}_m")
        if dx_m is None or positions_m is None:
            continue
        x = np.asarray(positions_m, np.float64)[:, 1] / dx_m
        gap = np.abs(x + x[::-1] - (columns - 1))
        worst = int(np.argmax(gap))
        if gap[worst] > MOST_CELLS * (1 + 1e-6):  # positions in metres are rounded
            raise ConfigError(
                f"training.mirror = true needs {name} that are symmetric about the middle of the model to "
                f"{MOST_CELLS:g} cell, and in {store} number {worst + 1} is {gap[worst]:.3g} cells off the mirror "
                "image of its counterpart; leave it out."
            )
