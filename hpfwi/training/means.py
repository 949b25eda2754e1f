"""A step's numbers, and their means over an epoch, from what its slices say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hpfwi.parallel import IterationResult
from hpfwi.training.spikes import Skipped

SKIPPED = "skipped_"
"""Prefix of the numbers of a slice that say which steps were left out before it."""
_CLOCKS = ("seconds", "waited_s")
_NO_TERM = ("samples", *_CLOCKS)


class EpochMeans:
    """Sums over the steps of an epoch so far; a checkpoint keeps them.

    sums     of the loss and its terms, each a mean over a step's samples
    times    of the steps' seconds, and of those that slices took and waited for samples
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.restore({}, {})

    def restore(self, sums: Mapping[str, float], times: Mapping[str, float]) -> None:
        """Go back to what a checkpoint kept."""
        self.sums, self.times = dict(sums), dict(times)

    def add(self, result: IterationResult) -> tuple[dict[str, float], dict[str, float]]:
        """Add a step; returns its loss with the terms, and its speed."""
        parts = [result.scalars[item] for item in sorted(result.scalars)]
        names = [name for name in parts[0] if name not in _NO_TERM and not name.startswith(SKIPPED)]
        terms = {name: math.fsum(part[name] * part["samples"] for part in parts) / self._batch for name in names}
        times = {
            "seconds": result.seconds,
            "spent_s": math.fsum(part["seconds"] for part in parts),
            "waited_s": math.fsum(part["waited_s"] for part in parts),
        }
        for sums, values in ((self.sums, terms), (self.times, times)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        return terms, {
            "samples_per_s": self._batch / result.seconds,
            "wait_share": result.wait_share,
            "data_wait_share": _share(times["waited_s"], times["spent_s"]),
        }

    def means(self, steps: int) -> tuple[dict[str, float], dict[str, float]]:
        """Of an epoch of so many steps: the loss with its terms, and the speed."""
        return {name: value / steps for name, value in self.sums.items()}, {
            "samples_per_s": steps * self._batch / self.times["seconds"],
            "data_wait_share": _share(self.times["waited_s"], self.times["spent_s"]),
        }


def joined(results: Sequence[IterationResult]) -> IterationResult:
    """A step of several iterations as one: the slices' last words, and all of the time."""
    seconds = math.fsum(result.seconds for result in results)
    scalars = {
        item: last | {name: math.fsum(result.scalars[item][name] for result in results) for name in _CLOCKS}
        for item, last in results[-1].scalars.items()
    }
    waited = math.fsum(result.wait_share * result.seconds for result in results)
    lost = tuple(sentence for result in results for sentence in result.lost)
    share = waited / seconds if seconds > 0 else 0.0
    return replace(results[-1], scalars=scalars, seconds=seconds, wait_share=share, lost=lost)


def skipped_before(result: IterationResult) -> Skipped:
    """What a step's slices say about the steps that were left out before it; all of them say the same."""
    numbers = result.scalars[min(result.scalars)]
    steps, in_a_row = (int(numbers[f"{SKIPPED}{name}"]) for name in ("steps", "in_a_row"))
    return Skipped(steps, in_a_row, numbers[f"{SKIPPED}largest"], numbers[f"{SKIPPED}limit"])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
