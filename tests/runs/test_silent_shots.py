"""Shots that recorded nothing, or of which a mute leaves nothing: a run does without them and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi.figures.record import read_record
from hpfwi.inversion.silent_shots import about
from hpfwi.physics.survey import Survey
from hpfwi.report import render_page
from hpfwi.status import as_text, status
from hpfwi.store.gathers import open_gathers, write_gathers

SILENT = [0, 3]


@pytest.fixture(scope="module")
def options(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of runs on gathers with two silent shots, and on those gathers without them."""
    place = tmp_path_factory.mktemp("silent")
    store = open_gathers(reference.path / "observed.zarr")
    assert store.wavelet is not None
    gathers, survey = store.read(range(6)), store.survey
    gathers[SILENT] = 0.0
    write_gathers(place / "all.zarr", gathers, survey, store.wavelet)
    heard = [shot for shot in range(6) if shot not in SILENT]
    fewer = Survey(survey.sources_m[heard], survey.receivers_m[heard], survey.dt_s, survey.samples)
    write_gathers(place / "heard.zarr", gathers[heard], fewer, store.wavelet[heard])
    # One shot an iteration: some would have drawn a silent one alone.
    common = {"model__true": "none", "model__initial": "linear", "inversion__shots_per_iteration": 1}
    penalty = {"inversion__regularise__tv": 0.1}  # in proportion to the energy of an iteration
    return tuple(common | penalty | {"data__observed": place / name} for name in ("all.zarr", "heard.zarr"))  # type: ignore[return-value]


def test_a_run_does_without_silent_shots_and_names_them(
    run: Any, resume: Any, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = resume(run(tmp_path / "all", stop_after=3, **options[0]))
    without = run(tmp_path / "heard", **options[1])
    for name in ("inverted", "best", "history"):
        assert np.array_equal(ended.array(f"model/{name}"), without.array(f"model/{name}"))
    assert [event["misfit"] for event in ended.of_kind("iteration")] == [
        event["misfit"] for event in without.of_kind("iteration")
    ]
    assert ended.array("gathers/shots").tolist() == [2, 4, 5]
    sentence = "shots 0 and 3 are silent: every sample is zero, so they are left out"
    assert capsys.readouterr().out.count(sentence) == 1
    assert sentence in render_page(read_record(ended.path), [])
    assert "Left out    shots 0 and 3, without a signal" in as_text(status(ended.path))
    assert status(without.path).silent_shots == []


def test_a_shot_that_the_mute_silences_is_left_out_too(run: Any, reference: Any, tmp_path: Path) -> None:
    """The source of shot 0 is so near the end of the line that all of its receivers lie on one side."""
    survey = open_gathers(reference.path / "observed.zarr").survey
    offsets = np.abs(survey.receivers_m[..., 1] - survey.sources_m[:, :1, 1])
    farthest = np.sort(offsets.max(axis=1))
    ended = run(tmp_path, data__mute__min_offset_m=0.5 * (farthest[1] + farthest[2]), inversion__iterations=2)
    silent = np.flatnonzero(offsets.max(axis=1) < farthest[2]).tolist()
    (event,) = [event for event in ended.of_kind("derived") if event["name"] == "silent_shots"]
    assert event["value"] == silent
    assert len(silent) == 2
    assert event["reason"] == about(silent, muted=True)
