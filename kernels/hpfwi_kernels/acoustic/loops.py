"""The compiled time loops: one shot, all time steps, forward and adjoint.

Fields are flat arrays of rows of `stride` cells. A row holds MARGIN zero cells and then the padded model's columns,
rounded up to a multiple of LANES; the next row's margin is the right-hand guard. Every index is a uint64 that is never
negative, since Numba's wrap-around test on signed indices costs more than the stencil. Rounded-up columns have
c = a = b = b' = 0 and stay exactly zero, so no loop has a remainder.

The padded model is cut into parts, each with a loop nest of its own: interior, lateral edges, and the rows of the
vertical edges, where the corners get the lateral layer's change on top. An edge spans every cell whose update its layer
touches: width + R cells forward, width + 2R in the adjoint. The equations are in README.md; `reference.py` states them
without the layout.

The loop nests of the regions are in regions.py and adjoint_regions.py.
"""

import numpy as np

from hpfwi_kernels.acoustic.adjoint_regions import adjoint_corner_x, adjoint_edge_x, adjoint_edge_z
from hpfwi_kernels.acoustic.regions import DROP, KEEP, bracket, interior, layers, leap, sponge_layer
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.subnormals import ignore_subnormals, restore
from hpfwi_kernels.team import meet
from hpfwi_kernels.vectors import lanes, load, put, unpack


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
def _clipped(first_row, last_row, low, high, first, last):
    """The part (first and last+1 row and column) with its rows held to low .. high - 1."""
    top = max(first_row, low)
    return top, max(top, min(last_row, high)), first, last


@hot
def _once(low, high, box, leads, team):
    """Rows whose points this call reads: its own, or all or none where several calls would add to one point."""
    if team == 1:
        return low, high
    return box[0], (box[1] if leads else box[0])


@hot
def _correlate(mu, w, w_stride, total, low, high, box, stride):
    """total += mu w on the rows low to high - 1; w may be kept in bfloat16."""
    width = lanes(mu)
    for y in range(low, high):
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
def _unwind(u, v, c, mu, total, counts, core, stride, lap, reach):
    """v = u(t+1) becomes u(t-1) on the core; total += mu w there where the step counts."""
    width = lanes(u)
    for y in range(core[0], core[1]):
        row = y * stride
        low, here = load(u, row + core[2] - width), load(u, row + core[2])
        for x in range(core[2], core[3], width):
            i = row + x
            high = load(u, i + width)
            w = bracket(u, i, low, here, high, stride, lap, reach)
            if counts:
                put(total, i, load(total, i) + load(mu, i) * w)
            leap(v, c, i, here, w)
            low, here = here, high


@hot
def _wrap(u, part, box, stride, reach):
    """Copy what the guards on the opposite sides repeat of the rows of a part: a sponge's grid is periodic.

    Calls that share a shot's rows write to different cells.
    """
    radius, rows, columns = np.uint64(len(reach)), (box[1] - box[0]) * stride, box[4] - box[2]
    for y in range(part[0], part[1]):
        first = y * stride + box[2]
        for k in range(radius):
            u[first - radius + k] = u[first + columns - radius + k]
            u[first + columns + k] = u[first + k]
        if y < box[0] + radius:
            for x in range(columns):
                u[first + rows + x] = u[first + x]
        if y + radius >= box[1]:
            for x in range(columns):
                u[first - rows + x] = u[first + x]


@hot
def march(
    u, v, c, damping, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    inside, strips_x, strips_z, spans, box, stride, lap, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, drive,
    receiver_cell, receiver_point, receiver_weight, receiver_start, records,
    origin, begin, end, stored, store, store_every, w_stride, ring, save_ring, core, leads, barrier, team,
):  # fmt: skip
    """Run one shot forward from step `begin` to before step `end`.

    origin   the step of the first row of records and stored, a multiple of store_every
    drive    [source, step]       records  [step - origin, receiver], written
    u, v     fields at t = begin and t = begin - 1. After an odd number of steps they have changed places, and so have
             psi_z and psi_z_next
    lap      as `bracket` takes it; kz, kx, dz and dx are the weights of D2 and D1 of one axis, for the layers
    stored   [slot, z·x], the brackets of every store_every-th step from `origin`, written when `store`
    ring     [step, cell], the cells around the core, written when `save_ring`
    inside, strips_x, strips_z   where layers act: first and last+1 row and column of the cells no layer touches, first
             and last+1 [n, 2] column and row of the layers'. For a sponge `inside` is all of them
    spans    [tile, level, 2], first and last+1 row this call updates, tile after tile, each over several time steps
             (levels): the cells of a tile stay in the cache. `blocks.py` says why this is the same computation
    *_start  [row + 1]: the taps of a row are those from start[row] to start[row + 1] - 1
    leads    whether this call has the first rows; where several share a shot's rows, it also records for all
    barrier, team   where they meet after every step, and their number; spans of a team have one tile and one level
    """
    state = ignore_subnormals()
    step, levels = begin, spans.shape[1]
    while step < end:
        many = min(levels, end - step)
        for tile in range(spans.shape[0]):
            for level in range(many):
                low, high = spans[tile, level, 0], spans[tile, level, 1]
                now = step + level
                if level % 2 == 1:
                    u, v = v, u
                    psi_z, psi_z_next = psi_z_next, psi_z
                _forward(
                    u, v, c, damping, psi_x, zeta_x, psi_z, psi_z_next, zeta_z,
                    ax, bx, slope_x, az, bz, slope_z, inside, strips_x, strips_z, low, high, tile == 0,
                    box, stride, lap, kz, kx, dz, dx, reach, sponge, free_surface,
                    source_cell, source_point, source_weight, source_start, drive,
                    receiver_cell, receiver_point, receiver_weight, receiver_start, records,
                    origin, now, stored, store, store_every, w_stride, ring, save_ring, core, leads, team,
                )  # fmt: skip
                if level % 2 == 1:
                    u, v = v, u
                    psi_z, psi_z_next = psi_z_next, psi_z
        if many % 2 == 1:
            u, v = v, u
            psi_z, psi_z_next = psi_z_next, psi_z
        step += many
        meet(barrier, team, step - begin)
    restore(state)


@hot
def _forward(
    u, v, c, damping, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    inside, strips_x, strips_z, low, high, first, box, stride, lap, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, drive,
    receiver_cell, receiver_point, receiver_weight, receiver_start, records,
    origin, step, stored, store, store_every, w_stride, ring, save_ring, core, leads, team,
):  # fmt: skip
    """One step of the rows low to high - 1; `first` are the first rows of this step."""
    row = step - origin
    if leads and first:
        for r in range(records.shape[1]):
            records[row, r] = 0
    heard, last_heard = _once(low, high, box, leads, team)
    for n in range(receiver_start[heard], receiver_start[last_heard]):
        records[row, receiver_point[n]] += receiver_weight[n] * u[receiver_cell[n]]
    if save_ring:
        _ring(u, ring[step], core, stride, np.uint64(len(reach)), False)
    keep = store and row % store_every == 0
    w_out = stored[row // store_every] if keep else stored[0]
    part = _clipped(inside[0], inside[1], low, high, inside[2], inside[3])
    if sponge:
        if keep:
            sponge_layer(u, v, c, damping, w_out, w_stride, KEEP, part, stride, lap, reach)
        else:
            sponge_layer(u, v, c, damping, w_out, w_stride, DROP, part, stride, lap, reach)
    else:
        if keep:
            interior(u, v, c, w_out, w_stride, KEEP, part, stride, lap, reach)
            layers(
                u, v, c, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                w_out, w_stride, KEEP, part, strips_x, strips_z, low, high, stride, kz, kx, dz, dx, reach,
            )  # fmt: skip
        else:
            interior(u, v, c, w_out, w_stride, DROP, part, stride, lap, reach)
            layers(
                u, v, c, psi_x, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                w_out, w_stride, DROP, part, strips_x, strips_z, low, high, stride, kz, kx, dz, dx, reach,
            )  # fmt: skip
    for n in range(source_start[low], source_start[high]):
        i = source_cell[n]
        v[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
    if free_surface and leads and first:
        _mirror(v, box, stride, reach)
    if sponge and not free_surface:
        _wrap(v, part, box, stride, reach)


@hot
def march_back(
    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, slope_x, az, bz, slope_z, t, flow, lift,
    inside, strips_x, strips_z, spans, box, stride, lap, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, source_product, drive, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, receiver_start, residual,
    origin, begin, end, stored, store_every, w_stride, total,
    ring, rebuild, core, field, field_next, leads, barrier, team,
):  # fmt: skip
    """Run one shot's adjoint backwards in time, from step end - 1 to step `begin`.

    origin          the step of the first row of stored, a multiple of store_every
    residual        [step, receiver]
    drive_gradient  [source, step], written
    source_product  [source tap, step], written: weight times mu at the tap, the source's own part of the gradient
    stored          [slot, z·x], the brackets from `origin` on
    total           [z·x], += sum over stored steps of mu w
    mu, v           change places when the number of steps is odd
    rebuild         take w from the wavefield itself, which is run backwards in the core between the cells in `ring`:
                    field and field_next hold u(end - 1) and u(end), and change places as mu and v do
    the others      as in `march`; no span cuts a vertical layer, whose memories change in place. Where rebuild or ring
                    are used, spans have one tile and one level
    """
    state = ignore_subnormals()
    back, levels = 0, spans.shape[1]
    while back < end - begin:
        many = min(levels, end - begin - back)
        for tile in range(spans.shape[0]):
            for level in range(many):
                low, high = spans[tile, level, 0], spans[tile, level, 1]
                step = end - 1 - (back + level)
                if level % 2 == 1:
                    mu, v = v, mu
                counts = (step - origin) % store_every == 0
                if rebuild:
                    _rewind(
                        field, field_next, c, mu, total, counts, ring, core, box, stride, lap, reach, free_surface,
                        source_cell, source_point, source_weight, drive, step,
                    )  # fmt: skip
                elif counts:
                    slot = (step - origin) // store_every
                    _correlate(mu, stored[slot], w_stride, total, low, high, box, stride)
                _backward(
                    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, slope_x, az, bz, slope_z, t, flow, lift,
                    inside, strips_x, strips_z, low, high, tile == 0, box, stride, lap, kz, kx, dz, dx, reach,
                    sponge, free_surface, source_cell, source_point, source_weight, source_start, source_product,
                    drive_gradient, receiver_cell, receiver_point, receiver_weight, receiver_start, residual,
                    step, total, w_stride, leads, team,
                )  # fmt: skip
                if level % 2 == 1:
                    mu, v = v, mu
        if many % 2 == 1:
            mu, v = v, mu
            field, field_next = field_next, field
        back += many
        meet(barrier, team, back)
    restore(state)


@hot
def _rewind(
    field, field_next, c, mu, total, counts, ring, core, box, stride, lap, reach, free_surface,
    source_cell, source_point, source_weight, drive, step,
):  # fmt: skip
    """Run the wavefield one step backwards in the core: field_next becomes the one before `field`."""
    _ring(field, ring[step], core, stride, np.uint64(len(reach)), True)
    _unwind(field, field_next, c, mu, total, counts, core, stride, lap, reach)
    for n in range(source_cell.size):
        i = source_cell[n]
        field_next[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
    if free_surface:
        _mirror(field_next, box, stride, reach)


@hot
def _backward(
    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, slope_x, az, bz, slope_z, t, flow, lift,
    inside, strips_x, strips_z, low, high, first, box, stride, lap, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, source_product, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, receiver_start, residual, step, total, w_stride, leads, team,
):  # fmt: skip
    """One step of the adjoint on the rows low to high - 1; `first` are the first rows of this step."""
    if leads and first:
        for s in range(drive_gradient.shape[0]):
            drive_gradient[s, step] = 0
    heard, last_heard = _once(low, high, box, leads, team)
    for n in range(source_start[heard], source_start[last_heard]):
        product = source_weight[n] * mu[source_cell[n]]
        source_product[n, step] = product
        drive_gradient[source_point[n], step] += product
    part = _clipped(inside[0], inside[1], low, high, inside[2], inside[3])
    if sponge:
        sponge_layer(mu, v, c, damping, total, w_stride, DROP, part, stride, lap, reach)
    else:
        interior(mu, v, c, total, w_stride, DROP, part, stride, lap, reach)
        for sx in range(strips_x.shape[0]):
            edge = (part[0], part[1], strips_x[sx, 0], strips_x[sx, 1])
            adjoint_edge_x(mu, v, c, p_x, z_x, ax, bx, slope_x, edge, stride, kz, kx, dx, reach)
        for sz in range(strips_z.shape[0]):
            if low <= strips_z[sz, 0] < high:
                edge = (strips_z[sz, 0], strips_z[sz, 1], box[2], box[3])
                adjoint_edge_z(mu, v, c, p_z, z_z, az, bz, slope_z, t, flow, lift, edge, stride, kz, kx, dz, reach)
                for sx in range(strips_x.shape[0]):
                    corner = (strips_z[sz, 0], strips_z[sz, 1], strips_x[sx, 0], strips_x[sx, 1])
                    adjoint_corner_x(mu, v, c, p_x, z_x, ax, bx, slope_x, corner, stride, kx, dx, reach)
    for n in range(receiver_start[low], receiver_start[high]):
        i = receiver_cell[n]
        v[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
    if free_surface and leads and first:
        _mirror(v, box, stride, reach)
    if sponge and not free_surface:
        _wrap(v, part, box, stride, reach)
