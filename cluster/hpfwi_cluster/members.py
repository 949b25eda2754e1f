"""Start workers as Ray actors, ask them all, and tell answers from deaths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hpfwi_cluster.errors import ClusterError, StartFailed
from hpfwi_cluster.ray_library import LOST, RayTaskError, ray, why_lost
from hpfwi_cluster.replica import sentence_of
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.tasks import Task
from hpfwi_cluster.watch import Place
from hpfwi_cluster.worker import Hello, Worker, versions

SLICE_S = 0.25
"""Longest wait before this process looks around: for workers that no longer run, and for being asked to stop."""


@dataclass(eq=False)
class Member:
    """A worker process as the driver sees it. `worker` is a serial number, never used twice."""

    worker: int
    actor: Any
    built: Any
    """Reference to the Hello that comes when the task is built."""
    compute: Any
    """What asks it for items; made once, because that takes as long as a question."""
    hello: Hello | None = None

    @property
    def name(self) -> str:
        """What log lines call this worker."""
        where = "" if self.hello is None else f" (pid {self.hello.pid} on {self.hello.host})"
        return f"Worker {self.worker}{where}"

    @property
    def place(self) -> Place:
        """Where its process is."""
        assert self.hello is not None
        return Place(self.hello.node, self.hello.pid)


@dataclass
class Answers:
    """What became of one question to several members."""

    values: dict[Member, Any] = field(default_factory=dict)
    errors: dict[Member, ClusterError] = field(default_factory=dict)
    dead: dict[Member, str] = field(default_factory=dict)
    """With a clause that says what became of it."""
    silent: dict[Any, Member] = field(default_factory=dict)
    """References that had not come back, by whom they were awaited."""

    @property
    def clean(self) -> bool:
        """Whether everyone answered with a value."""
        return not (self.errors or self.dead or self.silent)


def hire(worker: int, task_factory: Callable[[], Task], threads: int, settings: ClusterSettings) -> Member:
    """Ask Ray for a worker; it comes when resources allow."""
    actor = ray.remote(
        num_cpus=threads,
        num_gpus=1 if settings.device == "cuda" else 0,
        max_restarts=0,
        max_task_retries=0,
        concurrency_groups={"items": threads, "control": 1},
    )(Worker).remote(settings.device)
    compute = actor.compute.options(concurrency_group="items")
    return Member(worker, actor, actor.build.remote(task_factory), compute)


def dismiss(member: Member) -> None:
    """End a worker process, alive or not."""
    ray.kill(member.actor, no_restart=True)


def collect(
    asked: dict[Any, Member],
    timeout_s: float | None,
    *,
    gone: Callable[[Iterable[Member]], dict[Member, str]] | None = None,
    stop_early: bool = False,
) -> Answers:
    """Wait for references and sort what comes back.

    timeout_s   None waits as long as it takes
    gone        says which members no longer run, and why; nobody waits for those
    stop_early  return at the first death or error; the rest is `silent`
    """
    answers = Answers(silent=dict(asked))
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    while answers.silent:
        left_s = SLICE_S if deadline_s is None else max(0.0, min(SLICE_S, deadline_s - time.monotonic()))
        ready, _ = ray.wait(list(answers.silent), num_returns=1, timeout=left_s)
        for reference in ready:
            member = answers.silent.pop(reference)
            try:
                answers.values[member] = ray.get(reference)
            except LOST as error:
                answers.dead[member] = why_lost(error)
            except RayTaskError as error:
                answers.errors[member] = own_error(error)
        if not ready and gone is not None:
            lost = gone(answers.silent.values())
            answers.dead |= lost
            answers.silent = {each: member for each, member in answers.silent.items() if member not in lost}
        if stop_early and (answers.dead or answers.errors):
            break
        if not ready and deadline_s is not None and time.monotonic() >= deadline_s:
            break
    return answers


def own_error(error: RayTaskError) -> ClusterError:
    """Return the layer's own exception that a worker raised; anything else becomes a ClusterError."""
    if isinstance(error.cause, ClusterError):
        return error.cause
    return ClusterError(f"A worker failed outside its task: {sentence_of(error.cause)}.")


def check_resources(workers: int, threads: int, settings: ClusterSettings) -> None:
    """Raise StartFailed if the cluster, all of it, is too small for these workers."""
    total = ray.cluster_resources()
    wanted = {"CPU": workers * threads, "GPU": workers if settings.device == "cuda" else 0}
    for kind, count in wanted.items():
        if count > total.get(kind, 0):
            raise StartFailed(
                f"{workers} workers of {threads} threads ask for {count} {kind}s, the Ray cluster has "
                f"{total.get(kind, 0):g} ({ray.available_resources().get(kind, 0):g} free): ask for fewer."
            )


def room(threads: int, settings: ClusterSettings) -> int:
    """Return how many more workers the free resources of the cluster are enough for, as a sum over its nodes."""
    free = ray.available_resources()
    places = int(free.get("CPU", 0)) // threads
    return min(places, int(free.get("GPU", 0))) if settings.device == "cuda" else places


def welcome(
    members: list[Member], timeout_s: float | None
) -> tuple[list[Member], dict[Member, str], dict[Member, str]]:
    """Wait until the members have built their tasks; return those fit to join, those unfit, those that died.

    A worker that runs other versions than this process is unfit: its bits would differ.
    """
    answers = collect({member.built: member for member in members}, timeout_s)
    unfit = {member: str(error) for member, error in answers.errors.items()}
    dead = {member: f"Worker {member.worker} died while it started ({why})." for member, why in answers.dead.items()}
    for member, hello in answers.values.items():
        if hello.versions != versions():
            unfit[member] = (
                f"Worker {member.worker} on {hello.host} runs {hello.versions}, this process {versions()}: results "
                "would depend on who computed them; install the same versions on every node."
            )
        else:
            member.hello = hello
    return [member for member in members if member.hello is not None], unfit, dead
