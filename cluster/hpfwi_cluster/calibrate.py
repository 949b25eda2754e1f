"""What a cluster costs beside the items, measured: groups of workers whose items do nothing, or sleep."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.tasks import Group, ItemResult, State
from hpfwi_cluster.virtual import Machine

_ROUNDS = 9
"""Iterations that a time is the least of: other work on the machine only ever adds."""
_FEW, _MANY = 2, 62
_LARGE = 1 << 20
"""Numbers of a large sum: 8 MiB on the wire."""


class Sleeper:
    """A task whose items take a time of their own and add `numbers` zeros."""

    def __init__(self, seconds: Sequence[float], numbers: int, finish_s: float = 0.0) -> None:
        self._seconds, self._finish_s = seconds, finish_s
        self._zeros = np.zeros(numbers, np.float32)

    def begin(self, iteration: int) -> None:
        """Nothing to get ready."""

    def compute(self, item: int) -> ItemResult:
        """Sleep as long as the item takes."""
        time.sleep(self._seconds[item])
        return ItemResult(self._zeros, {})

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        """Sleep as long as advancing takes."""
        time.sleep(self._finish_s)

    def state(self) -> State:
        """Return a state of one number."""
        return {"nothing": np.zeros(1)}

    def load_state(self, state: State) -> None:
        """Nothing to take over."""


def sleeping_group(
    workers: int, seconds: Sequence[float], numbers: int = 1, finish_s: float = 0.0, threads: int = 1
) -> Group:
    """Start workers whose items sleep so many seconds each and add `numbers` zeros."""
    from hpfwi_cluster.group import RayGroup

    settings = ClusterSettings(workers=workers, threads_per_worker=threads, replica_check_every=None)
    task = functools.partial(Sleeper, tuple(seconds), numbers, finish_s)
    group = RayGroup(task, workers=workers, threads_per_worker=threads, settings=settings)
    group.exponent = 0  # zeros fit every scale; without one, the first item would be computed alone
    return group


def measure(say: Callable[[str], None] = lambda sentence: None) -> Machine:
    """Measure this machine's overheads with one worker and with two; what cannot be measured here keeps its default.

    Takes about half a minute, most of it to start the workers.
    """
    from hpfwi_cluster.connection import connect

    with connect(ClusterSettings(workers=0), cores=2):
        say("One worker …")
        with sleeping_group(1, [0.0] * _MANY) as one:
            few_s, many_s = _seconds(one, _FEW), _seconds(one, _MANY)
            question_s = _question_s(one)
        with sleeping_group(1, [0.0] * _MANY, _LARGE) as one:
            large_one_s = _seconds(one, 1)
        say("Two workers …")
        with sleeping_group(2, [0.0] * _MANY) as two:
            two_s, two_questions_s = _seconds(two, _FEW), _question_s(two)
        with sleeping_group(2, [0.0] * _MANY, _LARGE) as two:
            large_two_s = _seconds(two, 2)
    handling_s = max(1e-6, (many_s - few_s) / (_MANY - _FEW))
    asking_s = max(1e-6, two_questions_s - question_s)
    latency_s = max(0.0, (question_s - asking_s) / 2)
    # Begin, reduce and finish ask everybody; with two ranks the ring has two steps.
    hop_s = max(1e-6, (two_s - few_s - 3 * asking_s) / 2)
    size_mb = 8e-6 * _LARGE
    alone_s = max(1e-6, large_one_s - few_s)
    around_s = max(1e-6, large_two_s - two_s - alone_s)
    return Machine(
        handling_s=handling_s,
        asking_s=asking_s,
        latency_s=latency_s,
        hop_s=hop_s,
        bandwidth_mbs=size_mb / around_s,
        local_mbs=size_mb / alone_s,
    )


def _seconds(group: Group, items: int) -> float:
    """Least time of an iteration of so many items."""
    group.run(0, range(items), [1.0] * items)
    return min(group.run(1 + turn, range(items), [1.0] * items).seconds for turn in range(_ROUNDS))


def _question_s(group: Group) -> float:
    """Least time to ask every worker one thing."""
    state = group.state()
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        group.load_state(state)
        times.append(time.perf_counter() - started)
    return min(times)
