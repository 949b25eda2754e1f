"""Which workers no longer run, judged from outside their processes.

A worker may compute for minutes inside native code and answer no call meanwhile, which is no reason to kill it. So
nobody asks the worker: a process that was stopped says so in /proc, and a node that was cut off is one where even the
watcher, which does nothing else, gives no answer. Workers that died by themselves are reported by Ray within a second,
and those that run and get nowhere by the time their item takes.

The workers of this process's own node are looked up directly; every other node gets one watcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpfwi_cluster.ray_library import RayError, ray

LOOK_EVERY_S = 0.5
_STOPPED = frozenset("Tt")
_LONGEST_STEP_S = 1.0
"""Time that may pass between two looks and count: this process may have been stopped itself, or busy elsewhere."""


@dataclass(frozen=True)
class Place:
    """Where a worker's process is."""

    node: str
    pid: int


def process_state(pid: int) -> str:
    """Return the letter that Linux gives to the state of a process, T for a stopped one; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


class Watcher:
    """Looks at processes of its node; Ray turns the class into an actor."""

    def look(self, pids: Sequence[int]) -> dict[int, str]:
        """Return the state of each process; see `process_state`."""
        return {pid: process_state(pid) for pid in pids}


@dataclass
class _Node:
    """Another node.

    answered_s     time of the last answer; None before the first, which waits for the watcher's process to start
    """

    actor: Any
    asked: Any = None
    answered_s: float | None = None
    states: dict[int, str] = field(default_factory=dict)


class Watch:
    """Looks at workers now and then; time passes only while somebody asks.

    limit_s     a worker that stands still for longer, or whose node is silent for longer, is gone
    here        what Ray calls this process's node
    """

    def __init__(self, limit_s: float, here: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._here = here
        self._clock = clock
        self._read_s = clock()
        self._now_s = 0.0
        self._looked_s = -LOOK_EVERY_S
        self._still_since_s: dict[Place, float] = {}
        self._nodes: dict[str, _Node] = {}

    def gone(self, places: Iterable[Place]) -> dict[Place, str]:
        """Return which of these workers no longer run, each with the reason as a clause."""
        read_s = self._clock()
        self._now_s += min(max(0.0, read_s - self._read_s), _LONGEST_STEP_S)
        self._read_s = read_s
        if self._now_s - self._looked_s < LOOK_EVERY_S:
            return {}
        self._looked_s = self._now_s
        found: dict[Place, str] = {}
        by_node: dict[str, list[Place]] = {}
        for place in places:
            by_node.setdefault(place.node, []).append(place)
        for name, its in by_node.items():
            if name == self._here:
                states = Watcher().look([place.pid for place in its])
            else:
                node = self._ask(name, its)
                if node.answered_s is not None and self._now_s - node.answered_s > self._limit_s:
                    why = f"no sign of life from its node for {self._limit_s:g} s"
                    found |= dict.fromkeys(its, why)
                    continue
                states = node.states
            for place in its:
                if states.get(place.pid) not in _STOPPED:
                    self._still_since_s.pop(place, None)
                elif self._now_s - self._still_since_s.setdefault(place, self._now_s) > self._limit_s:
                    found[place] = f"its process has stood still for {self._limit_s:g} s"
        for place in found:
            self._still_since_s.pop(place, None)
        return found

    def forget_node(self, name: str) -> None:
        """End the watcher of a node, if there is one; a worker there starts another."""
        node = self._nodes.pop(name, None)
        if node is not None:
            ray.kill(node.actor, no_restart=True)

    def close(self) -> None:
        """End all watchers."""
        for name in list(self._nodes):
            self.forget_node(name)

    def _ask(self, name: str, places: Sequence[Place]) -> _Node:
        """Take the answer of a node's watcher if it is there, and ask again."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(_start_watcher(name))
        if node.asked is not None and ray.wait([node.asked], timeout=0)[0]:
            try:
                node.states = ray.get(node.asked)
                node.answered_s = self._now_s
            except RayError:  # the watcher itself was lost; that says nothing about the workers
                node.actor, node.answered_s, node.states = _start_watcher(name), None, {}
            node.asked = None
        if node.asked is None:
            node.asked = node.actor.look.remote([place.pid for place in places])
        return node


def _start_watcher(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=there)(Watcher).remote()
