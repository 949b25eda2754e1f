"""Reach a Ray cluster: start one on this machine, or join one that runs. Only what was started here is ended here."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from hpfwi_cluster.addresses import LOOPBACK
from hpfwi_cluster.errors import StartFailed
from hpfwi_cluster.ray_library import ray
from hpfwi_cluster.security import keep_own_token_private, require_token_mode
from hpfwi_cluster.settings import ADDRESS, ClusterSettings, usable_cores

_POLL_S = 0.5


@dataclass
class Connection:
    """A connected driver.

    owned       the cluster was started here and ends with `close`
    joined      this process was connected by `connect` and is disconnected by `close`
    host        address at which workers reach this process; loopback for a cluster of this machine alone
    """

    owned: bool
    joined: bool
    host: str

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started here; harmless when repeated."""
        if self.joined and ray.is_initialized():
            ray.shutdown()
        self.joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(settings: ClusterSettings, cores: int, gpus: int = 0) -> Connection:
    """Connect this process to Ray.

    cores   cores the workers need, and `gpus` of them. A cluster started here offers at least the usable cores, and the
            GPUs that Ray finds if any are needed; one that is joined gets start_timeout_s to gather what is needed,
            because the nodes of a job arrive one by one
    raises  StartFailed: the cluster named by `address` or RAY_ADDRESS does not answer; no cluster is named although
            this is one of several nodes of a job; a cluster started here would have no token
    """
    if ray.is_initialized():
        return Connection(owned=False, joined=False, host=ray.util.get_node_ip_address())
    address = settings.address or os.environ.get(ADDRESS)
    before = signal.getsignal(signal.SIGTERM)
    if address:
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StartFailed(
                f"The Ray cluster at {address} cannot be joined ({type(error).__name__}): check that it runs, that "
                "this machine reaches it and that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is the one of the cluster."
            ) from error
        connection = Connection(owned=False, joined=True, host=ray.util.get_node_ip_address())
        _gather({"CPU": cores, "GPU": gpus}, settings.start_timeout_s)
    else:
        _refuse_one_of_many_nodes()
        require_token_mode(os.environ)
        keep_own_token_private()
        ray.init(
            address="local",
            num_cpus=max(cores, usable_cores()),
            num_gpus=None if gpus else 0,
            include_dashboard=False,
            object_store_memory=settings.object_store_mib << 20,
            logging_level="ERROR",
            log_to_driver=False,
            _node_ip_address=LOOPBACK,
        )
        connection = Connection(owned=True, joined=True, host=LOOPBACK)
    _keep_handler(before)
    _mute_death_notices()
    return connection


def _gather(needed: dict[str, int], timeout_s: float) -> None:
    """Wait until the cluster has all that, free or not, or the time is over; the group judges what is there."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        there = ray.cluster_resources()
        if all(there.get(kind, 0) >= count for kind, count in needed.items()):
            return
        time.sleep(_POLL_S)


def _refuse_one_of_many_nodes() -> None:
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes.isdigit() and int(nodes) > 1:
        raise StartFailed(
            f"This job has {nodes} nodes and no Ray cluster over them (RAY_ADDRESS is not set), so this process would "
            "use one node of them: start it through `srun python -m hpfwi_cluster.launch --job FOLDER -- …`, or set "
            "SLURM_JOB_NUM_NODES=1 to mean it."
        )


def _keep_handler(before: object) -> None:
    # ray.init replaces the SIGTERM handler; a program that has its own, to stop at a checkpoint, keeps it.
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _mute_death_notices() -> None:
    # Ray prints a paragraph to stdout for every worker that dies, log_to_driver or not; IterationResult.lost says it
    # in a line.
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False
