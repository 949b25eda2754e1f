"""The command line from outside: what a run leaves, what a signal and a kill do to it, and what is refused."""

from __future__ import annotations

import json
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
from typer.testing import CliRunner

from hpfwi import cli

LONG: dict[str, object] = {
    "inversion__iterations": 60,
    "inversion__diagnostics_every": 50,
    "inversion__snapshot_every": 50,
    "inversion__checkpoint_every": 25,
}
"""Long enough, some seconds, for a signal to arrive in time."""


@pytest.fixture(scope="module")
def straight(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the long run, undisturbed, in this process."""
    return run(tmp_path_factory.mktemp("straight"), **LONG)


@pytest.fixture
def start(tiny_options: Callable[..., list[str]], tmp_path: Path) -> Any:
    """Return a function that starts the long run as a process of its own and waits until it is under way."""
    processes = []

    def start(workers: int) -> tuple[subprocess.Popen[str], Path]:
        options = [f"--set={option}" for option in tiny_options(**LONG, cluster__workers=workers)]
        command = [sys.executable, "-W", "error", "-c", "from hpfwi.cli import main; main()"]
        process = subprocess.Popen(
            [*command, "demo", *options], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        events = tmp_path / "runs" / "demo" / "events.jsonl"
        while process.poll() is None and not (events.is_file() and b'"iteration": 2,' in events.read_bytes()):
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        return process, tmp_path / "runs" / "demo"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended_in(path: Path, like: Any) -> Any:
    return type(like)(path)


def workers_of(pid: int) -> list[int]:
    """Return the worker processes among the descendants of a process, from /proc."""
    children: dict[int, list[int]] = {}
    names: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found, below = [], [pid]
    while below:
        child = below.pop()
        below += children.get(child, [])
        found += [child] if names.get(child, b"").startswith(b"ray::Worker") else []
    return found


@pytest.mark.slow
def test_sigterm_stops_a_run_that_can_be_resumed_to_the_same_bits(start: Any, straight: Any) -> None:
    process, path = start(workers=0)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors
    assert "SIGTERM: stopping soon" in output
    assert len(errors.splitlines()) == 1
    assert f"hpfwi resume {path.relative_to(path.parents[1])}" in errors
    stopped = ended_in(path, straight)
    assert 2 < stopped.checkpoint.iteration < 60
    assert not (path / "done.json").exists()

    result = CliRunner().invoke(cli.app, ["resume", str(path)])
    assert result.exit_code == 0, result.output
    assert f"Going on after iteration {stopped.of_kind('stop')[0]['iteration']}." in result.output
    assert ended_in(path, straight).bits == straight.bits
    assert_complete(path)


def assert_complete(path: Path) -> None:
    """A finished run folder holds everything that the design promises, and no temporary file."""
    names = {entry.name for entry in path.iterdir()} - {"lock", "observed.zarr"}
    assert names == {
        *("config.toml", "env.json", "events.jsonl", "tb", "checkpoints", "results.zarr", "figures", "report.html"),
        "done.json",
    }
    environment = json.loads((path / "env.json").read_text())
    assert environment
    assert json.loads((path / "done.json").read_text())["iterations"] == 60
    assert (path / "config.toml").read_text().startswith(("#", "name", "["))
    for checkpoint in (path / "checkpoints").iterdir():
        assert {file.name for file in checkpoint.iterdir()} == {"tensors.safetensors", "manifest.json"}
    assert 2 <= len(list((path / "checkpoints").iterdir())) <= 3
    figures = sorted((path / "figures").iterdir())
    assert {figure.suffix for figure in figures} == {".png"}
    assert len(figures) >= 4
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    page = (path / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == len(figures)
    assert "hpfwi" in page
    assert any((path / "tb").iterdir())
    assert not [file for file in path.rglob("*") if "tmp" in file.name or "partial" in file.name]


@pytest.mark.ray
@pytest.mark.slow
def test_kill_9_of_a_worker_from_outside_changes_no_bit(start: Any, straight: Any) -> None:
    process, path = start(workers=2)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    ended = ended_in(path, straight)
    assert ended.bits == straight.bits
    (lost,) = ended.of_kind("worker_lost")
    assert f"pid {workers[0]} " in lost["sentence"]
    assert lost["sentence"] in output
    deadline_s = time.monotonic() + 30.0
    while workers_of(process.pid) + [pid for pid in workers if alive(pid)] and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


BAD: dict[str, tuple[int, list[str], str]] = {
    "unknown option": (2, ["inversion.iteration=3"], "inversion.iterations"),
    "value out of range": (2, ["survey.shots=0"], "survey.shots"),
    "nothing to invert": (2, ["model.true=none", "model.initial=linear"], "nothing to invert"),
    "more shots than there are": (2, ["inversion.shots_per_iteration=7"], "shots_per_iteration"),
    "workers of an unknown number": (2, ["cluster.workers=many"], "cluster.workers"),
    "a number of no use": (2, ["inversion.parameterisation.lr_pixel_mps=1e300"], "the size 1e-30 to 1e+18"),
    "a filter wider than the model": (
        2,
        ["inversion.smooth_gradient_m=6001"],
        "more than 10 times the 600 m of the model",
    ),
    "a start smoother than the model": (2, ["model.smooth_sigma_cells=401"], "at most 400, which is 10 times"),
    "half a period longer than the records": (2, ["source.peak_hz=3.1"], "use 3.12 Hz or more"),
    "no model file": (3, ["model.true=nowhere.npy", "model.spacing_m=10"], "nowhere.npy"),
    "no gathers": (3, ["data.observed=nowhere.zarr"], "nowhere.zarr"),
    "no wavelet file": (3, ["source.wavelet=nowhere.npy"], "nowhere.npy"),
    "source outside": (3, ["survey.first_source_m=-100.0"], "outside the model"),
    "source on the free surface": (3, ["survey.source_depth_m=0.0"], "free surface"),
    "true model outside bounds": (3, ["model.bounds_mps=[2000.0,2100.0]"], "bounds_mps"),
    "unstable": (3, ["modelling.substeps=1", "survey.dt_s=0.02"], "Courant"),
    "a damaged model": (
        3,
        ["model.true=damaged.npy", "model.spacing_m=10"],
        "damaged.npy cannot be used: the velocity in",
    ),
    "no word for a model": (3, ["model.initial=linaer"], '"linaer" is neither a file nor'),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_run_leaves_one_line_and_no_folder(
    case: str, tiny_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPFWI_DEBUG", raising=False)
    damaged = np.full((24, 40), 2000.0, np.float32)
    damaged[3, 5] = np.nan
    np.save(tmp_path / "damaged.npy", damaged)
    code, changes, named = BAD[case]
    options = [f"--set={option}" for option in [*tiny_options(), *changes]]
    result = CliRunner().invoke(cli.app, ["demo", *options])
    assert result.exit_code == code, result.output
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged.npy"]


@pytest.mark.parametrize(
    ("kind", "option", "words"),
    [
        ("a-denorm-joint", "lr_log_scale", "The model of iteration 1 is not finite: the steps before it were too long"),
        ("pretrain", "pretrain.lr", "Pretraining gave a mean error of nan after 2 steps: lower inversion.parameterisa"),
    ],
)
def test_steps_out_of_the_numbers_are_no_fault_of_the_workers(
    kind: str, option: str, words: str, tiny_options: Any, tmp_path: Path
) -> None:
    settings = {"kind": kind, option: 1e17}
    changes = [f"inversion.parameterisation.{name}={value}" for name, value in settings.items()]
    options = [*tiny_options(), *changes, f"output.folder={tmp_path}"]
    result = CliRunner().invoke(cli.app, ["demo", *(f"--set={option}" for option in options)])
    assert result.exit_code == 4, result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(words)


def test_gathers_without_signal_are_refused(run: Any, tiny_options: Any, tmp_path: Path, reference: Any) -> None:
    """Gathers are read after the folder is made; what is wrong with them is still one line, and the folder goes."""
    from hpfwi.store.gathers import open_gathers, write_gathers

    store = open_gathers(reference.path / "observed.zarr")
    silent = np.zeros((6, *store.shape[1:]), np.float32)
    write_gathers(tmp_path / "silent.zarr", silent, store.survey, store.wavelet, {})
    changes = [f"data.observed={tmp_path / 'silent.zarr'}", f"output.folder={tmp_path / 'runs'}"]
    result = CliRunner().invoke(cli.app, ["demo", *(f"--set={option}" for option in [*tiny_options(), *changes])])
    assert result.exit_code == 3, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "zero" in result.stderr
    assert list((tmp_path / "runs").iterdir()) == []
