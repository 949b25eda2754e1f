"""Velocity maps of salt in flat layers, after the 201 x 301 maps that networks for the SEG salt model train on.

What 70 published maps show: 5 to 10 layers from 2000 to 4000 m/s, faster with depth, their interfaces rough by a cell
or two; one body of 4500 m/s from a tenth to nine tenths of the width, with two crests of unequal height, that covers 4
to 24 % of the map; in seven of ten it stands on the bottom, in the others it floats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d

Array = NDArray[np.float64]

SALT_MPS = 4500.0
SEDIMENTS_MPS = (2000.0, 4000.0)
STANDING = 0.7
"""Share of bodies that stand on the bottom of the map."""


def salt_map(shape: tuple[int, int], random: np.random.Generator) -> Array:
    """Layers and one body of salt, float64[z, x] in m/s."""
    z = ((np.arange(shape[0]) + 0.5) / shape[0])[:, None]
    layers = random.integers(5, 10, endpoint=True)
    thickness = random.uniform(0.4, 1.6, layers)
    depths = np.cumsum(thickness / thickness.sum())[:-1]
    velocity = np.sort(random.uniform(*SEDIMENTS_MPS, layers))
    layer = np.zeros(shape, np.int64)
    for depth in depths:
        layer += z > depth + _roughness(shape, random)
    top, bottom = _body(shape[1], random)
    return np.where((z > top) & (z < bottom), SALT_MPS, velocity[layer])


def _roughness(shape: tuple[int, int], random: np.random.Generator) -> Array:
    """What an interface departs from flat, float64[x], as a share of the height: about a cell."""
    bumps = gaussian_filter1d(random.standard_normal(shape[1]), 2.0, mode="nearest")
    return bumps / bumps.std() * random.uniform(0.6, 1.3) / shape[0]


def _body(columns: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Depth of the top and of the bottom of the salt, float64[x], as shares of the height; they meet where none is."""
    x = (np.arange(columns) + 0.5) / columns
    left, right = random.uniform(0.09, 0.13), random.uniform(0.85, 0.90)
    crests = random.uniform(0.18, 0.42), random.uniform(0.62, 0.75)
    saddle = random.uniform(0.50, 0.58)
    tall, short = random.uniform(0.25, 0.62), random.uniform(0.15, 0.35)
    heights = (tall, min(short, tall)) if random.uniform() < 0.75 else (min(short, tall), tall)
    dent = random.uniform(0.15, 0.7) * min(heights)
    shoulder = 0.5 * (crests[0] + saddle), heights[0] * random.uniform(0.6, 0.97)
    points = [left, crests[0], shoulder[0], saddle, crests[1], right]
    rise = PchipInterpolator(points, [0.0, heights[0], max(shoulder[1], dent), dent, heights[1], 0.0])
    height = np.where((x > left) & (x < right), rise(x), 0.0)
    if random.uniform() < STANDING:
        return 1.0 - height, np.full(columns, np.inf) * np.where(height > 0, 1.0, -1.0)
    keel = PchipInterpolator([left, random.uniform(0.35, 0.65), right], [0.0, random.uniform(0.08, 0.22), 0.0])
    middle = random.uniform(0.45, 0.62)
    depth = np.where((x > left) & (x < right), keel(x), 0.0)
    return middle - 0.45 * height, middle + depth
