"""The wavelet: how the source's strength varies with time.

Amplitudes over a model [z, x] are those of a line source: the equation's right-hand side f (Pa/m²) integrated over the
area of the source, in pascal. Over a model [z, y, x] they are those of a point source: f integrated over its volume, in
pascal metres, so in a homogeneous whole space the pressure at distance r is the delayed wavelet divided by 4π r.
`simulator` divides by the area or volume of a cell, so the records do not change when the grid is refined.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.interpolate import CubicSpline

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.numpy_file import load_numpy
from hpfwi.physics.survey import Survey

ENERGY_SHARE = 1e-4
"""Share of a wavelet's energy that may lie above its "highest frequency"; for a Ricker wavelet that frequency is 2.5
times the peak."""

DELAY_PERIODS = 1.5
"""Delay of a Ricker wavelet in periods of its peak frequency: at time zero its amplitude is 1e-8 of the maximum, so the
records start from rest."""


class SourceSettings(BaseModel):
    """The wavelets that the sources send out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wavelet: str = Field(
        default="ricker",
        description='"ricker", or a file: .npy, .csv or .txt with amplitudes at the survey\'s dt_s, or two columns '
        "time (s), amplitude; .npy with a row of amplitudes for each shot, as `hpfwi wavelet --per-shot` writes it.",
    )
    peak_hz: float = Field(
        default=8.0, gt=0, allow_inf_nan=False, description="Peak frequency of the Ricker wavelet, Hz."
    )
    delay_s: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Time of the Ricker wavelet's maximum, s; None is 1.5 periods of the peak frequency.",
    )
    strength: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Factor on the wavelet; a Ricker of strength 1 has a maximum of 1 Pa, in 3-D of 1 Pa m.",
    )


def ricker(peak_hz: float, dt_s: float, samples: int, delay_s: float) -> NDArray[np.float64]:
    """Ricker wavelet (1 - 2a) exp(-a), a = (π peak_hz (t - delay_s))², float64[time]; its maximum is 1.

    raises  ConfigError: the peak frequency is above half the Nyquist frequency of dt_s or half its period is longer
            than the records, or the maximum falls after the last sample

    >>> float(ricker(10.0, 0.001, 400, 0.15).max())
    1.0
    """
    if peak_hz * dt_s > 0.25:
        raise ConfigError(
            f"peak_hz={peak_hz:g} is too high for dt_s={dt_s:g}: a Ricker wavelet needs at least 4 samples per period "
            f"of its peak; use dt_s <= {0.25 / peak_hz:.3g} or a lower peak frequency."
        )
    if delay_s > (samples - 1) * dt_s:
        raise ConfigError(
            f"The wavelet's maximum at {delay_s:g} s comes after the last sample at {(samples - 1) * dt_s:g} s: record "
            "longer, or use a shorter delay_s or a higher peak_hz."
        )
    if 2 * peak_hz * samples * dt_s < 1:
        raise ConfigError(
            f"peak_hz={peak_hz:g} is too low for records of {samples * dt_s:g} s, which hold less than half a period "
            f"of it: use {0.5 / (samples * dt_s):.3g} Hz or more, or record longer."
        )
    a = (math.pi * peak_hz * (dt_s * np.arange(samples, dtype=np.float64) - delay_s)) ** 2
    return (1 - 2 * a) * np.exp(-a)


def read_wavelet(path: str | Path, dt_s: float, samples: int, shots: int) -> NDArray[np.float64]:
    """Wavelets from a file at dt_s, padded with zeros or cut to `samples`: float64[shot, time], or [1, time] for all.

    shots   of the survey: a file of one wavelet for each has this many

    A file of one column or one row holds the amplitudes, dt_s apart, of one wavelet that all shots send out. A file of
    two columns holds times in seconds, increasing, and amplitudes; it is resampled by a cubic spline and is zero
    outside the times given. A .npy of any other [shot, time] holds a row of amplitudes for each shot. Samples after
    the end of the records are dropped: they cannot reach a receiver.

    raises  DataError: the file is missing or not numeric, has another shape, wavelets of another number of shots, NaN,
            times that do not increase, or a wavelet of zeros only
    """
    path = Path(path)
    table = _read_table(path)
    if table.ndim == 1 or (table.ndim == 2 and 1 in table.shape):
        rows = table.reshape(1, -1)
    elif table.ndim == 2 and table.shape[1] == 2:
        rows = _resampled(path, table[:, 0], table[:, 1], dt_s, samples)[None]
    elif table.ndim == 2 and path.suffix.lower() == ".npy":
        rows = _row_of_each(path, table, shots)
    else:
        raise DataError(
            f"Wavelet file {path} has shape {table.shape}: it must hold one column (amplitudes dt_s={dt_s:g} s apart) "
            "or two (time in s, amplitude), or as .npy a row of amplitudes for each shot."
        )
    whose = "" if len(rows) == 1 else "shot {}, "
    if not np.isfinite(rows).all():
        shot, sample = (int(place) for place in np.argwhere(~np.isfinite(rows))[0])
        raise DataError(
            f"Wavelet file {path} holds NaN or infinity at {whose.format(shot)}sample {sample}: replace it by a finite "
            "amplitude."
        )
    wavelets = np.zeros((len(rows), samples))
    kept = rows[:, :samples]
    wavelets[:, : kept.shape[1]] = kept
    silent = np.flatnonzero(~wavelets.any(axis=1))
    if len(silent):
        raise DataError(
            f"Wavelet file {path} holds {whose.format(silent[0])}zeros only within the {samples} samples of the "
            "records: give amplitudes, or leave the shots that send nothing out of the gathers."
        )
    return wavelets


def _row_of_each(path: Path, table: NDArray[np.float64], shots: int) -> NDArray[np.float64]:
    """The table, if it has a row for each of so many shots."""
    if len(table) == shots:
        return table
    remedy = (
        "transpose it, for it looks like [time, shot]"
        if table.shape[1] == shots
        else "estimate them again from these gathers with `hpfwi wavelet --per-shot`, or give one wavelet for all"
    )
    raise DataError(
        f"Wavelet file {path} holds wavelets of {len(table)} shots (it has the shape {table.shape}) and the survey has "
        f"{shots}: {remedy}."
    )


def _read_table(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise DataError(f"Wavelet file {path} does not exist: give a .npy, .csv or .txt file, or ricker.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.asarray(load_numpy(path), dtype=np.float64)
        if suffix in (".csv", ".txt"):
            lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
            rows = [line.split("#")[0].split() for line in lines]
            return np.array([[float(word) for word in row] for row in rows if row], dtype=np.float64)
    except (ValueError, TypeError, OSError) as error:
        raise DataError(
            f"Wavelet file {path} cannot be read as numbers ({error}): give one column of amplitudes or two columns "
            "(time in s, amplitude), comments after #."
        ) from error
    raise DataError(f"Wavelet file {path} has the suffix {suffix!r}: it must be .npy, .csv or .txt.")


def _resampled(
    path: Path, times_s: NDArray[np.float64], amplitudes: NDArray[np.float64], dt_s: float, samples: int
) -> NDArray[np.float64]:
    if len(times_s) < 4:
        raise DataError(f"Wavelet file {path} has {len(times_s)} times: at least 4 are needed to interpolate.")
    if not (np.isfinite(times_s).all() and np.isfinite(amplitudes).all() and (np.diff(times_s) > 0).all()):
        raise DataError(
            f"Wavelet file {path} must hold finite numbers with times in seconds that increase from line to line."
        )
    wanted = dt_s * np.arange(samples, dtype=np.float64)
    inside = (wanted >= times_s[0] - 1e-9 * dt_s) & (wanted <= times_s[-1] + 1e-9 * dt_s)
    return np.where(inside, CubicSpline(times_s, amplitudes)(wanted), 0.0)


def build_wavelet(settings: SourceSettings, survey: Survey) -> NDArray[np.float32]:
    """The wavelet of every source, float32[shot, source, time], in `unit_of` the survey; absent sources send zeros.

    Sources of one shot send the same, and so do all shots unless a file has a row for each.

    raises  ConfigError, DataError: see `ricker` and `read_wavelet`
    """
    if settings.wavelet == "ricker":
        delay_s = DELAY_PERIODS / settings.peak_hz if settings.delay_s is None else settings.delay_s
        rows = ricker(settings.peak_hz, survey.dt_s, survey.samples, delay_s)[None]
    else:
        rows = read_wavelet(settings.wavelet, survey.dt_s, survey.samples, survey.shots)
    present = ~np.isnan(survey.sources_m[..., 0])
    return (settings.strength * rows[:, None, :] * present[..., None]).astype(np.float32)


def unit_of(survey: Survey) -> str:
    """Unit of the wavelets of a survey: of line sources for positions (z, x), of point sources for (z, y, x)."""
    return "Pa" if survey.sources_m.shape[-1] == 2 else "Pa m"


def differ_by_shot(wavelet: NDArray[np.floating]) -> bool:
    """Whether the shots of wavelet[shot, source, time] send out different things.

    Each shot is told by its strongest source, for the places of absent sources hold zeros.

    >>> differ_by_shot(np.ones((3, 1, 4))), differ_by_shot(np.arange(1.0, 13.0).reshape(3, 1, 4))
    (False, True)
    """
    strongest = np.abs(wavelet).max(axis=2).argmax(axis=1)
    rows = wavelet[np.arange(len(wavelet)), strongest]
    return bool((rows != rows[0]).any())


def _energy_spectra(wavelet: ArrayLike, dt_s: float) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Frequencies (Hz) and the energy in each, of every trace of wavelet[..., time] that is not zero; of one where all
    are the same."""
    traces = np.asarray(wavelet, dtype=np.float64)
    traces = traces.reshape(-1, traces.shape[-1])
    traces = traces[traces.any(axis=1)]
    if len(traces) > 1 and (traces == traces[0]).all():
        traces = traces[:1]
    # Eight times the length: bins fine enough that a frequency is good to a per cent.
    length = 8 * traces.shape[-1]
    energies: list[NDArray[np.float64]] = [np.square(np.abs(np.fft.rfft(trace, length))) for trace in traces]
    if not all(energy.sum() > 0 for energy in energies) or not energies:
        raise DataError("The wavelet is zero everywhere, so no wave leaves the sources: check strength and the file.")
    return np.asarray(np.fft.rfftfreq(length, dt_s), dtype=np.float64), energies


def highest_frequency_hz(wavelet: ArrayLike, dt_s: float, energy_share: float = ENERGY_SHARE) -> float:
    """Frequency above which only `energy_share` of the wavelet's energy lies, Hz.

    wavelet  float[..., time]; of several traces the one that reaches highest counts, however weak it is

    It decides how fine the grid must be and how often a snapshot is needed for the gradient. The default share puts
    it at 2.5 peak frequencies for a Ricker wavelet (share 1e-2: 2.0, 1e-3: 2.3, 1e-5: 2.8).

    raises  DataError: the wavelet is zero everywhere

    >>> highest_frequency_hz(ricker(10.0, 0.001, 1000, 0.15), 0.001)
    25.5
    """
    frequencies, energies = _energy_spectra(wavelet, dt_s)
    above = [np.cumsum(energy[::-1])[::-1] for energy in energies]
    places = [int(np.argmax(left <= energy_share * left[0])) for left in above]  # 0: at no frequency that is below
    return float(frequencies[-1] if 0 in places else frequencies[max(places)])


def peak_frequency_hz(wavelet: ArrayLike, dt_s: float) -> float:
    """Frequency with the most energy, Hz, of wavelet[..., time]; of several traces all count alike.

    raises  DataError: the wavelet is zero everywhere
    """
    frequencies, energies = _energy_spectra(wavelet, dt_s)
    energy = energies[0] if len(energies) == 1 else np.sum([each / each.sum() for each in energies], axis=0)
    top = int(np.argmax(energy))
    if not 0 < top < len(energy) - 1:
        return float(frequencies[top])
    # The maximum of the parabola through the highest bin and its neighbours.
    before, here, after = energy[top - 1 : top + 2]
    shift = 0.5 * (before - after) / (before - 2 * here + after)
    return float(frequencies[top] + shift * frequencies[1])
