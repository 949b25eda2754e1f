"""The command line: one sentence and one exit code per error, runs that are never lost, and a start without weight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hpfwi import cli
from hpfwi.config import RunConfig, load_config, recipe_names, training_recipe_names
from hpfwi.errors import DataError, DiskError, NumericsError, Stopped
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop
from hpfwi_cluster.errors import StartFailed
from hpfwi_kernels.errors import StabilityError

TOY = "[model]\nshape = [24, 40]\n[survey]\nshots = 2\nsamples = 60\n[source]\ndelay_s = 0.05\n[data]\nrefine = 1\n"
VERBS = ["demo", "invert", "resume", "simulate", "wavelet", "plan", "config", "env", "check", "report", "velocity"]


class FakeInversion:
    """Stands for the inversion: records its calls and ends as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[RunConfig, Path, bool]] = []
        self.error: BaseException | None = None
        self.leaves_a_checkpoint = False

    def __call__(self, config: RunConfig, folder: RunFolder, *, resume: bool, stop: Stop) -> Any:
        self.calls.append((config, folder.path, resume))
        folder.event("resume" if resume else "start")
        if self.leaves_a_checkpoint:
            folder.checkpoints.mkdir()
        if self.error is not None:
            raise self.error
        folder.done({})
        return Outcome()


class Outcome:
    misfit_first, misfit_last, last_band = 0.5, 0.025, 0
    mse_first_kmps2: float | None = 0.248
    mse_last_kmps2: float | None = 0.112
    verdict = "No sign of blurring.\nToo little to judge the rest."


@pytest.fixture
def inversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeInversion:
    fake = FakeInversion()
    module = ModuleType("hpfwi.inversion.invert")
    module.invert = fake  # type: ignore[attr-defined]
    report = ModuleType("hpfwi.report")
    report.write_report = lambda path: path / "report.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hpfwi.inversion.invert", module)
    monkeypatch.setitem(sys.modules, "hpfwi.report", report)
    monkeypatch.delenv("HPFWI_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY)
    return fake


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(code: int, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


def test_help_names_every_verb_in_whole_sentences() -> None:
    text = run("--help").output
    for verb in VERBS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {verb} ")]
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert "overrides" not in result.output


def test_the_command_starts_without_anything_heavy() -> None:
    code = "import sys, hpfwi, hpfwi.cli; print(sorted(set(sys.modules) & {'numpy','torch','ray','zarr','matplotlib'}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


def test_a_run_leaves_its_folder_and_says_where_to_look(inversion: FakeInversion, tmp_path: Path) -> None:
    result = run("invert", "toy.toml", "--name", "first", "--workers", "0", "--set", "inversion.iterations=7")
    assert result.exit_code == 0, result.output
    ((config, path, resume),) = inversion.calls
    assert (config.name, config.cluster.workers, config.inversion.iterations) == ("first", 0, 7)
    assert (path, resume) == (Path("runs/first"), False)
    assert load_config(path / "config.toml")[0] == config
    assert json.loads((path / "env.json").read_text())["packages"]["hpfwi"]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("24 x 40 cells, 2 shots per iteration, ")
    assert "Run folder runs/first" in lines
    assert lines[-5:] == [
        "Misfit       0.5 → 0.025 of the observed energy",
        "Model error  0.248 → 0.112 (km/s)², mean square",
        "Verdict      No sign of blurring. Too little to judge the rest.",
        "Report       runs/first/report.html",
        "TensorBoard  tensorboard --logdir runs/first/tb",
    ]


def test_the_demo_needs_nothing(inversion: FakeInversion) -> None:
    assert run("demo").exit_code == 0
    ((config, path, _),) = inversion.calls
    assert (path, config.model.true) == (Path("runs/demo"), "procedural")
    assert "holds a finished run; choose another name with --name" in refused(2, "demo")
    assert run("demo", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("The gathers hold NaN; write them again."), 3),
        (StabilityError("dt_s=1 is unstable; use 0.1."), 3),
        (NumericsError("The misfit is NaN; lower the rates."), 4),
        (StartFailed("No worker started; ask for fewer."), 5),
        (Stopped("Stopped after iteration 3; go on with `hpfwi resume runs/toy`."), 75),
        (KeyboardInterrupt(), 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_sentence_and_exit_code(
    inversion: FakeInversion, error: BaseException, code: int
) -> None:
    inversion.error = error
    text = refused(code, "invert", "toy.toml")
    assert (str(error) or "Stopped at once by a second signal; go on with `hpfwi resume runs/toy`.") in text
    if code == 3:  # refused before the first checkpoint: what is mended is a new run
        assert not Path("runs/toy").exists()
    else:
        assert "holds an unfinished run; go on with `hpfwi resume runs/toy`" in refused(2, "invert", "toy.toml")


@pytest.mark.parametrize(
    ("error", "begun"), [(DiskError("There is no room."), False), (DataError("Shot 3 holds NaN."), True)]
)
def test_a_run_that_can_go_on_keeps_its_folder(inversion: FakeInversion, error: DataError, begun: bool) -> None:
    inversion.error, inversion.leaves_a_checkpoint = error, begun
    refused(3, "invert", "toy.toml")
    assert Path("runs/toy/config.toml").is_file()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            DiskError("a.png cannot be written."),
            3,
            "its report: a.png cannot be written. `hpfwi report runs/toy` writes",
        ),
        (KeyboardInterrupt(), 75, "but not its report: `hpfwi report runs/toy` writes it."),
    ],
)
def test_a_finished_run_without_its_report_says_so(
    inversion: FakeInversion, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def refuse(path: Path) -> Path:
        raise error

    monkeypatch.setattr(sys.modules["hpfwi.report"], "write_report", refuse)
    assert words in refused(code, "invert", "toy.toml")


def test_a_signal_before_there_is_a_run_leaves_nothing(
    inversion: FakeInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM killed the process without a word, and Ctrl-C in the making of the folder left half of one."""
    for number, code, words in ((signal.SIGTERM, 75, "Ended by SIGTERM before"), (signal.SIGINT, 130, "Interrupted.")):
        monkeypatch.setattr("hpfwi.run_folder.FolderLock", lambda path, number=number: os.kill(os.getpid(), number))
        assert words in refused(code, "invert", "toy.toml")
        assert list((tmp_path / "runs").iterdir()) == []


def test_too_little_memory_is_no_defect(inversion: FakeInversion) -> None:
    assert "There is too little memory (Unable to allocate 7.28 TiB" in refused(
        3, "plan", "toy.toml", "--set", "survey.samples=1_000_000_000_000"
    )
    assert "There is too little memory (array is too big; " in refused(
        3, "plan", "toy.toml", "--set", "survey.samples=2_000_000_000_000_000_000"
    )
    inversion.error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    assert "There is too little memory (DefaultCPUAllocator" in refused(3, "invert", "toy.toml")


def test_a_defect_is_one_sentence_unless_debugging(inversion: FakeInversion, monkeypatch: pytest.MonkeyPatch) -> None:
    inversion.error = ZeroDivisionError("division\nby zero")
    assert "(ZeroDivisionError: division by zero); run it with --debug" in refused(1, "invert", "toy.toml")
    monkeypatch.setenv("HPFWI_DEBUG", "1")
    assert isinstance(run("invert", "toy.toml", "--name", "b").exception, ZeroDivisionError)


def test_a_stopped_run_is_resumed_on_other_workers_and_a_finished_one_is_left_alone(inversion: FakeInversion) -> None:
    inversion.error = Stopped("Stopped.")
    refused(75, "invert", "toy.toml", "--workers", "0")
    inversion.error = None
    assert "--data is for training runs and runs/toy inverts gathers" in refused(2, "resume", "runs/toy", "--data", "a")
    assert run("resume", "runs/toy", "--workers", "3").exit_code == 0
    assert [(config.cluster.workers, resume) for config, _, resume in inversion.calls] == [(0, False), (3, True)]
    result = run("resume", "runs/toy")
    assert (result.exit_code, result.stdout) == (0, "runs/toy is finished; there is nothing to resume.\n")
    assert len(inversion.calls) == 2
    assert "is not a run folder" in refused(2, "resume", "runs/other")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["invert", "absent.toml"], 2, "absent.toml does not exist"),
        (["invert", "toy.toml", "--set", "survey.shot=3"], 2, "did you mean survey.shots?"),
        (["invert", "toy.toml", "--workers", "many"], 2, 'cluster.workers = "many" (from --set) cannot be used'),
        (["invert", "toy.toml", "--name", "a/b"], 2, "letters, digits, dots"),
        (["invert", "train_amfms"], 2, "train_amfms trains a network; give it to `hpfwi train`"),
        (["plan", "train.toml"], 2, "train.toml trains a network; give it to `hpfwi train`"),
        (["simulate", "train.toml"], 2, "train.toml trains a network; give it to `hpfwi train`"),
        (["train", "toy.toml"], 2, "toy.toml inverts gathers; give it to `hpfwi invert`"),
        (["train", "demo"], 2, "demo inverts gathers; give it to `hpfwi invert`"),
        (["train", "toy.toml", "--resume"], 2, "by its folder: `hpfwi resume runs/NAME`"),
        (["invert", "marmousi_smooth"], 2, "name its file (.npy, .npz, .zarr, .segy or .sgy) with --model PATH"),
        (["invert", "marmousi_smooth", "--model", "gone.npy"], 3, "gone.npy does not exist"),
        (
            ["invert", "toy.toml", "--set", "data.observed=gone.zarr", "--set", "model.initial=linear"],
            3,
            "gone.zarr does not exist",
        ),
        (["invert", "toy.toml", "--set", "modelling.substeps=1", "--set", "survey.dt_s=0.01"], 3, "substeps"),
        (["plan", "toy.toml", "--set", "inversion.shots_per_iteration=9"], 2, "more than the 2 shots of the survey"),
    ],
)
def test_what_is_wrong_is_said_before_there_is_a_folder(
    inversion: FakeInversion, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "train.toml").write_text("[training]\nepochs = 3\n")
    assert words in refused(code, *arguments)
    assert not (tmp_path / "runs").exists()
    assert inversion.calls == []


def test_the_printed_configuration_is_one(inversion: FakeInversion, tmp_path: Path) -> None:
    inversion.error = Stopped("Stopped.")
    refused(75, "invert", "toy.toml")
    assert "the folder of a run; go on with it by `hpfwi resume runs/toy`, or" in refused(2, "invert", "runs/toy")
    (tmp_path / "runs" / "toy" / "results.zarr").mkdir()
    model = refused(3, "plan", "toy.toml", "--model", "runs/toy")
    assert model.endswith("runs/toy/results.zarr:model/inverted for its model.\n")
    sentence = refused(2, "config", "nope")
    for name in ("refine", *recipe_names(), *training_recipe_names()):
        assert f" {name}" in sentence
    result = run("config", "toy.toml", "--set", "inversion.seed=4")
    assert "seed = 4  # --set; default 0" in result.stdout
    (tmp_path / "again.toml").write_text(result.stdout)
    assert load_config("again.toml")[0] == load_config("toy.toml", ["inversion.seed=4", "name=toy"])[0]


def test_a_plan_gives_reasons_time_and_memory(inversion: FakeInversion) -> None:
    result = run("plan", "toy.toml", "--workers", "0")
    assert result.exit_code == 0, result.output
    for name in ("points_per_wavelength", "substeps", "snapshot_megabytes_per_shot", "estimated_time"):
        assert name in result.stdout
    assert "Courant" in result.stdout
    assert inversion.calls == []


def test_simulated_gathers_are_written_once(inversion: FakeInversion, tmp_path: Path) -> None:
    assert run("simulate", "toy.toml", "--out", "g.zarr").stdout.endswith(
        "Wrote 2 shots x 40 receivers x 60 samples to g.zarr\n"
    )
    from hpfwi.store.gathers import open_gathers

    assert open_gathers(tmp_path / "g.zarr").shape == (2, 40, 60)
    assert "g.zarr exists already: choose another name, or replace it with --overwrite" in refused(
        2, "simulate", "toy.toml", "--out", "g.zarr"
    )
    assert run("simulate", "toy.toml", "--out", "g.zarr", "--overwrite").exit_code == 0


def test_the_environment_as_json() -> None:
    assert json.loads(run("env", "--json").stdout)["python"]


def test_the_version() -> None:
    assert run("--version").stdout.startswith("hpfwi ")


LOOP = """
import sys, time
from hpfwi.stop import Stop, on_signals
stop = Stop()
try:
    with on_signals(stop, lambda sentence: print(sentence, flush=True)):
        print("ready", flush=True)
        while sys.argv[1] == "deaf" or not stop.requested:
            time.sleep(0.01)
except KeyboardInterrupt:
    print("at once", flush=True)
print("reason", stop.reason, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("loop", ["polling", "deaf"])
def test_a_signal_asks_and_a_second_one_insists(number: int, name: str, loop: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOOP, loop], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.stdout.readline().startswith(f"{name}: stopping soon")
        if loop == "deaf":
            os.kill(process.pid, number)
            assert process.stdout.readline() == "at once\n"
        assert process.stdout.readline() == f"reason {name}\n"
    assert process.returncode == 0


def test_ctrl_c_while_the_inversion_is_imported_leaves_a_run_to_resume(
    inversion: FakeInversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is there by then: "Interrupted." and 130 left it without a word on how to go on."""

    class Slow(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name != "invert":
                raise AttributeError(name)
            os.kill(os.getpid(), signal.SIGINT)
            return inversion

    monkeypatch.setitem(sys.modules, "hpfwi.inversion.invert", Slow("hpfwi.inversion.invert"))
    inversion.error = Stopped("Stopped after iteration 0; go on.")
    result = CliRunner().invoke(cli.app, ["invert", "toy.toml"])
    assert result.exit_code == 75, result.output
    assert "Ctrl-C: stopping soon" in result.output
    assert len(inversion.calls) == 1


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    """`hpfwi config | head -1` once ended with a plea for a bug report."""
    command = subprocess.Popen(
        [sys.executable, "-m", "hpfwi", "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    with command.stderr as errors:
        assert errors.read() == ""
    assert command.wait() == 141
