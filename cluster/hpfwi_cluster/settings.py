"""Settings of a group of workers. Every default of the layer stands here, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClusterSettings(BaseModel):
    """Who computes the items, and how long a group waits for whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="Worker processes: a number, 'auto' (usable cores / threads_per_worker), 0 (this process, no Ray).",
    )
    threads_per_worker: int = Field(
        default=1, ge=1, description="Items one worker computes at the same time, one thread each."
    )
    address: str | None = Field(
        default=None,
        description="Address host:port of a Ray cluster that runs already; none starts one on this machine.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where sums are added across workers: cpu (Gloo) or cuda (NCCL, one GPU per worker)."
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
    restart_limit: int = Field(default=16, ge=0, description="Lost workers a group replaces in its lifetime.")
    item_tries: int = Field(
        default=2, ge=1, description="How often an item may raise before the iteration is given up."
    )
    item_deaths: int = Field(
        default=3,
        ge=1,
        description="How many workers may die over the same item of the same iteration before it is given up.",
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
        return self

    def worker_count(self) -> int:
        """Return the number of workers, with 'auto' resolved to usable cores / threads_per_worker, at least 1."""
        if self.workers == "auto":
            return max(1, usable_cores() // self.threads_per_worker)
        return self.workers


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, cut by the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().partition(" ")
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores
