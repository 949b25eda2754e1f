"""Who holds what: the account of one iteration, keyed (iteration, item). No processes, no clocks.

An item waits, or is in the hands of one worker or of two, or is held by the one worker whose report came first. Workers
add an item to their sums only once the ledger says that they hold it, so an item that was computed twice counts once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from hpfwi_cluster import fixed_point
from hpfwi_cluster.errors import ClusterError, ItemFailed
from hpfwi_cluster.failure import Decision, after_exception
from hpfwi_cluster.shares import dearest_first

Plain = list[Any]
"""Numbers, text, None, and lists and dictionaries of them: what Ray sends without pickling, in half the time."""


@dataclass(frozen=True)
class ItemReport:
    """What a rank says about an item it was asked to compute.

    largest     exponent of the item's largest magnitude, None if it is all zeros
    failure     None, or one clause saying why there is no result
    final       trying again cannot help
    seconds     spent computing it
    """

    item: int
    largest: int | None
    shape: tuple[int, ...]
    scalars: dict[str, float]
    failure: str | None = None
    final: bool = False
    seconds: float = 0.0

    def plain(self) -> Plain:
        """Return the report as a list that travels fast; see `of`."""
        return [self.item, self.largest, list(self.shape), self.scalars, self.failure, self.final, self.seconds]

    @classmethod
    def of(cls, plain: Plain) -> Self:
        """Return the report that `plain` made a list of."""
        item, largest, shape, *rest = plain
        return cls(item, largest, tuple(shape), *rest)


class Ledger:
    """The items of one iteration: waiting, in flight at workers, or held by a worker for its local sum."""

    def __init__(self, iteration: int, items: Sequence[int], costs: Sequence[float], item_tries: int) -> None:
        self.iteration = iteration
        self.items = dearest_first(items, costs)
        self.costs = dict(zip(items, costs, strict=True))
        self.item_tries = item_tries
        self.scalars: dict[int, dict[str, float]] = {}
        self.shape: tuple[int, ...] | None = None
        self._places = {item: place for place, item in enumerate(self.items)}
        self._waiting: deque[int] = deque(self.items)
        self._flying: dict[int, set[int]] = {}
        self._holders: dict[int, int] = {}
        self._largest: dict[int, int | None] = {}
        self._tries: dict[int, int] = {}

    def take(self, worker: int) -> int | None:
        """Hand the next waiting item to a worker; None if nothing waits."""
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        self._flying.setdefault(worker, set()).add(item)
        return item

    def take_probe(self, worker: int) -> int:
        """Hand the item of lowest id to a worker, to learn its magnitude before anything is added."""
        item = min(self.items)
        self._waiting.remove(item)
        self._flying.setdefault(worker, set()).add(item)
        return item

    def copy(self, worker: int, item: int) -> None:
        """Hand an item that is in another worker's hands to this one as well; whoever reports first holds it."""
        if not self.may_copy(worker, item):
            raise ClusterError(
                f"Item {item} of iteration {self.iteration} cannot be handed to worker {worker} as well."
            )
        self._flying.setdefault(worker, set()).add(item)

    def may_copy(self, worker: int, item: int) -> bool:
        """Whether the item is wanted, in the hands of exactly one worker, and not of this one."""
        hands = self._hands(item)
        return item not in self._holders and len(hands) == 1 and worker not in hands

    def in_flight(self, worker: int) -> int:
        """Return how many items the worker has been handed and not reported."""
        return len(self._flying.get(worker, ()))

    def report(self, worker: int, report: ItemReport) -> bool:
        """Book what a worker said about an item in its hands; return whether the worker holds the item from now on.

        A report about an item that is not in this worker's hands is a ClusterError: its sum would count twice.
        raises ItemFailed when the item is to be given up
        """
        item = report.item
        if item not in self._flying.get(worker, ()):
            raise ClusterError(
                f"Worker {worker} reported item {item} of iteration {self.iteration} without holding it; "
                "this is a defect of the group, nothing was applied."
            )
        self._flying[worker].discard(item)
        if item in self._holders:
            return False
        self._judge(report)
        if report.failure is not None:
            if not self._hands(item):
                self._waiting.append(item)
            return False
        self._holders[item] = worker
        self._largest[item] = report.largest
        self.scalars[item] = report.scalars
        return True

    def report_probe(self, worker: int, report: ItemReport) -> int | None:
        """Book a probe, which is next in the queue again; return the exponent it suggests, None if it failed."""
        self._flying[worker].discard(report.item)
        self._judge(report)
        self._waiting.appendleft(report.item)
        return fixed_point.with_headroom(report.largest) if report.failure is None else None

    def lose(self, worker: int) -> tuple[list[int], list[int]]:
        """Take everything away from a lost worker; return (all items back in the queue, those that it computed)."""
        flying = self._flying.pop(worker, set())
        held = self.held(worker)
        for item in held:
            del self._holders[item]
        wanted = {item for item in flying.union(held) if item not in self._holders and not self._hands(item)}
        self._waiting.extendleft(sorted(wanted, key=self._places.__getitem__, reverse=True))
        return sorted(wanted), sorted(flying)

    def held(self, worker: int) -> tuple[int, ...]:
        """Return the items that make up this worker's sum."""
        return tuple(item for item, holder in self._holders.items() if holder == worker)

    @property
    def waiting(self) -> int:
        """How many items wait to be handed out."""
        return len(self._waiting)

    @property
    def complete(self) -> bool:
        """Whether every item is held by a worker that lives."""
        return len(self._holders) == len(self.items)

    @property
    def largest(self) -> int | None:
        """The largest exponent over all items; None if all are zeros."""
        return max((e for e in self._largest.values() if e is not None), default=None)

    def start_again(self) -> None:
        """Put all items back into the queue, for a sum on another scale."""
        self._waiting = deque(self.items)
        self._holders.clear()
        self._flying.clear()

    def quantum(self, exponent: int) -> int:
        """Return the exponent of one unit of the sum of these items."""
        return fixed_point.quantum_exponent(exponent, len(self.items))

    def _hands(self, item: int) -> list[int]:
        """Workers that were handed the item and have not reported it."""
        return [worker for worker, items in self._flying.items() if item in items]

    def _judge(self, report: ItemReport) -> None:
        if report.failure is not None:
            tries = self._tries[report.item] = self._tries.get(report.item, 0) + 1
            if after_exception(tries, self.item_tries, final=report.final) is Decision.GIVE_UP:
                often = "" if report.final else f" on {tries} of {self.item_tries} tries"
                raise ItemFailed.of(
                    report.item,
                    f"Item {report.item} failed in iteration {self.iteration}{often}: {report.failure}. "
                    "Nothing was applied in this iteration.",
                )
            return
        if self.shape is None:
            self.shape = report.shape
        if report.shape != self.shape:
            raise ItemFailed.of(
                report.item,
                f"Item {report.item} of iteration {self.iteration} has shape {report.shape}, others have {self.shape}; "
                "all items of an iteration must have one shape. Nothing was applied.",
            )
