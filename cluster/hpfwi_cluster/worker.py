"""The worker process: a replica and its place in the collective. Ray turns the class into an actor."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from hpfwi_cluster.errors import StartFailed, TaskFailed
from hpfwi_cluster.ledger import Plain
from hpfwi_cluster.ray_library import ray
from hpfwi_cluster.reduce import Collective, Formation
from hpfwi_cluster.replica import Replica, sentence_of
from hpfwi_cluster.tasks import State, Task

_T = TypeVar("_T")


@dataclass(frozen=True)
class Hello:
    """Who a worker is, once its task is built."""

    pid: int
    host: str
    """Address of its node."""
    node: str
    """What Ray calls its node."""
    versions: str


@dataclass(frozen=True)
class Reduced:
    """A rank's answer to `reduce`: it holds the total with these bits. Only one rank sends it along."""

    digest: str
    total: np.ndarray | None


def versions() -> str:
    """Return the versions that decide about the bits of a result."""
    return f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}"


class Worker:
    """One rank. Items run in the concurrency group `items`, `stop` in `control`, everything else one after another."""

    def __init__(self, device: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; it ends the group
        if device != "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows all GPUs to an actor that asked for none
        torch.set_num_threads(1)
        self._collective = Collective()
        self._replica: Replica | None = None
        self._total: np.ndarray | None = None

    def build(self, task_factory: Callable[[], Task]) -> Hello:
        """Build the task; StartFailed if the factory raises."""
        try:
            self._replica = Replica(task_factory())
        except Exception as error:
            raise StartFailed(f"The task could not be built: {sentence_of(error)}.") from error
        node = ray.get_runtime_context().get_node_id()
        return Hello(os.getpid(), ray.util.get_node_ip_address(), node, versions())

    def begin(self, iteration: int, sum_id: int) -> None:
        """Start an iteration and its sum."""
        self._total = None
        self._try("begin", lambda: self._rank.begin(iteration, sum_id))

    def compute(self, order: Plain) -> Plain:
        """Compute an item, once those that this rank holds are in its sum; return its report. See `Replica.compute`.

        order   item, sum_id, exponent, quantum, list of the items held
        """
        item, sum_id, exponent, quantum, accepted = order
        self._rank.accept(sum_id, accepted)
        return self._rank.compute(item, sum_id, exponent, quantum).plain()

    def form(self, formation: Formation) -> None:
        """Enter a generation."""
        self._collective.form(formation)

    def stop(self, generation: int) -> None:
        """Abandon a generation."""
        self._collective.stop(generation)

    def reduce(
        self, sum_id: int, shape: tuple[int, ...], held: tuple[int, ...], quantum: int, alone: bool, send: bool
    ) -> Reduced:
        """Add the ranks' sums and keep the total for `finish`; CollectiveBroken leaves the local sum as it was.

        held    the items that make up this rank's sum
        """
        total = self._rank.local_sum(sum_id, shape, held)
        if not alone:
            total = self._collective.all_reduce(total)
        self._total = self._rank.value_of(total, quantum)
        if not self._rank.exact:
            return Reduced("", np.empty(0, np.float32) if send else None)
        digest = hashlib.blake2b(np.ascontiguousarray(total).data, digest_size=16).hexdigest()
        return Reduced(digest, self._total if send else None)

    def finish(self, iteration: int) -> float:
        """Advance the task by the total; return this rank's busy seconds."""
        total, self._total = self._total, None
        assert total is not None
        return self._try("finish", lambda: self._rank.finish(iteration, total))

    def state(self) -> State:
        """Return the state of the task."""
        return self._try("state", self._rank.state)

    def load_state(self, state: State) -> None:
        """Put the task into a state."""
        self._try("load_state", lambda: self._rank.load_state(state))

    def digest(self) -> str:
        """Return a hash of the state."""
        return self._try("state", self._rank.digest)

    @property
    def _rank(self) -> Replica:
        assert self._replica is not None
        return self._replica

    def _try(self, name: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except Exception as error:
            raise TaskFailed(f"The task failed in {name}: {sentence_of(error)}.") from error
