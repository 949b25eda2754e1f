"""Kill workers and drivers of inversions and training runs at random, and see whether the result has the same bits.

    python tests/runs/kill_campaign.py --kills 100 --out benchmarks/results/kills.json

One run after another goes on two workers of one Ray cluster, with items slowed down so that there is a middle to hit.
Disturbances are drawn from a seed: a worker is killed or stopped, the driver is killed, or warned and expected to
leave with exit code 75; before a resume a checkpoint may be truncated or lose a bit. Every run is resumed until it is
done and compared with one that nothing disturbed. A run without a sign of life for SILENCE_S counts as hung.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zarr

SILENCE_S = 900.0
CLOCKS = {"time", "seconds", "samples_per_s", "shots_per_s", "wait_share", "data_wait_share"}
ITEM_S = 0.04
PR_SET_PDEATHSIG = 1
EXIT_STOPPED = 75
INVERSION = {
    "model.shape": "[24, 40]",
    "model.spacing_m": "[15.0, 15.0]",
    "model.seed": "0",
    "model.smooth_sigma_cells": "3.0",
    "survey.shots": "6",
    "survey.source_depth_m": "none",
    "survey.dt_s": "0.002",
    "survey.samples": "80",
    "source.peak_hz": "12.0",
    "source.delay_s": "0.05",
    "modelling.absorbing_cells": "8",
    "data.refine": "1",
    "inversion.iterations": "40",
    "inversion.shots_per_iteration": "none",
    "inversion.diagnostics_every": "100",
    "inversion.snapshot_every": "100",
    "inversion.checkpoint_every": "5",
    "inversion.parameterisation.network.width": "16",
    "inversion.parameterisation.network.hidden_layers": "2",
}
LINE_SEARCH = INVERSION | {
    "inversion.parameterisation.kind": "pixel",
    "inversion.optimiser.kind": "lbfgs",
    "inversion.optimiser.first_step": "200.0",
    "inversion.bands_hz": "[20.0]",
    "inversion.regularise.tv": "0.02",
    "inversion.diagnostics_every": "3",
    "inversion.snapshot_every": "3",
}
TRAINING = {
    "name": "toy",
    "network.name": "fcnvmb",
    "network.width": "0.05",
    "training.loss.name": "mse",
    "training.epochs": "14",
    "training.batch": "6",
    "training.slices": "4",
    "training.records_noise": "0.1",
    "training.checkpoint_every": "2",
    "training.log_every": "1",
    "training.shown_samples": "0",
}
KINDS = ("inversion", "training", "line search")
CLUSTER = """
import sys
from hpfwi_cluster import ClusterSettings
from hpfwi_cluster.connection import connect
from hpfwi_cluster.ray_library import ray
with connect(ClusterSettings(workers=0), cores=4):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


class Slow:
    """A replica whose items take longer."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def compute(self, item: int) -> Any:
        time.sleep(ITEM_S)
        return self._task.compute(item)


class SlowFactory:
    """Build such a replica; travels to the workers by value."""

    def __init__(self, build: Any) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Slow:
        return Slow(self._build(*arguments))


def run(kind: str, folder: Path, options: dict[str, str], address: str | None) -> int:
    """Start a run in `folder`, or go on with it; return the exit code of the command."""
    from hpfwi import parallel
    from hpfwi.config import load_config
    from hpfwi.errors import HpfwiError
    from hpfwi.inversion.invert import invert
    from hpfwi.run_folder import RunFolder
    from hpfwi.stop import Stop, on_signals
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.training.settings import load_train_config, resolved
    from hpfwi.training.train import train

    where = {"cluster.workers": "0"}
    if address is not None:
        where = {"cluster.workers": "2", "cluster.address": address, "cluster.start_timeout_s": "900"}
    if address is not None:
        parallel._build = SlowFactory(parallel._build)  # type: ignore[assignment]
        parallel._build_training = SlowFactory(parallel._build_training)  # type: ignore[assignment]
    inverts = kind != "training"
    resume = (folder / "config.toml").is_file()
    chosen = where if resume else options | where
    load, go = (load_config, invert) if inverts else (load_train_config, train)
    source = folder / "config.toml" if resume else ("demo" if inverts else None)
    stop = Stop()
    try:
        with on_signals(stop, print):
            config: Any = load(source, [f"{name}={value}" for name, value in chosen.items()])[0]
            if not resume and not inverts:
                config = resolved(config, open_pairs(config.data.pairs))
            with (
                RunFolder.open(folder)
                if resume
                else RunFolder.create(config, folder.name, parent=folder.parent, environment={})
            ) as opened:
                if not opened.is_done:
                    go(config, opened, resume=resume, stop=stop)
    except (HpfwiError, parallel.ClusterError) as error:
        print(error)
        return error.exit_code if isinstance(error, HpfwiError) else 5
    return 0


def start(kind: str, folder: Path, options: dict[str, str], address: str | None) -> int:
    """Fork a process that runs; return its id. Everything heavy but Ray is imported here, once."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no run outlives the campaign
    try:
        log = os.open(folder.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run(kind, folder, options, address)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def bits(folder: Path) -> dict[str, object]:
    """Everything about a finished run that no clock decides."""
    from hpfwi import checkpoints
    from hpfwi.run_folder import read_events

    found = checkpoints.load_latest(folder / "checkpoints")
    assert found is not None
    told: dict[str, object] = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in found.tensors.items()}
    told["exponent"], told["done"] = found.meta["exponent"], found.iteration
    told["events"] = [
        {name: value for name, value in event.items() if name not in CLOCKS}
        for event in read_events(folder)
        if event["kind"] in ("iteration", "step", "epoch", "diagnostics")
    ]
    if (folder / "results.zarr").is_dir():
        models: Any = zarr.open_group(folder / "results.zarr/model", mode="r")
        told["models"] = {name: models[name][:].tobytes() for name in models}
    return told


def workers_below(pid: int) -> list[int]:
    """Return the worker processes among the descendants of a process."""
    children: dict[int, list[int]] = {}
    named = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                    int(entry.name)
                )
                if (entry / "cmdline").read_bytes().startswith(b"ray::Worker"):
                    named.add(int(entry.name))
            except OSError:
                continue  # ended meanwhile
    found, below = [], [pid]
    while below:
        child = below.pop()
        below += children.get(child, [])
        found += [child] if child in named else []
    return sorted(found)


def damage(folder: Path, draw: random.Random) -> bool:
    """Truncate the newest checkpoint or flip one of its bits, where there is one before it."""
    kept = sorted((folder / "checkpoints").glob("iteration-*"))
    if len(kept) < 2:
        return False
    tensors = kept[-1] / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    if draw.random() < 0.5:
        content = content[: len(content) // 2]
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    tensors.write_bytes(content)
    return True


class Campaign:
    """Disturbed runs and the account of them."""

    def __init__(self, folder: Path, seed: int, cluster: subprocess.Popen[str], address: str) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.cluster, self.address = cluster, address
        self.count: Counter[str] = Counter()
        self.resume_codes: Counter[int] = Counter()
        training = TRAINING | {"data.pairs": str(pairs(folder))}
        self.options = {"inversion": INVERSION, "training": training, "line search": LINE_SEARCH}
        self.undisturbed: dict[str, dict[str, object]] = {}

    @property
    def kills(self) -> int:
        return sum(self.count[name] for name in ("worker killed", "worker stopped", "driver killed", "driver warned"))

    def expected(self, kind: str) -> dict[str, object]:
        """Return what a run of this kind gives that nothing disturbs."""
        if kind not in self.undisturbed:
            path = self.folder / f"{kind}-undisturbed" / "toy"
            path.parent.mkdir()
            assert os.waitstatus_to_exitcode(os.waitpid(start(kind, path, self.options[kind], None), 0)[1]) == 0
            self.undisturbed[kind] = bits(path)
        return self.undisturbed[kind]

    def one_run(self, kind: str, most: int) -> None:
        """Run to the end with at most so many disturbances; book what came out."""
        path = self.folder / f"{kind}-{self.count['runs']}" / "toy"
        path.parent.mkdir()
        self.count["runs"] += 1
        left = most
        while True:
            pid = start(kind, path, self.options[kind], self.address)
            code, left = self.disturb(pid, path, left)
            if code is None:
                self.count["hangs"] += 1
                return
            if code == 0:
                break
            self.resume_codes[code] += 1
            if code not in (-signal.SIGKILL, EXIT_STOPPED):
                self.count["failures"] += 1
                print((path.parent / "said.txt").read_text()[-3000:], file=sys.stderr)
                return
            if (path / "checkpoints").is_dir() and self.draw.random() < 0.25:
                self.count["checkpoints damaged"] += damage(path, self.draw)
        expected, found = self.expected(kind), bits(path)
        self.count["wrong bits"] += found != expected
        self.count["lost or doubled iterations"] += len(found["events"]) != len(expected["events"])  # type: ignore[arg-type]

    def disturb(self, pid: int, path: Path, left: int) -> tuple[int | None, int]:
        """Wait for a run to end, disturbing it on the way; return its exit code, None for a hang, and what is left."""
        seen, seen_s, goal = -1, time.monotonic(), self.goal(0)
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), left
            lines = lines_of(path)
            goal = goal if seen >= 0 else self.goal(lines)
            if lines != seen:
                seen, seen_s = lines, time.monotonic()
            if time.monotonic() - seen_s > SILENCE_S:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, left
            if left and lines >= goal and (workers := workers_below(self.cluster.pid)):
                goal = self.goal(lines)
                time.sleep(self.draw.uniform(0.0, 0.2))
                what = self.draw.choices(
                    ["worker killed", "driver killed", "worker stopped", "driver warned"], [8, 4, 1, 2]
                )[0]
                victim = self.draw.choice(workers) if what.startswith("worker") else pid
                number = {"worker stopped": signal.SIGSTOP, "driver warned": signal.SIGUSR1}.get(what, signal.SIGKILL)
                try:
                    os.kill(victim, number)
                except ProcessLookupError:
                    continue
                self.count[what] += 1
                left -= 1
                if what == "driver warned":
                    goal = 1 << 60  # let it leave in peace
            time.sleep(0.01)

    def goal(self, lines: int) -> int:
        """The number of log lines at which to strike next: counted in lines, a slow machine sees the same kills."""
        return lines + self.draw.randint(1, 12)


def lines_of(path: Path) -> int:
    try:
        return (path / "events.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def pairs(folder: Path) -> Path:
    """Write made-up pairs to train on."""
    from hpfwi.store.pair_writer import create_pairs

    draw, samples = np.random.default_rng(0), 24
    names = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
    writer = create_pairs(
        folder / "pairs.zarr",
        samples=samples,
        records_shape=(3, 40, 16),
        model_shape=(11, 15),
        family="noise",
        physics=dict.fromkeys(names),
        shard_samples=samples,
    )
    models = draw.uniform(1500, 4500, (samples, 11, 15)).astype(np.float32)
    writer.write(0, draw.normal(size=(samples, 3, 40, 16)).astype(np.float32), models)
    return writer.finish().path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of runs, one after the other")
    parser.add_argument("--limit-s", type=float, default=1e9, help="start no run after this time")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for the runs")
    parser.add_argument("--out", type=Path, help="where the account goes, as JSON")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    import hpfwi.inversion.invert
    import hpfwi.training.train  # noqa: F401

    began_s = time.monotonic()
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        address = cluster.stdout.readline().strip()
        if not address:
            raise RuntimeError("Ray did not start; is the machine overloaded?")
        campaign = Campaign(asked.folder, asked.seed, cluster, address)
        while campaign.kills < asked.kills and time.monotonic() - began_s < asked.limit_s:
            kind = asked.kinds[campaign.count["runs"] % len(asked.kinds)]
            campaign.one_run(kind, min(asked.per_run, asked.kills - campaign.kills))
            account = {
                "kills": campaign.kills,
                **{name: campaign.count[name] for name in ("hangs", "failures", "wrong bits")},
                "lost or doubled iterations": campaign.count["lost or doubled iterations"],
                **dict(sorted(campaign.count.items())),
                "exit codes before a resume": {str(code): n for code, n in campaign.resume_codes.items()},
                "seed": asked.seed,
                "seconds": round(time.monotonic() - began_s),
            }
            print(json.dumps(account), flush=True)
            if asked.out is not None:
                asked.out.write_text(json.dumps(account, indent=1) + "\n")
    finally:
        cluster.stdin.close()
        cluster.wait(60)
    bad = ("hangs", "failures", "wrong bits", "lost or doubled iterations")
    return int(any(campaign.count[name] for name in bad))


if __name__ == "__main__":
    sys.exit(main())
