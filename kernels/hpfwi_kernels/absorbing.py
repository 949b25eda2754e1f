"""Absorbing layers: profiles of the convolutional PML and of the sponge that OpenFWI's records were made with."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.stencils import first_derivative

# Theoretical amplitude reflection coefficient that sets the C-PML's strength (Collino and Tsogka 2001).
REFLECTION = 1e-3
# The sponge's strength is written with the logarithm of this factor in the code OpenFWI's records were made with.
SPONGE_DECAY = 1e7


@dataclass(frozen=True)
class Profiles:
    """C-PML profiles along one padded axis of n cells (no guard cells); zero where the layer does not act.

    decay   float64[n]  a: the factor that memory variables keep per time step
    gain    float64[n]  b: what a memory variable gains from a derivative per time step
    slope   float64[n]  first difference of b, divided by the spacing; 1/m
    """

    decay: NDArray[np.float64]
    gain: NDArray[np.float64]
    slope: NDArray[np.float64]


def cpml_profiles(
    cells: int,
    low: int,
    high: int,
    *,
    spacing_m: float,
    dt_s: float,
    order: int,
    max_velocity_mps: float,
    pml_hz: float,
) -> Profiles:
    """C-PML profiles (Pasalic and McGarry, SEG 2010) of an axis of padded cells with layers of `low` and `high` cells.

    dt_s is the inner time step; pml_hz sets the complex frequency shift alpha = pi pml_hz (1 - depth).
    """
    radius = order // 2
    index = np.arange(-radius, cells + radius, dtype=np.float64)
    depth = np.zeros_like(index)
    sigma_max = np.zeros_like(index)
    for width, distance in ((low, low - index), (high, index - (cells - 1 - high))):
        if width > 0:
            inside = distance > 0
            depth = np.where(inside, np.minimum(distance / width, 1.0), depth)
            strength = -3.0 * max_velocity_mps * math.log(REFLECTION) / (2.0 * width * spacing_m)
            sigma_max = np.where(inside, strength, sigma_max)
    sigma = sigma_max * depth**2
    alpha = math.pi * pml_hz * (1.0 - depth)
    acts = depth > 0
    decay = np.where(acts, np.exp(-(sigma + alpha) * dt_s), 0.0)
    gain = np.zeros_like(decay)
    np.divide(sigma * (decay - 1.0), sigma + alpha, out=gain, where=acts & (sigma + alpha > 0))
    slope = np.zeros(cells)
    for reach, weight in enumerate(first_derivative(order), start=1):
        right = gain[radius + reach : radius + reach + cells]
        left = gain[radius - reach : radius - reach + cells]
        slope += weight * (right - left) / spacing_m
    inner = slice(radius, radius + cells)
    return Profiles(decay[inner].copy(), gain[inner].copy(), slope)


def sponge_damping(
    shape: tuple[int, ...],
    widths: tuple[int, ...],
    *,
    spacing_m: tuple[float, ...],
    dt_s: float,
    min_velocity_mps: float,
) -> NDArray[np.float64]:
    """Damping k = D dt per padded cell, float64[z, x] or [z, y, x], for p+ = c·lap(p) + (2 - k) p - (1 - k) p-.

    D = kappa (i / (W - 1))², i = 0 at the cell next to the model and W - 1 at the outer edge of a layer W cells wide,
    with kappa = 3 v_min ln(1e7) / (2 (W - 1) h): the profile behind OpenFWI's records. The left and right layers run
    the whole height; the top and bottom layers fill between them, so corners take the lateral value. In three
    dimensions the front and back layers come between: where layers meet, the later axis counts.

    widths  cells of the layer at the low and the high end of every axis
    """

    def ramp(width: int, h: float) -> NDArray[np.float64]:
        if width < 2:
            return np.zeros(width)
        return _edge_damping(width, h, dt_s, min_velocity_mps) * (np.arange(width) / (width - 1)) ** 2

    damping = np.zeros(shape)
    for axis, h in enumerate(spacing_m):
        low, high = widths[2 * axis : 2 * axis + 2]
        lines = np.moveaxis(damping, axis, -1)
        lines[..., :low] = ramp(low, h)[::-1]
        lines[..., shape[axis] - high :] = ramp(high, h)
    return damping


def largest_sponge_damping(
    widths: tuple[int, ...], *, spacing_m: tuple[float, ...], dt_s: float, min_velocity_mps: float
) -> float:
    """The largest k that `sponge_damping` gives to a cell."""
    edges = [(width, spacing_m[n // 2]) for n, width in enumerate(widths) if width > 1]
    return max((_edge_damping(width, h, dt_s, min_velocity_mps) for width, h in edges), default=0.0)


def _edge_damping(width: int, h: float, dt_s: float, min_velocity_mps: float) -> float:
    return 3.0 * min_velocity_mps * math.log(SPONGE_DECAY) / (2.0 * (width - 1) * h) * dt_s
