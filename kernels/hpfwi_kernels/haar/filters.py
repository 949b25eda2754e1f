"""Filters of the orthogonal wavelets that the transform knows.

Low-pass synthesis filters with the fewest taps for 1 to 4 vanishing moments (Daubechies 1988, minimum phase), computed
from the roots of the maximally flat half-band polynomial in 60 digits and rounded once.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.errors import KernelError

_LOW: dict[str, tuple[float, ...]] = {
    "haar": (math.sqrt(0.5), math.sqrt(0.5)),
    "db2": (0.48296291314453414337, 0.83651630373780790558, 0.22414386804201338103, -0.12940952255126038117),
    "db3": (
        0.332670552950082616,
        0.80689150931109257649,
        0.4598775021184915701,
        -0.1350110200102545887,
        -0.085441273882026661693,
        0.035226291885709536603,
    ),
    "db4": (
        0.23037781330889650086,
        0.71484657055291564709,
        0.63088076792985890788,
        -0.027983769416859854211,
        -0.18703481171909308408,
        0.030841381835560763627,
        0.032883011666885199735,
        -0.010597401785069032105,
    ),
}
NAMES = tuple(_LOW)


class Filters(NamedTuple):
    """The pair y_s[i] = sum over k of h_s[k] x[2 i + k - pad], float64[even length]; synthesis is its transpose."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def pad(self) -> int:
        """Zeros in front of the first sample, as the published layers pad."""
        return len(self.low) // 2 - 1


def filters(wavelet: str) -> Filters:
    """Analysis filters of 'haar', 'db2', 'db3' or 'db4'; raises KernelError for another name.

    >>> filters("haar").high.round(3).tolist()
    [0.707, -0.707]
    """
    if wavelet not in _LOW:
        raise KernelError(f"wavelet={wavelet!r} is not known: give one of {', '.join(NAMES)}.")
    low = np.array(_LOW[wavelet])
    return Filters(low, low[::-1] * (-1.0) ** np.arange(low.size))
