"""The group of Ray actors: pull items, add them exactly, all-reduce, advance together, survive losses.

The driver only keeps accounts. Sums and states live in the workers; a worker's death costs the items its sum held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from hpfwi_cluster import fixed_point
from hpfwi_cluster.connection import Connection, connect
from hpfwi_cluster.crew import Crew, raise_first
from hpfwi_cluster.dispatch import Dispatch
from hpfwi_cluster.errors import CollectiveBroken, GroupLost, ReplicasDiverged
from hpfwi_cluster.ledger import Ledger
from hpfwi_cluster.members import Answers, Member
from hpfwi_cluster.ray_library import ray
from hpfwi_cluster.reduce import Formation, Meeting
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.shares import wait_share
from hpfwi_cluster.tasks import IterationResult, State, Task, nobody_asks

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
        stop: Callable[[], object] = nobody_asks,
    ) -> None:
        """Start the workers; StartFailed if they cannot be had, Abandoned if asked to stop meanwhile.

        connection  shared by several groups and closed by its owner; None connects for this group alone
        stop        is asked from now on; see `Group`
        """
        self.exponent: int | None = None
        self._settings = settings
        gpus = workers if settings.device == "cuda" else 0
        self._connection = connection or connect(settings, workers * threads_per_worker, gpus, stop)
        self._closes_connection = connection is None
        self._crew = Crew(task_factory, workers=workers, threads=threads_per_worker, settings=settings)
        self._crew.stop = stop
        self._dispatch = Dispatch(self._crew, threads_per_worker, settings)
        self._meeting: Meeting | None = None
        self._generation = 0
        self._formed: list[Member] = []
        self._breaks = 0
        self._sum_id = 0
        try:
            self._crew.start()
        except BaseException:
            self.close()
            raise

    @property
    def tell(self) -> Callable[[str], None]:
        """What is told of losses when they happen; see `Group`."""
        return self._crew.tell

    @tell.setter
    def tell(self, listener: Callable[[str], None]) -> None:
        self._crew.tell = listener

    @property
    def stop(self) -> Callable[[], object]:
        """What is asked whether to stop; see `Group`."""
        return self._crew.stop

    @stop.setter
    def stop(self, asked: Callable[[], object]) -> None:
        self._crew.stop = asked

    def run(self, iteration: int, items: Sequence[int], costs: Sequence[float]) -> IterationResult:
        """Run one iteration; see `Group.run`."""
        crew = self._crew
        self._require_state()
        started_s = time.perf_counter()
        crew.iteration, crew.lost = iteration, []
        crew.admit(lambda: ray.put(self.state()))
        ledger = crew.ledger = Ledger(iteration, items, costs, self._settings.item_tries)
        try:
            total = self._total(ledger)
        finally:
            crew.ledger = None
        # From here on every rank holds the total: whoever dies now takes nothing along that is needed.
        crew.needs_state = True
        busy_s = crew.everyone("finish", iteration)
        crew.needs_state = False
        self.exponent = fixed_point.next_exponent(self.exponent, ledger.largest)
        crew.forget_deaths()
        every = self._settings.replica_check_every
        if every is not None and (iteration + 1) % every == 0:
            self._check_replicas()
        seconds = time.perf_counter() - started_s
        share = wait_share(list(busy_s.values()), seconds)
        return IterationResult(total, ledger.scalars, seconds, share, tuple(crew.lost))

    def state(self) -> State:
        """Return the state of the first member that answers."""
        crew = self._crew
        self._require_state()
        while True:
            member = crew.members[0]
            answers = crew.collect({member.actor.state.remote(): member})
            crew.bury(answers, "handing over its state")
            raise_first(answers)
            if answers.values:
                return {name: np.array(value, copy=True) for name, value in answers.values[member].items()}

    def load_state(self, state: State) -> None:
        """Put every member into this state."""
        crew = self._crew
        crew.needs_state = True
        if not crew.members:
            crew.rebuild()
        crew.everyone("load_state", ray.put(state))
        crew.needs_state = False

    def close(self) -> None:
        """End the workers, and Ray if this group started it."""
        if ray.is_initialized():
            self._crew.close()
        self._meeting = None
        if self._closes_connection:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_state(self) -> None:
        if self._crew.needs_state:
            raise GroupLost("The workers hold no valid state: call load_state with the last checkpoint first.")

    # The sum

    def _total(self, ledger: Ledger) -> np.ndarray:
        """Have all items computed, and their sum at every member."""
        self._sum_id += 1
        self._crew.everyone("begin", ledger.iteration, self._sum_id)
        exponent = self.exponent
        if exponent is None:
            exponent = self._dispatch.probe(ledger, self._sum_id)
        while True:
            self._dispatch.compute(ledger, self._sum_id, exponent)
            again = fixed_point.corrected_exponent(exponent, ledger.largest)
            if again is None:
                total = self._reduce(ledger, exponent)
                if total is not None:
                    return total
            else:
                exponent = again
                self._sum_id += 1
                ledger.start_again()

    def _reduce(self, ledger: Ledger, exponent: int) -> np.ndarray | None:
        """Bring the total to every member and return it; None if a loss or a break asks for another round."""
        ranks = self._crew.members
        alone = len(ranks) == 1
        if not alone and self._formed != ranks and not self._form():
            return None
        quantum = ledger.quantum(exponent)
        asked = {
            member.actor.reduce.remote(
                self._sum_id, ledger.shape, ledger.held(member.worker), quantum, alone, position == 0
            ): member
            for position, member in enumerate(ranks)
        }
        answers = self._together(asked, "in the all-reduce")
        if answers is None:
            return None
        if len({answer.digest for answer in answers.values.values()}) > 1:
            raise ReplicasDiverged(
                f"The total of iteration {ledger.iteration} differs between workers after the all-reduce; nothing was "
                "applied: suspect memory or network hardware."
            )
        return next(answer.total for answer in answers.values.values() if answer.total is not None)

    def _form(self) -> bool:
        """Form the next generation of all members; False if someone was lost on the way."""
        timeout_s = self._settings.collective_timeout_s
        if self._meeting is None:
            self._meeting = Meeting(self._connection.host, timeout_s)
        self._generation += 1
        ranks = list(self._crew.members)
        asked = {}
        for rank, member in enumerate(ranks):
            assert member.hello is not None
            own_host = self._connection.host if self._connection.owned else member.hello.host
            formation = Formation(
                self._meeting.host,
                self._meeting.port,
                own_host,
                self._generation,
                rank,
                len(ranks),
                timeout_s,
                self._settings.collective,
            )
            asked[member.actor.form.remote(formation)] = member
        formed = self._together(asked, "forming a group") is not None
        self._formed = ranks if formed else []
        return formed

    def _together(self, asked: dict[Any, Member], doing: str) -> Answers | None:
        """Wait for something all ranks do together; None, and everyone released, if it broke.

        raises  CollectiveBroken when it keeps breaking although nobody is lost
        """
        crew = self._crew
        answers = crew.collect(asked, self._settings.collective_timeout_s, stop_early=True)
        if answers.clean:
            self._breaks = 0
            return answers
        self._formed = []
        for member in set(asked.values()) - set(answers.dead):
            member.actor.stop.options(concurrency_group="control").remote(self._generation)
        rest = crew.collect(answers.silent, self._settings.answer_timeout_s)
        errors = [*answers.errors.values(), *rest.errors.values()]
        if not (answers.dead or rest.dead or rest.silent):
            if not all(isinstance(error, CollectiveBroken) for error in errors):
                raise next(error for error in errors if not isinstance(error, CollectiveBroken))
            self._breaks += 1
            if self._breaks >= _BREAKS_IN_A_ROW:
                raise CollectiveBroken(
                    f"The workers failed {self._breaks} times {doing} although none was lost; the last reason: "
                    f"{errors[0] if errors else f'no end within {self._settings.collective_timeout_s:g} s'}"
                )
        crew.bury(Answers(dead=answers.dead | rest.dead, silent=rest.silent), doing)
        return None

    def _check_replicas(self) -> None:
        digests = self._crew.everyone("digest")
        if len(set(digests.values())) > 1:
            self._crew.needs_state = True
            named = ", ".join(f"worker {member.worker} {digest[:8]}" for member, digest in digests.items())
            raise ReplicasDiverged(
                f"The state of the workers differs after iteration {self._crew.iteration} ({named}): the task computes "
                "something that is not a function of its state and the total; load a checkpoint to go on."
            )
