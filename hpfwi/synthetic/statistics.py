"""What velocity maps show, in numbers: layers, dips, throws, velocities. Made for comparing families with real maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

LEAST_JUMP_MPS = 5.0
"""A smaller change from one cell to the next is no interface."""

DIP_SCALE_CELLS = 2.0
"""Smoothing before dips are measured: an interface drawn cell by cell is a staircase."""

MOST_VALUES = 64
"""Maps with more velocities than this have no layers of one velocity, whose offsets could be followed."""

SIDE_COLUMNS = 4
"""Columns on either side of a fault over which an interface has to be followed, to know its dip there."""

PLANE_COLUMNS = 3
"""Columns over which an interface may run down the plane of a fault that cuts it."""

HIDDEN_SHARE = 0.2
"""Largest share of the columns that a fault may hide an interface in."""


@dataclass(frozen=True)
class MapStatistics:
    """Of one map; lengths in cells.

    layers          median over columns of the pieces between interfaces
    thickness       median thickness of the pieces, the first and last of a column left out; NaN where there is no other
    dip_deg         median and 90th percentile over the map's edges, weighted by contrast; fault planes count as edges
    throw           largest vertical offset of an interface across a fault; NaN where velocities change from cell to
                    cell
    faster_share    share of interfaces, column by column, with the faster layer below
    slowest_mps, median_mps, fastest_mps
    """

    layers: float
    thickness: float
    dip_deg: tuple[float, float]
    throw: float
    faster_share: float
    slowest_mps: float
    median_mps: float
    fastest_mps: float


def map_statistics(velocity: NDArray[np.floating]) -> MapStatistics:
    """Statistics of one map[z, x] in m/s."""
    wide = velocity.astype(np.float64)
    change = np.diff(wide, axis=0)
    jumps = np.abs(change) > LEAST_JUMP_MPS
    inner = [np.diff(np.flatnonzero(column)) for column in jumps.T]
    thickness = np.concatenate(inner) if inner else np.empty(0)
    return MapStatistics(
        layers=float(np.median(jumps.sum(axis=0) + 1)),
        thickness=float(np.median(thickness)) if len(thickness) else float("nan"),
        dip_deg=dips_deg(wide),
        throw=largest_throw(wide),
        faster_share=float((change[jumps] > 0).mean()) if jumps.any() else float("nan"),
        slowest_mps=float(wide.min()),
        median_mps=float(np.median(wide)),
        fastest_mps=float(wide.max()),
    )


def dips_deg(velocity: NDArray[np.float64]) -> tuple[float, float]:
    """Median and 90th percentile of the angle between edges and the horizontal, weighted by the smoothed gradient.

    (0, 0) for a map of one velocity.
    """
    smooth = gaussian_filter(velocity, DIP_SCALE_CELLS, mode="nearest")
    down, across = np.gradient(smooth)
    strength = np.hypot(down, across).ravel()
    if not strength.any():
        return 0.0, 0.0
    angle = np.degrees(np.arctan2(np.abs(across), np.abs(down))).ravel()
    order = np.argsort(angle)
    share = np.cumsum(strength[order]) / strength.sum()
    median, high = (float(angle[order][np.searchsorted(share, level)]) for level in (0.5, 0.9))
    return median, high


def largest_throw(velocity: NDArray[np.float64]) -> float:
    """Largest vertical offset of an interface across a fault, in rows, its dip taken off; near 0 where none is cut.

    An interface is a pair of velocities, one above the other, and is followed through the columns that show the pair
    once. Where a fault cuts it, a few columns show it running down the fault's plane, or do not show it at all; the two
    ends beside them count where the interface was followed over some columns with one dip, and not at the top or
    bottom, where relief takes interfaces out of the map and back. A tight bend counts as a small offset too: up to 7 %
    of the height in real maps of CurveVel-A, which have no faults.
    """
    if len(np.unique(velocity)) > MOST_VALUES:
        return float("nan")
    rows, width = velocity.shape
    largest = 0.0
    for columns, depths in _interfaces(velocity):
        starts = range(len(columns) - SIDE_COLUMNS + 1)
        dips = [_dip(columns[k : k + SIDE_COLUMNS], depths[k : k + SIDE_COLUMNS]) for k in starts]
        for k in starts:
            end = k + SIDE_COLUMNS - 1
            for j in range(end + 1, len(starts)):
                gap = int(columns[j] - columns[end])
                if gap > PLANE_COLUMNS and (j > end + 1 or gap > HIDDEN_SHARE * width):
                    break
                before, after, ends = dips[k], dips[j], (depths[end], depths[j])
                if before is None or after is None or min(ends) < 2 or max(ends) > rows - 4:
                    continue
                offset = float(ends[1] - ends[0])
                largest = max(largest, min(abs(offset), abs(offset - 0.5 * (before + after) * gap)))
    return largest


def _dip(columns: NDArray[np.int64], depths: NDArray[np.int64]) -> float | None:
    """Rows per column of an interface over some columns; None where there is a gap or it bends by more than a row."""
    steps = np.diff(depths)
    if np.ptp(columns) != len(columns) - 1 or np.ptp(steps) > 1:
        return None
    return float(steps.mean())


def _interfaces(velocity: NDArray[np.float64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Columns and rows of every pair of velocities that meet, where a column shows the pair exactly once."""
    rows, columns = np.nonzero(np.diff(velocity, axis=0))
    pairs = np.stack([velocity[rows, columns], velocity[rows + 1, columns]], axis=1)
    found = []
    for pair in np.unique(pairs, axis=0):
        same = (pairs == pair).all(axis=1)
        at, counts = np.unique(columns[same], return_counts=True)
        once = np.isin(columns[same], at[counts == 1])
        order = np.argsort(columns[same][once])
        found.append((columns[same][once][order], rows[same][once][order]))
    return found
