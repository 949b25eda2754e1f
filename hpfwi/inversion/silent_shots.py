"""Shots without a signal: found before the first iteration, left out of it all, and named wherever a run is told of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LISTED = 12
"""Runs of neighbouring shots that are named; a longer list is no reading for people."""


def silent_shots(energies: NDArray[np.float64]) -> list[int]:
    """Shots of which nothing is left in some stage of the inversion.

    energies    of every shot in the band of every stage, after data.mute, float64[shot, stage]

    An iteration that drew such shots alone would have nothing to fit, and others would fit silence, which is what a
    source that failed leaves and not what the earth does.

    >>> silent_shots(np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]]))
    [1, 2]
    """
    return [int(shot) for shot in np.flatnonzero(~energies.all(axis=1))]


def named(shots: Sequence[int]) -> str:
    """Shots in ascending order for people.

    >>> named([7]), named([2, 3, 4, 9]), named([0, 1])
    ('shot 7', 'shots 2 to 4 and 9', 'shots 0 and 1')
    >>> named(range(0, 60, 2))
    'shots 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 18 more'
    """
    runs: list[list[int]] = []
    for shot in shots:
        if runs and shot == runs[-1][-1] + 1:
            runs[-1].append(shot)
        else:
            runs.append([shot])
    parts: list[str] = []
    for run in runs[:LISTED]:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(shot) for shot in run]
    more = sum(map(len, runs[LISTED:]))
    parts += [f"{more} more"] if more else []
    text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    return f"shot{'s' * (len(shots) > 1)} {text}"


def about(shots: Sequence[int], *, muted: bool) -> str:
    """What is said of silent shots at the start of a run.

    muted   data.mute leaves things out

    >>> about([7], muted=False)
    'shot 7 is silent: every sample is zero, so it is left out'
    """
    one = len(shots) == 1
    after = " after data.mute, in one of the bands at least" if muted else ""
    is_it, it_is = ("is", "it is") if one else ("are", "they are")
    return f"{named(shots)} {is_it} silent: every sample is zero{after}, so {it_is} left out"
