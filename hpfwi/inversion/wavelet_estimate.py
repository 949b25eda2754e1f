"""The wavelet that observed gathers were made with, estimated from them and a model.

Records are linear in the wavelet: with gathers p predicted for a probe wavelet, the filter h that brings h * p nearest
to the observed ones d in the least-squares sense makes h * probe the wavelet. Its normal equations are Toeplitz, from
the autocorrelation of p and the correlation of d with p, summed over traces (Wiener; for waveform inversion Pratt
1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_toeplitz

from hpfwi.errors import ConfigError, DataError
from hpfwi.experiment import Experiment
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import DELAY_PERIODS, build_wavelet

DAMPING = 1e-3
"""Added to the autocorrelation at lag zero, as a share of it: frequencies that the probe lacks stay unamplified. Within
the probe's band the power is some ten times its mean over all frequencies, so amplitudes lose about 1e-4 there."""

LENGTH_PERIODS = 6.0
"""Length of the wavelet in periods of the probe's peak where none is given: a source, its ghost and a bubble or two."""

RISE_PERIODS = 0.25
"""Periods of the probe's peak over which the wavelet rises from zero: the noise at its first sample is a step
otherwise, and a step has the high frequencies that would ask for a finer grid."""

FALL_SHARE = 0.1
"""Last share of the wavelet that is brought to zero for the same reason."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A wavelet and how well it does.

    wavelet     float64[time] at the survey's dt_s, from the time of the shot on
    explained   1 - |observed - predicted|² / |observed|² of the traces that were used
    traces      how many there were
    """

    wavelet: NDArray[np.float64]
    explained: float
    traces: int


def estimate_wavelet(
    experiment: Experiment,
    observed: Callable[[int], NDArray[np.float32]],
    shots: Sequence[int],
    *,
    length_s: float | None = None,
    max_offset_m: float = math.inf,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, shots: None,
) -> Estimate:
    """The one wavelet that explains the gathers of some shots best in the initial model.

    observed        the gather of a shot, float32[receiver, time]
    length_s        of the wavelet; None is LENGTH_PERIODS
    max_offset_m    traces farther from their source than this are left out; near ones depend least on the model

    The probe is a Ricker wavelet of source.peak_hz: the wavelet is found at the frequencies that it has. With records
    of a filtered line, give the middle of the band.

    raises  ConfigError: a length that the records do not have, no trace within the offset
            DataError: gathers that the model cannot explain at all
    """
    survey, source = experiment.survey, experiment.config.source
    peak_s = 1 / source.peak_hz
    length = round((LENGTH_PERIODS * peak_s if length_s is None else length_s) / survey.dt_s) + 1
    if not 4 <= length <= survey.samples:
        raise ConfigError(
            f"A wavelet of {length} samples cannot be found in records of {survey.samples} samples of {survey.dt_s:g} "
            f"s: give a length from {3 * survey.dt_s:g} to {survey.duration_s:g} s with --length-s."
        )
    # A probe that starts late needs a filter that reaches back: its maximum may move to the time of the shot.
    back = round(DELAY_PERIODS * peak_s / survey.dt_s)
    settings = source.model_copy(update={"wavelet": "ricker", "strength": 1.0, "delay_s": back * survey.dt_s})
    probe = build_wavelet(settings, survey)
    low_mps, high_mps = experiment.config.model.bounds_mps
    grid, modelling = experiment.models.initial.grid, experiment.config.modelling
    simulator = Simulator(grid, survey, probe, modelling, high_mps, low_mps, device=experiment.simulator.device)
    velocity = torch.tensor(experiment.models.initial.velocity)
    offsets = np.abs(survey.receivers_m[..., 1] - survey.sources_m[:, :1, 1])
    pairs = []
    for shot in shots:
        near = np.flatnonzero(offsets[shot] <= max_offset_m)  # absent receivers are at NaN, which is never near
        if len(near):
            with torch.no_grad():
                predicted = simulator.predict(velocity, [shot], threads).numpy()[0]
            pairs.append((predicted[near].astype(np.float64), observed(shot)[near].astype(np.float64)))
        progress(len(pairs), len(shots))
    if not pairs:
        raise ConfigError(f"No receiver is within {max_offset_m:g} m of its source: give more with --max-offset-m.")
    shaping = shaping_filter(pairs, back, length)
    series = np.convolve(shaping, probe[shots[0]][~np.isnan(survey.sources_m[shots[0], :, 0])][0].astype(np.float64))
    wavelet = series[back : back + length].copy()
    rise, fall = min(length, round(RISE_PERIODS * peak_s / survey.dt_s)), max(1, round(FALL_SHARE * length))
    wavelet[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / max(1, rise))
    wavelet[-fall:] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(fall) + 1) / fall)
    return Estimate(wavelet, explained(pairs, shaping, back), sum(len(one[0]) for one in pairs))


Pairs = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Predicted and observed traces of every shot, float64[trace, time] each."""


def shaping_filter(pairs: Pairs, back: int, length: int) -> NDArray[np.float64]:
    """The filter float64[back + length] whose convolution with predicted traces is nearest to observed ones.

    Its first coefficient stands at lag -back. Traces count as zero outside the record.

    raises  DataError: predicted or observed traces that are zero

    >>> trace = np.zeros((1, 50)); trace[0, 10:13] = 1, -2, 1
    >>> shaping = shaping_filter([(trace, 3 * np.roll(trace, 2))], 2, 4)
    >>> int(shaping.argmax()), round(float(shaping.max()), 1)
    (4, 3.0)
    """
    taps = back + length
    own, cross = np.zeros(taps), np.zeros(taps)
    for predicted, observed in pairs:
        size = 2 * predicted.shape[-1] + taps  # room for every lag on both sides
        p, d = np.fft.rfft(predicted, size), np.fft.rfft(observed, size)
        own += np.fft.irfft((np.abs(p) ** 2).sum(axis=0), size)[:taps]
        both = np.fft.irfft((d * p.conj()).sum(axis=0), size)
        cross += np.concatenate([both[size - back :], both[:length]])
    if not (own[0] > 0 and cross.any()):
        raise DataError(
            "The predicted or the observed traces are all zero, so there is no wavelet in them: look at the positions "
            "and at the length of the records."
        )
    own[0] *= 1 + DAMPING
    return np.asarray(solve_toeplitz(own, cross))


def explained(pairs: Pairs, shaping: NDArray[np.float64], back: int) -> float:
    """Share of the observed energy that the filtered predicted traces explain, at most 1."""
    residual = energy = 0.0
    for predicted, observed in pairs:
        samples = predicted.shape[-1]
        size = samples + len(shaping)
        shaped = np.fft.irfft(np.fft.rfft(predicted, size) * np.fft.rfft(shaping, size), size)[:, back : back + samples]
        residual += float(np.square(observed - shaped).sum())
        energy += float(np.square(observed).sum())
    return 1 - residual / energy
