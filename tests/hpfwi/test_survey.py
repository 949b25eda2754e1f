import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpfwi.errors import DataError
from hpfwi.physics.grid import Grid
from hpfwi.physics.survey import Survey, SurveySettings, build_survey

GRID = Grid((20, 40), (10.0, 15.0))


def survey(sources: object, receivers: object, dt_s: float = 0.001, samples: int = 100) -> Survey:
    return Survey(np.array(sources, float), np.array(receivers, float), dt_s, samples)


def test_default_line_covers_the_model_one_cell_deep() -> None:
    built = build_survey(SurveySettings(shots=4), GRID)
    assert built.shots == 4
    assert built.receivers == 40
    assert built.receivers_m[0, :, 1].tolist() == GRID.distances_m().tolist()
    assert (built.receivers_m[..., 0] == 10.0).all()
    assert (built.sources_m[..., 0] == 10.0).all()
    cells = GRID.cells_of(built.sources_m)
    assert (cells == np.round(cells)).all(), "evenly spread sources stand on nodes"
    assert built.live_receivers().all()
    assert built.duration_s == pytest.approx(749 * 0.002)


def test_the_published_marmousi_line() -> None:
    settings = SurveySettings(shots=13, first_source_m=360.0, source_spacing_m=300.0)
    built = build_survey(settings, Grid((94, 288), (15.0, 15.0)))
    assert (built.sources_m[:, 0, 1] / 15).tolist() == list(range(24, 265, 20))


def test_a_first_source_without_spacing_is_mirrored() -> None:
    built = build_survey(SurveySettings(shots=3, first_source_m=45.0), GRID)
    assert built.sources_m[:, 0, 1].tolist() == [45.0, 292.5, 540.0]


@given(st.integers(1, 30), st.integers(1, 60))
def test_lines_are_inside_and_symmetric(shots: int, receivers: int) -> None:
    built = build_survey(SurveySettings(shots=shots, receivers=receivers), GRID)
    built.check(GRID)
    middle = GRID.extent_m[1] / 2
    assert abs(built.sources_m[..., 1].mean() - middle) <= 7.5 + 1e-9
    assert abs(built.receivers_m[..., 1].mean() - middle) <= 7.5 + 1e-9


def test_far_receivers_are_absent() -> None:
    built = build_survey(SurveySettings(shots=2, max_offset_m=100.0), GRID)
    offsets = np.abs(built.receivers_m[..., 1] - built.sources_m[..., 0, 1][:, None])
    live = built.live_receivers()
    assert offsets[live].max() <= 100.0
    assert np.isnan(built.receivers_m[~live]).all()
    assert 0 < live.sum() < live.size


def test_subset_keeps_order_and_arrays_are_read_only() -> None:
    built = build_survey(SurveySettings(shots=4), GRID)
    part = built.subset([2, 0])
    assert part.sources_m.tolist() == built.sources_m[[2, 0]].tolist()
    with pytest.raises(ValueError, match="read-only"):
        built.sources_m[0, 0, 0] = 1.0
    with pytest.raises(DataError, match="Shot 4 does not exist: the survey has shots 0 to 3"):
        built.subset([4])
    with pytest.raises(DataError, match="at least one shot"):
        built.subset([])


def test_a_source_outside_names_shot_and_position() -> None:
    with pytest.raises(DataError, match=r"Shot 2: source 0 at z=10 m, x=610 m is outside the model.*x=0 to 585 m"):
        build_survey(SurveySettings(shots=3, first_source_m=10.0, source_spacing_m=300.0), GRID)


def test_a_receiver_outside_names_shot_and_position() -> None:
    placed = survey([[[10, 0]], [[10, 15]]], [[[10, 0], [10, 30]], [[10, 15], [-1, 15]]])
    with pytest.raises(DataError, match="Shot 1: receiver 1 at z=-1 m, x=15 m is outside the model"):
        placed.check(GRID)


@pytest.mark.parametrize(
    ("sources", "receivers", "sentence"),
    [
        ([[[1, 1]]], [[[np.nan, np.nan]]], "Shot 0 has no receiver"),
        ([[[1, 1]], [[np.nan, np.nan]]], [[[1, 1]], [[1, 1]]], "Shot 1 has no source"),
        ([[[1, 1]]], [[[np.nan, 1]]], "Shot 0: receiver 0 has one coordinate missing"),
        ([[[1, np.inf]]], [[[1, 1]]], "Shot 0 has an infinite source position"),
        ([[[1, 1]], [[1, 1]]], [[[1, 1]]], "sources for 2 shots and receivers for 1"),
        ([[1, 1]], [[[1, 1]]], r"source positions have shape \(1, 2\)"),
        (np.empty((1, 0, 2)), [[[1, 1]]], "at least one shot and one source"),
    ],
)
def test_refused_positions(sources: object, receivers: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        survey(sources, receivers)


@pytest.mark.parametrize(("dt_s", "samples"), [(0.0, 10), (-1.0, 10), (float("nan"), 10), (0.001, 1)])
def test_refused_sampling(dt_s: float, samples: int) -> None:
    with pytest.raises(DataError, match=r"dt_s=|samples="):
        survey([[[1, 1]]], [[[1, 1]]], dt_s, samples)


def test_settings_refuse_what_is_not_finite_or_unknown() -> None:
    with pytest.raises(ValidationError, match="first_source_m=nan must be a finite number"):
        SurveySettings(first_source_m=float("nan"))
    with pytest.raises(ValidationError, match="extra"):
        SurveySettings(shot=3)  # type: ignore[call-arg]
