"""The group of Ray actors: pull items, add them exactly, all-reduce, advance together, survive deaths.

The driver only keeps accounts. Sums and states live in the workers; a worker's death costs the items its sum held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from hpfwi_cluster import failure, fixed_point, members
from hpfwi_cluster.connection import Connection, connect
from hpfwi_cluster.errors import (
    ClusterError,
    CollectiveBroken,
    GroupLost,
    ItemFailed,
    ReplicasDiverged,
    RestartsExhausted,
    StartFailed,
)
from hpfwi_cluster.failure import Decision
from hpfwi_cluster.ledger import Ledger
from hpfwi_cluster.members import Answers, Member
from hpfwi_cluster.ray_library import RayActorError, RayTaskError, ray
from hpfwi_cluster.reduce import Formation, Meeting
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.shares import in_flight_limit, wait_share
from hpfwi_cluster.tasks import IterationResult, State, Task

_BREAKS_IN_A_ROW = 3
"""A collective that breaks this often although nobody died will not heal by trying again."""


class RayGroup:
    """Ranks in worker processes. See `Group` for what the methods promise."""

    def __init__(
        self,
        task_factory: Callable[[], Task],
        *,
        workers: int,
        threads_per_worker: int,
        settings: ClusterSettings,
        connection: Connection | None = None,
    ) -> None:
        """Start the workers; StartFailed if they cannot be had.

        connection  shared by several groups and closed by its owner; None connects for this group alone
        """
        self.exponent: int | None = None
        self._task_factory = task_factory
        self._workers = workers
        self._threads = threads_per_worker
        self._settings = settings
        self._connection = connection or connect(settings, workers * threads_per_worker)
        self._closes_connection = connection is None
        self._members: list[Member] = []
        self._coming: list[Member] = []
        self._hired = 0
        self._replaced = 0
        self._meeting: Meeting | None = None
        self._generation = 0
        self._formed = False
        self._breaks = 0
        self._sum_id = 0
        self._ledger: Ledger | None = None
        self._flying: dict[Any, tuple[Member, int]] = {}
        self._deaths: dict[tuple[int, int], int] = {}
        self._iteration = 0
        self._lost: list[str] = []
        self._needs_state = False
        try:
            members.check_resources(workers, threads_per_worker, settings)
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, iteration: int, items: Sequence[int], costs: Sequence[float]) -> IterationResult:
        """Run one iteration; see `Group.run`."""
        if self._needs_state:
            raise ClusterError("The workers hold no valid state: call load_state with the last checkpoint first.")
        started_s = time.perf_counter()
        self._iteration, self._lost = iteration, []
        self._settle()
        self._admit()
        ledger = self._ledger = Ledger(iteration, items, costs, self._settings.item_tries)
        self._sum_id += 1
        self._everyone("begin", iteration)
        exponent = self.exponent if self.exponent is not None else self._probe(ledger)
        total = None
        while total is None:
            self._compute(ledger, exponent)
            again = fixed_point.corrected_exponent(exponent, ledger.largest)
            if again is None:
                total = self._reduce(ledger, exponent)
            else:
                exponent = again
                self._sum_id += 1
                ledger.start_again()
        # From here on every rank holds the total: whoever dies now takes nothing along that is needed.
        self._ledger = None
        self._needs_state = True
        busy_s = self._everyone("finish", iteration)
        self._needs_state = False
        self.exponent = fixed_point.next_exponent(self.exponent, ledger.largest)
        self._deaths.clear()
        every = self._settings.replica_check_every
        if every is not None and (iteration + 1) % every == 0:
            self._check_replicas()
        seconds = time.perf_counter() - started_s
        share = wait_share(list(busy_s.values()), seconds)
        return IterationResult(total, ledger.scalars, seconds, share, tuple(self._lost))

    def state(self) -> State:
        """Return the state of the first member that answers."""
        self._settle()
        while True:
            member = self._members[0]
            answers = members.collect({member.actor.state.remote(): member}, None)
            self._bury(answers, "handing over its state")
            self._raise_first(answers)
            if answers.values:
                return {name: np.array(value, copy=True) for name, value in answers.values[member].items()}

    def load_state(self, state: State) -> None:
        """Put every member into this state."""
        self._settle()
        self._needs_state = True
        self._everyone("load_state", ray.put(state))
        self._needs_state = False

    def close(self) -> None:
        """End the workers, and Ray if this group started it."""
        if ray.is_initialized():
            for member in self._members + self._coming:
                members.dismiss(member)
        self._members, self._coming, self._flying, self._meeting = [], [], {}, None
        if self._closes_connection:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Membership

    def _hire(self) -> None:
        self._coming.append(members.hire(self._hired, self._task_factory, self._threads, self._settings))
        self._hired += 1

    def _start(self) -> None:
        while len(self._coming) < self._workers:
            self._hire()
        arrived, problems = members.welcome(self._coming, self._settings.start_timeout_s)
        if problems:
            raise StartFailed(problems[0])
        if len(arrived) < self._workers:
            free, total = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
            raise StartFailed(
                f"{len(arrived)} of {self._workers} workers started within {self._settings.start_timeout_s:g} s, with "
                f"{free:g} of {total:g} CPUs left free: ask for fewer workers, free resources or raise start_timeout_s."
            )
        self._members, self._coming = arrived, []

    def _admit(self) -> None:
        """Let replacements that are ready join, with the state of a member; never wait for them."""
        arrived = self._arrivals(0.0)
        if not arrived:
            return
        state = ray.put(self.state())
        answers = members.collect({member.actor.load_state.remote(state): member for member in arrived}, None)
        self._coming = [member for member in self._coming if member not in arrived]
        for member in answers.dead:
            self._drop(member, f"{member.name} died while it took over the state")
        self._raise_first(answers)
        self._members += list(answers.values)
        self._formed = False

    def _arrivals(self, timeout_s: float) -> list[Member]:
        """Wait for the first replacement; return all that are ready by then, having dropped those that failed."""
        if not self._coming:
            return []
        ray.wait([member.built for member in self._coming], num_returns=1, timeout=timeout_s)
        ready = [member for member in self._coming if ray.wait([member.built], timeout=0)[0]]
        arrived, problems = members.welcome(ready, timeout_s)
        for member in ready:
            if member not in arrived:
                self._coming.remove(member)
                self._drop(member, " ".join(problems))
        return arrived

    def _drop(self, member: Member, why: str) -> None:
        """Give up a replacement that failed before it joined, and ask for another while the limit allows."""
        members.dismiss(member)
        self._lost.append(f"Replacement not used: {why.rstrip('.')}.")
        if self._replaced < self._settings.restart_limit:
            self._replaced += 1
            self._hire()

    def _lose(self, member: Member, doing: str) -> None:
        """Take a member out, put its items back, start a replacement, note the sentence.

        raises  GroupLost, RestartsExhausted: nobody is left; ItemFailed: an item keeps taking workers down
        """
        if member not in self._members:
            return
        self._members.remove(member)
        members.dismiss(member)
        self._formed = False
        self._flying = {ref: entry for ref, entry in self._flying.items() if entry[0] is not member}
        back, computing = self._ledger.lose(member.worker) if self._ledger is not None else ([], [])
        if computing:
            doing = f"computing item{'s' * (len(computing) > 1)} {', '.join(map(str, computing))}"
        limit = self._settings.restart_limit
        decision = failure.after_loss(len(self._members), self._replaced, limit)
        sentence = failure.loss_sentence(member.name, doing, self._iteration, back, decision)
        self._lost.append(sentence)
        if decision is Decision.GIVE_UP:
            self._needs_state = True
            raise RestartsExhausted(f"{sentence} Resume from the last checkpoint once the cause is known.")
        if decision is not Decision.GO_ON:
            self._replaced += 1
            self._hire()
        for item in computing:
            self._count_death(item)
        if decision is Decision.REBUILD:
            self._ledger = None
            self._needs_state = True
            self._rebuild()
            raise GroupLost(f"{sentence} Fresh ones are ready: load the last checkpoint and run on.")

    def _rebuild(self) -> None:
        """Wait for the first fresh worker; the others are admitted as they come."""
        deadline_s = time.monotonic() + self._settings.start_timeout_s
        while not self._members:
            self._members = self._arrivals(max(0.0, deadline_s - time.monotonic()))
            if not self._members and (not self._coming or time.monotonic() > deadline_s):
                raise RestartsExhausted(
                    f"No fresh worker started within {self._settings.start_timeout_s:g} s after all were lost "
                    f"({' '.join(self._lost)}): resume from the last checkpoint when the cluster has resources again."
                )
        self._coming = [member for member in self._coming if member not in self._members]

    def _count_death(self, item: int) -> None:
        key = (self._iteration, item)
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        if failure.after_item_death(deaths, self._settings.item_deaths) is Decision.GIVE_UP:
            if not self._members:
                self._needs_state = True
                self._rebuild()
            raise ItemFailed(
                f"Item {item} was in work at {deaths} workers of iteration {self._iteration} when they died (limit "
                f"item_deaths): it probably crashes or exhausts the memory of its worker. Nothing was applied."
            )

    # Asking

    def _everyone(self, method: str, *arguments: Any) -> dict[Member, Any]:
        """Call a method on every member; return what the survivors answer."""
        asked = {getattr(member.actor, method).remote(*arguments): member for member in self._members}
        answers = members.collect(asked, None)
        self._bury(answers, f"in {method}")
        self._raise_first(answers)
        return answers.values

    def _bury(self, answers: Answers, doing: str) -> None:
        for member in answers.dead:
            self._lose(member, doing)
        for member in list(answers.silent.values()):
            self._lose(member, f"{doing}, silent")

    def _raise_first(self, answers: Answers) -> None:
        for error in answers.errors.values():
            raise error

    def _settle(self) -> None:
        """Wait for items that a failed iteration left in flight: they must not run beside the next one."""
        flying, self._flying, self._ledger = self._flying, {}, None
        self._bury(members.collect({ref: member for ref, (member, _) in flying.items()}, None), "idle")

    # Items

    def _probe(self, ledger: Ledger) -> int:
        """Have the item of lowest id computed, not added; return the exponent its magnitude suggests."""
        exponent = None
        while exponent is None:
            member, item = self._members[0], ledger.take_probe(self._members[0].worker)
            answers = members.collect({self._send(member, item, None, 0): member}, None)
            self._bury(answers, "computing")
            self._raise_first(answers)
            for report in answers.values.values():
                exponent = ledger.report_probe(member.worker, report)
        return exponent

    def _send(self, member: Member, item: int, exponent: int | None, quantum: int) -> Any:
        compute = member.actor.compute.options(concurrency_group="items")
        return compute.remote(item, self._sum_id, exponent, quantum)

    def _compute(self, ledger: Ledger, exponent: int) -> None:
        """Until every item is held by a living member, keep the members busy."""
        quantum = ledger.quantum(exponent)
        while not ledger.complete:
            for depth in range(self._threads + 1):
                for member in self._members:
                    limit = in_flight_limit(self._threads, ledger.waiting, len(self._members))
                    if ledger.in_flight(member.worker) == depth < limit:
                        item = ledger.take(member.worker)
                        if item is not None:
                            self._flying[self._send(member, item, exponent, quantum)] = (member, item)
            ready, _ = ray.wait(list(self._flying), num_returns=1)
            member, _ = self._flying.pop(ready[0])
            try:
                ledger.report(member.worker, ray.get(ready[0]))
            except RayActorError:
                self._lose(member, "computing")
            except RayTaskError as error:
                raise members.own_error(error) from error

    # The sum

    def _reduce(self, ledger: Ledger, exponent: int) -> np.ndarray | None:
        """Bring the total to every member and return it; None if a loss or a break asks for another round."""
        alone = len(self._members) == 1
        if not alone and not self._formed and not self._form():
            return None
        asked = {
            member.actor.reduce.remote(
                self._sum_id, ledger.shape, ledger.quantum(exponent), alone, position == 0
            ): member
            for position, member in enumerate(self._members)
        }
        answers = self._together(asked, "in the all-reduce")
        if answers is None:
            return None
        if len({answer.digest for answer in answers.values.values()}) > 1:
            raise ReplicasDiverged(
                f"The total of iteration {self._iteration} differs between workers after the all-reduce; nothing was "
                "applied: suspect memory or network hardware."
            )
        return next(answer.total for answer in answers.values.values() if answer.total is not None)

    def _form(self) -> bool:
        """Form the next generation of all members; False if someone was lost on the way."""
        timeout_s = self._settings.collective_timeout_s
        if self._meeting is None:
            self._meeting = Meeting(self._connection.host, timeout_s)
        self._generation += 1
        asked = {}
        for rank, member in enumerate(self._members):
            assert member.hello is not None
            own_host = self._connection.host if self._connection.owned else member.hello.host
            formation = Formation(
                self._meeting.host,
                self._meeting.port,
                own_host,
                self._generation,
                rank,
                len(self._members),
                timeout_s,
                "nccl" if self._settings.device == "cuda" else "gloo",
            )
            asked[member.actor.form.remote(formation)] = member
        self._formed = self._together(asked, "forming a group") is not None
        return self._formed

    def _together(self, asked: dict[Any, Member], doing: str) -> Answers | None:
        """Wait for something all ranks do together; None, and everyone released, if it broke.

        raises  CollectiveBroken when it keeps breaking although nobody is lost
        """
        answers = members.collect(asked, self._settings.collective_timeout_s, stop_early=True)
        if answers.clean:
            self._breaks = 0
            return answers
        self._formed = False
        for member in set(asked.values()) - set(answers.dead):
            member.actor.stop.options(concurrency_group="control").remote(self._generation)
        rest = members.collect(answers.silent, self._settings.answer_timeout_s)
        errors = [*answers.errors.values(), *rest.errors.values()]
        if not (answers.dead or rest.dead or rest.silent):
            self._breaks += 1
            if self._breaks >= _BREAKS_IN_A_ROW:
                raise CollectiveBroken(
                    f"The workers failed {self._breaks} times {doing} although none was lost; the last reason: "
                    f"{errors[0] if errors else f'no end within {self._settings.collective_timeout_s:g} s'}"
                )
        self._bury(Answers(dead=answers.dead + rest.dead, silent=rest.silent), doing)
        return None

    def _check_replicas(self) -> None:
        digests = self._everyone("digest")
        if len(set(digests.values())) > 1:
            self._needs_state = True
            named = ", ".join(f"worker {member.worker} {digest[:8]}" for member, digest in digests.items())
            raise ReplicasDiverged(
                f"The state of the workers differs after iteration {self._iteration} ({named}): the task computes "
                "something that is not a function of its state and the total; load a checkpoint to go on."
            )
