"""Machines for a job of several nodes, all on this one: network namespaces, or else the nodes of Ray's test cluster."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from hpfwi_cluster.ray_node import start_child


class Hosts(Protocol):
    """Machines that a job runs on; number 0 is the head, one CPU each."""

    can_cut: bool

    def start(self, count: int, job: Path, program: list[str]) -> subprocess.Popen[bytes]:
        """Start a job of a program on so many hosts; return the process whose exit code is the job's."""

    def kill(self, host: int) -> None:
        """Take a host away with everything on it, at once."""

    def cut(self, host: int) -> None:
        """Cut a host off the network; nobody is told."""

    def close(self) -> None:
        """Leave nothing behind."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what a run or a cluster around it set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


class Namespaces:
    """Hosts as network namespaces on a bridge, with the product's launcher on each."""

    can_cut = True

    def __init__(self) -> None:
        sweep()
        self._tag = f"hf{os.getpid()}"
        self._net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._names: list[str] = []
        self._launchers: list[subprocess.Popen[bytes]] = []
        try:
            ip("link", "add", self._tag, "type", "bridge")
            ip("link", "set", self._tag, "up")
        except BaseException:
            self.close()
            raise

    def _host(self, number: int) -> str:
        name = f"{self._tag}-{number}"
        self._names.append(name)
        ip("netns", "add", name)
        ip("link", "add", f"{self._tag}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{self._tag}v{number}", "master", self._tag, "up")
        ip("-n", name, "addr", "add", f"{self._net}.{number + 1}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def start(self, count: int, job: Path, program: list[str]) -> subprocess.Popen[bytes]:
        for rank in range(count):
            name = f"{self._tag}-{rank}"
            if name not in self._names:
                self._host(rank)
            slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(count), "SLURM_JOB_ID": str(os.getpid())}
            command = [sys.executable, "-m", "hpfwi_cluster.launch", "--job", str(job), "--cpus", "1", "--", *program]
            with (job.parent / f"node-{rank}.log").open("ab") as log:
                node = ["ip", "netns", "exec", name, *command]
                environment = clean_environment() | slurm
                self._launchers.append(start_child(node, environment, output=log.fileno(), keep_usr1=True))
        return self._launchers[-count]

    def kill(self, host: int) -> None:
        for pid in pids_in(f"{self._tag}-{host}"):
            end(pid)

    def cut(self, host: int) -> None:
        ip("-n", f"{self._tag}-{host}", "link", "set", "eth0", "down")

    def close(self) -> None:
        for number, name in enumerate(self._names):
            for pid in pids_in(name):
                end(pid)
            # Deleting the namespace alone would let its link linger for a moment.
            subprocess.run(["ip", "link", "del", f"{self._tag}v{number}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for launcher in self._launchers:
            launcher.wait()
        subprocess.run(["ip", "link", "del", self._tag], check=False, capture_output=True)


class RayTestCluster:
    """Hosts as nodes of `ray.cluster_utils.Cluster`, all at one address."""

    can_cut = False

    def __init__(self) -> None:
        self._cluster: Any = None
        self._nodes: list[Any] = []
        self._programs: list[subprocess.Popen[bytes]] = []

    def start(self, count: int, job: Path, program: list[str]) -> subprocess.Popen[bytes]:
        import hpfwi_cluster.ray_library  # noqa: F401, I001  (sets what Ray reads when it is imported)
        from ray.cluster_utils import Cluster

        if self._cluster is None:
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            self._nodes.append(self._cluster.head_node)
        while len(self._nodes) < count:
            self._nodes.append(self._cluster.add_node(num_cpus=1))
        with (job.parent / "node-0.log").open("ab") as log:
            environment = clean_environment() | {"RAY_AUTH_MODE": "token"}
            program = [*program, f"cluster.address={self._cluster.address}"]
            self._programs.append(subprocess.Popen(program, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return self._programs[-1]

    def kill(self, host: int) -> None:
        self._cluster.remove_node(self._nodes[host], allow_graceful=False)

    def cut(self, host: int) -> None:
        pytest.skip("a link is cut between network namespaces, which cannot be made here")

    def close(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()
        if self._cluster is not None:
            self._cluster.shutdown()


def sweep() -> None:
    """Delete the namespaces of tests that were killed."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for name, pid in re.findall(r"^(hf(\d+)-\d+)\b", done.stdout, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            for left in pids_in(name):
                end(left)
            subprocess.run(["ip", "netns", "del", name], check=False)
            subprocess.run(["ip", "link", "del", f"hf{pid}"], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def pids_in(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def why_no_namespaces() -> str | None:
    """Why hosts cannot be network namespaces here; None if they can."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("ip") is None:
        return "no ip(8)"
    try:
        Namespaces().close()
    except OSError as error:
        return str(error)
    return None


@pytest.fixture
def hosts(capsys: pytest.CaptureFixture[str]) -> Iterator[Hosts]:
    reason = why_no_namespaces()
    if reason is not None:
        with capsys.disabled():
            print(f"\nNo network namespaces ({reason}): the nodes are those of Ray's own test cluster.")
    made: Hosts = Namespaces() if reason is None else RayTestCluster()
    yield made
    made.close()


@pytest.fixture
def hosts_of_ray() -> Iterator[Hosts]:
    with contextlib.closing(RayTestCluster()) as made:
        yield made


@pytest.fixture
def environment() -> dict[str, str]:
    """Return the environment that programs of these tests run in."""
    return clean_environment()
