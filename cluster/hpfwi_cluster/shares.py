"""Order of work: pulling balances the ranks, and starting with the dearest items keeps the tail short."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpfwi_cluster.errors import ClusterError

PREFETCHED = 1
"""Items waiting at a worker beyond those it computes: hides the round trip to the driver."""


def dearest_first(items: Sequence[int], costs: Sequence[float]) -> list[int]:
    """Return the items by falling cost, ties by rising id; ClusterError if items repeat or a cost is no cost.

    >>> dearest_first([4, 7, 9], [1.0, 3.0, 1.0])
    [7, 4, 9]
    """
    if len(items) != len(costs):
        raise ClusterError(f"{len(items)} items came with {len(costs)} costs; give one cost per item.")
    if not items:
        raise ClusterError("An iteration without items has no sum; give at least one item.")
    if len(set(items)) != len(items):
        raise ClusterError(f"{len(items) - len(set(items))} of {len(items)} item ids repeat; every id may occur once.")
    bad = [(item, cost) for item, cost in zip(items, costs, strict=True) if not (math.isfinite(cost) and cost >= 0)]
    if bad:
        raise ClusterError(f"Item {bad[0][0]} has cost {bad[0][1]!r}; a cost is finite and at least 0.")
    cost_of = dict(zip(items, costs, strict=True))
    return sorted(items, key=lambda item: (-cost_of[item], item))


def in_flight_limit(threads: int, waiting: int, ranks: int) -> int:
    """Return how many items a worker may have in its hands: one in store while many wait, none near the end.

    >>> in_flight_limit(1, 100, 3), in_flight_limit(1, 3, 3)
    (2, 1)
    """
    return threads + PREFETCHED if waiting > 2 * ranks * threads else threads


def wait_share(busy_s: Sequence[float], elapsed_s: float) -> float:
    """Return the share of the ranks' seconds without an item in work: 1 - mean(busy) / elapsed, within 0 and 1."""
    if not busy_s or elapsed_s <= 0.0:
        return 0.0
    return min(1.0, max(0.0, 1.0 - sum(busy_s) / (len(busy_s) * elapsed_s)))
