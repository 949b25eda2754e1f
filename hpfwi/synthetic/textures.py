"""Velocity maps without layers of one velocity: folded strata, bodies and grain made from random fields.

OpenFWI's Style maps carry the velocities of a geological model and the shapes of photographs. These carry shapes of the
same kinds (large bodies with edges, fine grain, bands) from random fields instead, so that a network meets structures
that no rule of layering explains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpfwi.physics.openfwi import FASTEST_MPS, SLOWEST_MPS

Array = NDArray[np.float64]

SMOOTH = (0.030, 0.045)
SHARP = (0.004, 0.010)
"""Standard deviation of the final Gaussian smoothing in maps of each kind, as a share of the map's height."""


def texture_map(shape: tuple[int, int], random: np.random.Generator, *, sharp: bool) -> Array:
    """A map of bands, bodies and grain, float64[z, x] in m/s.

    sharp   edges and grain stay; otherwise everything finer than a few cells is smoothed away
    """
    z = ((np.arange(shape[0]) + 0.5) / shape[0])[:, None]
    fold = 0.12 * random_field(shape, random, length=random.uniform(0.25, 0.5))
    strata = _strata(z + fold, random)
    bodies = sum((_body(shape, random) for _ in range(random.integers(2, 6))), np.zeros(shape))
    grain = random_field(shape, random, length=random.uniform(0.03, 0.08), flatness=random.uniform(1.0, 3.0))
    trend = random.uniform(0.3, 1.2) * z
    mixed = trend + random.uniform(0.15, 0.4) * strata + random.uniform(0.2, 0.5) * bodies
    mixed = mixed + random.uniform(0.03, 0.08 if sharp else 0.12) * grain
    mixed = gaussian_filter(mixed, shape[0] * random.uniform(*(SHARP if sharp else SMOOTH)), mode="nearest")
    low = random.uniform(SLOWEST_MPS, SLOWEST_MPS + 600.0)
    high = random.uniform(FASTEST_MPS - 1200.0, FASTEST_MPS)
    return low + (high - low) * (mixed - mixed.min()) / np.ptp(mixed)


def random_field(shape: tuple[int, int], random: np.random.Generator, *, length: float, flatness: float = 1.0) -> Array:
    """A Gaussian random field of mean 0 and standard deviation 1, float64[z, x].

    length      how far values stay alike downwards, as a share of the map's height
    flatness    how much farther they do along the map
    """
    down = length * shape[0]
    field = gaussian_filter(random.standard_normal(shape), (down, down * flatness), mode="wrap")
    return (field - field.mean()) / field.std()


def _strata(depth: Array, random: np.random.Generator) -> Array:
    """Bands over a folded depth: a few thick ones, and thin ones in them."""
    total = np.zeros_like(depth)
    for bands, weight in ((random.integers(4, 9), 1.0), (random.integers(12, 28), 0.35)):
        tops = np.sort(random.uniform(-0.5, 1.5, 2 * bands))
        total += weight * random.standard_normal(2 * bands + 1)[np.searchsorted(tops, depth)]
    return total


def _body(shape: tuple[int, int], random: np.random.Generator) -> Array:
    """A region with an irregular rim and a value of its own."""
    field = random_field(shape, random, length=random.uniform(0.08, 0.22), flatness=random.uniform(0.7, 2.0))
    inside = field > random.uniform(0.6, 1.4)
    return random.choice((-1.0, 1.0)) * random.uniform(0.4, 1.2) * inside
