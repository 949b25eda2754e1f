"""The compiled time loops: one shot, all time steps, forward and adjoint.

Fields are flat arrays of rows of `stride` cells. A row holds MARGIN zero cells and then the padded model's columns,
rounded up to a multiple of LANES; the next row's margin is the right-hand guard. Every index is a uint64 that is never
negative, since Numba's wrap-around test on signed indices costs more than the stencil. Rounded-up columns have
c = a = b = b' = 0 and stay exactly zero, so no loop has a remainder.

The padded model is cut into parts, each with a loop nest of its own: interior, lateral edges, and the rows of the
vertical edges, where the corners get the lateral layer's change on top. An edge spans every cell whose update its layer
touches: width + R cells forward, width + 2R in the adjoint. The equations are in README.md; `reference.py` states them
without the layout.

Loops step by vectors (`vectors.py`). A row is read once: `low`, `here` and `high` are the vectors before, at and after
the current one, and neighbours along the row come from these three by shuffles.

A tuple `reach` of R ones selects the order: its length is part of its type, so each order compiles to its own loop.
"""

import numpy as np

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import ahead, behind, lanes, left, load, put, right, stream, unpack

MARGIN = 16
LANES = 16
TWO = np.uint64(2)
TILE = np.uint64(64)
# Whether a loop keeps the bracket, by the length of the tuple, so that each choice compiles to its own loop. A flag
# tested inside a vectorised loop becomes a masked store, which takes the cache line from other threads even when off.
KEEP = (1, 1)
DROP = (1,)
LEFT = np.uint64(MARGIN)


@hot
def _column_first(field, i, hop, d, reach):
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
def _column_second(field, i, hop, here, k, reach):
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
def _row_first(field, i, low, here, high, d, reach):
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
def _row_second(field, i, low, here, high, k, reach):
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
def _bracket(u, i, low, here, high, stride, kz, kx, reach):
    """The Laplacian at the vector of cell i."""
    return _column_second(u, i, stride, here, kz, reach) + _row_second(u, i, low, here, high, kx, reach)


@hot
def _keep_bracket(w_out, w_stride, y, x, w, reach):
    stream(w_out, (y - np.uint64(len(reach))) * w_stride + (x - LEFT), w)


@hot
def _leap(v, c, i, here, w):
    """v(t-1) becomes v(t+1) = c w + 2 u - v at the vector of cell i, where u is `here`."""
    put(v, i, load(c, i) * w + (here + here - load(v, i)))


@hot
def _interior_rows(u, v, c, w_out, w_stride, keep, y, second, part, stride, kz, kx, reach):
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
        w = _bracket(u, i, low, here, high, stride, kz, kx, reach)
        w_below = _bracket(u, j, low_below, here_below, high_below, stride, kz, kx, reach)
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
def _interior(u, v, c, w_out, w_stride, keep, part, stride, kz, kx, reach):
    """v(t-1) becomes v(t+1) = c lap u + 2 u - v on the cells of the part (first and last+1 row and column)."""
    for y in range(part[0], part[1], TWO):
        second = min(y + np.uint64(1), part[1] - np.uint64(1))
        _interior_rows(u, v, c, w_out, w_stride, keep, y, second, part, stride, kz, kx, reach)


@hot
def _sponge(u, v, c, damping, w_out, w_stride, keep, part, stride, kz, kx, reach):
    """v(t-1) becomes c lap u + (2 - k) u - (1 - k) v."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high = load(u, i + width)
            w = _bracket(u, i, low, here, high, stride, kz, kx, reach)
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
def _edge_x(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kz, kx, d, reach):
    """The update where only the lateral C-PML acts. psi arrays hold a·psi."""
    width = lanes(u)
    for y in range(part[0], part[1]):
        row = y * stride
        low, here = load(u, row + part[2] - width), load(u, row + part[2])
        psi_low, psi_here = load(psi, row + part[2] - width), load(psi, row + part[2])
        for x in range(part[2], part[3], width):
            i = row + x
            high, psi_high = load(u, i + width), load(psi, i + width)
            t, change, memory = _layer(
                _row_second(u, i, low, here, high, kx, reach),
                _row_first(u, i, low, here, high, d, reach),
                _row_first(psi, i, psi_low, psi_here, psi_high, d, reach),
                load(a, x), load(b, x), load(slope, x), psi_here, load(zeta, i),
            )  # fmt: skip
            put(psi_next, i, memory)
            put(zeta, i, change)
            w = _column_second(u, i, stride, here, kz, reach) + (t + change)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            _leap(v, c, i, here, w)
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
                _column_second(u, i, stride, here, kz, reach),
                _column_first(u, i, stride, d, reach),
                _column_first(psi, i, stride, d, reach),
                a[y], b[y], slope[y], load(psi, i), load(zeta, i),
            )  # fmt: skip
            put(psi_next, i, memory)
            put(zeta, i, change)
            w = _row_second(u, i, low, here, high, kx, reach) + (t + change)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            _leap(v, c, i, here, w)
            low, here = here, high


@hot
def _corner(
    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
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
                _row_second(u, i, low, here, high, kx, reach),
                _row_first(u, i, low, here, high, dx, reach),
                _row_first(psi_x, i, psi_low, psi_here, psi_high, dx, reach),
                load(ax, x), load(bx, x), load(slope_x, x), psi_here, load(zeta_x, i),
            )  # fmt: skip
            put(psi_x_next, i, memory_x)
            put(zeta_x, i, change_x)
            t_z, change_z, memory_z = _layer(
                _column_second(u, i, stride, here, kz, reach),
                _column_first(u, i, stride, dz, reach),
                _column_first(psi_z, i, stride, dz, reach),
                az[y], bz[y], slope_z[y], load(psi_z, i), load(zeta_z, i),
            )  # fmt: skip
            put(psi_z_next, i, memory_z)
            put(zeta_z, i, change_z)
            w = (t_z + change_z) + (t_x + change_x)
            if len(keep) > 1:
                _keep_bracket(w_out, w_stride, y, x, w, reach)
            _leap(v, c, i, here, w)
            low, here = here, high
            psi_low, psi_here = psi_here, psi_high


@hot
def _terms(mu, p, z, b, slope):
    """T = mu + b (mu + Z), A = b'T + b P and B = (1 + b) T of one axis of the adjoint layer."""
    t = mu + b * (mu + z)
    return t, slope * t + b * p, t + b * t


@hot
def _terms_first(low, here, high, d, reach):
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
def _terms_second(low, here, high, k, reach):
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
def _row_terms(mu, p, z, b, slope, i, x):
    return _terms(load(mu, i), load(p, i), load(z, i), load(b, x), load(slope, x))


@hot
def _adjoint_edge_x(mu, v, c, p, z, a, b, slope, part, stride, kz, kx, d, reach):
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
            w = _column_second(mu, i, stride, here, kz, reach) + (
                _terms_second(lift_low, lift, lift_high, kx, reach) - _terms_first(flow_low, flow, flow_high, d, reach)
            )
            decay = load(a, x)
            new_p = decay * (load(p, i) - _terms_first(t_low, t, t_high, d, reach))
            put(z, i, decay * (here + load(z, i)))
            put(p, i, new_p)
            _leap(v, c, i, here, w)
            t_low, flow_low, lift_low = t, flow, lift
            t, flow, lift = t_high, flow_high, lift_high


@hot
def _adjoint_corner_x(mu, v, c, p, z, a, b, slope, part, stride, kx, d, reach):
    """Add what the lateral layer changes where `_adjoint_edge_z` has updated as if there were none."""
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
            extra = _terms_second(lift_low - low, lift - here, lift_high - high, kx, reach) - _terms_first(
                flow_low, flow, flow_high, d, reach
            )
            decay = load(a, x)
            new_p = decay * (load(p, i) - _terms_first(t_low, t, t_high, d, reach))
            put(z, i, decay * (here + load(z, i)))
            put(p, i, new_p)
            put(v, i, load(v, i) + load(c, i) * extra)
            t_low, flow_low, lift_low = t, flow, lift
            t, flow, lift = t_high, flow_high, lift_high
            low, here = here, high


@hot
def _adjoint_edge_z(mu, v, c, p, z, a, b, slope, t, flow, lift, part, stride, kz, kx, d, reach):
    """Transpose of `_edge_z` on mu, the lateral layer left to `_adjoint_corner_x`.

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
                w = _row_second(mu, i, low, here, high, kx, reach) + (
                    _column_second(lift, i, stride, load(lift, i), kz, reach) - _column_first(flow, i, stride, d, reach)
                )
                _leap(v, c, i, here, w)
                put(p, i, decay * (load(p, i) - _column_first(t, i, stride, d, reach)))
                put(z, i, decay * (here + load(z, i)))
                low, here = here, high


@hot
def _between(strips, first, last):
    """What the strips at both ends leave of [first, last): the interior, empty when they cover everything."""
    for s in range(strips.shape[0]):
        if strips[s, 0] == first:
            first = strips[s, 1]
        else:
            last = strips[s, 0]
    return first, max(first, last)


@hot
def _mirror(u, box, stride, reach):
    """Refill the guard above a free surface with the odd image of the field below it."""
    up = box[0] * stride
    down = up
    for _ in range(len(reach)):
        up -= stride
        down += stride
        for x in range(box[2], box[3]):
            u[up + x] = -u[down + x]


@hot
def _correlate(mu, w, w_stride, total, box, stride):
    """total += mu w on every cell of the box; w may be kept in bfloat16."""
    width = lanes(mu)
    for y in range(box[0], box[1]):
        row = y * stride
        w_row = (y - box[0]) * w_stride
        for x in range(box[2], box[3], width):
            i = row + x
            put(total, i, load(total, i) + load(mu, i) * unpack(w, w_row + (x - box[2]), mu))


@hot
def _ring(field, ring, core, stride, radius, restore):
    """Copy the `radius` cells around the core to `ring`, or back; a star-shaped stencil needs no corners."""
    n = np.uint64(0)
    for side in range(4):
        first_row, last_row, first, last = core[0], core[1], core[2], core[3]
        if side == 0:
            first_row, last_row = core[0] - radius, core[0]
        elif side == 1:
            first_row, last_row = core[1], core[1] + radius
        elif side == 2:
            first, last = core[2] - radius, core[2]
        else:
            first, last = core[3], core[3] + radius
        for y in range(first_row, last_row):
            row = y * stride
            if restore:
                for x in range(first, last):
                    field[row + x] = ring[n + (x - first)]
            else:
                for x in range(first, last):
                    ring[n + (x - first)] = field[row + x]
            n += last - first


@hot
def _unwind(u, v, c, mu, total, counts, core, stride, kz, kx, reach):
    """v = u(t+1) becomes u(t-1) on the core; total += mu w there where the step counts."""
    width = lanes(u)
    for y in range(core[0], core[1]):
        row = y * stride
        low, here = load(u, row + core[2] - width), load(u, row + core[2])
        for x in range(core[2], core[3], width):
            i = row + x
            high = load(u, i + width)
            w = _bracket(u, i, low, here, high, stride, kz, kx, reach)
            if counts:
                put(total, i, load(total, i) + load(mu, i) * w)
            _leap(v, c, i, here, w)
            low, here = here, high


@hot
def _layers(
    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    w_out, w_stride, keep, inside, strips_x, strips_z, stride, kz, kx, dz, dx, reach,
):  # fmt: skip
    """The update of every cell a C-PML touches; `keep` is KEEP or DROP."""
    for sx in range(strips_x.shape[0]):
        part = (inside[0], inside[1], strips_x[sx, 0], strips_x[sx, 1])
        _edge_x(
            u, v, c, psi_x, psi_x_next, zeta_x, ax, bx, slope_x,
            w_out, w_stride, keep, part, stride, kz, kx, dx, reach,
        )  # fmt: skip
    for sz in range(strips_z.shape[0]):
        part = (strips_z[sz, 0], strips_z[sz, 1], inside[2], inside[3])
        _edge_z(
            u, v, c, psi_z, psi_z_next, zeta_z, az, bz, slope_z,
            w_out, w_stride, keep, part, stride, kz, kx, dz, reach,
        )  # fmt: skip
        for sx in range(strips_x.shape[0]):
            corner = (strips_z[sz, 0], strips_z[sz, 1], strips_x[sx, 0], strips_x[sx, 1])
            _corner(
                u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                w_out, w_stride, keep, corner, stride, kz, kx, dz, dx, reach,
            )  # fmt: skip


@hot
def march(
    u, v, c, damping, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    strips_x, strips_z, box, stride, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, drive, receiver_cell, receiver_point, receiver_weight, records,
    begin, end, stored, store, store_every, w_stride, ring, save_ring, core,
):  # fmt: skip
    """Run one shot forward from step `begin` to before step `end`; begin is a multiple of store_every.

    drive    [source, step]       records  [step - begin, receiver], written
    u, v     fields at t = begin and t = begin - 1. After an odd number of steps they have changed places, and so have
             psi and psi_next
    stored   [slot, z·x], the brackets of every store_every-th step from `begin`, written when `store`
    ring     [step, cell], the cells around the core, written when `save_ring`
    strips   [n, 2] first and last+1 column or row
    """
    first_row, last_row = _between(strips_z, box[0], box[1])
    first_column, last_column = _between(strips_x, box[2], box[3])
    inside = (first_row, last_row, first_column, last_column)
    for step in range(begin, end):
        row = step - begin
        for r in range(records.shape[1]):
            records[row, r] = 0
        for n in range(receiver_cell.size):
            records[row, receiver_point[n]] += receiver_weight[n] * u[receiver_cell[n]]
        if save_ring:
            _ring(u, ring[step], core, stride, np.uint64(len(reach)), False)
        keep = store and row % store_every == 0
        w_out = stored[row // store_every] if keep else stored[0]
        if sponge:
            if keep:
                _sponge(u, v, c, damping, w_out, w_stride, KEEP, box, stride, kz, kx, reach)
            else:
                _sponge(u, v, c, damping, w_out, w_stride, DROP, box, stride, kz, kx, reach)
        else:
            if keep:
                _interior(u, v, c, w_out, w_stride, KEEP, inside, stride, kz, kx, reach)
                _layers(
                    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                    w_out, w_stride, KEEP, inside, strips_x, strips_z, stride, kz, kx, dz, dx, reach,
                )  # fmt: skip
            else:
                _interior(u, v, c, w_out, w_stride, DROP, inside, stride, kz, kx, reach)
                _layers(
                    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                    w_out, w_stride, DROP, inside, strips_x, strips_z, stride, kz, kx, dz, dx, reach,
                )  # fmt: skip
            psi_x, psi_x_next = psi_x_next, psi_x
            psi_z, psi_z_next = psi_z_next, psi_z
        for n in range(source_cell.size):
            i = source_cell[n]
            v[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
        if free_surface:
            _mirror(v, box, stride, reach)
        u, v = v, u


@hot
def march_back(
    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, slope_x, az, bz, slope_z, t, flow, lift,
    strips_x, strips_z, box, stride, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_product, drive, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, residual, begin, end, stored, store_every, w_stride, total,
    ring, rebuild, core, field, field_next,
):  # fmt: skip
    """Run one shot's adjoint backwards in time, from step end - 1 to step `begin`, a multiple of store_every.

    residual        [step, receiver]
    drive_gradient  [source, step], written
    source_product  [source tap, step], written: weight times mu at the tap, the source's own part of the gradient
    stored          [slot, z·x], the brackets from `begin` on
    total           [z·x], += sum over stored steps of mu w
    mu, v           change places when the number of steps is odd
    rebuild         take w from the wavefield itself, which is run backwards in the core between the cells in `ring`:
                    field and field_next hold u(end - 1) and u(end), and change places as mu and v do
    """
    first_row, last_row = _between(strips_z, box[0], box[1])
    first_column, last_column = _between(strips_x, box[2], box[3])
    inside = (first_row, last_row, first_column, last_column)
    for back in range(end - begin):
        step = end - 1 - back
        for s in range(drive_gradient.shape[0]):
            drive_gradient[s, step] = 0
        for n in range(source_cell.size):
            product = source_weight[n] * mu[source_cell[n]]
            source_product[n, step] = product
            drive_gradient[source_point[n], step] += product
        counts = (step - begin) % store_every == 0
        if rebuild:
            _ring(field, ring[step], core, stride, np.uint64(len(reach)), True)
            _unwind(field, field_next, c, mu, total, counts, core, stride, kz, kx, reach)
            for n in range(source_cell.size):
                i = source_cell[n]
                field_next[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
            if free_surface:
                _mirror(field_next, box, stride, reach)
            field, field_next = field_next, field
        elif counts:
            _correlate(mu, stored[(step - begin) // store_every], w_stride, total, box, stride)
        if sponge:
            _sponge(mu, v, c, damping, total, w_stride, DROP, box, stride, kz, kx, reach)
        else:
            _interior(mu, v, c, total, w_stride, DROP, inside, stride, kz, kx, reach)
            for sx in range(strips_x.shape[0]):
                part = (first_row, last_row, strips_x[sx, 0], strips_x[sx, 1])
                _adjoint_edge_x(mu, v, c, p_x, z_x, ax, bx, slope_x, part, stride, kz, kx, dx, reach)
            for sz in range(strips_z.shape[0]):
                part = (strips_z[sz, 0], strips_z[sz, 1], box[2], box[3])
                _adjoint_edge_z(mu, v, c, p_z, z_z, az, bz, slope_z, t, flow, lift, part, stride, kz, kx, dz, reach)
                for sx in range(strips_x.shape[0]):
                    corner = (strips_z[sz, 0], strips_z[sz, 1], strips_x[sx, 0], strips_x[sx, 1])
                    _adjoint_corner_x(mu, v, c, p_x, z_x, ax, bx, slope_x, corner, stride, kx, dx, reach)
        for n in range(receiver_cell.size):
            i = receiver_cell[n]
            v[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
        if free_surface:
            _mirror(v, box, stride, reach)
        mu, v = v, mu
