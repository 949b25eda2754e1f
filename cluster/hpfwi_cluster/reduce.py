"""All-reduce of int64 sums through torch.distributed, in process groups formed in generations.

The driver hosts the store, so that no rank's death takes it away. A generation is a group object of its own
with no global state behind it: one that broke is left behind and the survivors form the next. Waiting is polling,
because a pending Gloo operation whose peer died may sleep until its time limit and cannot be woken, only abandoned.

Gloo adds on CPUs. NCCL adds int64 on GPUs; that path needs a GPU per rank.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hpfwi_cluster.errors import CollectiveBroken

_FIRST_POLL_S, _LAST_POLL_S = 1e-5, 5e-4
"""Time between two looks at a pending operation: short ones are not kept waiting, long ones take no processor."""


@dataclass(frozen=True)
class Formation:
    """What a rank needs to know to enter a generation."""

    store_host: str
    store_port: int
    own_host: str
    """Address this rank listens on."""
    generation: int
    rank: int
    ranks: int
    timeout_s: float
    backend: str
    """gloo or nccl."""


class Meeting:
    """The driver's store, listening on one address only."""

    def __init__(self, host: str, timeout_s: float) -> None:
        self.host = host
        listener = socket.create_server((host, 0))
        self.port: int = listener.getsockname()[1]
        # The store owns the descriptor from here on.
        self._store = dist.TCPStore(
            host,
            self.port,
            None,
            True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


class Collective:
    """One rank's place in the current generation."""

    def __init__(self) -> None:
        self._generation = 0
        self._stopped = 0
        self._group: Any = None
        self._backend = "gloo"
        self._left_behind: list[Any] = []

    def form(self, formation: Formation) -> None:
        """Enter a generation; CollectiveBroken if its ranks do not find each other or `stop` is called."""
        if self._group is not None:
            self._left_behind.append(self._group)
        self._group, self._generation, self._backend = None, formation.generation, formation.backend
        outcome: list[Any] = []

        def enter() -> None:
            try:
                outcome.append(_process_group(formation))
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=enter, name=f"generation-{formation.generation}", daemon=True)
        thread.start()
        self._poll(lambda: not thread.is_alive())
        if isinstance(outcome[0], Exception):
            raise CollectiveBroken(
                f"Rank {formation.rank} of {formation.ranks} could not enter generation {formation.generation}: "
                f"{_first_line(outcome[0])}."
            ) from outcome[0]
        self._group = outcome[0]

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of int64 or float32 arrays over all ranks, the same bits on each; overwrites its argument.

        raises  CollectiveBroken
        """
        if self._group is None:
            raise CollectiveBroken("This rank is in no generation.")
        tensor = torch.from_numpy(array)
        if self._backend == "nccl":
            tensor = tensor.cuda()
        try:
            work = self._group.allreduce([tensor])
            self._poll(work.is_completed)
            work.wait()
        except RuntimeError as error:
            self._left_behind.append(self._group)
            self._group = None
            raise CollectiveBroken(
                f"All-reduce of generation {self._generation} failed: {_first_line(error)}."
            ) from error
        return tensor.cpu().numpy()

    def stop(self, generation: int) -> None:
        """Release whatever waits in this generation or an earlier one; called from another thread."""
        self._stopped = max(self._stopped, generation)

    def _poll(self, done: Callable[[], bool]) -> None:
        pause_s = _FIRST_POLL_S
        while not done():
            if self._stopped >= self._generation:
                raise CollectiveBroken(f"Generation {self._generation} was abandoned.")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LAST_POLL_S)


def _process_group(formation: Formation) -> Any:
    limit = timedelta(seconds=formation.timeout_s)
    server = dist.TCPStore(formation.store_host, formation.store_port, None, False, timeout=limit)
    store = dist.PrefixStore(f"generation-{formation.generation}", server)
    if formation.backend == "nccl":
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = limit
        return dist.ProcessGroupNCCL(store, formation.rank, formation.ranks, nccl)
    gloo = dist.ProcessGroupGloo
    if not hasattr(gloo, "_Options"):
        return gloo(store, formation.rank, formation.ranks, limit)
    # Left to itself Gloo listens on whatever the host name resolves to, often loopback.
    options = gloo._Options()
    options._timeout = limit
    options._devices = [gloo.create_device(hostname=formation.own_host)]
    return gloo(store, formation.rank, formation.ranks, options)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
