"""Runs on clusters of several nodes, one of which is killed or cut off in the middle: the same bits as undisturbed.

Each node is a network namespace of this machine with an address of its own, and the launcher starts Ray on it as it
does in a job. Where namespaces cannot be made, the nodes are Ray's own test cluster and the reason is printed. The
first test always runs; HPFWI_MULTI_NODE=1 adds the others, which take minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi import checkpoints
from hpfwi.run_folder import is_done, read_events
from hpfwi.store.pair_writer import create_pairs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

every = pytest.mark.skipif(
    os.environ.get("HPFWI_MULTI_NODE", "0") in ("", "0"), reason="minutes long; HPFWI_MULTI_NODE=1 runs it"
)

TIME_LIMIT_S = 400.0
"""Longest wait for a job to get on or to end: three nodes on two busy cores take minutes to start."""

PROGRAM = [sys.executable, str(Path(__file__).with_name("slow_run.py"))]

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


@pytest.fixture
def inversion(tiny_options: Callable[..., list[str]]) -> Callable[[Path, int], list[str]]:
    """Return a function that gives the command of the tiny inversion in a folder, on so many workers."""
    return lambda folder, workers: [*PROGRAM, "invert", str(folder), *tiny_options(cluster__workers=workers)]


@pytest.fixture
def training(tmp_path: Path) -> Callable[[Path, int], list[str]]:
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
    return lambda folder, workers: [*PROGRAM, "train", str(folder), *texts, f"cluster.workers={workers}"]


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
    hosts: Any, inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path
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
    hosts: Any,
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
    nodes: int,
    disturbance: str,
    hosts: Any,
    training: Callable[[Path, int], list[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    alone = tmp_path / "alone"
    subprocess.run(training(alone, 0), env=environment, check=True)
    run = tmp_path / "tiny"
    job = hosts.start(nodes, tmp_path / "job", training(run, nodes))
    disturb(hosts, nodes - 1, disturbance, run, job)
    ended(run, job)
    assert lost(run) == (disturbance != "none")
    assert outcome(run) == outcome(alone)


@every
def test_warned_on_three_nodes_and_resumed_on_two(
    hosts: Any, inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path
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
def test_the_test_cluster_of_ray(
    hosts_of_ray: Any, inversion: Callable[[Path, int], list[str]], reference: Any, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    job = hosts_of_ray.start(3, tmp_path / "job", inversion(run, 3))
    after(2, run, job)
    hosts_of_ray.kill(2)
    ended(run, job)
    assert lost(run) == 1
    assert type(reference)(run).bits == reference.bits


def disturb(hosts: Any, host: int, disturbance: str, run: Path, job: subprocess.Popen[bytes]) -> None:
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
