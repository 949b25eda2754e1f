"""Mutes and offset windows: which samples count, and where their lines lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.inversion.bands import stages_of
from hpfwi.inversion.task import window_of
from hpfwi.inversion.windows import MuteSettings, time_window, trace_weights
from hpfwi.physics.bands import delay_s
from hpfwi.physics.survey import Survey

DT_S, SAMPLES = 0.01, 200
OFFSETS = np.array([0.0, 300.0, 600.0, 1500.0])


def survey() -> Survey:
    """Return one shot with receivers at OFFSETS on both sides, one of them absent, and a second shot elsewhere."""
    positions = np.concatenate([1000.0 - OFFSETS, 1000.0 + OFFSETS, [np.nan]])
    receivers = np.stack([np.where(np.isnan(positions), np.nan, 10.0), positions], axis=-1)
    sources = np.array([[[5.0, 1000.0], [np.nan, np.nan]], [[5.0, 2500.0], [5.0, 1000.0]]])
    return Survey(sources, np.stack([receivers, receivers]), DT_S, SAMPLES)


def of(shots: Sequence[int] = (0,), later_s: float = 0.0, **settings: Any) -> NDArray[np.float64]:
    mute = MuteSettings.model_validate(settings)
    return time_window(mute, survey(), shots, later_s) * trace_weights(mute, survey(), shots)[..., None]


def test_everything_counts_by_default_but_absent_receivers() -> None:
    assert not MuteSettings().active
    window = of()
    assert (window[0, :-1] == 1).all()
    assert (window[0, -1] == 0).all()


def test_a_top_mute_follows_its_line_and_rises_behind_it() -> None:
    times = DT_S * np.arange(SAMPLES)
    window = of(after_s=0.2, after_mps=1500.0, taper_s=0.1)[0]
    for receiver, offset in enumerate([*OFFSETS, *OFFSETS]):
        line = 0.2 + offset / 1500.0
        assert not window[receiver, times < line].any()
        assert (window[receiver, times > line + 0.1] == 1).all()
        rising = window[receiver, (line <= times) & (line + 0.1 >= times)]
        assert (np.diff(rising) >= 0).all()
        assert np.interp(line + 0.05, times, window[receiver]) == pytest.approx(0.5, abs=0.02)
    assert of(after_s=0.3, taper_s=0.0)[0, 3].tolist() == (times >= 0.3).astype(float).tolist()


def test_before_is_what_after_is_not() -> None:
    after, before = of(after_s=0.4, after_mps=2000.0, taper_s=0.0), of(before_s=0.4, before_mps=2000.0, taper_s=0.0)
    assert ((after + before)[0, :-1] >= 1).all()
    assert ((after + before)[0, :-1] == 2).sum() <= 8  # the sample on the line belongs to both
    both = of(after_s=0.1, after_mps=3000.0, before_s=0.5, before_mps=3000.0)
    assert 0 < both[0, 1].sum() < 60


def test_offsets_are_cut_and_tapered_on_both_sides() -> None:
    window = of(min_offset_m=200.0, max_offset_m=1000.0, offset_taper_m=200.0)[0, :4, 0]
    assert window.tolist() == [0.0, 0.5, 1.0, 0.0]


def test_the_nearest_source_counts_and_the_delay_of_a_filter_shifts_the_lines() -> None:
    alone, two = of([0], after_mps=1500.0), of([1], after_mps=1500.0)
    assert np.array_equal(alone[0, :4], two[0, :4])
    assert two[0, 7].sum() > alone[0, 7].sum()  # 1500 m from one source, none from the other
    assert of([0], later_s=0.1, after_s=0.2) == pytest.approx(of([0], after_s=0.3), abs=1e-12)


def test_in_a_band_the_lines_are_as_late_as_its_records() -> None:
    mute = MuteSettings(after_s=0.2, after_mps=1500.0)
    low, whole = (window_of(mute, survey(), [0], stage) for stage in stages_of([10.0], 2))
    assert np.array_equal(whole, of(after_s=0.2, after_mps=1500.0).astype(np.float32))
    assert np.array_equal(low, of(after_s=0.2, after_mps=1500.0, later_s=delay_s(10.0)).astype(np.float32))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.mute.before_mps=1500"],
            "[data.mute] before_mps=1500 is a line without a beginning; give before_s too.",
        ),
        (
            ["data.mute.min_offset_m=900", "data.mute.max_offset_m=800"],
            "[data.mute] max_offset_m=800 must be more than min_offset_m=900; no trace would count.",
        ),
        (["data.mute.after_mps=0"], "data.mute.after_mps = 0 (from --set) cannot be used; give more than 0"),
        (["data.mute.after_mp=0"], "data.mute.after_mp is not an option; did you mean data.mute.after_mps?"),
    ],
)
def test_what_makes_no_window_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("demo", overrides)
    assert words in str(refused.value)
