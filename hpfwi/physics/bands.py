"""Band-pass filters that stay causal: what holds for records holds for the wavelet that explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from hpfwi.errors import ConfigError

if TYPE_CHECKING:
    from hpfwi.physics.simulator import Simulator

LOW_ORDER, HIGH_ORDER = 4, 8
"""Of the Butterworth filters at the two corners: 24 and 48 dB an octave. What is left above the band decides how fine
the grid must be."""


def band_passed(gathers: NDArray[np.float32], dt_s: float, low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """Gathers [..., time] without what lies below low_hz or above high_hz, float32.

    low_hz, high_hz  corners, 3 dB down; low_hz = 0 is a low-pass

    The filter is causal, so nothing arrives before it did; it delays instead, and by the same amount in records and
    wavelet: an inversion needs the wavelet filtered alike, or estimated from filtered records.

    raises  ConfigError: corners that are not 0 <= low < high < Nyquist

    >>> spike = np.zeros((1, 64), np.float32)
    >>> spike[0, 9] = 1
    >>> bool(band_passed(spike, 0.004, 0.0, 20.0)[0, :9].any())
    False
    """
    nyquist_hz = 0.5 / dt_s
    if not 0 <= low_hz < high_hz < nyquist_hz:
        raise ConfigError(
            f"A band of {low_hz:g} to {high_hz:g} Hz cannot be taken at dt_s={dt_s:g}: give corners 0 <= low < high < "
            f"{nyquist_hz:g} Hz."
        )
    sections = butter(HIGH_ORDER, high_hz, "lowpass", fs=1 / dt_s, output="sos")
    if low_hz > 0:
        sections = np.concatenate([butter(LOW_ORDER, low_hz, "highpass", fs=1 / dt_s, output="sos"), sections])
    return np.asarray(sosfilt(sections, np.asarray(gathers, np.float64), axis=-1), dtype=np.float32)


def delay_s(high_hz: float) -> float:
    """How much later a low-pass filter of `band_passed` lets through what lies well below its corner, s.

    The group delay at frequency zero: of the poles -ω exp(±iθ) of a Butterworth filter each pair adds 2 cos θ / ω.

    >>> round(delay_s(4.0), 3)
    0.204
    """
    angles = np.pi * (np.arange(HIGH_ORDER // 2) + 0.5) / HIGH_ORDER
    return float(2 * np.cos(angles).sum() / (2 * np.pi * high_hz))


def simulator_of_band(whole: Simulator, wavelet: NDArray[np.float32], bounds_mps: tuple[float, float]) -> Simulator:
    """The simulator of the same survey in the same medium whose gathers are filtered, because its wavelet is.

    whole       simulator of the run
    wavelet     float32[shot, source, time], its wavelet after the filter
    bounds_mps  lowest and highest velocity of the run

    Snapshots for the gradient are rarer, as the lower frequencies allow, and C-PML made for the wavelet's peak is made
    for the lower one.
    """
    from hpfwi.physics.simulator import Simulator

    # An attenuation that holds at another frequency would be another medium.
    settings = whole.settings.model_copy(update={"quality_hz": whole.settings.quality_hz or whole.peak_hz})
    low_mps, high_mps = bounds_mps
    return Simulator(whole.grid, whole.survey, wavelet, settings, high_mps, low_mps, device=whole.device)
