"""Which wavelengths of the model have been found: errors in five rings (in 3-D shells) of radial wavenumber.

The correspondence of amplitudes per frequency band is the one used to show the spectral bias of image priors; band
edges follow from the wavelength lam = mean velocity / peak frequency: 1/(4 lam), 1/(2 lam), 1/lam and 2/lam in
cycles per metre. Waveform inversion resolves half a wavelength, that is 2/lam, the upper edge of band 3.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import tukey

BANDS = 5
FINEST_RESOLVED_BAND = 3
TAPER_SHARE = 0.1
"""Share of each side's length that the cosine taper takes at each of its two ends."""


@dataclass(frozen=True)
class BandScores:
    """One number for each band, from the longest wavelengths to the shortest; NaN where there is nothing to measure."""

    amplitude: tuple[float, ...]
    """mean |F(m - m_initial)| / mean |F(m_true - m_initial)|: how much was put in. A ratio of means, because single
    wavenumbers in which the true perturbation happens to be zero would rule a mean of ratios."""
    coherence: tuple[float, ...]
    """Re <F(m - m_initial), F(m_true - m_initial)> / (norms): whether it is the right thing; -1..1."""
    error: tuple[float, ...]
    """|F(m - m_true)|² / |F(m_initial - m_true)|²: must fall below 1."""


def band_edges(wavelength_m: float) -> tuple[float, float, float, float]:
    """Radial wavenumbers in cycles per metre between the five bands."""
    return (0.25 / wavelength_m, 0.5 / wavelength_m, 1.0 / wavelength_m, 2.0 / wavelength_m)


def band_of_wavenumber(shape: Sequence[int], spacing_m: Sequence[float], wavelength_m: float) -> NDArray[np.int64]:
    """Band of each coefficient of `np.fft.fftn`, int64 of this shape; -1 for the mean, which belongs to none."""
    axes = [np.fft.fftfreq(cells, spacing) for cells, spacing in zip(shape, spacing_m, strict=True)]
    radius = functools.reduce(np.hypot, np.meshgrid(*axes, indexing="ij", sparse=True))
    band = np.searchsorted(np.array(band_edges(wavelength_m)), radius, side="right").astype(np.int64)
    band.flat[0] = -1
    return band


def transform(field: NDArray[np.floating]) -> NDArray[np.complex128]:
    """Fourier transform of a field[z, x] or [z, y, x] after its mean is removed and its edges are tapered."""
    centred = np.asarray(field, dtype=np.float64) - np.mean(field, dtype=np.float64)
    windows = np.meshgrid(*(tukey(cells, 2.0 * TAPER_SHARE) for cells in field.shape), indexing="ij", sparse=True)
    return np.fft.fftn(functools.reduce(np.multiply, windows, centred))


def band_scores(
    model: NDArray[np.floating],
    initial: NDArray[np.floating],
    true: NDArray[np.floating],
    spacing_m: Sequence[float],
    wavelength_m: float,
) -> BandScores:
    """Amplitude ratio, coherence and error of `model` in each band; all three fields are [z, x] or [z, y, x] in m/s."""
    band = band_of_wavenumber(true.shape, spacing_m, wavelength_m)
    start = np.asarray(initial, dtype=np.float64)
    found, wanted, missing = (
        transform(model - start),
        transform(true - start),
        transform(model - np.asarray(true, dtype=np.float64)),
    )
    amplitude, coherence, error = [], [], []
    for number in range(BANDS):
        ring = band == number
        of_found, of_wanted, of_missing = (
            float(np.sum(np.abs(field[ring]) ** 2)) for field in (found, wanted, missing)
        )
        known = of_wanted > 0.0
        common = float(np.sum((found[ring] * wanted[ring].conj()).real))
        amplitude.append(float(np.abs(found[ring]).sum() / np.abs(wanted[ring]).sum()) if known else np.nan)
        coherence.append(common / float(np.sqrt(of_found * of_wanted)) if known and of_found > 0.0 else np.nan)
        error.append(of_missing / of_wanted if known else np.nan)
    return BandScores(tuple(amplitude), tuple(coherence), tuple(error))


def band_shares(field: NDArray[np.floating], spacing_m: Sequence[float], wavelength_m: float) -> tuple[float, ...]:
    """Share of the energy of a field in each band, for runs without a true model; NaN for a constant field."""
    band = band_of_wavenumber(field.shape, spacing_m, wavelength_m)
    power = np.abs(transform(field)) ** 2
    total = float(power[band >= 0].sum())
    return tuple(float(power[band == number].sum()) / total if total > 0 else np.nan for number in range(BANDS))


def deep_half(field: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of a field from nz // 2 down, where illumination is poor and methods differ most."""
    return field[field.shape[0] // 2 :]


def half_lives(iterations: Sequence[int], errors: Sequence[Sequence[float]]) -> tuple[int | None, ...]:
    """First iteration at which each band's error is below 0.5, None where it never was.

    errors   one sequence of band errors for each entry of `iterations`. Half-lives that grow with the band number are
             spectral bias.

    >>> half_lives([0, 10, 20], [[1.0, 1.0], [0.4, 0.9], [0.2, 0.8]])
    (10, None)
    """
    bands = zip(*errors, strict=True)
    return tuple(
        next((iteration for iteration, error in zip(iterations, band, strict=True) if error < 0.5), None)
        for band in bands
    )
