"""Whatever happens to workers, every item is in the sum once: the ledger and its workers' sums, without processes.

Histories are drawn at random: items taken, copied, reported late, failing; workers killed with all they hold, also in
the middle of the all-reduce; workers that join; sums started again on another scale. Each ends when the ledger says
that all is held, and the total then has the bits of the one that nobody disturbed.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpfwi_cluster import ItemResult, State, ledger, replica
from hpfwi_cluster.ledger import ItemReport, Ledger
from hpfwi_cluster.replica import Replica

ITEMS = range(7)
EXPONENT = 8


class Wide:
    """Items of very different size, whose float32 sum would depend on the order."""

    def begin(self, iteration: int) -> None: ...

    def compute(self, item: int) -> ItemResult:
        noise = np.random.default_rng(item).standard_normal(5)
        return ItemResult((noise * 10.0 ** (item % 4 - 2)).astype(np.float32), {})

    def finish(self, iteration: int, total: np.ndarray | None) -> None: ...

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None: ...


class Story:
    """One iteration with its workers, whom anything may befall.

    draw      a source of choices
    trouble   probability that an item fails, and that a worker dies in the all-reduce
    """

    def __init__(self, draw: random.Random, workers: int, *, trouble: float = 0.1) -> None:
        self.draw, self.trouble = draw, trouble
        self.ledger = Ledger(0, list(ITEMS), [1.0 + item % 3 for item in ITEMS], item_tries=1000)
        self.sum_id = 1
        self.workers: dict[int, Replica] = {}
        self.accepted: dict[int, list[int]] = {}
        self.flights: list[tuple[int, int, int]] = []
        self.hired = 0
        for _ in range(workers):
            self.join()

    def join(self) -> None:
        self.workers[self.hired] = Replica(Wide())
        self.workers[self.hired].begin(0, self.sum_id)
        self.accepted[self.hired] = []
        self.hired += 1

    def take(self) -> None:
        worker = self.draw.choice(sorted(self.workers))
        item = self.ledger.take(worker)
        if item is not None:
            self.flights.append((worker, item, self.sum_id))

    def copy(self) -> None:
        worker, item = self.draw.choice(sorted(self.workers)), self.draw.choice(ITEMS)
        if self.ledger.may_copy(worker, item):
            self.ledger.copy(worker, item)
            self.flights.append((worker, item, self.sum_id))

    def report(self) -> None:
        if not self.flights:
            return
        worker, item, sum_id = self.flights.pop(self.draw.randrange(len(self.flights)))
        told = self.accepted[worker]
        if self.draw.random() < 0.7:  # word of what it holds travels with the next item, sooner or later
            self.workers[worker].accept(self.sum_id, told)
            told.clear()
        report = self.workers[worker].compute(item, sum_id, EXPONENT, self.ledger.quantum(EXPONENT))
        if sum_id != self.sum_id:
            return
        if self.draw.random() < self.trouble:
            report = ItemReport(item, None, (), {}, failure="ValueError: bad luck")
        if self.ledger.report(worker, report):
            told.append(item)

    def lose(self) -> None:
        worker = self.draw.choice(sorted(self.workers))
        if len(self.workers) == 1:
            self.join()
        del self.workers[worker]
        self.flights = [flight for flight in self.flights if flight[0] != worker]
        self.ledger.lose(worker)

    def start_again(self) -> None:
        self.sum_id += 1
        self.ledger.start_again()
        for told in self.accepted.values():
            told.clear()

    def reduce(self) -> np.ndarray | None:
        """The all-reduce, which a worker may not survive."""
        if not self.ledger.complete:
            return None
        assert self.ledger.shape is not None
        sums = []
        for worker in sorted(self.workers):
            sums.append(self.workers[worker].local_sum(self.sum_id, self.ledger.shape, self.ledger.held(worker)))
            if self.draw.random() < self.trouble:
                self.lose()
                return None
        return np.sum(sums, axis=0)

    def tell(self, chapters: int) -> bytes:
        acts = [self.take] * 4 + [self.copy] * 3 + [self.report] * 4 + [self.lose, self.join, self.start_again]
        for _ in range(chapters):
            self.draw.choice(acts)()
            self.check()
        while (total := self.reduce()) is None:
            for act in (self.take, self.report):
                act()
            self.check()
        return total.tobytes()

    def check(self) -> None:
        """Every item waits, or is in hands, or is held, and by one worker alone."""
        held = [item for worker in range(self.hired) for item in self.ledger.held(worker)]
        assert len(held) == len(set(held))
        in_hands = {item for worker, item, sum_id in self.flights if sum_id == self.sum_id}
        assert self.ledger.waiting == len(ITEMS) - len(in_hands | set(held))
        assert self.ledger.complete == (len(held) == len(ITEMS))


def undisturbed() -> bytes:
    return Story(random.Random(0), 1, trouble=0.0).tell(0)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), chapters=st.integers(0, 60))
def test_the_sum_has_the_bits_of_the_undisturbed_one(seed: int, workers: int, chapters: int) -> None:
    assert Story(random.Random(seed), workers).tell(chapters) == undisturbed()


@pytest.mark.parametrize("fault", ["counts every report", "adds what it computes"])
def test_and_a_ledger_or_a_sum_that_miscounts_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "counts every report":
        monkeypatch.setattr(ledger.Ledger, "held", lambda self, worker: tuple(self.items[: worker + 1]))
    else:
        compute = replica.Replica.compute

        def eager(self: Replica, item: int, sum_id: int, exponent: int | None, quantum: int) -> ItemReport:
            report = compute(self, item, sum_id, exponent, quantum)
            self.accept(sum_id, [item])
            return report

        monkeypatch.setattr(replica.Replica, "compute", eager)
    expected = undisturbed() if fault == "adds what it computes" else b""
    found = 0
    for seed in range(30):
        try:
            found += Story(random.Random(seed), 3).tell(40) != expected
        except Exception:
            found += 1
    assert found > 10
