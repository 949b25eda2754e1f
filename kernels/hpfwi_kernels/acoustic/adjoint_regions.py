"""The compiled adjoint update of the C-PML, one loop nest per region; elsewhere the adjoint updates as the forward run.

The transposed layers use terms T, A and B (README.md) of each cell and its neighbours. Along a row these stay in
registers; down a column they are scratch, since the memories they come from change in place.
"""

import numpy as np

from hpfwi_kernels.acoustic.regions import column_first, column_second, leap, row_second, terms_first, terms_second
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes, load, put

TILE = np.uint64(64)
"""Columns that are done at a time, so that three scratch fields of a layer's rows stay in the nearest cache."""


@hot
def _terms(mu, p, z, b, slope):
    """T = mu + b (mu + Z), A = b'T + b P and B = (1 + b) T of one axis of the adjoint layer."""
    t = mu + b * (mu + z)
    return t, slope * t + b * p, t + b * t


@hot
def _row_terms(mu, p, z, b, slope, i, x):
    return _terms(load(mu, i), load(p, i), load(z, i), load(b, x), load(slope, x))


@hot
def adjoint_edge_x(mu, v, c, p, z, a, b, slope, part, stride, kz, kx, d, reach):
    """Transpose of `_edge_x` on mu. T, A and B stay in registers, so p and z can be updated in place."""
    width = lanes(mu)
    for y in range(part[0], part[1]):
        row = y * stride
        x = part[2]
        t_low, flow_low, lift_low = _row_terms(mu, p, z, b, slope, row + x - width, x - width)
        t, flow, lift = _row_terms(mu, p, z, b, slope, row + x, x)
        for x in range(part[2], part[3], width):
            i = row + x
            t_high, flow_high, lift_high = _row_terms(mu, p, z, b, slope, i + width, x + width)
            here = load(mu, i)
            w = column_second(mu, i, stride, here, kz, reach) + (
                terms_second(lift_low, lift, lift_high, kx, reach) - terms_first(flow_low, flow, flow_high, d, reach)
            )
            decay = load(a, x)
            new_p = decay * (load(p, i) - terms_first(t_low, t, t_high, d, reach))
            put(z, i, decay * (here + load(z, i)))
            put(p, i, new_p)
            leap(v, c, i, here, w)
            t_low, flow_low, lift_low = t, flow, lift
            t, flow, lift = t_high, flow_high, lift_high


@hot
def adjoint_corner_x(mu, v, c, p, z, a, b, slope, part, stride, kx, d, reach):
    """Add what the lateral layer changes where `adjoint_edge_z` has updated as if there were none."""
    width = lanes(mu)
    for y in range(part[0], part[1]):
        row = y * stride
        x = part[2]
        t_low, flow_low, lift_low = _row_terms(mu, p, z, b, slope, row + x - width, x - width)
        t, flow, lift = _row_terms(mu, p, z, b, slope, row + x, x)
        low, here = load(mu, row + x - width), load(mu, row + x)
        for x in range(part[2], part[3], width):
            i = row + x
            t_high, flow_high, lift_high = _row_terms(mu, p, z, b, slope, i + width, x + width)
            high = load(mu, i + width)
            extra = terms_second(lift_low - low, lift - here, lift_high - high, kx, reach) - terms_first(
                flow_low, flow, flow_high, d, reach
            )
            decay = load(a, x)
            new_p = decay * (load(p, i) - terms_first(t_low, t, t_high, d, reach))
            put(z, i, decay * (here + load(z, i)))
            put(p, i, new_p)
            put(v, i, load(v, i) + load(c, i) * extra)
            t_low, flow_low, lift_low = t, flow, lift
            t, flow, lift = t_high, flow_high, lift_high
            low, here = here, high


@hot
def adjoint_edge_z(mu, v, c, p, z, a, b, slope, t, flow, lift, part, stride, kz, kx, d, reach):
    """Transpose of `_edge_z` on mu, the lateral layer left to `adjoint_corner_x`.

    t, flow and lift are scratch fields: T, A and B of rows that are needed after p and z have changed. A few columns
    at a time, so that the scratch stays in the nearest cache.
    """
    width, radius = lanes(mu), np.uint64(len(reach))
    for first in range(part[2], part[3], TILE):
        last = min(first + TILE, part[3])
        for y in range(part[0] - radius, part[1] + radius):
            gain, tilt = b[y], slope[y]
            for x in range(first, last, width):
                i = y * stride + x
                whole, down, up = _terms(load(mu, i), load(p, i), load(z, i), gain, tilt)
                put(t, i, whole)
                put(flow, i, down)
                put(lift, i, up)
        for y in range(part[0], part[1]):
            row = y * stride
            decay = a[y]
            low, here = load(mu, row + first - width), load(mu, row + first)
            for x in range(first, last, width):
                i = row + x
                high = load(mu, i + width)
                w = row_second(mu, i, low, here, high, kx, reach) + (
                    column_second(lift, i, stride, load(lift, i), kz, reach) - column_first(flow, i, stride, d, reach)
                )
                leap(v, c, i, here, w)
                put(p, i, decay * (load(p, i) - column_first(t, i, stride, d, reach)))
                put(z, i, decay * (here + load(z, i)))
                low, here = here, high
