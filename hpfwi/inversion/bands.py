"""Frequency continuation: the stages of an inversion, from the lowest frequencies of its gathers to all of them.

Predicted waves that come more than half a period too early or late are matched with the wrong wiggles of the observed
ones. Half a period of low frequencies is long, so an inversion that listens to them first needs a less accurate start,
and what it finds is accurate enough for the next band (Bunks et al. 1995, Geophysics 60).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_ENERGY_SHARE = 1e-3
"""A band that holds less of the energy of the wavelet or the gathers than this is worth a warning: what a record holds
30 dB below its signal is noise more often than not."""


@dataclass(frozen=True)
class Stage:
    """Iterations `first` to `end` - 1 of an inversion, which listen to one band.

    number      from 1
    corner_hz   of the low-pass filter, Hz; None is the whole band of the gathers
    """

    number: int
    corner_hz: float | None
    first: int
    end: int

    @property
    def band(self) -> str:
        """
        >>> Stage(1, 4.0, 0, 10).band, Stage(2, None, 10, 20).band
        ('up to 4 Hz', 'whole band')
        """
        return "whole band" if self.corner_hz is None else f"up to {self.corner_hz:g} Hz"


def stages_of(bands_hz: Sequence[float], iterations: int) -> tuple[Stage, ...]:
    """One stage for each corner and a last one for the whole band, with equal shares of the iterations, to one.

    >>> [(stage.corner_hz, stage.first, stage.end) for stage in stages_of([4.0, 8.0], 100)]
    [(4.0, 0, 33), (8.0, 33, 66), (None, 66, 100)]
    """
    corners = (*bands_hz, None)
    edges = [iterations * place // len(corners) for place in range(len(corners) + 1)]
    return tuple(
        Stage(number, corner_hz, *edges[number - 1 : number + 1]) for number, corner_hz in enumerate(corners, start=1)
    )


def stage_at(stages: Sequence[Stage], iteration: int) -> Stage:
    """The stage of an iteration; the last one after the end.

    >>> stage_at(stages_of([4.0], 10), 5).number, stage_at(stages_of([4.0], 10), 10).number
    (2, 2)
    """
    return next((stage for stage in stages if iteration < stage.end), stages[-1])


def sparse_bands(energy_shares: Sequence[float], bands_hz: Sequence[float], of: str) -> list[tuple[float, str]]:
    """The corners of bands that hold next to nothing, each with what to do about it.

    energy_shares   of the energy below each corner     of    whose energy that is

    >>> sparse_bands([1e-6, 0.2], [1.0, 4.0], "gathers")[0][0]
    1.0
    """
    return [
        (
            corner_hz,
            f"only {share:.2g} of the energy of the {of} lies below {corner_hz:g} Hz, where noise would decide: leave "
            "that corner out of inversion.bands_hz",
        )
        for share, corner_hz in zip(energy_shares, bands_hz, strict=True)
        if share < LEAST_ENERGY_SHARE
    ]
