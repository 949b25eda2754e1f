"""An inversion that goes from low frequencies to high: its stages, and that no bit depends on who computed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.cli import _summary
from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.experiment import build_experiment
from hpfwi.figures.record import read_record
from hpfwi.inversion.bands import stage_at, stages_of
from hpfwi.inversion.outcome import Outcome
from hpfwi.inversion.task import InversionTask
from hpfwi.physics.bands import band_passed, delay_s
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.plan import derived_settings, in_brief
from hpfwi.report import render_page
from hpfwi.status import as_text, status
from hpfwi.store.gathers import open_gathers
from tests.runs.kinds_of_runs import BANDS


@pytest.fixture(scope="module")
def banded(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the tiny inversion in three bands, undisturbed."""
    return run(tmp_path_factory.mktemp("banded"), **BANDS)


def test_stages_share_the_iterations() -> None:
    for iterations in range(4, 30):
        stages = stages_of([3.0, 5.0, 8.0], iterations)
        lengths = [stage.end - stage.first for stage in stages]
        assert sum(lengths) == iterations
        assert max(lengths) - min(lengths) <= 1
        numbers = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
        assert [stage_at(stages, iteration).number for iteration in range(iterations)] == numbers


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_stop_at_or_beside_a_change_of_band_changes_no_bit(
    stop_after: int, run: Any, resume: Any, banded: Any, tmp_path: Path
) -> None:
    ended = resume(run(tmp_path, stop_after=stop_after, **BANDS))
    assert ended.bits == banded.bits


def task_at(model: str, banded: Any) -> InversionTask:
    """A replica of the run whose pixels are those of one of its models."""
    import zarr

    config, _ = load_config(banded.path / "config.toml", ["inversion.parameterisation.kind=pixel"])
    attrs: Any = zarr.open_group(banded.path / "results.zarr", mode="r").attrs
    start = EarthModel(banded.array(f"model/{model}"), Grid((24, 40), (15.0, 15.0)))
    observed = open_gathers(banded.path / "observed.zarr")
    return InversionTask(config, start, observed, attrs["observed_rms"], band_rms=attrs["band_rms"], device="cpu")


def energies(task: InversionTask, iteration: int) -> tuple[float, float]:
    """Residual and observed energy of all shots."""
    task.begin(iteration)
    found = [task.gradient([shot])[1] for shot in range(6)]
    return sum(each["residual_energy"] for each in found), sum(each["observed_energy"] for each in found)


def test_each_band_is_compared_with_itself_in_its_own_unit(banded: Any) -> None:
    """At the true model nothing is left in any band; a wavelet and records filtered otherwise would leave a lot."""
    for model, most, least in (("true", 1e-4, 0.0), ("initial", 1.0, 1e-3)):
        task = task_at(model, banded)
        for iteration in (0, 2, 5, 0):  # and back, as a group does that goes back to a checkpoint
            residual, observed = energies(task, iteration)
            assert observed == pytest.approx(6 * 40 * 180, rel=1e-6)
            assert least < residual / observed < most


def test_the_gradient_is_that_of_the_band(banded: Any) -> None:
    task = task_at("initial", banded)
    way = np.random.default_rng(4).standard_normal((24, 40)).astype(np.float32)
    way[:4] = 0.0
    slopes = []
    for iteration in (0, 7):
        task.begin(iteration)
        gradient = task.gradient([2])[0]
        pixels = task.parameterisation.get_parameter("pixels").data
        found = []
        for sign in (4.0, -8.0):
            pixels += sign * torch.from_numpy(way)
            task.begin(iteration)
            found.append(0.5 * task.gradient([2])[1]["residual_energy"])
        pixels += 4.0 * torch.from_numpy(way)
        slopes.append(float((gradient * way).sum()))
        assert (found[0] - found[1]) / 8.0 == pytest.approx(slopes[-1], rel=0.02)
    assert abs(slopes[0] - slopes[1]) > 0.1 * abs(slopes[1])


def test_adam_keeps_its_memory_from_band_to_band(banded: Any) -> None:
    """Measured on Marmousi: networks are thrown back by a fresh start, and pixels gain little by one."""
    task = task_at("initial", banded)
    for iteration in range(6):
        task.begin(iteration)
        task.advance(iteration, np.ones((24, 40)))
        steps = [int(value) for name, value in task.state().items() if name.endswith("/step")]
        assert steps == [iteration + 1]


def test_what_a_run_says_of_its_bands(banded: Any) -> None:
    iterations = banded.of_kind("iteration")
    assert [(event["stage"], event["band_hz"]) for event in iterations] == [(1, 14.0)] * 2 + [(2, 20.0)] * 3 + [
        (3, None)
    ] * 3
    found = status(banded.path)
    assert found.band == "whole band, stage 3 of 3"
    assert any(line.split() == ["Band", *found.band.split()] for line in as_text(found))
    page = render_page(read_record(banded.path), [])
    assert "in the last of 3 bands (whole band)" in page
    assert '<th scope="row">up to 20 Hz</th><td>2 to 4</td>' in page
    outcome = json.loads((banded.path / "done.json").read_text())  # speaks of the last band alone
    assert (outcome["misfit_first"], outcome["misfit_last"]) == (iterations[5]["misfit"], iterations[7]["misfit"])
    lines = _summary(banded.path, Outcome(**outcome), banded.path)
    assert lines[0].endswith("of the observed energy, whole band, from iteration 5 on")
    kept = [path.name for path in sorted((banded.path / "checkpoints").iterdir())]
    assert kept == ["iteration-00000006", "iteration-00000008"]  # none of a low band as the best


def test_without_bands_nothing_is_said(reference: Any) -> None:
    assert not any({"stage", "band_hz"} & event.keys() for event in reference.of_kind("iteration"))
    assert status(reference.path).band is None
    assert "Bands, one after" not in render_page(read_record(reference.path), [])


@pytest.mark.parametrize("known", [True, False])
def test_the_best_model_is_one_that_compares(known: bool, run: Any, banded: Any, tmp_path: Path) -> None:
    """Misfits of two bands do not compare, errors do: rates that overshoot make an early model the best."""
    changes: dict[str, Any] = {"inversion__parameterisation__lr_network": 0.03, "inversion__diagnostics_every": 1}
    if not known:
        changes |= {
            "model__true": "none",
            "data__observed": banded.path / "observed.zarr",
            "model__initial": f"{banded.path / 'results.zarr'}:model/initial",
        }
    ended = run(tmp_path, **BANDS, **changes)
    score = ended.checkpoint.meta["best_score"]
    if known:
        assert score == min(event["mse_kmps2"] for event in ended.of_kind("diagnostics"))
        return
    misfits = [event["misfit"] for event in ended.of_kind("iteration")]
    assert score == min(misfits[5:]) > min(misfits)


def test_a_plan_lists_the_bands_and_doubts_empty_ones(tiny_options: Any) -> None:
    config, _ = load_config("demo", tiny_options(inversion__bands_hz=[1.0, 14.0], survey__samples=180))
    rows = {row.name: row for row in derived_settings(build_experiment(config))}
    assert [rows[f"stage_{number}"].value for number in (1, 2, 3)] == ["up to 1 Hz", "up to 14 Hz", "whole band"]
    assert [rows[f"stage_{number}"].warning for number in (1, 2, 3)] == [True, False, False]
    assert "of the energy of the wavelet lies below 1 Hz" in rows["stage_1"].reason
    assert rows["stage_2"].reason.startswith("iterations 2 to 4, a snapshot every ")
    every = int(rows["stage_2"].reason.split("every ")[1].split()[0])
    assert every > int(rows["store_every"].value)
    assert any("Warning: stage_1 = up to 1 Hz" in line for line in in_brief(list(rows.values())))


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ("[9.0, 4.0]", "inversion.bands_hz = [9.0, 4.0] (from --set) cannot be used: the corners must ascend"),
        ("[4.0, 4.0]", "the corners must ascend"),
        ("[0.0, 4.0]", "inversion.bands_hz = [0.0, 4.0] (from --set) cannot be used; give more than 0"),
        ("4.0", "inversion.bands_hz = 4.0 (from --set) cannot be used; give a list"),
        ("[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]", "iterations=8 are too few for the 9 stages of bands_hz"),
        ("[9.0, 250.0]", "A band of 0 to 250 Hz cannot be taken at dt_s=0.002"),
    ],
)
def test_bands_that_cannot_be_taken_are_refused(bands: str, words: str, tiny_options: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        derived_settings(build_experiment(load_config("demo", tiny_options(inversion__bands_hz=bands))[0]))
    assert words in str(refused.value)


def test_the_delay_of_a_filter_is_where_it_puts_a_slow_pulse() -> None:
    dt_s, corner_hz = 0.002, 10.0
    times = dt_s * np.arange(2000)
    pulse = np.exp(-(((times - 1.0) / 0.2) ** 2)).astype(np.float32)
    filtered = band_passed(pulse, dt_s, 0.0, corner_hz).astype(np.float64)
    assert (filtered * times).sum() / filtered.sum() - 1.0 == pytest.approx(delay_s(corner_hz), rel=5e-3)
