"""How long items take, learnt from those that ended lately: what makes one of them late."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 64
"""Items whose times count: enough for a calm median, few enough to follow a change."""

COPY_AT_LEAST_S = 1.0
"""Items younger than this are not computed a second time: handing one over costs milliseconds, and a hiccup passes."""


class Pace:
    """Seconds per unit of cost.

    >>> pace = Pace()
    >>> pace.is_late(1.0, 1e9, times=3.0, least_s=1.0)
    False
    >>> for seconds in (2.0, 4.0, 60.0):
    ...     pace.note(2.0, seconds)
    >>> pace.usual_s(1.0)
    2.0
    >>> pace.is_late(1.0, 5.0, times=3.0, least_s=1.0), pace.is_late(1.0, 7.0, times=3.0, least_s=1.0)
    (False, True)

    An item without cost says nothing about others, and nothing is known about it.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._usual: float | None = None

    def note(self, cost: float, seconds: float) -> None:
        """An item of this cost took so long."""
        if cost > 0.0:
            self._rates.append(seconds / cost)
            self._usual = None

    def usual_s(self, cost: float) -> float | None:
        """Return how long an item of this cost usually takes; None before any has ended."""
        if not self._rates or cost <= 0.0:
            return None
        if self._usual is None:
            self._usual = median(self._rates)
        return self._usual * cost

    def is_late(self, cost: float, seconds: float, *, times: float, least_s: float) -> bool:
        """Say whether an item that has taken `seconds` so far is over `times` the usual time and over `least_s`."""
        usual_s = self.usual_s(cost)
        return usual_s is not None and seconds > max(least_s, times * usual_s)
