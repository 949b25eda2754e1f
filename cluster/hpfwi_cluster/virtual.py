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
from hpfwi_cluster.shares import in_flight_limit

_ITEM_TRIES = 2


class Machine(BaseModel):
    """What a cluster costs beside the items. The defaults were measured on two cores with Ray 2.60 and Gloo."""

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
    held: dict[int, float] = field(default_factory=dict)
    """Durations of the items whose results it holds or computes."""


def run_iteration(
    work: Work, machine: Machine, workers: int, threads: int = 1, *, seed: int = 0, deaths: Sequence[Death] = ()
) -> Iteration:
    """Run one iteration in virtual time.

    workers     ranks, each with so many threads
    deaths      workers that die on the way; at least one worker must be left
    """
    durations = work.durations_s(seed)
    ledger = Ledger(0, range(len(durations)), work.costs, _ITEM_TRIES)
    members = {number: _Worker([0.0] * threads) for number in range(workers)}
    asking_s = machine.asking_s * workers
    now = used_s = asking_s
    now += 2 * machine.latency_s + work.begin_s
    queue: list[tuple[float, int, int, int]] = []
    """Reports and notices of death by arrival at the driver: time, serial, worker, item (-1: a notice)."""
    serial = 0
    for death in deaths:
        members[death.worker].dies_at_s = now + death.after_s
        heapq.heappush(queue, (now + death.after_s + machine.detection_s, serial, death.worker, -1))
        serial += 1
    handed_s = machine.handling_s / 2
    lost_s = 0.0
    ranks_lost = 0
    flying = 0
    """Items in the hands of members: with it and the queue, the end is seen without asking for everybody's account."""

    def hand_out(numbers: Sequence[int]) -> None:
        nonlocal now, used_s, serial, flying
        for depth in range(threads + 1):
            for number in numbers:
                limit = in_flight_limit(threads, ledger.waiting, len(members))
                if ledger.in_flight(number) == depth < limit:
                    item = ledger.take(number)
                    if item is None:
                        return
                    now += handed_s
                    used_s += handed_s
                    flying += 1
                    worker = members[number]
                    lane = min(range(threads), key=worker.lanes.__getitem__)
                    start = max(now + machine.latency_s, worker.lanes[lane])
                    worker.lanes[lane] = end = start + durations[item]
                    worker.held[item] = durations[item]
                    if end < worker.dies_at_s:
                        heapq.heappush(queue, (end + machine.latency_s, serial, number, item))
                        serial += 1

    while True:
        hand_out(list(members))
        while ledger.waiting or flying:
            arrival, _, number, item = heapq.heappop(queue)
            if item < 0:
                now = max(now, arrival)
                worker = members.pop(number)
                flying -= ledger.in_flight(number)
                ledger.lose(number)
                if failure.after_loss(len(members), 0, 1) is not Decision.REPLACE:
                    raise ValueError("A virtual iteration needs a worker that survives it.")
                ranks_lost += 1
                lost_s += sum(worker.held.values())
                hand_out(list(members))
                continue
            now = max(now, arrival) + handed_s
            used_s += handed_s
            if number in members:
                ledger.report(number, ItemReport(item, 0, (1,), {}))
                flying -= 1
                # Nobody else has room now who had none before.
                hand_out([number])
        # A death during the all-reduce sends its items back, and everybody round again.
        late = next((entry for entry in queue if entry[3] < 0 and members[entry[2]].dies_at_s <= now), None)
        if late is None:
            assert ledger.complete
            break
        queue.remove(late)
        now = max(now, late[0])
        lost_s += sum(members.pop(late[2]).held.values())
        ledger.lose(late[2])
        ranks_lost += 1
    ranks = len(members)
    if ranks_lost:
        now += machine.forming_s + machine.forming_rank_s * ranks
    # All members are asked to reduce, then to finish.
    for own_s in (machine.all_reduce_s(ranks, work.size), work.finish_s):
        now += machine.asking_s * ranks + 2 * machine.latency_s + own_s
        used_s += machine.asking_s * ranks
    now += work.driver_s
    return Iteration(now, sum(durations), lost_s, used_s + work.driver_s)
