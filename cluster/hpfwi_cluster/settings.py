"""Settings of a group of workers. Every default of the layer stands here, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi_cluster.errors import StartFailed

ADDRESS = "RAY_ADDRESS"
"""Variable of the environment that names a Ray cluster where `address` names none."""


class ClusterSettings(BaseModel):
    """Who computes the items, and how long a group waits for whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="Worker processes: a number, 'auto' (one for each GPU of this machine that can be used; without "
        "any, usable cores / threads_per_worker; no more than have something to do), 0 (this process, no Ray).",
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="Fewest workers to start with, and to go on with before waiting for more; none: all of them to "
        "start, one to go on.",
    )
    max_workers: int | None = Field(
        default=None,
        ge=1,
        description="Most workers: between iterations the group grows up to here where resources are free; none: "
        "as many as it began with.",
    )
    threads_per_worker: int = Field(
        default=1,
        ge=1,
        description="Items one worker computes at the same time, one thread each; an inversion with fewer items in an "
        "iteration has threads share them.",
    )
    address: str | None = Field(
        default=None,
        description="Address host:port of a Ray cluster that runs already; none starts one on this machine.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="What workers compute on: cpu, cuda (each on a GPU of its own), or 'auto' (cuda where this machine "
        "has GPUs that can be used, enough for the workers that are asked for).",
    )
    collective: Literal["gloo", "nccl"] = Field(
        default="gloo",
        description="What adds the workers' sums: gloo on the processors, or nccl on the GPUs where they compute. Sums "
        "start in the processors' memory either way.",
    )
    start_timeout_s: float = Field(default=180.0, gt=0, description="Longest wait for all workers to start, s.")
    collective_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="Longest wait for an all-reduce, s; workers that stay silent are then replaced.",
    )
    answer_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="Longest silence of a worker after a broken all-reduce before it counts as lost, s.",
    )
    heartbeat_limit_s: float = Field(
        default=8.0,
        ge=2.0,
        description="A worker is lost once its node is silent, or its process stands still, for so long, s. How long "
        "it computes does not matter.",
    )
    call_limit_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest time for a worker to begin or finish an iteration or to move its state, s.",
    )
    wait_limit_s: float = Field(
        default=3600.0, ge=0, description="Longest wait for workers when fewer than min_workers are left, s."
    )
    restart_limit: int = Field(default=100, ge=0, description="Lost workers a group replaces in its lifetime.")
    item_tries: int = Field(
        default=2, ge=1, description="How often an item may raise before the iteration is given up."
    )
    item_deaths: int = Field(
        default=3,
        ge=1,
        description="How many workers may die over the same item of the same iteration before it is given up.",
    )
    item_patience: float | None = Field(
        default=30.0,
        gt=1.0,
        description="A worker is lost over an item that takes so many times as long as items of its cost usually do; "
        "none waits for ever.",
    )
    item_patience_s: float = Field(
        default=120.0, ge=0, description="Time that every item is given whatever items usually take, s."
    )
    first_item_limit_s: float | None = Field(
        default=3600.0,
        gt=0,
        description="A worker is lost over an item that takes so long while nothing tells what is usual, because no "
        "item has ended yet or this one has no cost, s; none waits for ever.",
    )
    copy_after: float | None = Field(
        default=3.0,
        gt=1.0,
        description="When nothing else waits, an item that takes so many times as long as usual is computed a second "
        "time elsewhere, and the first result counts; none: never.",
    )
    replica_check_every: int | None = Field(
        default=10,
        ge=1,
        description="Compare a hash of the state of all workers every so many iterations; none never does.",
    )
    object_store_mib: int = Field(default=256, ge=80, description="Shared memory of the Ray cluster started here, MiB.")

    @model_validator(mode="after")
    def _known_size(self) -> Self:
        if self.address is not None and self.workers == "auto":
            raise ValueError(
                f"workers = 'auto' counts the cores of this machine, not of the cluster at {self.address}: "
                "set workers to a number"
            )
        if self.collective == "nccl" and self.device == "cpu":
            raise ValueError("collective = 'nccl' adds on GPUs and device = 'cpu' computes without: change one")
        if self.workers != "auto":
            low, high = self.min_workers or 1, self.max_workers or max(1, self.workers)
            if self.workers and not low <= self.workers <= high:
                raise ValueError(
                    f"workers = {self.workers} is not between min_workers = {low} and max_workers = {high}: change one"
                )
        return self

    def placed(self, gpus: int, busy: int | None = None) -> Self:
        """Return these settings without 'auto', for a machine with so many GPUs that can be used.

        busy    workers that an iteration has something to do for: 'auto' starts no more, but min_workers if that is
                more; None is not known

        The GPUs of a Ray cluster that runs already are not known here: 'auto' takes its nodes to be like this machine,
        and 'cuda' leaves the count to the group.

        raises  StartFailed: 'cuda' needs more GPUs than this machine has
        """
        needed = 1 if self.workers == "auto" else max(1, self.workers)
        enough = gpus > 0 if self.joins else gpus >= needed
        if self.device == "cuda" and not (enough or self.joins):
            raise StartFailed(
                f"device = 'cuda' needs {needed} GPU{'s' * (needed > 1)} for {_who(self.workers)}, and this machine "
                f"has {gpus or 'none'} that can be used: {'lower workers, or ' if gpus else ''}set device to 'cpu'."
            )
        device = "cuda" if self.device == "cuda" or (self.device == "auto" and enough) else "cpu"
        workers = self.workers
        if workers == "auto":
            workers = max(1, gpus) if device == "cuda" else self.worker_count()
            if busy is not None:
                workers = min(workers, max(busy, self.min_workers or 1))
        return self.model_copy(update={"device": device, "workers": workers})

    @property
    def joins(self) -> bool:
        """Whether the workers run on a Ray cluster that is there already."""
        return bool(self.address or os.environ.get(ADDRESS))

    def worker_count(self) -> int:
        """Return the number of workers; 'auto' is usable cores / threads_per_worker here, at least 1."""
        if self.workers == "auto":
            return max(1, usable_cores() // self.threads_per_worker)
        return self.workers


def _who(workers: int | str) -> str:
    return "this process" if workers == 0 else f"workers = {workers!r}"


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, cut by the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().partition(" ")
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores
