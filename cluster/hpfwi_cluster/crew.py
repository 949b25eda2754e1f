"""Who works for a group: those that compute, those on their way, and what becomes of the lost.

Workers join between iterations only, with the state of one that is there. Until then a replacement starts beside the
work, and where the cluster has no room for it, it waits in Ray's queue for as long as that takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from hpfwi_cluster import failure, members
from hpfwi_cluster.errors import Abandoned, GroupLost, ItemFailed, RestartsExhausted, StartFailed, WorkersMissing
from hpfwi_cluster.failure import Decision
from hpfwi_cluster.ledger import Ledger
from hpfwi_cluster.members import Answers, Member
from hpfwi_cluster.ray_library import ray
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.tasks import Task, nobody_asks, nobody_listens
from hpfwi_cluster.watch import Watch

_GROW_EVERY_S = 5.0
"""Time between two looks at the cluster's free resources."""
_DEATHS_AT_THE_START = 5
"""Workers that may die before a group is complete: one by accident, but not one after the other."""


class Crew:
    """The workers of a group.

    members      compute, and hold the state
    iteration    that runs, and `ledger`, its account if there is one: a loss is booked there
    lost         sentences about the losses of this iteration, each also told to `tell` when it happens
    needs_state  no member's state can be trusted until one is loaded
    """

    def __init__(
        self, task_factory: Callable[[], Task], *, workers: int, threads: int, settings: ClusterSettings
    ) -> None:
        self.members: list[Member] = []
        self.iteration = 0
        self.ledger: Ledger | None = None
        self.lost: list[str] = []
        self.needs_state = False
        self.tell: Callable[[str], None] = nobody_listens
        self.stop: Callable[[], object] = nobody_asks
        self._task_factory = task_factory
        self._workers = workers
        self._threads = threads
        self._settings = settings
        self._watch = Watch(settings.heartbeat_limit_s, ray.get_runtime_context().get_node_id())
        self._coming: list[Member] = []
        self._hired = 0
        self._replaced = 0
        self._deaths: dict[tuple[int, int], int] = {}
        self._looked_to_grow_s = time.monotonic()

    def start(self) -> None:
        """Start the workers; raises StartFailed, or Abandoned: asked to stop."""
        least = self._settings.min_workers or self._workers
        members.check_resources(least, self._threads, self._settings)
        while len(self._coming) < self._workers:
            self._hire()
        limit_s = self._settings.start_timeout_s
        deadline_s = time.monotonic() + limit_s
        while len(self.members) < self._workers and time.monotonic() < deadline_s:
            if self.stop():
                raise Abandoned("Asked to stop while the workers started; nothing was begun.")
            arrived, unfit, dead = members.welcome(self._coming, members.SLICE_S)
            self._join(arrived)
            for problem in unfit.values():
                raise StartFailed(problem)
            for member, problem in dead.items():
                self._drop(member, problem)
                if len(self.lost) >= _DEATHS_AT_THE_START:
                    raise StartFailed(f"{problem} It was the last of {len(self.lost)}: see what Ray logged about them.")
        if len(self.members) < least:
            free, total = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
            raise StartFailed(
                f"{len(self.members)} of {least} workers started within {limit_s:g} s, with {free:g} of {total:g} CPUs "
                "left free: ask for fewer workers, free resources or raise start_timeout_s."
            )

    def close(self) -> None:
        """End every worker."""
        for member in self.members + self._coming:
            members.dismiss(member)
        self.members, self._coming, self.ledger = [], [], None
        self._watch.close()

    # Joining

    def admit(self, state: Callable[[], Any]) -> None:
        """Let workers that are ready join, ask for more where there is room, and wait while there are too few.

        state    returns a reference to the state that they start from
        raises   Abandoned, WorkersMissing: still too few
        """
        self._grow()
        self._introduce(self._arrivals(0.0), state)
        least = self._settings.min_workers or 1
        if len(self.members) >= least:
            return
        deadline_s = time.monotonic() + self._settings.wait_limit_s
        self.tell(
            f"Waiting for workers before iteration {self.iteration}: {len(self.members)} of at least {least} are left, "
            f"{len(self._coming)} on their way."
        )
        while len(self.members) < least:
            if self.stop():
                raise Abandoned(f"Asked to stop before iteration {self.iteration}; nothing was applied.")
            if time.monotonic() > deadline_s:
                raise WorkersMissing(
                    f"{len(self.members)} of at least {least} workers were left before iteration {self.iteration} and "
                    f"no more came within {self._settings.wait_limit_s:g} s: lower min_workers, or resume when the "
                    "cluster has resources again."
                )
            self._grow()
            self._introduce(self._arrivals(members.SLICE_S), state)
            self.bury(Answers(dead=self.gone(self.members)), "waiting for others")

    def rebuild(self) -> None:
        """Wait for the first fresh worker after all were lost; the others are admitted as they come.

        raises   Abandoned: asked to stop; RestartsExhausted: none came
        """
        deadline_s = time.monotonic() + self._settings.wait_limit_s
        while not self.members:
            arrived = self._arrivals(members.SLICE_S)
            self._join(arrived)
            if arrived:
                return
            if self.stop():
                raise Abandoned("Asked to stop while no worker was left; the last checkpoint is what there is.")
            if not self._coming or time.monotonic() > deadline_s:
                raise RestartsExhausted(
                    f"No fresh worker started within {self._settings.wait_limit_s:g} s after all were lost "
                    f"({' '.join(self.lost)}): resume from the last checkpoint when the cluster has resources again."
                )

    def _introduce(self, arrived: list[Member], state: Callable[[], Any]) -> None:
        if not arrived:
            return
        reference = state()
        answers = self.collect({member.actor.load_state.remote(reference): member for member in arrived})
        self._coming = [member for member in self._coming if member not in arrived]
        for member in [*answers.dead, *answers.silent.values()]:
            self._drop(member, f"{member.name} was lost while it took over the state")
        raise_first(answers)
        self._join(list(answers.values))

    def _join(self, arrived: list[Member]) -> None:
        self.members += arrived
        self._coming = [member for member in self._coming if member not in arrived]

    def _grow(self) -> None:
        """Ask for workers that the group may have and the cluster has room for."""
        most = self._settings.max_workers or self._workers
        missing = most - len(self.members) - len(self._coming)
        now_s = time.monotonic()
        if missing <= 0 or self._replaced >= self._settings.restart_limit:
            return
        if now_s - self._looked_to_grow_s < _GROW_EVERY_S:
            return
        self._looked_to_grow_s = now_s
        room = members.room(self._threads, self._settings)
        for _ in range(min(missing, room)):
            self._hire()

    def _hire(self) -> None:
        self._coming.append(members.hire(self._hired, self._task_factory, self._threads, self._settings))
        self._hired += 1

    def _arrivals(self, timeout_s: float) -> list[Member]:
        """Wait for the first newcomer; return all that are ready by then, having dropped those that failed."""
        if not self._coming:
            if timeout_s:
                time.sleep(timeout_s)
            return []
        ray.wait([member.built for member in self._coming], num_returns=1, timeout=timeout_s)
        ready = [member for member in self._coming if ray.wait([member.built], timeout=0)[0]]
        arrived, unfit, dead = members.welcome(ready, None)
        for member, problem in (unfit | dead).items():
            self._drop(member, problem)
        return arrived

    def _drop(self, member: Member, why: str) -> None:
        """Give up a newcomer that failed before it joined, and ask for another while the limit allows."""
        self._coming = [other for other in self._coming if other is not member]
        members.dismiss(member)
        again = self._replaced < self._settings.restart_limit
        self._say(f"{why.rstrip('.')}; {'another one is started' if again else 'restart_limit is spent'}.")
        if again:
            self._replaced += 1
            self._hire()

    # Losing

    def lose(self, member: Member, why: str, doing: str) -> None:
        """Take a member out, put its items back, start a replacement, say the sentence.

        why     a clause: what became of it
        doing   a clause: what it did
        raises  GroupLost, RestartsExhausted: nobody is left; ItemFailed: an item keeps taking workers down
        """
        if member not in self.members:
            return
        self.members.remove(member)
        members.dismiss(member)
        if member.hello is not None and all(other.place.node != member.hello.node for other in self.members):
            self._watch.forget_node(member.hello.node)
        back, computing = self.ledger.lose(member.worker) if self.ledger is not None else ([], [])
        if computing:
            doing = f"computing item{'s' * (len(computing) > 1)} {', '.join(map(str, computing))}"
        limit = self._settings.restart_limit
        decision = failure.after_loss(len(self.members), self._replaced, limit)
        sentence = failure.loss_sentence(member.name, why, doing, self.iteration, back, decision)
        self._say(sentence)
        if decision is Decision.GIVE_UP:
            self.needs_state = True
            raise RestartsExhausted(f"{sentence} Resume from the last checkpoint once the cause is known.")
        if decision is not Decision.GO_ON:
            self._replaced += 1
            self._hire()
        for item in computing:
            self._count_death(item, why)
        if decision is Decision.REBUILD:
            self.ledger = None
            self.needs_state = True
            self.rebuild()
            raise GroupLost("Every worker was lost; fresh ones are ready: load the last checkpoint and run on.")

    def forget_deaths(self) -> None:
        """An iteration went well: what died over its items is no longer held against them."""
        self._deaths.clear()

    def gone(self, among: Iterable[Member]) -> dict[Member, str]:
        """Return which of these workers no longer run, each with the reason."""
        places = {member.place: member for member in among if member.hello is not None}
        return {places[place]: why for place, why in self._watch.gone(places).items()}

    def _count_death(self, item: int, why: str) -> None:
        key = (self.iteration, item)
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        if failure.after_item_death(deaths, self._settings.item_deaths) is Decision.GIVE_UP:
            if not self.members:
                self.needs_state = True
                self.rebuild()
            raise ItemFailed.of(
                item,
                f"Item {item} was in work at {deaths} workers of iteration {self.iteration} when they died (limit "
                f"item_deaths), the last time because of this: {why}. Unless that says another reason, it crashes or "
                "exhausts the memory of its worker. Nothing was applied.",
            )

    def _say(self, sentence: str) -> None:
        self.lost.append(sentence)
        self.tell(sentence)

    # Asking

    def collect(self, asked: dict[Any, Member], timeout_s: float | None = None, *, stop_early: bool = False) -> Answers:
        """Wait for answers, by default as long as one call may take; see `members.collect`."""
        timeout_s = self._settings.call_limit_s if timeout_s is None else timeout_s
        return members.collect(asked, timeout_s, gone=self.gone, stop_early=stop_early)

    def everyone(self, method: str, *arguments: Any) -> dict[Member, Any]:
        """Call a method on every member; return what the survivors answer."""
        answers = self.collect({getattr(member.actor, method).remote(*arguments): member for member in self.members})
        self.bury(answers, f"in {method}")
        raise_first(answers)
        return answers.values

    def bury(self, answers: Answers, doing: str) -> None:
        """Lose every member that died or stayed silent."""
        for member, why in answers.dead.items():
            self.lose(member, why, doing)
        for member in list(answers.silent.values()):
            self.lose(member, "no answer in time", doing)


def raise_first(answers: Answers) -> None:
    """Raise what a worker raised, if one did."""
    for error in answers.errors.values():
        raise error
