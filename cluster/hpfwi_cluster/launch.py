"""Start Ray on the nodes of a job, run one program on the first of them, and end exactly what was started.

    srun --ntasks-per-node=1 python -m hpfwi_cluster.launch --job FOLDER -- PROGRAM [ARGUMENT ...]

Every node of the job runs the same command. Node 0 starts the head of a Ray cluster and the program, which finds the
cluster under RAY_ADDRESS; the others join the cluster and leave when the program has ended. What the nodes tell each
other lies in FOLDER, which all of them see:

    token-J-N       the token of the cluster, readable by its owner alone; deleted at the end
    head-J-N.json   address of the cluster, name of the head node
    exit-J-N        exit code of the program

J is the number that SLURM gave the job, N counts its earlier attempts. Without SLURM both are 0 unless --number says
otherwise, and every launch needs a FOLDER of its own.

SIGUSR1, SIGTERM and SIGINT are handed on to the program; its exit code is the exit code of node 0, and 75 if it dies of
one of these, as it does before it has learnt to heed them. The other nodes end with 0 whatever happens to them: the
program decides whether a lost node matters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpfwi_cluster import security
from hpfwi_cluster.addresses import answers, free_port, is_loopback, own_address
from hpfwi_cluster.errors import ClusterError, StartFailed
from hpfwi_cluster.ray_node import NodePlan, RayNode, start_child
from hpfwi_cluster.settings import usable_cores

EXIT_START_FAILED = 5
EXIT_STOPPED = os.EX_TEMPFAIL
"""75: stopped before its end, can be resumed."""

_POLL_S = 0.2
_HEAD_TIMEOUT_S = 120.0
"""Longest wait for the head of the cluster."""
_HEAD_CHECK_S = 2.0
_HEAD_MISSES = 15
"""After so many failed checks in a row, 30 s, a node takes the job for ended: its head does not answer."""
_HEAD_TRIES = 3
"""How often the head is started before the job is given up."""
_REJOINS = 3
"""How often a node whose Ray processes die joins again."""
_LAST_WORD_S = 25.0
"""How long a node that is told to end stays for the program's last checkpoint; SLURM kills 30 s after it asks."""
_HEADLESS_S = 90.0
"""How long the program may go on after the head of its cluster has died."""


@dataclass(frozen=True)
class Job:
    """A job as one of its nodes sees it.

    folder      shared by all nodes
    rank        of this node, 0 is the head
    number      sets jobs on one host, and in one folder, apart
    """

    folder: Path
    attempt: int
    rank: int
    nodes: int
    number: int
    cpus: int
    gpus: int | None
    interface: str | None
    object_store_mib: int
    temporary: Path

    @property
    def token(self) -> Path:
        return self.folder / f"token-{self._key}"

    @property
    def head(self) -> Path:
        return self.folder / f"head-{self._key}.json"

    @property
    def exit(self) -> Path:
        return self.folder / f"exit-{self._key}"

    @property
    def _key(self) -> str:
        return f"{self.number}-{self.attempt}"

    def say(self, sentence: str) -> None:
        """Print a line of the job's log."""
        print(f"[node {self.rank} of {self.nodes}] {sentence}", flush=True)

    def plan(self, head: str, own_host: str) -> NodePlan:
        """Return the plan of this node in the cluster at `head`."""
        return NodePlan(
            head=head,
            own_host=own_host,
            is_head=self.rank == 0,
            cpus=self.cpus,
            gpus=self.gpus,
            object_store_mib=self.object_store_mib,
            temporary=self.temporary,
            token_file=self.token,
        )


def lead(job: Job, program: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the head of the cluster and the program; return the program's exit code."""
    with _signals() as asked:
        host = own_address(job.interface)
        if job.nodes > 1 and is_loopback(host):
            raise StartFailed(
                f"This node has no address that the other {job.nodes - 1} nodes reach ({host}): name the network "
                "interface with --interface."
            )
        job.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (job.token, job.head, job.exit):
            left.unlink(missing_ok=True)
        security.write_token(job.token)
        security.require_private(job.token)
        code, node = EXIT_START_FAILED, None
        try:
            head, node = _head(job, host, environment, asked)
            _publish(job.head, json.dumps({"address": head, "host": socket.gethostname()}))
            job.say(f"Ray cluster at {head}, {job.cpus} CPUs here.")
            code = EXIT_STOPPED if asked else _run(job, program, {**environment, "RAY_ADDRESS": head}, node, asked)
        finally:
            _publish(job.exit, f"{code}\n")
            if node is not None:
                node.end()
            job.token.unlink(missing_ok=True)
        return code


def _run(job: Job, program: Sequence[str], environment: Mapping[str, str], node: RayNode, asked: list[int]) -> int:
    """Run the program to its end, handing on signals."""
    try:
        running = start_child(program, security.with_token(environment, job.token), keep_usr1=True)
    except OSError as error:
        raise StartFailed(
            f"{program[0]} cannot be run ({error.strerror}): name a program that is on node 0."
        ) from error
    headless_since_s: float | None = None
    handed: set[int] = set()
    while running.poll() is None:
        while asked:
            number = asked.pop(0)
            job.say(f"{signal.Signals(number).name} handed on to the program.")
            running.send_signal(number)
            handed.add(number)
        if headless_since_s is None and not node.alive:
            headless_since_s = time.monotonic()
            job.say(
                f"Ray on the head node has died ({node.last_words()}); the program gets {_HEADLESS_S:g} s to notice."
            )
        if headless_since_s is not None and time.monotonic() - headless_since_s > _HEADLESS_S:
            running.kill()
            running.wait()
            return EXIT_STOPPED
        _wait(running, _POLL_S)
    code = running.returncode
    if -code in handed:
        job.say(f"The program died of {signal.Signals(-code).name}, before it could heed it.")
        return EXIT_STOPPED
    job.say(f"The program ended with {code}.")
    return code if code >= 0 else 128 - code


def follow(job: Job, environment: Mapping[str, str]) -> int:
    """Be a node of the cluster until the program has ended; return 0."""
    with _signals() as asked:
        head = _head_of(job, asked)
        if head is None:
            return 0
        security.require_private(job.token)
        host, _, port = head.rpartition(":")
        own_host = own_address(job.interface, toward=host)
        node = RayNode(job.plan(head, own_host), environment)
        joins, misses, told_s, checked_s = 1, 0, None, time.monotonic()
        try:
            while not job.exit.exists() and misses < _HEAD_MISSES:
                now_s = time.monotonic()
                # SIGUSR1 is a warning for the program, which needs its workers to heed it.
                if told_s is None and any(number != signal.SIGUSR1 for number in asked):
                    told_s = now_s
                if told_s is not None and now_s - told_s > _LAST_WORD_S:
                    job.say("Told to end.")
                    return 0
                if now_s - checked_s > _HEAD_CHECK_S:
                    misses = 0 if answers(host, int(port), _HEAD_CHECK_S) else misses + 1
                    checked_s = time.monotonic()
                if not node.alive:
                    why = node.last_words()
                    node.end()
                    if joins > _REJOINS:
                        job.say(f"Ray on {own_host} died {joins} times, the last time with: {why}.")
                        return 0
                    if misses == 0 and not job.exit.exists():
                        job.say(f"Ray on {own_host} has died ({why}); joining again.")
                        joins += 1
                        node = RayNode(job.plan(head, own_host), environment)
                time.sleep(_POLL_S)
            job.say(
                "The program has ended." if misses < _HEAD_MISSES else f"The head at {head} does not answer: leaving."
            )
        finally:
            node.end()
        return 0


def _head_of(job: Job, asked: list[int]) -> str | None:
    """Wait for the head's address and for an answer there; None if the job ended before."""
    deadline_s = time.monotonic() + _HEAD_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if job.exit.exists() or any(number != signal.SIGUSR1 for number in asked):
            return None
        try:
            address = str(json.loads(job.head.read_text())["address"])
        except (OSError, ValueError, KeyError):
            time.sleep(_POLL_S)
            continue
        host, _, port = address.rpartition(":")
        if answers(host, int(port), _HEAD_CHECK_S):
            return address
        time.sleep(_POLL_S)
    raise StartFailed(
        f"Node {job.rank} found no head of the cluster within {_HEAD_TIMEOUT_S:g} s: see that {job.folder} is on a "
        "file system that all nodes share, and that the nodes reach each other (--interface names the network)."
    )


def _head(job: Job, host: str, environment: Mapping[str, str], asked: list[int]) -> tuple[str, RayNode]:
    """Start the head of the cluster, again where it gives up, as it does on a machine that is very busy."""
    for attempt in range(1, _HEAD_TRIES + 1):
        port = free_port(host, job.number)
        head = f"{host}:{port}"
        node = RayNode(job.plan(head, host), environment)
        try:
            while node.alive and not asked:
                if node.started and answers(host, port, 1.0):
                    return head, node
                time.sleep(_POLL_S)
            if asked:
                return head, node
            why = node.last_words()
            job.say(f"The head of the Ray cluster did not start at {head} (attempt {attempt} of {_HEAD_TRIES}): {why}")
        except BaseException:
            node.end()
            raise
        node.end()
    raise StartFailed(f"The head of the Ray cluster did not start in {_HEAD_TRIES} attempts; the last one said: {why}.")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that arrive inside, in their order."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: subprocess.Popen[bytes], timeout_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(timeout_s)


def _publish(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, file)


def _arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Job, list[str]]:
    from_slurm = {
        name: int(value)
        for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CPUS_ON_NODE")
        if (value := environment.get(name, "")).isdigit()
    }
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    parser = argparse.ArgumentParser(
        prog="python -m hpfwi_cluster.launch",
        description="Start Ray on the nodes of a job, run a program on the first, and end what was started.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--job", type=Path, required=True, metavar="FOLDER", help="Folder that all nodes of the job see."
    )
    parser.add_argument(
        "--rank", type=int, default=from_slurm.get("SLURM_PROCID", 0), help="Number of this node; SLURM says it."
    )
    parser.add_argument("--nodes", type=int, default=from_slurm.get("SLURM_NTASKS", 1), help="Nodes; SLURM says it.")
    parser.add_argument(
        "--cpus", type=int, default=from_slurm.get("SLURM_CPUS_ON_NODE", usable_cores()), help="CPUs of this node."
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=int(gpus) if gpus.isdigit() else None,
        help="GPUs of this node; else what Ray finds.",
    )
    parser.add_argument(
        "--number", type=int, metavar="N", default=from_slurm.get("SLURM_JOB_ID", 0), help="Of the job; SLURM says it."
    )
    parser.add_argument("--interface", metavar="NAME", help="Network interface of the nodes, such as ib0.")
    parser.add_argument("--object-store-mib", type=int, default=512, help="Shared memory for Ray on each node, MiB.")
    parser.add_argument("--temporary", type=Path, metavar="FOLDER", help="Short, on this node; else one in /tmp.")
    parser.add_argument("program", nargs="+", metavar="PROGRAM", help="What runs on the first node.")
    found = parser.parse_args(arguments)
    job = Job(
        folder=found.job.resolve(),
        attempt=from_slurm.get("SLURM_RESTART_COUNT", 0),
        rank=found.rank,
        nodes=found.nodes,
        number=found.number,
        cpus=found.cpus,
        gpus=found.gpus,
        interface=found.interface,
        object_store_mib=found.object_store_mib,
        temporary=found.temporary or Path(tempfile.mkdtemp(prefix="r", dir="/tmp")),
    )
    return job, found.program


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one node of a job; return its exit code."""
    environment = dict(os.environ)
    job, program = _arguments(sys.argv[1:] if arguments is None else arguments, environment)
    try:
        return lead(job, program, environment) if job.rank == 0 else follow(job, environment)
    except ClusterError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_START_FAILED if job.rank == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
