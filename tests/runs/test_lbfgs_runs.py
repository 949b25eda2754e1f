"""Pixel inversions with L-BFGS: better than Adam's, the same bits whoever computed them, and told what was tried."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.figures.curves import curves
from hpfwi.figures.record import read_record
from hpfwi.inversion.task import InversionTask, open_task
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.report import render_page
from hpfwi.store.gathers import open_gathers
from tests.runs.kinds_of_runs import LBFGS, PIXEL, SHAPED


@pytest.fixture(scope="module")
def plain(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a run with L-BFGS and nothing else."""
    return run(tmp_path_factory.mktemp("plain"), **LBFGS)


@pytest.fixture(scope="module")
def shaped(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a run with L-BFGS and everything that works on a step."""
    return run(tmp_path_factory.mktemp("shaped"), **SHAPED)


def of_last_band(ended: Any, key: str) -> list[float]:
    return [event[key] for event in ended.of_kind("iteration") if event.get("band_hz") is None]


def test_as_many_evaluations_bring_more_than_with_adam(run: Any, plain: Any, tmp_path: Path) -> None:
    """Measured at 2, 5, 10, 20, 30 and 50 m/s: Adam's best misfit, at 30, is 16 times that of L-BFGS."""
    adam = run(tmp_path, **PIXEL, inversion__parameterisation__lr_pixel_mps=20.0)
    misfits = [ended.of_kind("iteration")[-1]["misfit"] for ended in (plain, adam)]
    assert misfits[0] < 0.3 * misfits[1]
    errors = [json.loads((ended.path / "done.json").read_text())["mse_last_kmps2"] for ended in (plain, adam)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("stop_after", [2, 6])
def test_a_stop_between_trials_changes_no_bit(
    stop_after: int, run: Any, resume: Any, shaped: Any, tmp_path: Path
) -> None:
    rejected = [event["rejected"] for event in shaped.of_kind("iteration")]
    assert 1 in rejected[:6]
    assert 1 in rejected[6:]
    assert resume(run(tmp_path, stop_after=stop_after, **SHAPED)).bits == shaped.bits


def test_threads_change_no_bit(run: Any, shaped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi import parallel

    monkeypatch.setattr(parallel, "local_threads", lambda settings: 3)
    assert run(tmp_path, **SHAPED).bits == shaped.bits


def test_what_is_minimised_is_misfit_and_penalties(plain: Any) -> None:
    config, _ = load_config(plain.path / "config.toml", ["inversion.regularise.tv=0.1"])
    observed = open_gathers(plain.path / "observed.zarr")
    rms = float(zarr.open_group(plain.path / "results.zarr", mode="r").attrs["observed_rms"])  # type: ignore[arg-type]
    way = np.random.default_rng(6).standard_normal((24, 40)).astype(np.float32)
    found = []
    for shift in (0.0, 4.0, -4.0):
        model = EarthModel(plain.array("model/initial") + shift * way, Grid((24, 40), (15.0, 15.0)))
        task = InversionTask(config, model, observed, rms, device="cpu")
        task.begin(0)
        task.advance(0, np.sum([task.contribution(shots)[0] for shots in task.groups], axis=0))
        found.append({name.removeprefix("optimiser/"): value for name, value in task.state().items()})
    slope = float((found[0]["gradient"] * way.ravel()).sum())
    assert (found[1]["value"] - found[2]["value"]) / 8.0 == pytest.approx(slope, rel=0.02)
    start = plain.of_kind("iteration")[0]["misfit"]
    assert found[0]["value"] > 1.2 * start  # the penalty is no small part of it


def test_the_misfit_told_is_that_of_the_model_kept(shaped: Any) -> None:
    """Each stage begins at the model that the one before accepted last, and so does the run end."""
    stages = shaped.of_kind("iteration")[:6], shaped.of_kind("iteration")[6:]
    for events in stages:
        assert events[0]["rejected"] == 0
        assert "step_length" not in events[0]
        for before, event in itertools.pairwise(events):
            assert event["misfit"] == (before["misfit"] if event["rejected"] else event["trial_misfit"])
            assert 0 < event["step_length"] <= 1
    task = open_task(shaped.path, device="cpu")
    task.load_state(
        {name.removeprefix("state/"): v for name, v in shaped.checkpoint.tensors.items() if name.startswith("state/")}
    )
    assert np.array_equal(task.model(), shaped.array("model/inverted"))
    task.begin(11)
    energies = [task.gradient(shots)[1] for shots in task.groups]
    misfit = sum(each["residual_energy"] for each in energies) / sum(each["observed_energy"] for each in energies)
    assert misfit == pytest.approx(of_last_band(shaped, "misfit")[-1], rel=1e-6)


def test_the_models_shown_are_those_accepted(shaped: Any) -> None:
    """Of an iteration whose trial is rejected the history has the model before, and so have the diagnostics."""
    events = shaped.of_kind("iteration")
    history, diagnosed = shaped.array("model/history"), shaped.of_kind("diagnostics")
    for event, (before, model), told in zip(events[1:], itertools.pairwise(history[:-1]), diagnosed[1:], strict=False):
        begins = "step_length" not in event  # a stage, at the model that the one before accepted last
        assert np.array_equal(model, before) is (begins or bool(event["rejected"]))
        assert ("skipped_share" in told) is not bool(event["rejected"])
        if event["rejected"]:
            assert told["mse_kmps2"] == diagnosed[event["iteration"] - 1]["mse_kmps2"]


def test_water_and_bounds_are_kept(shaped: Any) -> None:
    initial, found = shaped.array("model/initial"), shaped.array("model/inverted")
    assert np.array_equal(found[:3], initial[:3])
    assert found[3:].min() >= 1400.0
    assert found.max() <= 5600.0
    moved = np.abs(found - initial)[3:]
    assert moved.max() > 100.0
    steps = np.abs(np.diff(found - initial, axis=1))[4:]
    assert steps.max() < 0.5 * moved.max()  # what smooth steps add up to is smooth


def test_what_was_tried_is_shown(shaped: Any, plain: Any, reference: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = shaped.of_kind("iteration")
    found = EventAccumulator(str(shaped.path / "tb")).Reload()
    for name in ("rejected", "step_length", "trial_misfit"):
        shown = {event.step: event.value for event in found.Scalars(f"inversion/{name}")}
        assert shown == pytest.approx({event["iteration"]: event[name] for event in events if name in event}, rel=1e-6)
    rejected = sum(event["rejected"] for event in events)
    page = render_page(read_record(shaped.path), [])
    assert f'<th scope="row">trials that the line search rejected</th><td>{rejected} of 12</td>' in page
    assert "line search" not in render_page(read_record(reference.path), [])
    picture = curves(read_record(shaped.path))
    assert picture is not None
    assert "Crosses" in picture.caption
    labels = [line.get_label() for line in picture.figure.axes[0].lines]
    assert f"trials rejected ({rejected})" in labels


def test_the_network_of_s_denorm_is_trained_too(run: Any, resume: Any, reference: Any, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"inversion__optimiser__kind": "lbfgs", "inversion__iterations": 5}
    straight = run(tmp_path / "straight", **changes)
    misfits = [event["misfit"] for event in straight.of_kind("iteration")]
    assert misfits[-1] < 0.9 * misfits[0]
    assert misfits == sorted(misfits, reverse=True)
    assert resume(run(tmp_path / "stopped", stop_after=3, **changes)).bits == straight.bits


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inversion__shots_per_iteration": 4}, 'shots_per_iteration=4 draws other shots .*"none", or opt'),
        ({"inversion__parameterisation__kind": "a-denorm-recentre"}, "give one of pixel, s-denorm, pretrain, or"),
        ({"inversion__parameterisation__kind": "s-denorm", "inversion__smooth_gradient_m": 9}, "=9 has no meaning"),
        ({"inversion__optimiser": "lbfgs"}, r"is a table of options; .* such as inversion\.optimiser\.kind"),
        ({"inversion__optimiser__kind": "newton"}, 'give "adam" or "lbfgs"'),
    ],
)
def test_what_a_line_search_cannot_do_is_refused(changes: dict[str, Any], words: str, tiny_options: Any) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("demo", tiny_options(**{**LBFGS, **changes}))
