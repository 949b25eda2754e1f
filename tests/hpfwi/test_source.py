from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.grid import Grid
from hpfwi.physics.source import (
    SourceSettings,
    build_wavelet,
    differ_by_shot,
    highest_frequency_hz,
    peak_frequency_hz,
    read_wavelet,
    ricker,
)
from hpfwi.physics.survey import Survey, SurveySettings, build_survey

SURVEY = build_survey(SurveySettings(shots=2, dt_s=0.002, samples=400), Grid((20, 40), (10.0, 10.0)))


def test_ricker_has_its_maximum_zeros_and_mean() -> None:
    wavelet = ricker(8.0, 0.001, 1000, 0.1875)
    assert np.argmax(wavelet) in (187, 188)
    assert abs(wavelet.sum()) < 1e-6
    assert abs(wavelet[0]) < 1e-7
    # The zero crossings lie 1 / (π √2 peak) from the maximum.
    crossing_s = 0.1875 + 1 / (np.pi * np.sqrt(2) * 8.0)
    sign_changes = 0.001 * np.flatnonzero(np.diff(np.sign(wavelet[187:300]))) + 0.187
    assert sign_changes[0] == pytest.approx(crossing_s, abs=0.001)


@given(st.floats(3.0, 30.0), st.sampled_from([0.001, 0.002, 0.004]))
def test_frequencies_of_a_ricker(peak_hz: float, dt_s: float) -> None:
    wavelet = ricker(peak_hz, dt_s, int(4 / (peak_hz * dt_s)) + 50, 1.5 / peak_hz)
    assert peak_frequency_hz(wavelet, dt_s) == pytest.approx(peak_hz, rel=0.01)
    assert highest_frequency_hz(wavelet, dt_s) / peak_hz == pytest.approx(2.55, abs=0.08)


def test_no_more_than_the_stated_energy_lies_above() -> None:
    wavelet = ricker(10.0, 0.001, 2000, 0.15)
    for share in (1e-2, 1e-4, 1e-6):
        limit_hz = highest_frequency_hz(wavelet, 0.001, share)
        energy = np.abs(np.fft.rfft(wavelet, 16000)) ** 2
        frequencies = np.fft.rfftfreq(16000, 0.001)
        assert energy[frequencies >= limit_hz].sum() <= 1.05 * share * energy.sum()
        assert energy[frequencies >= 0.95 * limit_hz].sum() > share * energy.sum()


def test_a_spike_has_energy_up_to_the_nyquist_frequency() -> None:
    spike = np.zeros(64)
    spike[0] = 1.0
    assert highest_frequency_hz(spike, 0.01) == pytest.approx(50.0)


def test_zero_wavelet_is_refused() -> None:
    with pytest.raises(DataError, match="zero everywhere"):
        peak_frequency_hz(np.zeros(10), 0.001)


def test_build_wavelet_scales_delays_and_silences_absent_sources() -> None:
    wavelet = build_wavelet(SourceSettings(peak_hz=10.0, strength=3.0), SURVEY)
    assert wavelet.shape == (2, 1, 400)
    assert wavelet.dtype == np.float32
    assert np.argmax(wavelet[0, 0]) == 75
    assert wavelet.max() == pytest.approx(3.0)
    late = build_wavelet(SourceSettings(peak_hz=10.0, delay_s=0.2), SURVEY)
    assert np.argmax(late[0, 0]) == 100
    nothing = [np.nan, np.nan]
    survey = Survey(
        np.array([[[10.0, 10.0], [10.0, 20.0]], [[10.0, 10.0], nothing]]), np.full((2, 1, 2), 10.0), 0.002, 400
    )
    padded = build_wavelet(SourceSettings(), survey)
    assert not padded[1, 1].any()
    assert padded[0, 1].any()


def test_a_peak_too_high_for_the_sampling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"peak_hz=200 is too high for dt_s=0.002.*use dt_s <= 0.00125"):
        ricker(200.0, 0.002, 100, 0.01)
    with pytest.raises(ConfigError, match=r"maximum at 1\.5 s comes after the last sample"):
        ricker(1.0, 0.002, 100, 1.5)


def test_one_column_is_taken_as_it_is_and_padded_or_cut(tmp_path: Path) -> None:
    series = np.array([0.0, 1.0, -2.0, 0.5])
    np.save(tmp_path / "w.npy", series)
    (tmp_path / "w.txt").write_text("# amplitude\n0.0\n1.0\n-2.0  # trough\n0.5\n")
    for name in ("w.npy", "w.txt"):
        assert read_wavelet(tmp_path / name, 0.002, 6, 2).tolist() == [[0.0, 1.0, -2.0, 0.5, 0.0, 0.0]]
        assert read_wavelet(tmp_path / name, 0.002, 3, 2).tolist() == [[0.0, 1.0, -2.0]]
    built = build_wavelet(SourceSettings(wavelet=str(tmp_path / "w.npy"), strength=2.0), SURVEY)
    assert built[1, 0, :4].tolist() == (2 * series).tolist()


def test_two_columns_are_resampled(tmp_path: Path) -> None:
    times_s = np.arange(0, 0.5, 0.003)
    table = np.column_stack([times_s, np.exp(-(((times_s - 0.2) / 0.04) ** 2))])
    np.savetxt(tmp_path / "w.csv", table, delimiter=",")
    np.save(tmp_path / "w.npy", table)
    wanted_s = 0.002 * np.arange(300)
    expected = np.where(wanted_s <= times_s[-1], np.exp(-(((wanted_s - 0.2) / 0.04) ** 2)), 0.0)
    for name in ("w.csv", "w.npy"):
        assert np.abs(read_wavelet(tmp_path / name, 0.002, 300, 5)[0] - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.txt", "0.0\nhello\n", "cannot be read as numbers"),
        ("w.txt", "1 2 3\n4 5 6\n", r"has shape \(2, 3\).*or as .npy a row of amplitudes for each shot"),
        ("w.txt", "1 2\n3\n", "cannot be read as numbers"),
        ("w.txt", "0.0\nnan\n", "holds NaN or infinity at sample 1"),
        ("w.txt", "0.0\n0.0\n", "holds zeros only"),
        ("w.csv", "0,1\n0,2\n0.1,3\n0.2,4\n", "increase from line to line"),
        ("w.csv", "0,1\n0.1,3\n", "at least 4 are needed"),
        ("w.npy", "not an array", r"cannot be read as numbers \(it is no NumPy file, or one of Python objects\)"),
        ("w.npy", "", r"cannot be read as numbers \(it is empty\)"),
        ("w.wav", "0.0\n", "suffix '.wav'"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        read_wavelet(tmp_path / name, 0.002, 100, 2)


ROWS = np.array([[0.0, 1.0, -2.0, 0.5], [0.0, 0.1, 0.3, 0.0]])


def test_a_row_for_each_shot(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", ROWS)
    built = build_wavelet(SourceSettings(wavelet=str(tmp_path / "w.npy"), strength=2.0), SURVEY)
    assert built.shape == (2, 1, 400)
    assert built[:, 0, :4] == pytest.approx(2 * ROWS)
    assert not built[:, :, 4:].any()
    assert read_wavelet(tmp_path / "w.npy", 0.002, 3, 2).tolist() == ROWS[:, :3].tolist()
    assert differ_by_shot(built)
    one_fires_twice = np.zeros((3, 2, 4))
    one_fires_twice[0, 0] = one_fires_twice[1, 1] = one_fires_twice[2] = ROWS[0]
    assert not differ_by_shot(one_fires_twice)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (ROWS, r"holds wavelets of 2 shots .* the survey has 3: estimate them again .* `hpfwi wavelet --per-shot`"),
        (np.ones((7, 3)), r"holds wavelets of 7 shots .* the survey has 3: transpose it, .* like \[time, shot\]\.$"),
        (np.array([ROWS[0], 0 * ROWS[0], ROWS[1]]), "holds shot 1, zeros only within the 100 samples"),
        (np.array([ROWS[0], ROWS[1], ROWS[1] * np.nan]), "NaN or infinity at shot 2, sample 0"),
        (np.ones((3, 4, 5)), r"has shape \(3, 4, 5\)"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, rows: np.ndarray, sentence: str) -> None:
    np.save(tmp_path / "w.npy", rows)
    with pytest.raises(DataError, match=sentence):
        read_wavelet(tmp_path / "w.npy", 0.002, 100, 3)


def test_frequencies_come_from_all_shots() -> None:
    """A quiet shot of high frequencies asks for the grid that it needs, and a loud one does not decide the peak."""
    low, high = (ricker(peak_hz, 0.001, 1000, 0.3) for peak_hz in (6.0, 12.0))
    loud_and_quiet = np.stack([1000 * low, low, high])
    assert highest_frequency_hz(loud_and_quiet, 0.001) == highest_frequency_hz(high, 0.001)
    assert peak_frequency_hz(loud_and_quiet, 0.001) == pytest.approx(6.0, rel=0.05)
    assert peak_frequency_hz(np.stack([1000 * low, *[high] * 20]), 0.001) == pytest.approx(12.0, rel=0.05)
    with_silence = np.stack([np.zeros(1000), low, low])
    assert peak_frequency_hz(with_silence, 0.001) == peak_frequency_hz(low, 0.001)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npy does not exist"):
        read_wavelet(tmp_path / "none.npy", 0.002, 100, 1)
