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
from hpfwi.physics.source import DELAY_PERIODS, build_wavelet, ricker

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


Pairs = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Predicted and observed traces of every shot, float64[trace, time] each."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A wavelet and how well it does.

    wavelet     float64[time] at the survey's dt_s, from the time of the shot on
    explained   1 - |observed - predicted|² / |observed|² of the traces that were used
    traces      how many there were
    energy      |observed|² of them, Pa²
    """

    wavelet: NDArray[np.float64]
    explained: float
    traces: int
    energy: float


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
    probe = _Probe(experiment, length_s, max_offset_m, threads)
    pairs = []
    for done, shot in enumerate(shots, start=1):
        pair = probe.pair(shot, observed(shot))
        if len(pair[0]):
            pairs.append(pair)
        progress(done, len(shots))
    if not pairs:
        raise ConfigError(f"No receiver is within {max_offset_m:g} m of its source: give more with --max-offset-m.")
    return probe.estimate(pairs)


def estimate_each(
    experiment: Experiment,
    observed: Callable[[int], NDArray[np.float32]],
    common: Estimate,
    *,
    length_s: float | None = None,
    max_offset_m: float = math.inf,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, shots: None,
) -> list[Estimate]:
    """The wavelet of every shot of the survey, from its own gather alone; arguments as of `estimate_wavelet`.

    common      its wavelet stands in for that of a shot whose traces are all zero

    raises  as `estimate_wavelet`, of the first shot that it is true of
    """
    probe = _Probe(experiment, length_s, max_offset_m, threads)
    shots = experiment.survey.shots
    found = []
    for shot in range(shots):
        pair = probe.pair(shot, observed(shot))
        if not len(pair[0]):
            raise ConfigError(
                f"Shot {shot} has no receiver within {max_offset_m:g} m of its source: give more with --max-offset-m."
            )
        if pair[1].any():
            try:
                found.append(probe.estimate([pair]))
            except DataError as error:
                raise DataError(f"Shot {shot}: {error}") from error
        else:
            found.append(Estimate(common.wavelet, 0.0, len(pair[1]), 0.0))
        progress(shot + 1, shots)
    return found


class _Probe:
    """Gathers of a Ricker wavelet in the initial model, and what turns them into wavelets."""

    def __init__(self, experiment: Experiment, length_s: float | None, max_offset_m: float, threads: int) -> None:
        survey, source = experiment.survey, experiment.config.source
        peak_s = 1 / source.peak_hz
        self._length = round((LENGTH_PERIODS * peak_s if length_s is None else length_s) / survey.dt_s) + 1
        if not 4 <= self._length <= survey.samples:
            raise ConfigError(
                f"A wavelet of {self._length:g} samples cannot be found in records of {survey.samples} samples of "
                f"{survey.dt_s:g} s: give a length from {3 * survey.dt_s:g} to {survey.duration_s:g} s with --length-s."
            )
        # A probe that starts late needs a filter that reaches back: its maximum may move to the time of the shot.
        self._back = round(DELAY_PERIODS * peak_s / survey.dt_s)
        self._rise = round(RISE_PERIODS * peak_s / survey.dt_s)
        delay_s = self._back * survey.dt_s
        settings = source.model_copy(update={"wavelet": "ricker", "strength": 1.0, "delay_s": delay_s})
        self._series = ricker(source.peak_hz, survey.dt_s, survey.samples, delay_s)
        low_mps, high_mps = experiment.config.model.bounds_mps
        self._simulator = Simulator(
            experiment.models.initial.grid,
            survey,
            build_wavelet(settings, survey),
            experiment.config.modelling,
            high_mps,
            low_mps,
            device=experiment.simulator.device,
        )
        self._velocity = torch.tensor(experiment.models.initial.velocity)
        distances = survey.receivers_m[..., 1:] - survey.sources_m[:, :1, 1:]
        self._near = np.linalg.norm(distances, axis=-1) <= max_offset_m  # NaN, of absent receivers, is never near
        self._threads = threads

    def pair(self, shot: int, observed: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predicted and observed traces of a shot within the offset, float64[trace, time] each; maybe none."""
        near = self._near[shot]
        if not near.any():
            return np.empty((0, observed.shape[-1])), np.empty((0, observed.shape[-1]))
        with torch.no_grad():
            predicted = self._simulator.predict(self._velocity, [shot], self._threads).numpy()[0]
        return predicted[near].astype(np.float64), observed[near].astype(np.float64)

    def estimate(self, pairs: Pairs) -> Estimate:
        """The wavelet that explains these traces best; raises DataError where they are all zero."""
        back, length = self._back, self._length
        shaping = shaping_filter(pairs, back, length)
        wavelet = np.convolve(shaping, self._series)[back : back + length].copy()
        rise, fall = min(length, self._rise), max(1, round(FALL_SHARE * length))
        wavelet[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / max(1, rise))
        wavelet[-fall:] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(fall) + 1) / fall)
        traces = sum(len(predicted) for predicted, _ in pairs)
        return Estimate(wavelet, explained(pairs, shaping, back), traces, energy_of(pairs))


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
    residual = 0.0
    for predicted, observed in pairs:
        samples = predicted.shape[-1]
        size = samples + len(shaping)
        shaped = np.fft.irfft(np.fft.rfft(predicted, size) * np.fft.rfft(shaping, size), size)[:, back : back + samples]
        residual += float(np.square(observed - shaped).sum())
    return 1 - residual / energy_of(pairs)


def energy_of(pairs: Pairs) -> float:
    """Sum of the squares of the observed traces."""
    return sum(float(np.square(observed).sum()) for _, observed in pairs)
