"""Band-pass filters that stay causal: what holds for records holds for the wavelet that explains them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from hpfwi.errors import ConfigError

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
