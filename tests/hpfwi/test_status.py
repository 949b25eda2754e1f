"""`hpfwi status`: what a run's folder says about it, whoever runs it and however it ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hpfwi.cli import app
from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.options import as_toml
from hpfwi.status import as_text, status
from hpfwi.training.settings import load_train_config

NOW = 1_800_000_000.0


def event(kind: str, ago_s: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "time": NOW - ago_s, **fields}


def iteration(number: int, ago_s: float) -> dict[str, Any]:
    facts = {"misfit": 1.0 / (number + 1), "seconds": 1.5, "shots": 6, "shots_per_s": 4.0, "wait_share": 0.25}
    return event("iteration", ago_s, iteration=number, **facts)


def folder(path: Path, events: list[dict[str, Any]], *, training: bool = False, lock: object = None) -> Path:
    path.mkdir()
    load: Any = load_train_config if training else load_config
    options = ["name=tiny", "cluster.workers=2"]
    options += (
        ["training.epochs=5", "training.batch=6", "training.slices=3"] if training else ["inversion.iterations=50"]
    )
    (path / "config.toml").write_text(as_toml(load(None if training else "demo", options)[0]))
    (path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    if lock is not None:
        (path / "lock").write_text(json.dumps(lock))
    return path


GOING = [
    event("start", 100.0, name="tiny", workers=2),
    event("checkpoint", 90.0, iteration=-1, path="checkpoints/iteration-00000000"),
    *(iteration(number, 42.0 - 2.0 * number) for number in range(20)),
    event("worker_lost", 3.0, iteration=19, sentence="Worker 1 was lost."),
    event("checkpoint", 2.5, iteration=19, path="checkpoints/iteration-00000020"),
]
"""20 iterations of 2 s, the last one 4 s ago."""


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", GOING, lock={"pid": os.getpid(), "host": socket.gethostname()})
    found = status(path, now=NOW)
    assert (found.kind, found.name, found.state, found.why) == (
        "inversion",
        "tiny",
        "running",
        f"process {os.getpid()} on {socket.gethostname()}",
    )
    assert (found.done, found.total, found.unit, found.items, found.item) == (20, 50, "iteration", 120, "shots")
    assert (found.items_per_s, found.value, found.wait_share) == (4.0, 0.05, 0.25)
    assert (found.workers, found.workers_lost, found.last_event_s) == (2, 1, 2.5)
    assert (found.checkpoint_done, found.checkpoint_age_s) == (20, 2.5)
    assert found.checkpoint == str(path / "checkpoints/iteration-00000020")
    # At the pace of the clock, not of the workers alone: 2 s an iteration although they report 1.5.
    assert found.remaining_s == pytest.approx(60.0, rel=1e-6)
    text = "\n".join(as_text(found))
    assert "20 of 50 (40 %), 120 shots" in text
    assert "4 shots/s, workers waiting 25 %" in text
    assert "Left" in text
    assert "1:00" in text
    assert "hpfwi resume" not in text


def test_a_training_run_counts_steps_and_waits_for_data(tmp_path: Path) -> None:
    step = {"loss": 0.5, "seconds": 1.0, "samples_per_s": 6.0, "wait_share": 0.1, "data_wait_share": 0.02}
    events = [
        event("start", 60.0, name="tiny", workers=2),
        event("data", 59.0, pairs="x.zarr", train=20, validation=4),
        *(event("step", 50.0 - 10.0 * place, iteration=9 + 10 * place, **step) for place in range(2)),
        event("worker_lost", 30.0, iteration=-1, sentence="in a validation"),
        event("checkpoint", 29.0, iteration=24, path="checkpoints/iteration-00000025"),
    ]
    path = folder(tmp_path / "tiny", events, training=True, lock={"pid": os.getpid(), "host": socket.gethostname()})
    found = status(path, now=NOW)
    # 20 samples in batches of 6 are 3 steps an epoch, 15 in all; logged every ten steps, ten seconds apart.
    assert (found.kind, found.unit, found.total, found.item) == ("training", "step", 15, "samples")
    assert (found.measure, found.value, found.data_wait_share) == ("loss", 0.5, 0.02)
    assert (found.done, found.items) == (25, 150)  # as the checkpoint says
    assert "for data 2 %" in "\n".join(as_text(found))


def test_before_the_first_iteration(tmp_path: Path) -> None:
    lock = {"pid": os.getpid(), "host": socket.gethostname()}
    found = status(folder(tmp_path / "tiny", GOING[:1], lock=lock), now=NOW)
    assert (found.state, found.done, found.total, found.remaining_s) == ("starting", 0, 50, None)
    assert (found.items_per_s, found.value, found.checkpoint) == (None, None, None)
    assert as_text(found)
    nothing = folder(tmp_path / "nothing", [], lock=lock)
    assert status(nothing, now=NOW).state == "starting"


def test_how_a_run_ended(tmp_path: Path) -> None:
    stop = event("stop", 1.0, iteration=20, reason="SIGTERM")
    stopped = status(folder(tmp_path / "stopped", [*GOING, stop]), now=NOW)
    assert (stopped.state, stopped.why, stopped.remaining_s) == ("stopped", "SIGTERM; it can be resumed", None)
    assert f"hpfwi resume {tmp_path / 'stopped'}" in as_text(stopped)[-1]
    resumed = event("resume", 0.5, name="tiny", workers=3)
    failed = status(folder(tmp_path / "failed", [*GOING, stop, resumed]), now=NOW)
    assert (failed.state, failed.workers) == ("failed", 3)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    lock = {"pid": int(gone.stdout), "host": socket.gethostname()}
    dead = status(folder(tmp_path / "dead", GOING, lock=lock), now=NOW)
    assert (dead.state, dead.remaining_s) == ("dead", None)
    assert f"process {lock['pid']}" in dead.why
    (tmp_path / "dead" / "done.json").write_text("{}")
    assert status(tmp_path / "dead", now=NOW).state == "finished"


def test_a_number_that_was_given_to_another_process_is_no_sign_of_life(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", GOING, lock={"pid": os.getpid(), "host": socket.gethostname()})
    os.utime(path / "lock", (1_000_000_000, 1_000_000_000))
    assert status(path, now=NOW).state == "dead"


def test_a_run_on_another_machine_is_judged_by_its_last_sign(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", GOING, lock={"pid": 1, "host": "node17"})
    assert status(path, now=NOW).state == "running"
    assert status(path, now=NOW + 290.0).state == "running"
    silent = status(path, now=NOW + 300.0)
    assert (silent.state, silent.remaining_s) == ("silent", None)
    assert silent.why == "nothing from process 1 on node17 for 5:02, usual are 0:02"
    slow = [GOING[0], *(iteration(number, 300.0 - 100.0 * number) for number in range(3))]
    seldom = folder(tmp_path / "seldom", slow, lock={"pid": 1, "host": "node17"})
    assert status(seldom, now=NOW + 1800.0).state == "running"
    (path / "lock").write_text("half a lo")
    assert status(path, now=NOW).why == "an unknown process"


def test_the_command(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", GOING)
    before = {file: file.stat().st_mtime_ns for file in [path, *path.rglob("*")]}
    done = CliRunner().invoke(app, ["status", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["done"] == 20
    assert CliRunner().invoke(app, ["status", str(path)]).output.startswith("Run ")
    assert {file: file.stat().st_mtime_ns for file in [path, *path.rglob("*")]} == before
    refused = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert (refused.exit_code, "is not a run folder" in refused.stderr) == (2, True)
    with pytest.raises(ConfigError, match="is not a run folder"):
        status(tmp_path)


def test_no_ray_and_no_kernels_are_needed(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", GOING)
    code = f"import sys; from pathlib import Path; from hpfwi.status import status; status(Path({str(path)!r})); "
    code += "print([name for name in ('ray', 'deepwave', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
