"""One node of a Ray cluster as a child of this process: started, watched and ended by process id, nothing else touched.

`ray stop` ends every Ray process of the user on the machine, other jobs' too; here a job ends what it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpfwi_cluster.errors import StartFailed
from hpfwi_cluster.security import require_token_mode, with_token

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Numbers of prctl(2) on Linux."""

_SOCKET_LIMIT = 107
"""Characters of a socket's path that Linux takes."""

_INSIDE_TEMPORARY = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.4194304")
"""What Ray appends to its temporary folder, at the longest."""

_QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "1000",
}
"""How soon a node that falls silent counts as lost: in 10 s instead of 15 to 30, measured with a cut link."""


_STARTED = "Ray runtime started"
"""What `ray start` prints when its processes run and know each other."""
_SURELY_S = 120.0
"""For a Ray that prints something else. `ray start` gives up on its processes after 30 s, a limit that cannot be set,
and on a very busy machine may take a minute to get that far; a node older than this has started."""


@dataclass(frozen=True)
class NodePlan:
    """What a node offers and where it is.

    head        host:port of the head node, this one included
    own_host    address of this node
    gpus        None: as many as Ray finds
    temporary   folder of its own, short, for sockets and Ray's logs
    """

    head: str
    own_host: str
    is_head: bool
    cpus: int
    gpus: int | None
    object_store_mib: int
    temporary: Path
    token_file: Path


def command_of(plan: NodePlan) -> list[str]:
    """Return the command that runs a node until it is ended. No secret is in it."""
    place = [f"--port={plan.head.rpartition(':')[2]}", "--head"] if plan.is_head else [f"--address={plan.head}"]
    options = [
        f"--node-ip-address={plan.own_host}",
        f"--num-cpus={plan.cpus}",
        *([] if plan.gpus is None else [f"--num-gpus={plan.gpus}"]),
        f"--object-store-memory={plan.object_store_mib << 20}",
        f"--temp-dir={plan.temporary}",
        # Left alone, workers take ports from one fixed range, in which two jobs on a host collide.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
    ]
    alone = ["--include-dashboard=false"] if plan.is_head else []
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *place, *options, *alone]


def check_temporary(folder: Path) -> None:
    """Raise StartFailed if the sockets in this folder would have names longer than Linux takes."""
    length = len(str(folder)) + _INSIDE_TEMPORARY
    if length > _SOCKET_LIMIT:
        raise StartFailed(
            f"Sockets below {folder} would have names of {length} characters, the system takes {_SOCKET_LIMIT}: give a "
            f"folder of at most {_SOCKET_LIMIT - _INSIDE_TEMPORARY} characters, such as /tmp/ray."
        )


class RayNode:
    """A running node, the child of this process, which adopts what the node started if the node dies first."""

    def __init__(self, plan: NodePlan, environment: Mapping[str, str]) -> None:
        require_token_mode(environment)
        check_temporary(plan.temporary)
        adopt_orphans()
        self.plan = plan
        self._begun_s = time.monotonic()
        plan.temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(plan.temporary / "ray_start.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = start_child(
                command_of(plan), with_token(_QUICK | dict(environment), plan.token_file), output=log
            )
        finally:
            os.close(log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def started(self) -> bool:
        """Whether everything that makes up the node runs; until then it may still give up."""
        return self.alive and (_STARTED in self._log() or time.monotonic() - self._begun_s > _SURELY_S)

    def last_words(self) -> str:
        """The last line that `ray start` printed, for a message about its end."""
        lines = self._log().split("\n")
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "it said nothing")[:300]

    def _log(self) -> str:
        try:
            return (self.plan.temporary / "ray_start.log").read_text(errors="replace")
        except OSError:
            return ""

    def end(self, grace_s: float = 10.0) -> None:
        """End the node, then whatever it left; by force after the grace. Deletes its temporary folder.

        Every other child of this process ends too: an orphan does not say whose it was.
        """
        end_processes([self._process.pid], grace_s)
        self._process.poll()
        end_processes(descendants(os.getpid()), grace_s)
        shutil.rmtree(self.plan.temporary, ignore_errors=True)


def start_child(
    command: Sequence[str], environment: Mapping[str, str], *, output: int | None = None, keep_usr1: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process that is asked to end when this one dies, and that gets no signal but those sent to it.

    keep_usr1   the process wants SIGUSR1; else it ignores it, because a scheduler may send its warning to every process
                of a job and most programs die of it
    """
    library = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if keep_usr1 else signal.SIG_IGN)

    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=prepare,
    )


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that `descendants` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below `root`, which may be gone itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def end_processes(pids: Sequence[int], grace_s: float) -> None:
    """Ask processes to end and kill those that are left after the grace."""
    identity = {pid: _started(pid) for pid in pids}

    def left() -> list[int]:
        for pid in identity:
            _reap(pid)
        # A number may be given to a stranger once its process is gone; the time of its start tells them apart.
        return [pid for pid, started in identity.items() if started is not None and _started(pid) == started]

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left():
            _send(pid, number)
        if _until(lambda: not left(), grace_s):
            return


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name of the program; None if there is no such process, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def _reap(pid: int) -> None:
    """Take note of the death of an adopted child, which otherwise stays in the table of processes."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _parent(pid: int) -> int | None:
    fields = _fields(pid)
    return None if fields is None else int(fields[1])


def _started(pid: int) -> int | None:
    fields = _fields(pid)
    return None if fields is None else int(fields[19])
