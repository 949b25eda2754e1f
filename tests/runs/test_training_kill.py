"""A training killed at random times, again and again, ends with the bits of one that nothing disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi import checkpoints
from hpfwi.run_folder import read_events
from hpfwi.store.pair_writer import create_pairs

RECORDS, MODEL, SAMPLES = (3, 40, 16), (11, 15), 22
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
STEPS = 12

# One process imports everything and forks a child for each start: a killed child costs milliseconds, not seconds.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch.optim.adam, safetensors.numpy, tensorboard.summary.writer.event_file_writer, matplotlib.figure, zarr.codecs
from hpfwi.networks import fcnvmb
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop
from hpfwi.store.openfwi import open_pairs
from hpfwi.training.settings import load_train_config, resolved
from hpfwi.training.train import train

store, folder, draw = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
options = [
    "name=tiny", f"data.pairs={store}", "network.name=fcnvmb", "network.width=0.05", "training.loss.name=mse",
    "training.epochs=4", "training.batch=6", "training.slices=3", "training.records_noise=0.1",
    "training.checkpoint_every=2", "training.log_every=1", "training.shown_samples=0", "cluster.workers=0",
    "training.average_decay=0.9",
]

def start(name):
    pid = os.fork()
    if pid == 0:
        path = folder / name / "tiny"
        if (path / "config.toml").exists():
            with RunFolder.open(path) as run:
                if not run.is_done:
                    train(load_train_config(run.config_path)[0], run, resume=True, stop=Stop())
        else:
            config = resolved(load_train_config(None, options)[0], open_pairs(store))
            with RunFolder.create(config, "tiny", parent=folder / name, environment={}) as run:
                train(config, run, resume=False, stop=Stop())
        os._exit(0)
    return pid

def ended(pid):
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

def lines():
    try:
        return (folder / "killed" / "tiny" / "events.jsonl").read_bytes().count(b"\\n")
    except OSError:
        return 0

codes = [ended(start("whole"))]
while codes[-1] == 9 or len(codes) == 1:
    # The time is counted in lines of the log, so that a slow machine sees the same kills. Every start is granted more
    # of them than the one before: going back to a checkpoint takes lines away again.
    goal, pid = lines() + draw.randint(0, 2 + len(codes)), start("killed")
    while lines() < goal and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.0005)
    time.sleep(draw.uniform(0.0, 0.01))
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.kill(pid, signal.SIGKILL)
    codes.append(ended(pid))
print(json.dumps(codes))
"""


def bits(run: Path) -> dict[str, Any]:
    """Every checkpoint that a run kept, and what its steps and epochs said apart from how long they took."""
    found = checkpoints.load_latest(run / "checkpoints")
    assert found is not None
    assert not found.skipped
    clocks = {"time", "seconds", "samples_per_s", "wait_share", "data_wait_share"}
    return {
        **{name: (value.dtype.str, value.shape, value.tobytes()) for name, value in found.tensors.items()},
        "done": found.iteration,
        "sums": found.meta["epoch_sums"],
        "best": found.meta["best"],
        "kept": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "events": [
            {name: value for name, value in event.items() if name not in clocks}
            for event in read_events(run)
            if event["kind"] in ("step", "epoch")
        ],
    }


@pytest.mark.slow
def test_killed_at_random_times_until_it_is_done(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    writer = create_pairs(
        tmp_path / "pairs.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="noise",
        physics=dict.fromkeys(NAMES),
        shard_samples=SAMPLES,
    )
    models = random.uniform(1500, 4500, (SAMPLES, *MODEL)).astype(np.float32)
    writer.write(0, random.normal(size=(SAMPLES, *RECORDS)).astype(np.float32), models)
    store = writer.finish()
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(store.path), str(tmp_path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert (codes[0], codes[-1]) == (0, 0)
    assert set(codes[1:-1]) == {9}
    assert len(codes) >= 5
    whole, killed = tmp_path / "whole" / "tiny", tmp_path / "killed" / "tiny"
    assert bits(killed) == bits(whole)
    assert [event["iteration"] for event in read_events(killed) if event["kind"] == "step"] == list(range(STEPS))
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
