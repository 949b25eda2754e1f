"""The compiled forward update, one loop nest per region of the padded model: interior, edges, corners, sponge.

Loops step by vectors (`vectors.py`). A row is read once: `low`, `here` and `high` are the vectors before, at and after
the current one, and neighbours along the row come from these three by shuffles. The layout is described in loops.py.

A tuple `reach` of R ones selects the order: its length is part of its type, so each order compiles to its own loop.
"""

import numpy as np

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import ahead, behind, lanes, left, load, put, right, stream

MARGIN = 16
LANES = 16
TWO = np.uint64(2)
# Whether a loop keeps the bracket, by the length of the tuple, so that each choice compiles to its own loop. A flag
# tested inside a vectorised loop becomes a masked store, which takes the cache line from other threads even when off.
KEEP = (1, 1)
DROP = (1,)
LEFT = np.uint64(MARGIN)
COLUMNS = np.uint64(1024)
"""Columns that are done at a time, so that a row of u is still in the nearest cache for the rows below it."""


@hot
def column_first(field, i, hop, d, reach):
    """D1 down the column at the vector of cell i; rows are `hop` cells apart."""
    total = d[0] * (load(field, i + hop) - load(field, i - hop))
    if len(reach) > 1:
        total = total + d[1] * (load(field, i + hop + hop) - load(field, i - hop - hop))
    if len(reach) > 2:
        total = total + d[2] * (load(field, i + hop + hop + hop) - load(field, i - hop - hop - hop))
    if len(reach) > 3:
        total = total + d[3] * (load(field, i + hop + hop + hop + hop) - load(field, i - hop - hop - hop - hop))
    return total


@hot
def column_second(field, i, hop, here, k, reach):
    """D2 down the column at the vector of cell i; rows are `hop` cells apart."""
    total = k[0] * here + k[1] * (load(field, i + hop) + load(field, i - hop))
    if len(reach) > 1:
        total = total + k[2] * (load(field, i + hop + hop) + load(field, i - hop - hop))
    if len(reach) > 2:
        total = total + k[3] * (load(field, i + hop + hop + hop) + load(field, i - hop - hop - hop))
    if len(reach) > 3:
        total = total + k[4] * (load(field, i + hop + hop + hop + hop) + load(field, i - hop - hop - hop - hop))
    return total


@hot
def row_first(field, i, low, here, high, d, reach):
    """D1 along the row at the vector of cell i."""
    total = d[0] * (right(field, i, here, high, 1) - left(field, i, low, here, 1))
    if len(reach) > 1:
        total = total + d[1] * (right(field, i, here, high, 2) - left(field, i, low, here, 2))
    if len(reach) > 2:
        total = total + d[2] * (right(field, i, here, high, 3) - left(field, i, low, here, 3))
    if len(reach) > 3:
        total = total + d[3] * (right(field, i, here, high, 4) - left(field, i, low, here, 4))
    return total


@hot
def row_second(field, i, low, here, high, k, reach):
    """D2 along the row at the vector of cell i."""
    total = k[0] * here + k[1] * (right(field, i, here, high, 1) + left(field, i, low, here, 1))
    if len(reach) > 1:
        total = total + k[2] * (right(field, i, here, high, 2) + left(field, i, low, here, 2))
    if len(reach) > 2:
        total = total + k[3] * (right(field, i, here, high, 3) + left(field, i, low, here, 3))
    if len(reach) > 3:
        total = total + k[4] * (right(field, i, here, high, 4) + left(field, i, low, here, 4))
    return total


@hot
def terms_first(low, here, high, d, reach):
    """D1 along the row of vectors that are in registers only."""
    total = d[0] * (ahead(here, high, 1) - behind(low, here, 1))
    if len(reach) > 1:
        total = total + d[1] * (ahead(here, high, 2) - behind(low, here, 2))
    if len(reach) > 2:
        total = total + d[2] * (ahead(here, high, 3) - behind(low, here, 3))
    if len(reach) > 3:
        total = total + d[3] * (ahead(here, high, 4) - behind(low, here, 4))
    return total


@hot
def terms_second(low, here, high, k, reach):
    """D2 along the row of vectors that are in registers only."""
    total = k[0] * here + k[1] * (ahead(here, high, 1) + behind(low, here, 1))
    if len(reach) > 1:
        total = total + k[2] * (ahead(here, high, 2) + behind(low, here, 2))
    if len(reach) > 2:
        total = total + k[3] * (ahead(here, high, 3) + behind(low, here, 3))
    if len(reach) > 3:
        total = total + k[4] * (ahead(here, high, 4) + behind(low, here, 4))
    return total


@hot
def bracket(u, i, low, here, high, stride, lap, reach):
    """The Laplacian at the vector of cell i; lap = (weight of the cell itself, weights along z, weights along x)."""
    centre, z, x = lap
    total = centre * here + z[0] * (load(u, i + stride) + load(u, i - stride))
    total = total + x[0] * (right(u, i, here, high, 1) + left(u, i, low, here, 1))
    if len(reach) > 1:
        far = stride + stride
        total = total + z[1] * (load(u, i + far) + load(u, i - far))
        total = total + x[1] * (right(u, i, here, high, 2) + left(u, i, low, here, 2))
    if len(reach) > 2:
        far = stride + stride + stride
        total = total + z[2] * (load(u, i + far) + load(u, i - far))
        total = total + x[2] * (right(u, i, here, high, 3) + left(u, i, low, here, 3))
    if len(reach) > 3:
        far = stride + stride + stride + stride
        total = total + z[3] * (load(u, i + far) + load(u, i - far))
        total = total + x[3] * (right(u, i, here, high, 4) + left(u, i, low, here, 4))
    return total


@hot
def _keep_bracket(w_out, w_stride, y, x, w, reach):
    stream(w_out, (y - np.uint64(len(reach))) * w_stride + (x - LEFT), w)


@hot
def leap(v, c, i, here, w):
    """v(t-1) becomes v(t+1) = c w + 2 u - v at the vector of cell i, where u is `here`."""
    put(v, i, load(c, i) * w + (here + here - load(v, i)))


@hot
def _interior_rows(u, v, c, w_out, w_stride, keep, y, second, part, stride, lap, reach):
    """Update rows y and `second` of the part, together: the rows that both stencils read are read once.

    The two may be the same row. It is then updated once, for what is written is written after everything is read.
    """
    width = lanes(u)
    row, below = y * stride, second * stride
    low, here = load(u, row + part[2] - width), load(u, row + part[2])
    low_below, here_below = load(u, below + part[2] - width), load(u, below + part[2])
    for x in range(part[2], part[3], width):
        i, j = row + x, below + x
        high, high_below = load(u, i + width), load(u, j + width)
        w = bracket(u, i, low, here, high, stride, lap, reach)
        w_below = bracket(u, j, low_below, here_below, high_below, stride, lap, reach)
        if len(keep) > 1:
            _keep_bracket(w_out, w_stride, y, x, w, reach)
            _keep_bracket(w_out, w_stride, second, x, w_below, reach)
        new = load(c, i) * w + (here + here - load(v, i))
        new_below = load(c, j) * w_below + (here_below + here_below - load(v, j))
        put(v, i, new)
        put(v, j, new_below)
        low, here = here, high
        low_below, here_below = here_below, high_below


@hot
def interior(u, v, c, w_out, w_stride, keep, part, stride, lap, reach):
    """v(t-1) becomes v(t+1) = c lap u + 2 u - v on the cells of the part (first and last+1 row and column)."""
    for first in range(part[2], part[3], COLUMNS):
        piece = (part[0], part[1], first, min(first + COLUMNS, part[3]))
        for y in range(part[0], part[1], TWO):
            second = min(y + np.uint64(1), part[1] - np.uint64(1))
            _interior_rows(u, v, c, w_out, w_stride, keep, y, second, piece, stride, lap, reach)


@hot
def sponge_layer(u, v, c, damping, w_out, w_stride, keep, part, stride, lap, reach):
    """v(t-1) becomes c lap u + (2 - k) u - (1 - k) v."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high = load(u, i + width)
            w = bracket(u, i, low, here, high, stride, lap, reach)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            before = load(v, i)
            put(v, i, load(c, i) * w + (here + here - before) - load(damping, i) * (here - before))
            low, here = here, high


@hot
def _layer(plain, q, dpsi, a, b, slope, psi, zeta):
    """T, the new zeta and the new a·psi of one axis; the axis adds T + zeta to the bracket."""
    t = plain + (b * plain + (slope * q + dpsi))
    return t, b * t + a * zeta, a * (b * q + psi)


@hot
def _edge_x(u, v, c, psi, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kz, kx, d, reach):
    """The update where only the lateral C-PML acts. psi holds a·psi and is read before it is written."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        psi_low, psi_here = load(psi, row + part[2] - width), load(psi, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high, psi_high = load(u, i + width), load(psi, i + width)
            t, change, memory = _layer(
                row_second(u, i, low, here, high, kx, reach),
                row_first(u, i, low, here, high, d, reach),
                terms_first(psi_low, psi_here, psi_high, d, reach),
                load(a, x), load(b, x), load(slope, x), psi_here, load(zeta, i),
            )  # fmt: skip
            put(psi, i, memory)
            put(zeta, i, change)
            w = column_second(u, i, stride, here, kz, reach) + (t + change)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            leap(v, c, i, here, w)
            low, here = here, high
            psi_low, psi_here = psi_here, psi_high


@hot
def _edge_z(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kz, kx, d, reach):
    """The update where only the vertical C-PML acts. psi arrays hold a·psi."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high = load(u, i + width)
            t, change, memory = _layer(
                column_second(u, i, stride, here, kz, reach),
                column_first(u, i, stride, d, reach),
                column_first(psi, i, stride, d, reach),
                a[y], b[y], slope[y], load(psi, i), load(zeta, i),
            )  # fmt: skip
            put(psi_next, i, memory)
            put(zeta, i, change)
            w = row_second(u, i, low, here, high, kx, reach) + (t + change)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            leap(v, c, i, here, w)
            low, here = here, high


@hot
def _corner(
    u, v, c, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    w_out, w_stride, keep, part, stride, kz, kx, dz, dx, reach,
):  # fmt: skip
    """The update where both layers act."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        psi_low, psi_here = load(psi_x, row + part[2] - width), load(psi_x, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high, psi_high = load(u, i + width), load(psi_x, i + width)
            t_x, change_x, memory_x = _layer(
                row_second(u, i, low, here, high, kx, reach),
                row_first(u, i, low, here, high, dx, reach),
                terms_first(psi_low, psi_here, psi_high, dx, reach),
                load(ax, x), load(bx, x), load(slope_x, x), psi_here, load(zeta_x, i),
            )  # fmt: skip
            put(psi_x, i, memory_x)
            put(zeta_x, i, change_x)
            t_z, change_z, memory_z = _layer(
                column_second(u, i, stride, here, kz, reach),
                column_first(u, i, stride, dz, reach),
                column_first(psi_z, i, stride, dz, reach),
                az[y], bz[y], slope_z[y], load(psi_z, i), load(zeta_z, i),
            )  # fmt: skip
            put(psi_z_next, i, memory_z)
            put(zeta_z, i, change_z)
            w = (t_z + change_z) + (t_x + change_x)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            leap(v, c, i, here, w)
            low, here = here, high
            psi_low, psi_here = psi_here, psi_high


@hot
def layers(
    u, v, c, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    w_out, w_stride, keep, inside, strips_x, strips_z, low, high, stride, kz, kx, dz, dx, reach,
):  # fmt: skip
    """The update of the cells a C-PML touches in the rows low to high - 1; `keep` is KEEP or DROP.

    inside   rows of low to high - 1 without a vertical layer; columns without a lateral one
    """
    for sx in range(strips_x.shape[0]):
        part = (inside[0], inside[1], strips_x[sx, 0], strips_x[sx, 1])
        _edge_x(
            u, v, c, psi_x, zeta_x, ax, bx, slope_x,
            w_out, w_stride, keep, part, stride, kz, kx, dx, reach,
        )  # fmt: skip
    for sz in range(strips_z.shape[0]):
        top = max(strips_z[sz, 0], low)
        bottom = max(top, min(strips_z[sz, 1], high))
        part = (top, bottom, inside[2], inside[3])
        _edge_z(
            u, v, c, psi_z, psi_z_next, zeta_z, az, bz, slope_z,
            w_out, w_stride, keep, part, stride, kz, kx, dz, reach,
        )  # fmt: skip
        for sx in range(strips_x.shape[0]):
            corner = (top, bottom, strips_x[sx, 0], strips_x[sx, 1])
            _corner(
                u, v, c, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                w_out, w_stride, keep, corner, stride, kz, kx, dz, dx, reach,
            )  # fmt: skip
