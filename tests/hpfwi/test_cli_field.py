"""From a SEG-Y line to a wavelet, and from a run to a SEG-Y model: what the commands print, leave and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segyio
from typer.testing import CliRunner, Result

from hpfwi import cli
from hpfwi.config import load_config
from hpfwi.errors import DataError
from hpfwi.experiment import build_experiment
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.physics.modelling import simulate
from hpfwi.results import Results
from hpfwi.store.gathers import open_gathers
from hpfwi.store.models import read_model
from hpfwi.store.segy_write import write_segy_model

MODEL = ["model.shape=[20,30]", "model.initial=constant", "model.constant_mps=2000.0", "source.peak_hz=9.0"]
SURVEY = ["survey.shots=2", "survey.samples=200", "survey.dt_s=0.003"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(code: int, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    (sentence,) = result.stderr.strip().splitlines()
    return sentence


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shots in a constant earth as a field crew would deliver them; the working folder is beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPFWI_DEBUG", raising=False)
    experiment = build_experiment(load_config(None, [*MODEL, *SURVEY])[0])
    survey, settings = experiment.survey, experiment.config.modelling
    gathers = simulate(experiment.models.initial, survey, 1000 * experiment.wavelet, settings, device="cpu")
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = 1, np.arange(survey.samples), survey.shots * survey.receivers
    with segyio.create("line.sgy", spec) as file:
        file.bin[segyio.BinField.Interval] = 3000
        for number, (shot, receiver) in enumerate(np.ndindex(survey.shots, survey.receivers)):
            file.header[number] = {
                segyio.TraceField.FieldRecord: 100 + shot,
                segyio.TraceField.SourceX: int(survey.sources_m[shot, 0, 1]),
                segyio.TraceField.GroupX: int(survey.receivers_m[shot, receiver, 1]),
                segyio.TraceField.SourceDepth: 15,
                segyio.TraceField.ReceiverGroupElevation: -15,
            }
            file.trace[number] = gathers[shot, receiver]
    return tmp_path / "line.sgy"


def test_from_segy_to_a_wavelet(line: Path) -> None:
    result = run("data", "gathers", "line.sgy", "line.zarr", "--band-hz", "0,20")
    assert result.exit_code == 0, result.output
    shown = dict(text.split(maxsplit=1) for text in result.stdout.splitlines())
    assert shown["Shots"] == "2, of 30 receivers"
    assert shown["Receivers"] == "0 to 435 m along the line, 15 m deep"
    store = open_gathers("line.zarr")
    assert store.wavelet is None
    assert store.provenance["band_hz"] == [0.0, 20.0]
    field = [part for option in [*MODEL, "data.observed=line.zarr"] for part in ("--set", option)]
    Path("my.toml").write_text("")
    plan = run("plan", "my.toml", *field)
    assert plan.exit_code == 0, plan.output
    assert "hpfwi wavelet" in plan.stdout
    found = run("wavelet", "my.toml", *field, "--out", "w.npy", "--length-s", "0.3")
    assert found.exit_code == 0, found.output
    assert float(found.stdout.split("Explains")[1].split("%")[0]) > 98
    assert 300 < np.abs(np.load("w.npy")).max() < 1100
    again = run("plan", "my.toml", *field, "--set", "source.wavelet=w.npy")
    assert "hpfwi wavelet" not in again.stdout
    assert "w.npy" in again.stdout
    assert "for each" not in again.stdout
    each = run("wavelet", "my.toml", *field, "--out", "each.npy", "--length-s", "0.3", "--per-shot")
    assert each.exit_code == 0, each.output
    told = [text.split() for text in each.stdout.splitlines()]
    assert np.load("each.npy").shape == (2, 101)
    assert [words[:2] for words in told if words[0] == "Shot"] == [["Shot", "0"], ["Shot", "1"]]
    assert all(float(words[2]) > 98 for words in told if words[0] == "Shot")
    np.save("each.npy", np.load("each.npy") * [[1.0], [0.5]])  # the two shots mirror each other
    of_each = run("plan", "my.toml", *field, "--set", "source.wavelet=each.npy")
    assert "one for each of 2 shots" in " ".join(of_each.stdout.split())
    np.save("three.npy", np.ones((3, 101)))
    sentence = refused(3, "plan", "my.toml", *field, "--set", "source.wavelet=three.npy")
    assert "holds wavelets of 3 shots (it has the shape (3, 101)) and the survey has 2: estimate" in sentence
    assert "--shots 1 has no say" in refused(2, "wavelet", "my.toml", *field, "--per-shot", "--shots", "1")


def test_an_area_out_of_segy(line: Path) -> None:
    result = run("data", "gathers", "line.sgy", "area.zarr", "--areal", "--line", "0,-50,435,-50")
    assert result.exit_code == 0, result.output
    assert "Receivers    0 to 435 m along the line, 50 m to its left, 15 m deep" in result.stdout
    assert open_gathers("area.zarr").survey.receivers_m.shape[-1] == 3


def test_what_cannot_be_done_is_one_sentence(line: Path) -> None:
    assert "not 2 numbers" in refused(2, "data", "gathers", "line.sgy", "a.zarr", "--band-hz", "5")
    assert "cannot be taken" in refused(2, "data", "gathers", "line.sgy", "a.zarr", "--band-hz", "5,4000")
    assert "--datum-m nan cannot be used; give a finite" in refused(2, "data", "gathers", "a", "b", "--datum-m", "nan")
    assert "--length-s inf cannot be used; give a finite" in refused(2, "wavelet", "my.toml", "--length-s", "inf")
    assert "does not exist" in refused(3, "data", "gathers", "none.sgy", "a.zarr")
    assert "written as a .zarr folder" in refused(2, "data", "gathers", "line.sgy", "a.npy")
    assert "written as a .zarr folder" in refused(2, "simulate", "demo", "--out", "a.segy")
    assert "as `hpfwi data gathers` makes of SEG-Y" in refused(3, "plan", "demo", "--set", "data.observed=line.sgy")
    assert "is not text; give a TOML file" in refused(2, "plan", "line.sgy")
    assert "cannot be written" in refused(3, "data", "gathers", "line.sgy", "line.sgy/a.zarr")
    Path("my.toml").write_text("")
    assert "no gathers to find a wavelet in" in refused(2, "wavelet", "my.toml")
    assert "is written as .npy" in refused(2, "wavelet", "my.toml", "--out", "w.txt")
    assert "cannot be written" in refused(3, "simulate", "demo", "--out", "line.sgy/a.zarr")
    blind = ("--set", "model.true=none", "--set", "model.initial=linear")
    assert "needs a true model" in refused(2, "simulate", "demo", *blind)
    assert sorted(path.name for path in line.parent.iterdir()) == ["line.sgy", "my.toml"]


def test_models_of_a_run_as_files(tmp_path: Path) -> None:
    velocity = np.random.default_rng(3).uniform(1500, 4500, (12, 9)).astype(np.float32)
    results = Results(tmp_path / "run" / "results.zarr")
    results.describe(name="run", spacing_m=(12.5, 20.0), origin_m=(0.0, 100.0), dt_s=0.002)
    results.model("initial", velocity)
    results.append_history(5, velocity + 1)
    folder = str(tmp_path / "run")
    for suffix in ("segy", "npy", "zarr"):
        out = tmp_path / f"model.{suffix}"
        result = run("velocity", folder, str(out))
        assert "model after iteration 5, 12 x 9 cells of 12.5 x 20 m" in result.stdout
        model = read_model(out, (12.5, 20.0) if suffix == "npy" else None)
        assert model.grid.spacing_m == (12.5, 20.0)
        assert (model.velocity == velocity + 1).all()
    assert "exists already" in refused(2, "velocity", folder, str(tmp_path / "model.npy"))
    assert run("velocity", folder, str(tmp_path / "model.npy"), "--which", "initial", "--overwrite").exit_code == 0
    assert (np.load(tmp_path / "model.npy") == velocity).all()
    assert "has no true model; it holds history, initial" in refused(3, "velocity", folder, "a.npy", "--which", "true")
    assert "holds no models" in refused(3, "velocity", str(tmp_path), "a.npy")
    assert "suffix '.png'" in refused(2, "velocity", folder, "a.png")


def test_a_depth_step_that_headers_cannot_hold_is_refused(tmp_path: Path) -> None:
    for step_m in (40.0, 10.0001):
        model = EarthModel(np.full((4, 4), 2000.0, np.float32), Grid((4, 4), (step_m, 10.0)))
        with pytest.raises(DataError, match="whole millimetres"):
            write_segy_model(tmp_path / "a.segy", model)
    assert not list(tmp_path.iterdir())
