"""`hpfwi cluster`: the job that is submitted, what it does on its first node, and forecasts from the command line."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpfwi import cli, cli_cluster, scaling
from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.experiment import cluster_of
from hpfwi.parallel import Machine, Work, forecast, run_iteration
from hpfwi.run_folder import RunFolder
from hpfwi.store.pair_manifest import PHYSICS
from hpfwi.store.pair_writer import create_pairs

TOY = "[model]\nshape = [24, 40]\n[survey]\nshots = 5\nsamples = 60\n[source]\ndelay_s = 0.05\n[data]\nrefine = 1\n"
FEW = ["--nodes", "2", "--cpus-per-node", "5", "--time", "1:00:00"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPFWI_DEBUG", raising=False)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RAY_ADDRESS")):
            monkeypatch.delenv(name)
    (tmp_path / "toy.toml").write_text(TOY)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["cluster", *arguments])


def refused(code: int, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


def sbatch(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "sbatch").write_text(f"#!/bin/bash\n{script}\n")
    (place / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")


def test_what_is_submitted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch(place, monkeypatch, "echo Submitted batch job 42; cp $1 seen.sh")
    done = run(
        "submit", "toy.toml", *FEW, "--set", "cluster.threads_per_worker=2", "--partition", "big", "--sbatch", "-C=a"
    )
    assert done.exit_code == 0, done.output
    assert "Submitted batch job 42" in done.output
    folder = place / "runs" / "toy.job"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    script = (place / "seen.sh").read_text()
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert options == {
        "--job-name=toy",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=5",
        "--time=1:00:00",
        "--signal=USR1@300",
        "--partition=big",
        f"--output={folder}/log-%j.txt",
        "--open-mode=append",
        "--no-kill",
        "--requeue",
        "-C=a",
    }
    assert subprocess.run(["bash", "-n", "seen.sh"], cwd=place, check=False).returncode == 0
    config, _ = load_config(folder / "run.toml", [])
    assert (config.cluster.workers, config.cluster.device, config.survey.shots) == (4, "cpu", 5)
    assert json.loads((folder / "job.json").read_text()) == {"verb": "invert", "run": "runs/toy", "workers": 4}


def test_a_job_on_gpus_has_a_worker_for_each(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch(place, monkeypatch, "echo Submitted batch job 43; cp $1 seen.sh")
    nodes = ["--nodes", "3", "--gpus-per-node", "4", "--time", "2:00:00"]
    done = run("submit", "toy.toml", *nodes, "--cpus-per-node", "16")
    assert done.exit_code == 0, done.output
    script = (place / "seen.sh").read_text()
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=16"} <= options
    assert "--exclusive" not in options
    folder = place / "runs" / "toy.job"
    config, _ = load_config(folder / "run.toml", [])
    assert (config.cluster.workers, config.cluster.device, config.cluster.address) == (12, "cuda", None)
    assert json.loads((folder / "job.json").read_text())["workers"] == 12
    # On the head of the job, where the launcher names the cluster, the driver needs no GPUs for all of them.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:20000")
    assert cluster_of(config, gpus=4) == config.cluster
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match="needs 12 GPUs for workers = 12, and this machine has 4"):
        cluster_of(config, gpus=4)
    sentence = "--cpus-per-node=3 is less than cluster.threads_per_worker=1 for each of 4 GPUs"
    assert sentence in refused(2, "submit", "toy.toml", *nodes, "--cpus-per-node", "3", "--dry-run")


def test_a_dry_run_writes_nothing(place: Path) -> None:
    done = run("submit", "toy.toml", "--nodes", "8", "--gpus-per-node", "4", "--time", "12:00:00", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "#SBATCH --gpus-per-node=4\n" in done.output
    assert "#SBATCH --exclusive\n" in done.output
    assert sorted(file.name for file in place.iterdir()) == ["toy.toml"]


@pytest.mark.parametrize(
    ("code", "restart", "left", "requeued"), [(0, "", 0, False), (75, "", 75, True), (4, "2", 4, False)]
)
def test_the_script_ends_as_the_run_does(
    code: int, restart: str, left: int, requeued: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's commands are stand-ins: srun runs the nodes' command without Ray and ends with another node's 1."""
    script = run("submit", "toy.toml", *FEW, "--dry-run").output
    attempt = restart or "0"
    (place / "bin").mkdir()
    stand_ins = {
        "srun": f"mkdir -p runs/toy.job; echo {code} > runs/toy.job/exit-42-{attempt}; echo $@ > asked; exit 1",
        "scontrol": "echo $@ > requeued",
    }
    for name, text in stand_ins.items():
        (place / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42"} | ({"SLURM_RESTART_COUNT": restart} if restart else {})
    environment = os.environ | slurm | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd="/", check=False)
    assert done.returncode == left
    assert (place / "requeued").is_file() is requeued
    asked = (place / "asked").read_text()
    assert "--cpus-per-task=5 --cpu-bind=none" in asked
    assert f"-m hpfwi_cluster.launch --job {place}/runs/toy.job --" in asked


def test_jobs_that_cannot_be() -> None:
    assert "needs --cpus-per-node" in refused(2, "submit", "toy.toml", "--nodes", "2", "--time", "10", "--dry-run")
    assert "'soon' is no time" in refused(2, "submit", "toy.toml", *FEW[:-1], "soon", "--dry-run")
    assert "is no option of sbatch" in refused(2, "submit", "toy.toml", *FEW, "--sbatch", "x\n#", "--dry-run")
    assert "nodes = 0 cannot be used, input should" in refused(
        2, "submit", "toy.toml", "--nodes", "0", *FEW[2:], "--dry-run"
    )
    assert "does not say what to run" in refused(2, "work", "nowhere")
    assert "is 300 s, and the run is told to stop warn_s = 300 s before the end" in refused(
        2, "submit", "toy.toml", *FEW[:-1], "5", "--dry-run"
    )
    assert run("submit", "toy.toml", *FEW[:-1], "5", "--warn-s", "60", "--dry-run").exit_code == 0
    many = ["--set", "cluster.threads_per_worker=6"]
    assert "--cpus-per-node=5 is less than" in refused(2, "submit", "toy.toml", *FEW, *many, "--dry-run")
    assert "missing.toml" in refused(2, "submit", "missing.toml", *FEW, "--dry-run")


def test_a_training_run_needs_its_pairs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs pairs" in refused(2, "submit", "train_fcnvmb", *FEW, "--dry-run")
    monkeypatch.setenv("PATH", "/nowhere")
    done = run("submit", "train_fcnvmb", *FEW, "--data", "pairs.zarr")
    assert done.exit_code == 5, done.output
    notes = done.stderr.splitlines()
    assert f"Note    here {place / 'pairs.zarr'} does not exist" in notes[0]
    assert "10 workers share the 4 slices of a batch" in notes[1]
    folder = place / "runs" / "train_fcnvmb.job"
    assert json.loads((folder / "job.json").read_text())["verb"] == "train"
    # The job may start elsewhere.
    assert f'pairs = "{place / "pairs.zarr"}"' in (folder / "run.toml").read_text()
    assert "needs a velocity model" in refused(2, "submit", "marmousi_smooth", *FEW, "--dry-run")


def test_without_slurm_the_script_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    sentence = refused(5, "submit", "toy.toml", *FEW)
    assert "There is no sbatch on this machine" in sentence
    assert str(place / "runs" / "toy.job" / "job.sh") in sentence
    assert (place / "runs" / "toy.job" / "job.sh").is_file()


def test_slurm_says_no(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch(place, monkeypatch, "echo 'invalid partition' >&2; exit 1")
    assert "sbatch refused" in (said := refused(5, "submit", "toy.toml", *FEW))
    assert "invalid partition" in said


def test_a_warning_stops_a_run_once_however_often_it_comes() -> None:
    code = """
import os, signal
from hpfwi.stop import Stop, on_signals
stop = Stop()
with on_signals(stop, print):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    print(stop())
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("at once")
print(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "SIGUSR1: stopping soon, with a checkpoint; SIGTERM stops at once."
    assert done.stdout.splitlines() == [said, "SIGUSR1", "at once", "True"], done.stderr


def test_a_job_that_would_end_at_once_is_refused(place: Path) -> None:
    writer = create_pairs(
        place / "few.zarr",
        samples=8,
        records_shape=(1, 40, 16),
        model_shape=(11, 15),
        family="few",
        physics=dict.fromkeys(PHYSICS),
    )
    draw = np.random.default_rng(0)
    models = draw.uniform(1500, 4500, (8, 11, 15)).astype(np.float32)
    writer.write(0, draw.normal(size=(8, 1, 40, 16)).astype(np.float32), models)
    writer.finish()
    few = ["--set", "data.pairs=few.zarr", "--dry-run"]
    assert "fewer than a batch of 20" in refused(2, "submit", "train_inversionnet", *FEW, *few)


def test_a_job_goes_on_with_a_run_of_its_own_options_alone(place: Path) -> None:
    begun, path = load_config("toy.toml", ["inversion.iterations=7"])[0], place / "runs" / "toy"
    with RunFolder.create(begun, "toy", parent=place / "runs", environment={}):
        pass
    job = ["submit", "toy.toml", *FEW, "--dry-run"]
    same = ["--set", "inversion.iterations=7", "--set", "cluster.threads_per_worker=2"]
    assert run(*job, *same).exit_code == 0
    assert "unfinished run with inversion.iterations = 7, and inversion.iterations = 300" in refused(2, *job)
    other = ["--name", "toy", "--data", str(place)]
    assert "holds a run of another kind" in refused(2, "submit", "train_fcnvmb", *FEW, "--dry-run", *other)
    (path / "done.json").write_text("{}")
    assert "holds a finished run" in refused(2, *job, *same)
    assert "--job-name=other" in run(*job, "--name", "other").output


class Replaced(Exception):
    """The process became another program."""


@pytest.fixture
def job(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a job whose program is caught instead of run."""

    def execv(path: str, arguments: list[str]) -> None:
        raise Replaced(arguments[3:])

    monkeypatch.setenv("PATH", "/nowhere")
    run("submit", "toy.toml", *FEW)
    monkeypatch.setattr(os, "execv", execv)
    return place / "runs" / "toy.job"


def program(job: Path) -> list[str]:
    with pytest.raises(Replaced) as caught:
        cli_cluster.work(job)
    return list(caught.value.args[0])


def test_a_job_starts_its_run_and_goes_on_with_it_the_next_time(job: Path, place: Path) -> None:
    assert program(job) == ["invert", str(job / "run.toml")]
    (place / "runs" / "toy").mkdir()
    (place / "runs" / "toy" / "config.toml").write_text("")
    assert program(job) == ["resume", "runs/toy", "--workers", "10"]
    (job / "job.json").write_text("[]")
    with pytest.raises(ConfigError, match="does not say what to run"):
        cli_cluster.work(job)


@pytest.mark.parametrize(
    ("holder", "freed"),
    [("node1", True), ("node2", False), (socket.gethostname(), False)],
    ids=["the node of the attempt before", "a stranger's", "this node"],
)
def test_only_a_lock_of_an_earlier_attempt_is_freed(
    holder: str, freed: bool, job: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "runs" / "toy"
    path.mkdir()
    (path / "config.toml").write_text("")
    (path / "lock").write_text(json.dumps({"pid": 1, "host": holder}))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    (job / "head-42-0.json").write_text(json.dumps({"address": "10.0.0.1:20000", "host": "node1"}))
    (job / "head-41-0.json").write_text(json.dumps({"address": "10.0.0.1:20000", "host": "node2"}))
    program(job)
    assert (path / "lock").is_file()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    program(job)
    assert (path / "lock").is_file() is not freed


def test_the_forecast_of_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = ["--work", "item_s=2.5", "--work", "begin_s=0", "--work", "finish_s=0", "--work", "spread=0"]
    arguments = [
        "simulate",
        "toy.toml",
        "--gpus",
        "4,1",
        "--mtbf-hours",
        "1000",
        "--machine",
        "handling_s=0.001",
        "--set",
        "inversion.parameterisation.network.width=8",
        *fixed,
    ]
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["work"]["costs"] == [1.0] * 5
    assert found["work"]["size"] == 8 * 24 * 40
    assert [one["workers"] for one in found["forecasts"]] == [1, 4]
    work, machine = Work.model_validate(found["work"]), Machine.model_validate(found["machine"])
    assert (machine.handling_s, work.item_s) == (0.001, 2.5)
    expected = forecast(work, machine, 4, mtbf_hours=1000.0)
    assert found["forecasts"][1]["iteration_s"] == expected.iteration_s == pytest.approx(5.0, rel=0.01)
    assert (place / "toy_scaling.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(scaling, "work_of_inversion", lambda config: work)
    table = run(*arguments, "--out", "other.png")
    assert "too few items" in table.output
    assert (place / "other.png").is_file()


def test_forecasts_that_cannot_be() -> None:
    assert "is no list of numbers" in refused(2, "simulate", "toy.toml", "--gpus", "8,x")
    assert "is no list of numbers" in refused(2, "simulate", "toy.toml", "--gpus", "0")
    assert "no time between failures" in refused(2, "simulate", "toy.toml", "--mtbf-hours", "0")
    assert "with one of handling_s, latency_s" in refused(2, "simulate", "toy.toml", "--machine", "speed=3")
    assert "item_s = '-1' cannot be used" in refused(2, "simulate", "toy.toml", "--work", "item_s=-1")


def test_times_are_read_from_a_run(place: Path) -> None:
    """Events as three workers would leave them who need 2 s an item and 0.5 s a step."""
    work = Work(item_s=2.0, costs=(1.0,) * 5, spread=0.0, finish_s=0.5)
    machine = Machine()
    seconds = run_iteration(work, machine, 3).seconds
    path = place / "runs" / "toy"
    path.mkdir(parents=True)
    (path / "config.toml").write_text(TOY + "[cluster]\nworkers = 3\n")
    events = [{"kind": "start", "time": 0.0, "workers": 3}]
    for number in range(5):
        wait = {"seconds": seconds, "wait_share": 1 - 10.0 / 3 / seconds}
        events.append({"kind": "iteration", "time": 1.0 * number, "iteration": number} | wait)
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    guess = work.model_copy(update={"item_s": 77.0, "finish_s": 33.0})
    found = scaling.work_of_run(path, machine, guess)
    assert found.item_s == pytest.approx(2.0, rel=1e-9)
    assert found.finish_s == pytest.approx(0.5, rel=1e-6)
    (path / "events.jsonl").write_text(json.dumps(events[0]) + "\n")
    with pytest.raises(ConfigError, match="has 0 iterations after its first"):
        scaling.work_of_run(path, machine, guess)
