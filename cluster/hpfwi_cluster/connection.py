"""Reach a Ray cluster: start one on this machine, or join one that runs. Only what was started here is ended here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpfwi_cluster.addresses import LOOPBACK
from hpfwi_cluster.errors import Abandoned, StartFailed
from hpfwi_cluster.ray_library import ray
from hpfwi_cluster.security import keep_own_token_private, require_token_mode
from hpfwi_cluster.settings import ADDRESS, ClusterSettings, usable_cores
from hpfwi_cluster.tasks import nobody_asks

CROWD = 16
"""Cores asked for in place of each that this machine has, at most: each worker is a process of some 300 MB."""

_POLL_S = 0.5
_SESSION_ENDS_S = 5.0
"""Longest wait for the last process of a cluster that was ended."""


@dataclass
class Connection:
    """A connected driver.

    owned       the cluster was started here and ends with `close`
    joined      this process was connected by `connect` and is disconnected by `close`
    host        address at which workers reach this process; loopback for a cluster of this machine alone
    session     folder of sockets and logs that Ray made for a cluster that was started here, and leaves behind
    """

    owned: bool
    joined: bool
    host: str
    session: Path | None = None

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started here; harmless when repeated.

        Its session goes too, unless an exception is on its way: then Ray's logs may say why.
        """
        if self.joined and ray.is_initialized():
            ray.shutdown()
            if self.session is not None and sys.exc_info()[0] is None:
                _remove_session(self.session)
        self.joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    settings: ClusterSettings, cores: int, gpus: int = 0, stop: Callable[[], object] = nobody_asks
) -> Connection:
    """Connect this process to Ray.

    cores   cores the workers need, and `gpus` of them. A cluster started here offers at least the usable cores, and the
            GPUs that Ray finds if any are needed; one that is joined gets start_timeout_s to gather what is needed,
            because the nodes of a job arrive one by one
    stop    asked while they are awaited
    raises  Abandoned: asked to stop
            StartFailed: the cluster named by `address` or RAY_ADDRESS does not answer; no cluster is named although
            this is one of several nodes of a job; a cluster started here would have no token, or far more to do than
            this machine can
    """
    if ray.is_initialized():
        return Connection(owned=False, joined=False, host=ray.util.get_node_ip_address())
    address = settings.address or os.environ.get(ADDRESS)
    if address:
        try:
            with _own_handler():
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StartFailed(
                f"The Ray cluster at {address} cannot be joined ({type(error).__name__}): check that it runs, that "
                "this machine reaches it and that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is the one of the cluster."
            ) from error
        connection = Connection(owned=False, joined=True, host=ray.util.get_node_ip_address())
        try:
            _gather({"CPU": cores, "GPU": gpus}, settings.start_timeout_s, stop)
        except BaseException:
            connection.close()
            raise
    else:
        _refuse_one_of_many_nodes()
        _refuse_a_crowd(cores)
        require_token_mode(os.environ)
        keep_own_token_private()
        with _own_handler():
            context = ray.init(
                address="local",
                num_cpus=max(cores, usable_cores()),
                num_gpus=None if gpus else 0,
                include_dashboard=False,
                object_store_memory=settings.object_store_mib << 20,
                logging_level="ERROR",
                log_to_driver=False,
                _node_ip_address=LOOPBACK,
            )
        session = Path(context.address_info["session_dir"])
        connection = Connection(owned=True, joined=True, host=LOOPBACK, session=session)
    _mute_death_notices()
    return connection


def _remove_session(folder: Path) -> None:
    """Delete the session of a cluster that was started here once none of its processes is left, else let it lie."""
    mine = folder.name.startswith("session_") and not folder.is_symlink() and folder.is_dir()
    if not mine or folder.stat().st_uid != os.getuid():
        return
    deadline_s = time.monotonic() + _SESSION_ENDS_S
    while _named_by_a_process(folder.name):
        if time.monotonic() > deadline_s:
            return
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _named_by_a_process(name: str) -> bool:
    """Whether the command line of a process holds this name: those of Ray's daemons hold their session's."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.name.isdigit() and name.encode() in (entry / "cmdline").read_bytes():
                return True
    return False


def _gather(needed: dict[str, int], timeout_s: float, stop: Callable[[], object]) -> None:
    """Wait until the cluster has all that, free or not, or the time is over; the group judges what is there."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if stop():
            raise Abandoned("Asked to stop while the nodes of the cluster were awaited; nothing was begun.")
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


def _refuse_a_crowd(cores: int) -> None:
    most = CROWD * usable_cores()
    if cores > most:
        raise StartFailed(
            f"The workers want {cores} cores, and this machine has {usable_cores()}: more than {most} are taken for a "
            "slip, so lower workers or threads_per_worker, or name the address of a Ray cluster that has them."
        )


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Leave a program its own handler of SIGTERM, which stops it at a checkpoint, while Ray starts and afterwards.

    ray.init takes the signal over as the first thing of the seconds that it needs, to exit when it comes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    tools: Any = getattr(getattr(ray, "_private", None), "utils", None)
    theirs = getattr(tools, "set_sigterm_handler", None)
    if theirs is not None:
        tools.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        if theirs is not None:
            tools.set_sigterm_handler = theirs
        signal.signal(signal.SIGTERM, before)


def _mute_death_notices() -> None:
    # Ray prints a paragraph to stdout for every worker that dies, log_to_driver or not; IterationResult.lost says it
    # in a line.
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False
