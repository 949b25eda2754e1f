"""Runs on clusters of several nodes, one of which is killed or cut off in the middle: the same bits as undisturbed.

Each node is a network namespace of this machine with an address of its own, and the launcher starts Ray on it as it
does in a job. Where namespaces cannot be made, the nodes are Ray's own test cluster and the reason is printed. The
first test always runs; HPFWI_MULTI_NODE=1 adds the others, which take minutes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from hpfwi import checkpoints
from hpfwi.run_folder import is_done, read_events
from hpfwi.store.pair_writer import create_pairs
from hpfwi_cluster.ray_node import start_child

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

every = pytest.mark.skipif(
    os.environ.get("HPFWI_MULTI_NODE", "0") in ("", "0"), reason="minutes long; HPFWI_MULTI_NODE=1 runs it"
)

TIME_LIMIT_S = 400.0
"""Longest wait for a job to get on or to end: three nodes on two busy cores take minutes to start."""

PROGRAM = """
    import sys, time
    from pathlib import Path
    from hpfwi import parallel
    from hpfwi.config import load_config
    from hpfwi.errors import HpfwiError
    from hpfwi.inversion.invert import invert
    from hpfwi.run_folder import RunFolder
    from hpfwi.stop import Stop, on_signals
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.training.settings import load_train_config, resolved
    from hpfwi.training.train import train

    class Slow:
        def __init__(self, task): self._task = task
        def __getattr__(self, name): return getattr(self._task, name)
        def compute(self, item):
            time.sleep(0.15)
            return self._task.compute(item)

    class Inversion:
        def __call__(self, run, device):
            from hpfwi import parallel
            from hpfwi.inversion.task import open_task
            return Slow(parallel._ItemsOfShots(open_task(Path(run), device=device)))

    class Training:
        def __call__(self, run, ahead, device):
            from hpfwi import parallel
            from hpfwi.training.task import open_task
            return Slow(parallel._ItemsOfSlices(open_task(Path(run), ahead=ahead, device=device)))

    parallel._build, parallel._build_training = Inversion(), Training()
    verb, folder, *options = sys.argv[1:]
    folder = Path(folder)
    load, go = (load_config, invert) if verb == "invert" else (load_train_config, train)
    resume = (folder / "config.toml").is_file()
    source = folder / "config.toml" if resume else "demo" if verb == "invert" else None
    config, _ = load(source, options)
    if verb == "train":
        config = resolved(config, open_pairs(config.data.pairs))
    stop = Stop()
    try:
        with on_signals(stop, print):
            if resume:
                run = RunFolder.open(folder)
            else:
                run = RunFolder.create(config, folder.name, parent=folder.parent, environment={})
            with run:
                go(config, run, resume=resume, stop=stop)
    except HpfwiError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""
"""Inverts or trains in a run folder, anew or going on, with items that take long enough to be disturbed."""

TRAINING = {
    "network.name": "fcnvmb",
    "network.width": 0.05,
    "training.loss.name": "mse",
    "training.epochs": 4,
    "training.batch": 6,
    "training.slices": 3,
    "training.records_noise": 0.1,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.shown_samples": 0,
}


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


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command that inverts or trains slowly."""
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    return [sys.executable, str(file)]


@pytest.fixture
def inversion(program: list[str], tiny_options: Callable[..., list[str]]) -> Callable[[Path, int], list[str]]:
    """Return a function that gives the command of the tiny inversion in a folder, on so many workers."""
    return lambda folder, workers: [*program, "invert", str(folder), *tiny_options(cluster__workers=workers)]


@pytest.fixture
def training(program: list[str], tmp_path: Path) -> Callable[[Path, int], list[str]]:
    """Return a function that gives the command of a tiny training run in a folder, on so many workers."""
    depths = np.random.default_rng(0).integers(3, 8, 24)[:, None, None]
    models = np.where(np.arange(11)[None, :, None] < depths, 1500.0, 3000.0) + np.zeros((1, 1, 15))
    records = np.random.default_rng(1).normal(0, 0.3, (24, 3, 40, 16)) + depths[..., None]
    names = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
    writer = create_pairs(
        tmp_path / "pairs.zarr",
        samples=24,
        records_shape=(3, 40, 16),
        model_shape=(11, 15),
        family="layers",
        physics=dict.fromkeys(names) | {"dx_m": 10.0, "dz_m": 10.0},
        splits={"train": range(20), "test": range(20, 24)},
        shard_samples=24,
    )
    writer.write(0, records.astype(np.float32), models.astype(np.float32))
    options = TRAINING | {"data.pairs": writer.finish().path}
    texts = [f"{name}={value}" for name, value in options.items()]
    return lambda folder, workers: [*program, "train", str(folder), *texts, f"cluster.workers={workers}"]


def done_iterations(run: Path) -> int:
    if not (run / "events.jsonl").is_file():
        return 0
    return sum(event["kind"] in ("iteration", "step") for event in read_events(run))


def after(iterations: int, run: Path, job: subprocess.Popen[bytes]) -> None:
    """Wait until so many iterations of a running job are done."""
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while done_iterations(run) < iterations:
        assert job.poll() is None, logs(run)
        assert time.monotonic() < deadline_s, logs(run)
        time.sleep(0.02)


def ended(run: Path, job: subprocess.Popen[bytes], code: int = 0) -> None:
    try:
        assert job.wait(TIME_LIMIT_S) == code, logs(run)
    except subprocess.TimeoutExpired:
        pytest.fail(logs(run))
    assert is_done(run) is (code == 0)


def logs(run: Path) -> str:
    return "\n".join(f"{file.name}\n{file.read_text()}" for file in sorted(run.parent.glob("node-*.log")))


def token_of(job: Path) -> bytes:
    """The secret of a job's cluster; of the user's own where the nodes are Ray's test cluster."""
    file = next(job.glob("token-*"), Path.home() / ".ray" / "auth_token")
    token = file.read_bytes()
    assert len(token) >= 32
    return token


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # a process that is gone, or not ours to look at
        return b""


def lost(run: Path) -> int:
    return sum(event["kind"] == "worker_lost" for event in read_events(run))


def test_two_nodes_of_which_one_dies(
    hosts: Hosts, inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    job = hosts.start(2, tmp_path / "job", inversion(run, 2))
    after(2, run, job)
    token = token_of(tmp_path / "job")
    assert [file for file in Path("/proc").glob("[0-9]*/cmdline") if token in content(file)] == []
    hosts.kill(1)
    ended(run, job)
    assert lost(run) == 1
    assert type(reference)(run).bits == reference.bits
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(left) > 10
    assert [file for file in left if token in content(file)] == []


@every
@pytest.mark.parametrize(("nodes", "disturbance"), [(2, "none"), (3, "kill"), (3, "cut")])
def test_inversions(
    nodes: int,
    disturbance: str,
    hosts: Hosts,
    inversion: Callable[[Path, int], list[str]],
    reference: Any,
    tmp_path: Path,
) -> None:
    run = tmp_path / "tiny"
    job = hosts.start(nodes, tmp_path / "job", inversion(run, nodes))
    disturb(hosts, nodes - 1, disturbance, run, job)
    ended(run, job)
    assert lost(run) == (disturbance != "none")
    assert type(reference)(run).bits == reference.bits


@every
@pytest.mark.parametrize(("nodes", "disturbance"), [(2, "kill"), (3, "none"), (3, "kill"), (3, "cut")])
def test_training(
    nodes: int, disturbance: str, hosts: Hosts, training: Callable[[Path, int], list[str]], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    subprocess.run(training(alone, 0), env=clean_environment(), check=True)
    run = tmp_path / "tiny"
    job = hosts.start(nodes, tmp_path / "job", training(run, nodes))
    disturb(hosts, nodes - 1, disturbance, run, job)
    ended(run, job)
    assert lost(run) == (disturbance != "none")
    assert outcome(run) == outcome(alone)


@every
def test_warned_on_three_nodes_and_resumed_on_two(
    hosts: Hosts, inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    job = hosts.start(3, tmp_path / "first", inversion(run, 3))
    after(2, run, job)
    os.kill(job.pid, signal.SIGUSR1)
    ended(run, job, 75)
    again = hosts.start(2, tmp_path / "second", inversion(run, 2))
    ended(run, again)
    assert type(reference)(run).bits == reference.bits


@every
def test_the_test_cluster_of_ray(inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path) -> None:
    with contextlib.closing(RayTestCluster()) as hosts:
        run = tmp_path / "tiny"
        job = hosts.start(3, tmp_path / "job", inversion(run, 3))
        after(2, run, job)
        hosts.kill(2)
        ended(run, job)
    assert lost(run) == 1
    assert type(reference)(run).bits == reference.bits


def disturb(hosts: Hosts, host: int, disturbance: str, run: Path, job: subprocess.Popen[bytes]) -> None:
    if disturbance == "none":
        return
    if disturbance == "cut" and not hosts.can_cut:
        pytest.skip("only a network namespace can be cut off")
    after(2, run, job)
    hosts.kill(host) if disturbance == "kill" else hosts.cut(host)


def outcome(run: Path) -> tuple[dict[str, Any], list[Any]]:
    """The last checkpoint of a training run and what its steps and epochs said, without clocks."""
    found = checkpoints.load_latest(run / "checkpoints")
    assert found is not None
    clocks = {"time", "seconds", "samples_per_s", "wait_share", "data_wait_share"}
    told = [
        {name: value for name, value in event.items() if name not in clocks}
        for event in read_events(run)
        if event["kind"] in ("step", "epoch")
    ]
    return {name: (value.shape, value.tobytes()) for name, value in found.tensors.items()}, told
