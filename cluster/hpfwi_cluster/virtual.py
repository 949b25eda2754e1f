"""An iteration in virtual time: the ledger and the decisions of the real group, with clocks in place of workers.

Nothing is computed and nothing waits. The account is `Ledger`, the order of work `in_flight_limit`, what follows a
death `failure`: the code that the real group runs. What is modelled is how long everything takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hpfwi_cluster import failure
from hpfwi_cluster.failure import Decision
from hpfwi_cluster.ledger import ItemReport, Ledger
from hpfwi_cluster.pace import COPY_AT_LEAST_S, Pace
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.shares import in_flight_limit

USUAL = ClusterSettings()
"""Settings of a group that nobody changed."""

_NOTICE, _LOOK = -1, -2
"""What arrives at the driver in place of a report: word of a death, the time to look after a late item."""
_LOOK_AGAIN_S = 0.25


class Machine(BaseModel):
    """What a cluster costs beside the items.

    The defaults are round numbers near what two cores show with Ray 2.60 and Gloo; `calibrate.measure` finds yours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    handling_s: float = Field(
        default=5e-4, ge=0, description="Time of the driver for one item, handing it out and taking its report in, s."
    )
    latency_s: float = Field(
        default=4e-4, ge=0, description="Time between driver and worker, one way, beyond the driver's own, s."
    )
    asking_s: float = Field(
        default=3e-4, ge=0, description="Time of the driver for one question to one worker and its answer, s."
    )
    hop_s: float = Field(default=5e-4, ge=0, description="Latency of one step of an all-reduce, s.")
    bandwidth_mbs: float = Field(
        default=1000.0, gt=0, description="Bandwidth of an all-reduce between two ranks, MB/s."
    )
    local_mbs: float = Field(
        default=700.0, gt=0, description="Speed at which a rank turns its sum into the total beside the network, MB/s."
    )
    ring_only: bool = Field(
        default=True, description="Whether sums go round a ring (Gloo); else by ring or tree, the quicker (NCCL)."
    )
    detection_s: float = Field(default=2.0, ge=0, description="Time until a death is noticed, s.")
    forming_s: float = Field(default=0.05, ge=0, description="Time of a new generation, s.")
    forming_rank_s: float = Field(default=2e-3, ge=0, description="The same for each rank more, s.")
    start_s: float = Field(default=20.0, ge=0, description="Time until a replacement is ready, s.")
    restart_s: float = Field(
        default=120.0, ge=0, description="Time until a run whose driver died goes on from its checkpoint, s."
    )

    def all_reduce_s(self, ranks: int, size: int) -> float:
        """Time to add `size` bytes over so many ranks.

        Ring: 2(n-1) steps of size/n each. Tree: up and down, 2 log2 n steps of the whole. The usual cost model, e.g.
        Thakur, Rabenseifner & Gropp 2005, Optimization of collective communication operations in MPICH.
        """
        own_s = size / (self.local_mbs * 1e6)
        if ranks < 2:
            return own_s
        byte_s = 1e-6 / self.bandwidth_mbs
        ring_s = 2 * (ranks - 1) * (self.hop_s + size / ranks * byte_s)
        tree_s = 2 * math.ceil(math.log2(ranks)) * (self.hop_s + size * byte_s)
        return own_s + (ring_s if self.ring_only else min(ring_s, tree_s))


class Work(BaseModel):
    """What a run asks of a cluster in each iteration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_s: float = Field(gt=0, description="Time of an item of cost 1, s.")
    costs: tuple[float, ...] = Field(min_length=1, description="Relative cost of every item, 1 on average.")
    spread: float = Field(default=0.05, ge=0, description="Relative standard deviation of an item's time.")
    straggler_share: float = Field(default=0.0, ge=0, le=1, description="Share of items that take longer than others.")
    straggler_factor: float = Field(default=3.0, ge=1, description="How much longer stragglers take.")
    size: int = Field(default=0, ge=0, description="Bytes of the sum, 8 for each number.")
    begin_s: float = Field(default=0.0, ge=0, description="Time that every worker takes to begin an iteration, s.")
    finish_s: float = Field(default=0.0, ge=0, description="Time that every worker takes to advance by the total, s.")
    driver_s: float = Field(default=0.0, ge=0, description="The driver's own time for an iteration, s.")
    checkpoint_s: float = Field(default=0.0, ge=0, description="Time of a checkpoint, s.")
    checkpoint_every: int = Field(default=10, ge=1, description="Iterations between two checkpoints.")
    iterations: int = Field(default=100, ge=1, description="Iterations of the run.")

    @property
    def work_s(self) -> float:
        """Time of all items of an iteration, one after another, without spread and stragglers."""
        return self.item_s * sum(self.costs)

    def durations_s(self, seed: int) -> list[float]:
        """Draw the time of every item of an iteration."""
        random = np.random.default_rng(seed)
        scatter = np.ones(len(self.costs))
        if self.spread:
            sigma = math.sqrt(math.log1p(self.spread**2))
            scatter = random.lognormal(-(sigma**2) / 2, sigma, len(self.costs))
        late = random.random(len(self.costs)) < self.straggler_share
        slow = np.where(late, self.straggler_factor, 1.0)
        return [float(s) for s in self.item_s * np.array(self.costs) * scatter * slow]


@dataclass(frozen=True)
class Death:
    """A worker that dies so long after the items were begun, s."""

    worker: int
    after_s: float


@dataclass(frozen=True)
class Iteration:
    """What an iteration came to.

    seconds     from begin to finish
    busy_s      worker-seconds spent on items that counted
    lost_s      worker-seconds spent on items that a death took away
    driver_s    time in which the driver was at work
    """

    seconds: float
    busy_s: float
    lost_s: float
    driver_s: float


@dataclass
class _Worker:
    lanes: list[float]
    """When each thread is free."""
    dies_at_s: float = math.inf
    begun: dict[int, float] = field(default_factory=dict)
    """Durations of the items that it was handed."""
    sent_s: dict[int, float] = field(default_factory=dict)
    """When it was handed those that it has not reported."""


def run_iteration(
    work: Work,
    machine: Machine,
    workers: int,
    threads: int = 1,
    *,
    seed: int = 0,
    deaths: Sequence[Death] = (),
    settings: ClusterSettings = USUAL,
) -> Iteration:
    """Run one iteration in virtual time.

    workers     ranks, each with so many threads
    deaths      workers that die on the way; at least one worker must be left
    settings    of the group: how late an item must be to be computed a second time
    """
    return _Virtual(work, machine, workers, threads, seed, settings).run(deaths)


class _Virtual:
    """An iteration under way.

    now_s, used_s   the driver's clock, and how much of it the driver was at work
    queue           what arrives at the driver: time, serial, worker, item or one of _NOTICE and _LOOK, item to look at
    """

    def __init__(
        self, work: Work, machine: Machine, workers: int, threads: int, seed: int, settings: ClusterSettings
    ) -> None:
        self.work, self.machine, self.threads, self.settings = work, machine, threads, settings
        self.durations = work.durations_s(seed)
        self.ledger = Ledger(0, range(len(self.durations)), work.costs, settings.item_tries)
        self.members = {number: _Worker([0.0] * threads) for number in range(workers)}
        self.pace = Pace()
        self.now_s = self.used_s = self.lost_s = 0.0
        self.queue: list[tuple[float, int, int, int, int]] = []
        self.serial = 0
        self.watching = False

    def run(self, deaths: Sequence[Death]) -> Iteration:
        work, machine, ledger = self.work, self.machine, self.ledger
        self._ask_all(work.begin_s)
        for death in deaths:
            dies_at_s = self.now_s + death.after_s
            self.members[death.worker].dies_at_s = dies_at_s
            self._arrive(dies_at_s + machine.detection_s, death.worker, _NOTICE)
        ranks = len(self.members)
        while True:
            self._hand_out(list(self.members))
            while not ledger.complete:
                self._take_in()
            # A death that comes to light in the all-reduce sends its items back, and everybody round again.
            notices = [entry for entry in self.queue if entry[3] == _NOTICE]
            late = next((entry for entry in notices if self.members[entry[2]].dies_at_s <= self.now_s), None)
            if late is None:
                break
            self.queue.remove(late)
            self.now_s = max(self.now_s, late[0])
            self._lose(late[2])
        if len(self.members) < ranks:
            self.now_s += machine.forming_s + machine.forming_rank_s * len(self.members)
        self._ask_all(machine.all_reduce_s(len(self.members), work.size))
        self._ask_all(work.finish_s)
        self.now_s += work.driver_s
        return Iteration(self.now_s, sum(self.durations), self.lost_s, self.used_s + work.driver_s)

    def _ask_all(self, takes_s: float) -> None:
        """Ask all members for something that takes each of them so long."""
        asking_s = self.machine.asking_s * len(self.members)
        self.now_s += asking_s + 2 * self.machine.latency_s + takes_s
        self.used_s += asking_s

    def _handle(self) -> None:
        self.now_s += self.machine.handling_s / 2
        self.used_s += self.machine.handling_s / 2

    def _arrive(self, time_s: float, worker: int, kind: int, about: int = 0) -> None:
        heapq.heappush(self.queue, (time_s, self.serial, worker, kind, about))
        self.serial += 1

    def _hand_out(self, numbers: Sequence[int]) -> None:
        """Give waiting items to these members, as far as they have room."""
        for depth in range(self.threads + 1):
            for number in numbers:
                limit = in_flight_limit(self.threads, self.ledger.waiting, len(self.members))
                if self.ledger.in_flight(number) == depth < limit:
                    item = self.ledger.take(number)
                    if item is None:
                        return
                    self._begin(number, item, self.durations[item])
        if not (self.ledger.waiting or self.watching or self.settings.copy_after is None):
            self.watching = True
            self._watch()

    def _begin(self, number: int, item: int, takes_s: float) -> None:
        self._handle()
        worker = self.members[number]
        lane = min(range(self.threads), key=worker.lanes.__getitem__)
        start_s = max(self.now_s + self.machine.latency_s, worker.lanes[lane])
        worker.lanes[lane] = end_s = start_s + takes_s
        worker.begun[item] = takes_s
        worker.sent_s[item] = self.now_s
        if end_s < worker.dies_at_s:
            self._arrive(end_s + self.machine.latency_s, number, item)

    def _take_in(self) -> None:
        """Let the next thing arrive at the driver."""
        arrival_s, _, number, kind, about = heapq.heappop(self.queue)
        if kind == _LOOK:
            self._overtake(max(self.now_s, arrival_s), number, about)
            return
        self.now_s = max(self.now_s, arrival_s)
        if kind == _NOTICE:
            self._lose(number)
            self._hand_out(list(self.members))
            return
        self._handle()
        if number in self.members:
            takes_s = self.members[number].begun[kind]
            del self.members[number].sent_s[kind]
            self.pace.note(self.work.costs[kind], takes_s)
            self.ledger.report(number, ItemReport(kind, 0, (1,), {}, seconds=takes_s))
            # Nobody else has room now who had none before.
            self._hand_out([number])

    def _lose(self, number: int) -> None:
        self.watching = False
        self.lost_s += sum(self.members.pop(number).begun.values())
        self.ledger.lose(number)
        if failure.after_loss(len(self.members), 0, 1) is not Decision.REPLACE:
            raise ValueError("A virtual iteration needs a worker that survives it.")

    def _watch(self) -> None:
        """Nothing waits any more: look after every item under way when it would be late."""
        for number, worker in self.members.items():
            for item, sent_s in worker.sent_s.items():
                self._arrive(self._late_s(item, sent_s), number, _LOOK, item)

    def _late_s(self, item: int, sent_s: float) -> float:
        """When an item is late, or when to look again where no item has ended yet."""
        usual_s = self.pace.usual_s(self.work.costs[item])
        times = self.settings.copy_after
        assert times is not None
        if usual_s is None:
            return max(sent_s + COPY_AT_LEAST_S, 2 * self.now_s - sent_s)
        return sent_s + max(COPY_AT_LEAST_S, times * usual_s)

    def _overtake(self, now_s: float, number: int, item: int) -> None:
        """Give a late item to a free member as well; the first report counts."""
        sent_s = self.members[number].sent_s.get(item) if number in self.members else None
        if sent_s is None or self.ledger.waiting:
            return
        late_s = self._late_s(item, sent_s)
        free = next((other for other in self.members if self.ledger.in_flight(other) < self.threads), None)
        if now_s < late_s:
            self._arrive(late_s, number, _LOOK, item)
        elif free is None:
            self._arrive(now_s + _LOOK_AGAIN_S, number, _LOOK, item)
        elif self.ledger.may_copy(free, item):
            self.now_s = now_s
            self.ledger.copy(free, item)
            self._begin(free, item, self.work.item_s * self.work.costs[item])
