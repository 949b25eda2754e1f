"""A synthetic earth with the character of Marmousi: folded, faulted layers over a deep anticline.

The layers are a stack in a "stratigraphic depth" s, the depth at which a point was laid down. Deformation is a map from
a point (z, x) to its s, the last event first: growth faults drop blocks by a throw that increases downwards, folds lift
the crest of an anticline by an amount that increases downwards, and an erosion surface cuts the old, tilted layers off
below the young, flat ones. The velocity of a point is that of its layer plus compaction with its present depth.

Lengths are shares of the model's depth, so one seed draws the same geology on any grid; fault dips use true distances.

A block [z, y, x] is made of such sections: the middle one is the 2-D model of the same seed (to sub-sampling in y), and
the others are the same folds and faults met farther along their strike, which runs oblique to x and y, and deeper or
shallower, because the fold axes plunge.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SLOWEST_MPS = 1500.0
FASTEST_MPS = 4700.0

STRIKE = 0.4
"""How far structures shift along x for every metre of y: they strike 22 degrees away from the y axis."""

PLUNGE = 0.1
"""How far they sink for every metre of y: 6 degrees."""

SUPERSAMPLING = 3
"""Points per cell and axis; a cell takes their mean, so that a dipping interface has no staircase."""


def procedural_marmousi_like(
    shape: tuple[int, ...],
    spacing_m: tuple[float, ...],
    seed: int,
    *,
    water_depth_m: float = 0.0,
    water_mps: float = 1500.0,
) -> NDArray[np.float32]:
    """A velocity model, float32[z, x] or [z, y, x], 1500 to 4700 m/s; `water_mps` in rows above `water_depth_m`.

    shape      (nz, nx), made for 40 x 60 and more, or (nz, ny, nx)
    spacing_m  (dz, dx) or (dz, dy, dx), metres
    seed       chooses the geology; the same seed gives the same structures at any shape of equal proportions
    """
    depth_m = shape[0] * spacing_m[0]
    water_rows = int(np.sum(spacing_m[0] * np.arange(shape[0]) < water_depth_m - 1e-6 * spacing_m[0]))
    sea_floor = water_rows * spacing_m[0] / depth_m
    plane, plane_m = (shape[0], shape[-1]), (spacing_m[0], spacing_m[-1])
    if len(shape) == 2:
        cells = _section(plane, plane_m, seed, sea_floor, 0.0)
    else:
        # Points in y from the middle of the block, as many per cell as along the other axes.
        beside = ((np.arange(shape[1] * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - shape[1] / 2) * spacing_m[1] / depth_m
        cells = np.empty(shape)
        for row, places in enumerate(beside.reshape(shape[1], SUPERSAMPLING)):
            cells[:, row] = np.mean([_section(plane, plane_m, seed, sea_floor, float(y)) for y in places], axis=0)
    cells[:water_rows] = water_mps
    return cells.astype(np.float32)


def _section(shape: tuple[int, int], spacing_m: tuple[float, float], seed: int, sea_floor: float, y: float) -> Array:
    """Velocity of the cells [z, x] of a vertical section.

    sea_floor  its depth     y  distance from the middle of the block; both in shares of the model's depth
    """
    random = np.random.default_rng(seed)
    fine = SUPERSAMPLING
    depth_m = shape[0] * spacing_m[0]
    rows = (np.arange(shape[0] * fine) + 0.5) / fine * spacing_m[0] / depth_m
    columns = (np.arange(shape[1] * fine) + 0.5) / fine * spacing_m[1] / depth_m
    z, x = np.meshgrid(rows - sea_floor, columns, indexing="ij")
    width = shape[1] * spacing_m[1] / depth_m
    z, x = z - PLUNGE * y, x - STRIKE * y

    unfaulted = undo_faults(z, x, width, random)
    young, old, erosion = _undo_folds(unfaulted, x, width, random)
    young_layers = _layers(random, (0.0, 1.1), 32, slow_mps=1480.0, fast_mps=2900.0, scatter_mps=260.0)
    old_layers = _layers(random, (0.30, 1.55), 25, slow_mps=2350.0, fast_mps=3850.0, scatter_mps=520.0)
    velocity = np.where(unfaulted < erosion, _pick(young_layers, young), _pick(old_layers, old))
    velocity += 450.0 * np.maximum(z, 0.0)
    velocity += _lateral_change(x, z, width, random)
    velocity = _reservoir(velocity, unfaulted, x, width, random)

    velocity = np.clip(velocity, SLOWEST_MPS, FASTEST_MPS)
    return velocity.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3))


def undo_faults(z: Array, x: Array, width: float, random: np.random.Generator) -> Array:
    """Depth of every point before the normal faults moved: the hanging wall lies lower than it was laid down."""
    before = z.copy()
    count = 3 if width > 1.2 else 2
    centre = width * random.uniform(0.36, 0.42)
    step = min(0.34, 0.19 * width)
    for number in range(count):
        top = centre + (number - (count - 1) / 2) * step + random.uniform(-0.02, 0.02)
        steepness = math.tan(math.radians(random.uniform(58.0, 66.0)))
        # Listric: the plane flattens with depth.
        plane = top + z / steepness + 0.16 * z**2
        throw = random.uniform(0.09, 0.14)
        # Growth fault: movement went on while layers were laid down, so old layers are offset by more.
        growth = np.clip((z - 0.06) / 0.5, 0.0, 1.0)
        behind = x - plane
        # Drag: the drop fades away from the plane on the hanging wall, and rolls layers over towards it.
        drop = throw * growth * np.where(behind > 0, np.exp(-behind / 0.55), 0.0)
        before -= drop
    return before


def _undo_folds(s: Array, x: Array, width: float, random: np.random.Generator) -> tuple[Array, Array, Array]:
    """Stratigraphic depth in the young and in the old layers, and the depth of the erosion surface between them."""
    crest = width * random.uniform(0.62, 0.70)
    half_width = max(0.32, 0.17 * width)
    bump = np.exp(-(((x - crest) / half_width) ** 2))
    waves = np.zeros_like(x)
    for _ in range(4):
        length = random.uniform(0.5, 1.6)
        waves += random.uniform(0.006, 0.014) * np.sin(2 * math.pi * (x / length + random.uniform()))
    dip = random.uniform(0.16, 0.26) * (x / width - 0.5)

    arch = np.exp(-(((x - crest) / (2.1 * half_width)) ** 2))
    lift = (0.02 + 0.25 * s) * bump + (0.04 + 0.55 * s) * arch + waves * (0.3 + 1.2 * s) + dip * s
    young = s + lift
    erosion = (
        0.67
        + 0.05 * np.sin(2 * math.pi * (x / width * 0.8 + random.uniform()))
        - 0.16 * bump
        - 0.10 * arch
        + 0.6 * waves
    )
    tilt = random.uniform(0.30, 0.42) * (x / width - 0.5)
    old = s + 0.45 * bump * (0.4 + s) + tilt + 2.2 * waves
    return young, old, erosion


def _layers(
    random: np.random.Generator,
    span: tuple[float, float],
    count: int,
    *,
    slow_mps: float,
    fast_mps: float,
    scatter_mps: float,
) -> tuple[Array, Array]:
    """Tops of `count` layers over a span of s (the first reaches up for ever), and their velocities."""
    thickness = random.lognormal(0.0, 0.55, count)
    tops = np.concatenate([[-np.inf], span[0] + (span[1] - span[0]) * np.cumsum(thickness)[:-1] / thickness.sum()])
    share = np.linspace(0.0, 1.0, count)
    # Shale and sand alternate, so neighbours differ more than independent draws would.
    alternation = np.where(np.arange(count) % 2 == 0, -0.5, 0.5)
    scatter = scatter_mps * (alternation + random.normal(0.0, 0.4, count)) * (0.35 + 0.65 * share)
    velocity = slow_mps + (fast_mps - slow_mps) * share**1.1 + scatter
    bright = random.choice(np.arange(count // 4, count), size=max(2, count // 9), replace=False)
    velocity[bright] += random.uniform(300.0, 600.0, len(bright))
    return tops, velocity


def _pick(layers: tuple[Array, Array], s: Array) -> Array:
    tops, velocity = layers
    return velocity[np.clip(np.searchsorted(tops, s, side="right") - 1, 0, len(velocity) - 1)]


def _lateral_change(x: Array, z: Array, width: float, random: np.random.Generator) -> Array:
    """Facies change along the layers, m/s, growing with depth."""
    phase = random.uniform()
    return 160.0 * np.clip(z, 0.0, 1.0) * np.sin(2 * math.pi * (0.9 * x / width + phase))


def _reservoir(velocity: Array, s: Array, x: Array, width: float, random: np.random.Generator) -> Array:
    """A flat, slow lens below the crest: gas lowers the velocity by a quarter."""
    centre_x = width * random.uniform(0.60, 0.70)
    centre_s = random.uniform(0.40, 0.46)
    lens = ((x - centre_x) / (0.10 * width)) ** 2 + ((s - centre_s) / 0.022) ** 2 < 1
    return np.where(lens, 0.76 * velocity, velocity)
