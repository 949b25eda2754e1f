"""Keep the workers of a group busy until every item of an iteration is held by one that lives.

Workers pull: a free one gets the dearest item that waits. When nothing waits and an item takes far longer than items of
its cost usually do, a free worker gets it as well; the first report counts, and the slower worker goes on with a result
that nobody wants. A worker that is far too late with an item counts as lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpfwi_cluster import members
from hpfwi_cluster.crew import Crew
from hpfwi_cluster.errors import Abandoned
from hpfwi_cluster.ledger import ItemReport, Ledger
from hpfwi_cluster.members import Member
from hpfwi_cluster.pace import COPY_AT_LEAST_S, Pace
from hpfwi_cluster.ray_library import LOST, RayTaskError, ray, why_lost
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.shares import in_flight_limit

_MANY = 32
"""Items under way from which on reports are taken in bunches: every wait looks at all of them."""


@dataclass(eq=False)
class _Flight:
    """An item in a worker's hands.

    started_s    when the worker had a thread for it; None while it waits there behind another
    """

    member: Member
    item: int
    sum_id: int
    cost: float
    sent_s: float
    started_s: float | None


class Dispatch:
    """Items under way at the workers of a crew."""

    def __init__(self, crew: Crew, threads: int, settings: ClusterSettings) -> None:
        self._crew = crew
        self._threads = threads
        self._settings = settings
        self._pace = Pace()
        self._flying: dict[Any, _Flight] = {}
        self._accepted: dict[Member, list[int]] = {}
        self._looked_s = 0.0

    def probe(self, ledger: Ledger, sum_id: int) -> int:
        """Have the item of lowest id computed, not added; return the exponent its magnitude suggests."""
        exponent = None
        while exponent is None:
            member = self._crew.members[0]
            item = ledger.take_probe(member.worker)
            self._send(member, item, ledger, sum_id, None, 0)
            while (flight := self._flight_of(member, item)) is not None and exponent is None:
                for report in self._reports():
                    if report[0] is flight:
                        exponent = ledger.report_probe(member.worker, report[1])
                self._look_around(ledger, "the first item")
        return exponent

    def compute(self, ledger: Ledger, sum_id: int, exponent: int) -> None:
        """Have every item computed and held.

        raises  Abandoned: asked to stop; what `Ledger.report` and `Crew.lose` raise
        """
        self._accepted.clear()
        quantum = ledger.quantum(exponent)
        while not ledger.complete:
            for member, item in self._choose(ledger, sum_id):
                self._send(member, item, ledger, sum_id, exponent, quantum)
            for flight, report in self._reports():
                if flight.sum_id != sum_id:
                    continue  # a copy that lost, or a rest of an iteration that was given up
                if report.failure is None:
                    self._pace.note(flight.cost, report.seconds)
                if ledger.report(flight.member.worker, report):
                    self._accepted.setdefault(flight.member, []).append(report.item)
            self._look_around(ledger, f"iteration {ledger.iteration}")

    def _choose(self, ledger: Ledger, sum_id: int) -> Iterator[tuple[Member, int]]:
        """Take items out of the queue for workers that are free, then copies of late ones."""
        crew = self._crew.members
        busy = dict.fromkeys(crew, 0)
        self._flying = {ref: flight for ref, flight in self._flying.items() if flight.member in busy}
        for flight in self._flying.values():
            busy[flight.member] += 1
        for depth in range(self._threads + 1):
            for member in crew:
                limit = in_flight_limit(self._threads, ledger.waiting, len(crew))
                if busy[member] == depth < limit and (item := ledger.take(member.worker)) is not None:
                    busy[member] += 1
                    yield member, item
        if ledger.waiting or self._settings.copy_after is None:
            return
        for flight in [flight for flight in self._flying.values() if flight.sum_id == sum_id]:
            waited_s = time.monotonic() - flight.sent_s
            if self._pace.is_late(flight.cost, waited_s, times=self._settings.copy_after, least_s=COPY_AT_LEAST_S):
                for member in crew:
                    if busy[member] < self._threads and ledger.may_copy(member.worker, flight.item):
                        ledger.copy(member.worker, flight.item)
                        busy[member] += 1
                        yield member, flight.item
                        break

    def _send(self, member: Member, item: int, ledger: Ledger, sum_id: int, exponent: int | None, quantum: int) -> None:
        now_s = time.monotonic()
        free = sum(flight.member is member for flight in self._flying.values()) < self._threads
        reference = member.compute.remote([item, sum_id, exponent, quantum, self._accepted.pop(member, [])])
        self._flying[reference] = _Flight(member, item, sum_id, ledger.costs[item], now_s, now_s if free else None)

    def _reports(self) -> list[tuple[_Flight, ItemReport]]:
        """Wait a little for a worker to report; book the loss of one that died instead."""
        if not self._flying:
            return []
        references = list(self._flying)
        ready, _ = ray.wait(references, num_returns=1, timeout=members.SLICE_S)
        if ready and len(references) > _MANY:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        found = []
        for reference in ready:
            flight = self._flying.pop(reference, None)
            if flight is None:  # of a worker that was lost a moment ago
                continue
            try:
                report = ItemReport.of(ray.get(reference))
            except LOST as error:
                self._lose(flight.member, why_lost(error))
                continue
            except RayTaskError as error:
                raise members.own_error(error) from error
            found.append((flight, report))
            waiting = [
                other for other in self._flying.values() if other.member is flight.member and not other.started_s
            ]
            if waiting:
                waiting[0].started_s = time.monotonic()
        return found

    def _look_around(self, ledger: Ledger, where: str) -> None:
        """Now and then: lose workers that no longer run or are far too late, and give up when asked to stop."""
        now_s = time.monotonic()
        if now_s - self._looked_s < members.SLICE_S:
            return
        self._looked_s = now_s
        for member, why in self._crew.gone(self._crew.members).items():
            self._lose(member, why)
        for flight in list(self._flying.values()):
            if flight.started_s is not None and (late := self._too_late(flight, now_s - flight.started_s)) is not None:
                self._lose(flight.member, late)
        if not ledger.complete and self._crew.stop():
            raise Abandoned(f"Asked to stop in {where}; nothing was applied in it.")

    def _too_late(self, flight: _Flight, spent_s: float) -> str | None:
        """Return a clause about an item that takes so long that its worker counts as lost; None while it may go on."""
        settings, usual_s = self._settings, self._pace.usual_s(flight.cost)
        if usual_s is None:
            limit_s = settings.first_item_limit_s
            if limit_s is None or spent_s <= limit_s:
                return None
            return (
                f"no result of item {flight.item} in {spent_s:.3g} s, before any item has shown what is usual: raise "
                f"first_item_limit_s = {limit_s:g} if items take so long, else look at what this one does"
            )
        patience, least_s = settings.item_patience, settings.item_patience_s
        if patience is None or not self._pace.is_late(flight.cost, spent_s, times=patience, least_s=least_s):
            return None
        return f"no result of item {flight.item} in {spent_s:.0f} s, usual are {usual_s:.3g} s"

    def _flight_of(self, member: Member, item: int) -> _Flight | None:
        return next(
            (flight for flight in self._flying.values() if flight.member is member and flight.item == item), None
        )

    def _lose(self, member: Member, why: str) -> None:
        self._flying = {ref: flight for ref, flight in self._flying.items() if flight.member is not member}
        self._accepted.pop(member, None)
        self._crew.lose(member, why, "waiting for work")
