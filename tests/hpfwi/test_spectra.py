"""Wavenumber bands: single-band fields, amplitude against coherence, half-lives."""

from itertools import pairwise

import numpy as np
import pytest

from hpfwi.inversion.spectra import (
    BANDS,
    band_edges,
    band_of_wavenumber,
    band_scores,
    band_shares,
    deep_half,
    half_lives,
)

SHAPE = (94, 288)
SPACING_M = (15.0, 15.0)
WAVELENGTH_M = 300.0
EDGES = band_edges(WAVELENGTH_M)
CENTRES = (0.6 * EDGES[0], *(float(np.sqrt(a * b)) for a, b in pairwise(EDGES)), 1.5 * EDGES[3])


def wave(band: int, phase: float = 0.0, angle: float = 0.3) -> np.ndarray:
    """A plane wave of 100 m/s whose radial wavenumber lies in the middle of a band."""
    z, x = np.meshgrid(*(np.arange(n) * h for n, h in zip(SHAPE, SPACING_M, strict=True)), indexing="ij")
    return 100.0 * np.cos(2 * np.pi * CENTRES[band] * (np.sin(angle) * z + np.cos(angle) * x) + phase)


def initial() -> np.ndarray:
    return np.linspace(1500.0, 4500.0, SHAPE[0])[:, None] * np.ones(SHAPE[1])


def test_edges_are_the_stated_fractions_of_the_wavelength() -> None:
    assert np.array(EDGES) * WAVELENGTH_M == pytest.approx([0.25, 0.5, 1.0, 2.0])


def test_every_coefficient_but_the_mean_lies_in_one_band() -> None:
    band = band_of_wavenumber(SHAPE, SPACING_M, WAVELENGTH_M)
    assert band[0, 0] == -1
    assert np.count_nonzero(band == -1) == 1
    assert set(np.unique(band)) == {-1, *range(BANDS)}
    # 1 / (32 cells x 15 m) = 0.62 / lam along x alone.
    assert band[0, SHAPE[1] // 32] == 2


@pytest.mark.parametrize("band", range(BANDS))
def test_a_wave_of_one_band_is_seen_in_that_band(band: int) -> None:
    shares = band_shares(wave(band), SPACING_M, WAVELENGTH_M)
    # The taper widens every line; the longest waves, one or two to the model, leak across the nearby edge.
    assert shares[band] > (0.75 if band == 0 else 0.9)
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("band", range(1, BANDS))
def test_finding_one_band_mends_that_band_alone(band: int) -> None:
    true = initial() + sum(wave(number) for number in range(BANDS))
    scores = band_scores(initial() + wave(band), initial(), true, SPACING_M, WAVELENGTH_M)
    for number in range(BANDS):
        if number == band:
            # What remains are the tails of the waves in the other bands.
            assert scores.error[number] < 0.25
            assert scores.coherence[number] > 0.85
            assert scores.amplitude[number] > 0.65
        elif abs(number - band) > 1:
            assert scores.error[number] > 0.8
            assert scores.amplitude[number] < 0.3


def test_amplitude_without_coherence_is_told_apart() -> None:
    true = initial() + wave(2)
    right, shifted, opposite = (
        band_scores(initial() + wave(2, phase), initial(), true, SPACING_M, WAVELENGTH_M)
        for phase in (0.0, np.pi / 2, np.pi)
    )
    for scores in (right, shifted, opposite):
        assert scores.amplitude[2] == pytest.approx(1.0, abs=0.1)
    assert right.coherence[2] == pytest.approx(1.0)
    assert shifted.coherence[2] == pytest.approx(0.0, abs=0.05)
    assert opposite.coherence[2] == pytest.approx(-1.0, abs=0.05)
    assert right.error[2] == pytest.approx(0.0, abs=1e-20)
    assert shifted.error[2] == pytest.approx(2.0, abs=0.1)
    assert opposite.error[2] == pytest.approx(4.0, abs=0.1)


def test_half_of_the_perturbation_has_half_the_amplitude_and_a_quarter_of_the_error() -> None:
    true = initial() + wave(3) + wave(1)
    scores = band_scores(initial() + 0.5 * (true - initial()), initial(), true, SPACING_M, WAVELENGTH_M)
    assert scores.amplitude == pytest.approx([0.5] * BANDS)
    assert scores.coherence == pytest.approx([1.0] * BANDS)
    assert scores.error == pytest.approx([0.25] * BANDS)


def test_the_start_itself_has_error_one_and_no_coherence() -> None:
    scores = band_scores(initial(), initial(), initial() + wave(2), SPACING_M, WAVELENGTH_M)
    assert scores.error == pytest.approx([1.0] * BANDS)
    assert scores.amplitude == pytest.approx([0.0] * BANDS)
    assert np.isnan(scores.coherence).all()


def test_nothing_to_find_gives_nan_and_no_warning() -> None:
    scores = band_scores(initial() + wave(2), initial(), initial(), SPACING_M, WAVELENGTH_M)
    assert np.isnan([*scores.amplitude, *scores.coherence, *scores.error]).all()
    assert np.isnan(band_shares(np.full(SHAPE, 2.0), SPACING_M, WAVELENGTH_M)).all()


def test_bands_without_wavenumbers_are_nan() -> None:
    small = initial()[:8, :8]
    scores = band_scores(small + 1.0, small, small + wave(4)[:8, :8], SPACING_M, WAVELENGTH_M)
    assert np.isnan(scores.error[0])
    assert np.isfinite(scores.error[4])


def test_the_deep_half_starts_at_the_middle_row() -> None:
    np.testing.assert_array_equal(deep_half(initial()), initial()[47:])


def test_half_lives_grow_with_the_band_when_bias_is_spectral() -> None:
    iterations = list(range(0, 100, 10))
    errors = [[np.exp(-iteration / life) for life in (10.0, 40.0, 1000.0)] + [np.nan] for iteration in iterations]
    assert half_lives(iterations, errors) == (10, 30, None, None)
