"""Velocity maps of the families that networks are trained on: layers, folds and faults, textures, salt.

The names are those of OpenFWI's families, and so is what a map of each shows: `flat` or `curve` interfaces, `vel`
without and `fault` with faults; in the layered families of kind `a` the velocity grows with depth, in those of kind `b`
it is drawn anew for every layer, and the faulted ones have more layers and faults. `style` maps have no layers of one
velocity but textures, smooth in kind `a` and sharp in kind `b`; OpenFWI made its own from photographs, here they are
made from random fields (`textures`). `segsalt` is salt in flat layers, after the SEG salt model (`salt`).

What real maps show sets the numbers where there are real maps: three of CurveVel-A have integer velocities from 1500 to
4500 m/s, layers about equally thick (14 to 24 of 70 cells) under one common curve that spans 15 to 37 cells and turns
every 10 to 25 columns. The numbers of faults, their dips and throws are choices of this program.

A map is a pure function of (family, shape, seed, index): no map depends on which others were made, or by whom.
"""

from __future__ import annotations

import difflib
import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from hpfwi.errors import ConfigError
from hpfwi.physics.openfwi import FASTEST_MPS, SLOWEST_MPS
from hpfwi.synthetic.salt import salt_map
from hpfwi.synthetic.textures import texture_map

Array = NDArray[np.float64]

FEWEST_CELLS = 8
"""Smallest height and width of a map: fewer cells cannot show two layers and a curve."""

SEG_SHAPE = (201, 301)
"""Rows and columns of the SEG salt sets; the other families have OpenFWI's."""
OPENFWI_SHAPE = (70, 70)


@dataclass(frozen=True, kw_only=True)
class Layering:
    """How the maps of a layered family are drawn; ranges are inclusive, lengths are shares of the map's height."""

    layers: tuple[int, int]
    relief: tuple[float, float] = (0.0, 0.0)
    """Height between the crests and troughs of the interfaces; 0 is flat."""
    faults: tuple[int, int] = (0, 0)
    throw: tuple[float, float] = (0.06, 0.20)
    """Slip along the fault."""
    ordered: bool
    """Velocities grow with depth; otherwise each layer has one of its own."""


LAYERINGS = {
    "flatvel-a": Layering(layers=(3, 6), ordered=True),
    "flatvel-b": Layering(layers=(3, 6), ordered=False),
    "curvevel-a": Layering(layers=(3, 5), relief=(0.15, 0.55), ordered=True),
    "curvevel-b": Layering(layers=(3, 5), relief=(0.15, 0.55), ordered=False),
    "flatfault-a": Layering(layers=(3, 6), faults=(1, 2), ordered=True),
    "flatfault-b": Layering(layers=(5, 12), faults=(2, 4), ordered=False),
    "curvefault-a": Layering(layers=(3, 6), relief=(0.10, 0.35), faults=(1, 2), ordered=True),
    "curvefault-b": Layering(layers=(5, 12), relief=(0.10, 0.35), faults=(2, 4), ordered=False),
}
FAMILIES = (*LAYERINGS, "style-a", "style-b", "segsalt")

THICKNESS_JITTER = 0.08
"""Standard deviation of a layer's thickness as a share of the mean."""
HALF_WAVES = (0.12, 0.32)
"""Distance between the crests and troughs of a curve, as a share of the map's width."""
FAULT_DIP_DEG = (45.0, 85.0)
BEYOND = 0.8
"""Layers and curves go on for this share of the map's size outside it, where faults and relief bring them in from."""


def default_shape(family: str) -> tuple[int, int]:
    """Rows and columns of the published maps of a family.

    raises  ConfigError: no such family
    """
    return SEG_SHAPE if _known(family) == "segsalt" else OPENFWI_SHAPE


def velocity_map(family: str, shape: tuple[int, int], seed: int, index: int) -> NDArray[np.float32]:
    """Map number `index` of a family, float32[z, x], m/s, 1500 to 4500.

    shape   rows and columns; structures scale with the map
    seed    chooses another series of maps
    raises  ConfigError: no such family, a map of fewer than 8 rows or columns, a negative seed

    >>> velocity_map("flatvel-a", (70, 70), seed=0, index=3).shape
    (70, 70)
    """
    _known(family)
    if min(shape) < FEWEST_CELLS:
        raise ConfigError(
            f"A map of {shape[0]} x {shape[1]} cells is too small for {family}: give at least {FEWEST_CELLS} rows and "
            "columns."
        )
    if seed < 0:
        raise ConfigError(f"seed={seed} cannot be used: a seed is a whole number from 0.")
    random = np.random.default_rng([seed, zlib.crc32(family.encode()), index])
    if family in LAYERINGS:
        velocity = layered_map(LAYERINGS[family], shape, random)
    elif family == "segsalt":
        velocity = salt_map(shape, random)
    else:
        velocity = texture_map(shape, random, sharp=family == "style-b")
    return velocity.astype(np.float32)


def layered_map(layering: Layering, shape: tuple[int, int], random: np.random.Generator) -> Array:
    """Layers of one velocity each, folded and then faulted, float64[z, x] with whole numbers of m/s."""
    z, x = np.meshgrid((np.arange(shape[0]) + 0.5) / shape[0], (np.arange(shape[1]) + 0.5) / shape[1], indexing="ij")
    tops, velocity = _column(layering, random)
    curve = _curve(layering.relief, random)
    for _ in range(random.integers(*layering.faults, endpoint=True)):
        z, x = _before_fault(z, x, layering.throw, shape[0] / shape[1], random)
    layer = np.searchsorted(tops, z - curve(x), side="right")
    return velocity[layer]


def _known(family: str) -> str:
    if family not in FAMILIES:
        near = difflib.get_close_matches(family.lower(), FAMILIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f'There is no family "{family}": the families are {", ".join(FAMILIES)}{hint}')
    return family


def _column(layering: Layering, random: np.random.Generator) -> tuple[Array, Array]:
    """Depths float64[n] of the interfaces, and velocities float64[n + 1] of the layers between and beyond them."""
    layers = random.integers(*layering.layers, endpoint=True)
    # The top layer reaches upwards for ever; below, layers go on beyond the map.
    count = math.ceil(layers * (1.0 + BEYOND))
    thickness = np.maximum(1.0 + THICKNESS_JITTER * random.standard_normal(count), 0.5) / layers
    velocity = random.integers(int(SLOWEST_MPS), int(FASTEST_MPS), count + 1, endpoint=True).astype(np.float64)
    if layering.ordered:
        # Sorting those within the map's height alone keeps its range of velocities that of the whole family.
        inside = layers + 1
        velocity[:inside].sort()
        velocity[inside:] = np.sort(
            random.integers(int(velocity[inside - 1]), int(FASTEST_MPS) + 1, count + 1 - inside)
        )
    return np.cumsum(thickness), velocity


def _curve(relief: tuple[float, float], random: np.random.Generator) -> CubicSpline:
    """Depth of an interface over the share of the width, crests and troughs at random distances and heights."""
    half_waves = random.uniform(*HALF_WAVES, math.ceil((1.0 + 2.0 * BEYOND) / HALF_WAVES[0]))
    knots = np.cumsum(half_waves) - BEYOND - random.uniform(*HALF_WAVES)
    heights = random.uniform(0.25, 1.0, len(knots)) * np.where(np.arange(len(knots)) % 2 == 0, 1.0, -1.0)
    spline = CubicSpline(knots, heights, bc_type="natural")
    inside = spline(np.linspace(0.0, 1.0, 101))
    scale = random.uniform(*relief) / np.ptp(inside)
    return CubicSpline(knots, scale * (heights - inside.mean()), bc_type="natural")


def _before_fault(
    z: Array, x: Array, throw: tuple[float, float], height_by_width: float, random: np.random.Generator
) -> tuple[Array, Array]:
    """Where every point lay before one side of a straight fault slid along it, up or down."""
    dip = math.radians(random.uniform(*FAULT_DIP_DEG))
    to_the_right = random.choice((-1.0, 1.0))
    down, across = math.sin(dip), to_the_right * math.cos(dip) * height_by_width
    at_x, at_z = random.uniform(0.15, 0.85), random.uniform(0.3, 0.7)
    slip = random.choice((-1.0, 1.0)) * random.uniform(*throw)
    hanging = (x - at_x) * down > (z - at_z) * across
    return np.where(hanging, z - slip * down, z), np.where(hanging, x - slip * across, x)
