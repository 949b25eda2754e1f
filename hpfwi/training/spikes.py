"""Steps whose gradient is finite and absurd are left out: one alone would ruin the weights, or Adam's memory of them.

The measure is the largest magnitude in the sum over a step's slices. Every rank has that sum, and a maximum has the
same bits whoever takes it and in whatever order, so every rank leaves out the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECENT = 51
"""Steps whose largest elements are remembered: the scale is their median, which a few odd steps do not move."""

FEWEST = 10
"""Steps before the scale is relied on: the first ones of a run may differ a lot."""

SQUARE_ROOT = math.sqrt(float(np.finfo(np.float32).max))
"""Squares of larger elements, which Adam remembers, leave float32: their weights would never move again."""

_LARGEST = float(np.finfo(np.float64).max)
_UNKNOWN = -1.0
"""In place of a magnitude, before there were so many steps."""


@dataclass(frozen=True)
class Skipped:
    """What a replica says about the steps that it left out, before its next step.

    steps     in all, since the run began
    in_a_row  up to now; 0 once a step was taken
    largest   element of the last one's gradient
    limit     that it exceeded
    """

    steps: int
    in_a_row: int
    largest: float
    limit: float


class SpikeGuard:
    """Decides which steps are taken; its memory is part of a training run's state.

    factor     the limit is so many times the median of recent steps; None leaves only the limit of float32's squares
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._recent = np.full(RECENT, _UNKNOWN)
        self.skipped = Skipped(0, 0, 0.0, 0.0)

    @property
    def limit(self) -> float:
        """What the largest element of the next gradient must not exceed."""
        known = self._recent[self._recent != _UNKNOWN]
        scale = float(np.median(known)) if len(known) >= FEWEST else 0.0
        # Where most gradients are zero there is no scale.
        return min(SQUARE_ROOT, self._factor * scale) if self._factor is not None and scale > 0 else SQUARE_ROOT

    def accepts(self, largest: float) -> bool:
        """Whether to take a step whose gradient has this largest magnitude; remembers it."""
        limit = self.limit
        if largest <= limit:
            self._recent = np.append(self._recent[1:], largest)
            self.skipped = Skipped(self.skipped.steps, 0, self.skipped.largest, self.skipped.limit)
            return True
        finite = float(np.nan_to_num(largest, nan=_LARGEST))  # a sum in float32 may leave the numbers
        self.skipped = Skipped(self.skipped.steps + 1, self.skipped.in_a_row + 1, finite, limit)
        return False

    def state(self) -> dict[str, NDArray[np.float64]]:
        """What it remembers, by name."""
        skipped = self.skipped
        numbers = [float(skipped.steps), float(skipped.in_a_row), skipped.largest, skipped.limit]
        return {"recent": self._recent.copy(), "skipped": np.array(numbers)}

    def load_state(self, state: Mapping[str, NDArray[np.floating]]) -> None:
        """Take over what `state` returned; nothing is what runs of older versions saved."""
        self._recent = np.array(state["recent"], np.float64) if state else np.full(RECENT, _UNKNOWN)
        self.skipped = skipped_of(state)


def skipped_of(state: Mapping[str, NDArray[np.floating]]) -> Skipped:
    """What a saved state of a guard says about skipped steps.

    >>> guard = SpikeGuard(None)
    >>> guard.accepts(1e33), skipped_of(guard.state()).steps
    (False, 1)
    """
    if not state:
        return Skipped(0, 0, 0.0, 0.0)
    steps, in_a_row, largest, limit = (float(number) for number in state["skipped"])
    return Skipped(int(steps), int(in_a_row), largest, limit)
