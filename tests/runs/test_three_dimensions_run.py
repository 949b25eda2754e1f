"""Inversions of a model [z, y, x] from the command to the report: what they reach, leave, and refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hpfwi import cli, figures
from hpfwi.figures import gathers, overview, sections, style
from hpfwi.figures.record import read_record
from hpfwi.store.models import read_model
from tests.runs.kinds_of_runs import BLOCK


@pytest.fixture(scope="module")
def straight(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an undisturbed run of s-denorm."""
    return run(tmp_path_factory.mktemp("straight"), **BLOCK)


def test_it_comes_nearer_to_the_gathers_and_to_the_model(straight: Any, run: Any, tmp_path: Path) -> None:
    pixel = run(tmp_path, **BLOCK, inversion__parameterisation__kind="pixel")
    for ended in (straight, pixel):
        misfits = [event["misfit"] for event in ended.of_kind("iteration")]
        assert misfits[-1] < 0.5 * misfits[0]
        errors = [event["mse_kmps2"] for event in ended.of_kind("diagnostics")]
        assert errors[-1] < 0.99 * errors[0]
        assert ended.array("model/inverted").shape == (12, 13, 14)
        assert ended.array("survey/sources_m").shape == (4, 3)
        assert ended.array("gathers/receivers_m").shape == (3, 35, 3)


@pytest.mark.parametrize("kind", ["pretrain", "a-denorm-moving-mean"])
def test_other_networks_write_a_block(kind: str, run: Any, tmp_path: Path) -> None:
    ended = run(tmp_path, **BLOCK | {"inversion__iterations": 2}, inversion__parameterisation__kind=kind)
    assert np.ptp(ended.array("model/inverted") - ended.array("model/initial")) > 1.0


def test_stopped_and_resumed_on_other_threads_is_undisturbed(
    straight: Any, run: Any, resume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpfwi import parallel

    monkeypatch.setattr(parallel, "local_threads", lambda settings: 1)
    stopped = run(tmp_path, stop_after=2, **BLOCK)
    monkeypatch.setattr(parallel, "local_threads", lambda settings: 3)
    assert resume(stopped).bits == straight.bits


def test_a_block_out_of_a_file_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Any, tiny_options: Any
) -> None:
    """Observed gathers are made by one command and inverted by another, whose models and report are looked at."""
    monkeypatch.chdir(tmp_path)
    shown = (overview.overview, sections.models, gathers.gathers, sections.profiles, sections.history)
    monkeypatch.setattr(figures, "FIGURES", shown)  # the others draw curves, whatever the model is
    np.save("block.npy", straight.array("model/true"))
    changes = BLOCK | {"inversion__iterations": 1, "model__spacing_m": "[25.0, 25.0, 25.0]"}
    options = [f"--set={option}" for option in tiny_options(**changes)]
    invoke = CliRunner().invoke

    def call(*words: str) -> str:
        result = invoke(cli.app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    call("simulate", "demo_3d", "--model", "block.npy", "--out", "observed.zarr", *options)
    call("invert", "demo_3d", "--model", "block.npy", *options, "--set=data.observed=observed.zarr")
    near = ["--set=data.observed=observed.zarr", "--set=model.initial=block.npy", "--set=model.true=none"]
    said = call("wavelet", "demo_3d", *options, *near, "--length-s=0.25", "--shots=1")
    assert float(said.partition("largest amplitude ")[2].partition(" Pa m")[0]) == pytest.approx(1.0, abs=0.05)
    said = call("velocity", "runs/demo_3d", "true.zarr", "--which", "true")
    assert "12 x 13 x 14 cells of 25 x 25 x 25 m" in said
    call("velocity", "runs/demo_3d", "true.npy", "--which", "true")
    np.testing.assert_array_equal(np.load("true.npy"), np.load("block.npy"))
    call("velocity", "runs/demo_3d", "true.segy", "--which", "true")
    np.testing.assert_array_equal(read_model("true.segy").velocity, np.load("block.npy"))
    field = [*options, "--set=data.observed=observed.zarr", "--set=model.true=none", "--set=model.spacing_m=none"]
    assert "300 m deep, 325 m wide" in call("plan", "demo_3d", *field, "--set=model.initial=true.zarr")
    refused = invoke(cli.app, ["plan", "demo_3d", *field, "--set=model.shape=[12, 14]"])
    assert (refused.exit_code, "a 3-D survey needs a 3-D model" in refused.output) == (3, True)
    look_at_report(tmp_path / "runs" / "demo_3d", np.load("block.npy"))


def look_at_report(path: Path, true_mps: np.ndarray) -> None:
    """The figures are there, and that of the models shows planes through the middle with the survey from above."""
    drawn = {"overview", "models", "gathers", "profiles", "history"}
    assert {picture.stem for picture in (path / "figures").glob("*.png")} == drawn
    assert "Three planes through the middle of each block" in (path / "report.html").read_text("utf-8")
    record = read_record(path)
    with style.look():
        picture = sections.models(record)
    assert picture is not None
    assert record.results is not None
    shown = [axes.images[0].get_array() for axes in picture.figure.axes[:3]]
    true = true_mps.astype(np.float64) * 1e-3
    for plane, wanted in zip(shown, (true[:, 6], true[:, :, 7], true[6]), strict=True):
        np.testing.assert_array_equal(plane, wanted)
    above = {line.get_label(): line.get_xydata() for line in picture.figure.axes[2].lines}
    assert set(above) == {"35 receivers", "4 sources"}
    sources = record.results.array("survey/sources_m")
    assert sources is not None
    np.testing.assert_array_equal(above["4 sources"], sources[:][:, :0:-1])
