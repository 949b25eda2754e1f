"""The compiled time loops: one shot, all time steps, forward and adjoint.

Fields are flat arrays of rows of `stride` cells. A row holds MARGIN zero cells and then the padded model's columns,
rounded up to a multiple of LANES; the next row's margin is the right-hand guard. Every index is a uint64 that is never
negative, since Numba's wrap-around test on signed indices keeps LLVM from vectorising. Rounded-up columns have
c = a = b = b' = 0 and stay exactly zero, so no loop has a remainder.

The padded model is cut into parts, each with a loop nest of its own: interior, lateral edges, and the rows of the
vertical edges, where the corners get the lateral layer's change on top. An edge spans every cell whose update its layer
touches: width + R cells forward, width + 2R in the adjoint. The equations are in README.md; `reference.py` states them
without the layout.

A tuple `reach` of R ones selects the order: its length is part of its type, so each order compiles to its own loop.
"""

import numpy as np

from hpfwi_kernels.compiling import hot

MARGIN = 16
LANES = 16
ONE = np.uint64(1)
# Whether a loop keeps the bracket, by the length of the tuple, so that each choice compiles to its own loop. A flag
# tested inside a vectorised loop becomes a masked store, which takes the cache line from other threads even when off.
KEEP = (1, 1)
DROP = (1,)
LEFT = np.uint64(MARGIN)


@hot
def _first(field, i, hop, d, reach):
    """D1 at cell i along the axis whose neighbours are `hop` cells apart."""
    total = d[0] * (field[i + hop] - field[i - hop])
    if len(reach) > 1:
        total += d[1] * (field[i + hop + hop] - field[i - hop - hop])
    if len(reach) > 2:
        total += d[2] * (field[i + hop + hop + hop] - field[i - hop - hop - hop])
    if len(reach) > 3:
        total += d[3] * (field[i + hop + hop + hop + hop] - field[i - hop - hop - hop - hop])
    return total


@hot
def _second(field, i, hop, k, reach):
    """D2 at cell i along the axis whose neighbours are `hop` cells apart."""
    total = k[0] * field[i] + k[1] * (field[i + hop] + field[i - hop])
    if len(reach) > 1:
        total += k[2] * (field[i + hop + hop] + field[i - hop - hop])
    if len(reach) > 2:
        total += k[3] * (field[i + hop + hop + hop] + field[i - hop - hop - hop])
    if len(reach) > 3:
        total += k[4] * (field[i + hop + hop + hop + hop] + field[i - hop - hop - hop - hop])
    return total


@hot
def _interior(u, v, c, part, stride, kz, kx, reach):
    """v(t-1) becomes v(t+1) = c lap u + 2 u - v on the cells of the part (first and last+1 row and column)."""
    for y in range(part[0], part[1]):
        row = y * stride
        for x in range(part[2], part[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _interior_stored(u, v, c, w_out, w_stride, part, stride, kz, kx, reach):
    """_interior that also keeps the bracket w."""
    for y in range(part[0], part[1]):
        row = y * stride
        w_row = (y - np.uint64(len(reach))) * w_stride
        for x in range(part[2], part[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            w_out[w_row + (x - LEFT)] = w
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _sponge(u, v, c, damping, w_out, w_stride, store, part, stride, kz, kx, reach):
    """v(t-1) becomes c lap u + (2 - k) u - (1 - k) v; keeps the bracket when asked."""
    for y in range(part[0], part[1]):
        row = y * stride
        for x in range(part[2], part[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            v[i] = c[i] * w + (u[i] + u[i] - v[i]) - damping[i] * (u[i] - v[i])
        if store:
            w_row = (y - np.uint64(len(reach))) * w_stride
            for x in range(part[2], part[3]):
                i = row + x
                w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
                w_out[w_row + (x - LEFT)] = w


@hot
def _layer(plain, q, dpsi, a, b, slope, psi, zeta):
    """T, the new zeta and the new a·psi of one axis at one cell; the axis adds T + zeta to the bracket."""
    t = plain + (b * plain + (slope * q + dpsi))
    return t, b * t + a * zeta, a * (b * q + psi)


@hot
def _edge_x(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kz, kx, d, reach):
    """The update where only the lateral C-PML acts. psi arrays hold a·psi."""
    for y in range(part[0], part[1]):
        row = y * stride
        w_row = (y - np.uint64(len(reach))) * w_stride
        for x in range(part[2], part[3]):
            i = row + x
            q, dpsi = _first(u, i, ONE, d, reach), _first(psi, i, ONE, d, reach)
            t, change, psi_next[i] = _layer(
                _second(u, i, ONE, kx, reach), q, dpsi, a[x], b[x], slope[x], psi[i], zeta[i]
            )
            zeta[i] = change
            w = _second(u, i, stride, kz, reach) + (t + change)
            if len(keep) > 1:
                w_out[w_row + (x - LEFT)] = w
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _edge_z(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kz, kx, d, reach):
    """The update where the vertical C-PML acts, the lateral one left to `_corner_x`. psi arrays hold a·psi."""
    for y in range(part[0], part[1]):
        row = y * stride
        w_row = (y - np.uint64(len(reach))) * w_stride
        decay, gain, tilt = a[y], b[y], slope[y]
        for x in range(part[2], part[3]):
            i = row + x
            q, dpsi = _first(u, i, stride, d, reach), _first(psi, i, stride, d, reach)
            t, change, psi_next[i] = _layer(
                _second(u, i, stride, kz, reach), q, dpsi, decay, gain, tilt, psi[i], zeta[i]
            )
            zeta[i] = change
            w = _second(u, i, ONE, kx, reach) + (t + change)
            if len(keep) > 1:
                w_out[w_row + (x - LEFT)] = w
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _corner_x(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, keep, part, stride, kx, d, reach):
    """Add what the lateral C-PML changes where `_edge_z` has updated as if there were none."""
    for y in range(part[0], part[1]):
        row = y * stride
        w_row = (y - np.uint64(len(reach))) * w_stride
        for x in range(part[2], part[3]):
            i = row + x
            plain, q = _second(u, i, ONE, kx, reach), _first(u, i, ONE, d, reach)
            dpsi = _first(psi, i, ONE, d, reach)
            t, change, psi_next[i] = _layer(plain, q, dpsi, a[x], b[x], slope[x], psi[i], zeta[i])
            zeta[i] = change
            extra = change + (t - plain)
            if len(keep) > 1:
                w_out[w_row + (x - LEFT)] += extra
            v[i] += c[i] * extra


@hot
def _adjoint_edge_x(mu, v, c, p, z, a, b, slope, t, flow, lift, part, stride, kz, kx, d, reach):
    """Transpose of `_edge_x` on mu. t, flow and lift are scratch rows: T, A = b'T + bP and B = (1+b)T."""
    radius = np.uint64(len(reach))
    for y in range(part[0], part[1]):
        row = y * stride
        for x in range(part[2] - radius, part[3] + radius):
            i = row + x
            whole = mu[i] + b[x] * (mu[i] + z[i])
            t[x] = whole
            lift[x] = whole + b[x] * whole
            flow[x] = slope[x] * whole + b[x] * p[i]
        for x in range(part[2], part[3]):
            i = row + x
            w = _second(mu, i, stride, kz, reach) + (_second(lift, x, ONE, kx, reach) - _first(flow, x, ONE, d, reach))
            v[i] = c[i] * w + (mu[i] + mu[i] - v[i])
            p[i] = a[x] * (p[i] - _first(t, x, ONE, d, reach))
            z[i] = a[x] * (mu[i] + z[i])


@hot
def _adjoint_edge_z(mu, v, c, p, z, a, b, slope, t, flow, lift, part, stride, kz, kx, d, reach):
    """Transpose of `_edge_z` on mu. t, flow and lift are scratch fields: T, A = b'T + bP and B = (1+b)T."""
    radius = np.uint64(len(reach))
    for y in range(part[0] - radius, part[1] + radius):
        row = y * stride
        gain, tilt = b[y], slope[y]
        for x in range(part[2], part[3]):
            i = row + x
            whole = mu[i] + gain * (mu[i] + z[i])
            t[i] = whole
            lift[i] = whole + gain * whole
            flow[i] = tilt * whole + gain * p[i]
    for y in range(part[0], part[1]):
        row = y * stride
        decay = a[y]
        for x in range(part[2], part[3]):
            i = row + x
            w = _second(mu, i, ONE, kx, reach) + (
                _second(lift, i, stride, kz, reach) - _first(flow, i, stride, d, reach)
            )
            v[i] = c[i] * w + (mu[i] + mu[i] - v[i])
            p[i] = decay * (p[i] - _first(t, i, stride, d, reach))
            z[i] = decay * (mu[i] + z[i])


@hot
def _adjoint_corner_x(mu, v, c, p, z, a, b, slope, t, flow, rise, part, stride, kx, d, reach):
    """Transpose of `_corner_x` on mu. t, flow and rise are scratch rows: T, A = b'T + bP and (1+b)T - mu."""
    radius = np.uint64(len(reach))
    for y in range(part[0], part[1]):
        row = y * stride
        for x in range(part[2] - radius, part[3] + radius):
            i = row + x
            extra = b[x] * (mu[i] + z[i])
            whole = mu[i] + extra
            t[x] = whole
            rise[x] = extra + b[x] * whole
            flow[x] = slope[x] * whole + b[x] * p[i]
        for x in range(part[2], part[3]):
            i = row + x
            v[i] += c[i] * (_second(rise, x, ONE, kx, reach) - _first(flow, x, ONE, d, reach))
            p[i] = a[x] * (p[i] - _first(t, x, ONE, d, reach))
            z[i] = a[x] * (mu[i] + z[i])


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
    """total += mu w on every cell of the box."""
    for y in range(box[0], box[1]):
        row = y * stride
        w_row = (y - box[0]) * w_stride
        for x in range(box[2], box[3]):
            total[row + x] += mu[row + x] * w[w_row + (x - box[2])]


@hot
def _layers(
    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    w_out, w_stride, keep, inside, strips_x, strips_z, box, stride, kz, kx, dz, dx, reach,
):  # fmt: skip
    """The update of every cell a C-PML touches; `keep` is KEEP or DROP."""
    for sx in range(strips_x.shape[0]):
        part = (inside[0], inside[1], strips_x[sx, 0], strips_x[sx, 1])
        _edge_x(
            u, v, c, psi_x, psi_x_next, zeta_x, ax, bx, slope_x,
            w_out, w_stride, keep, part, stride, kz, kx, dx, reach,
        )  # fmt: skip
    for sz in range(strips_z.shape[0]):
        part = (strips_z[sz, 0], strips_z[sz, 1], box[2], box[3])
        _edge_z(
            u, v, c, psi_z, psi_z_next, zeta_z, az, bz, slope_z,
            w_out, w_stride, keep, part, stride, kz, kx, dz, reach,
        )  # fmt: skip
        for sx in range(strips_x.shape[0]):
            corner = (strips_z[sz, 0], strips_z[sz, 1], strips_x[sx, 0], strips_x[sx, 1])
            _corner_x(
                u, v, c, psi_x, psi_x_next, zeta_x, ax, bx, slope_x,
                w_out, w_stride, keep, corner, stride, kx, dx, reach,
            )  # fmt: skip


@hot
def march(
    u, v, c, damping, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
    strips_x, strips_z, box, stride, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, drive, receiver_cell, receiver_point, receiver_weight, records,
    stored, store, store_every, w_stride,
):  # fmt: skip
    """Run one shot forward.

    drive    [source, step]       records  [step, receiver], written     stored  [slot, z·x], written when `store`
    u, v     fields at t = 0 and t = -1, zero                            strips  [n, 2] first and last+1 column or row
    """
    steps = drive.shape[1]
    first_row, last_row = _between(strips_z, box[0], box[1])
    first_column, last_column = _between(strips_x, box[2], box[3])
    inside = (first_row, last_row, first_column, last_column)
    for step in range(steps):
        for r in range(records.shape[1]):
            records[step, r] = 0
        for n in range(receiver_cell.size):
            records[step, receiver_point[n]] += receiver_weight[n] * u[receiver_cell[n]]
        keep = store and step % store_every == 0
        w_out = stored[step // store_every] if keep else stored[0]
        if sponge:
            _sponge(u, v, c, damping, w_out, w_stride, keep, box, stride, kz, kx, reach)
        else:
            if keep:
                _interior_stored(u, v, c, w_out, w_stride, inside, stride, kz, kx, reach)
                _layers(
                    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                    w_out, w_stride, KEEP, inside, strips_x, strips_z, box, stride, kz, kx, dz, dx, reach,
                )  # fmt: skip
            else:
                _interior(u, v, c, inside, stride, kz, kx, reach)
                _layers(
                    u, v, c, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, slope_x, az, bz, slope_z,
                    w_out, w_stride, DROP, inside, strips_x, strips_z, box, stride, kz, kx, dz, dx, reach,
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
    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, slope_x, az, bz, slope_z, row_t, row_flow, row_lift, t, flow, lift,
    strips_x, strips_z, box, stride, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_product, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, residual, stored, store_every, w_stride, total,
):  # fmt: skip
    """Run one shot's adjoint backwards in time.

    residual        [step, receiver]
    drive_gradient  [source, step], written
    source_product  [source tap, step], written: weight times mu at the tap, the source's own part of the gradient
    total           [z·x], += sum over stored steps of mu w
    """
    steps = residual.shape[0]
    first_row, last_row = _between(strips_z, box[0], box[1])
    first_column, last_column = _between(strips_x, box[2], box[3])
    inside = (first_row, last_row, first_column, last_column)
    for back in range(steps):
        step = steps - 1 - back
        for s in range(drive_gradient.shape[0]):
            drive_gradient[s, step] = 0
        for n in range(source_cell.size):
            product = source_weight[n] * mu[source_cell[n]]
            source_product[n, step] = product
            drive_gradient[source_point[n], step] += product
        if step % store_every == 0:
            _correlate(mu, stored[step // store_every], w_stride, total, box, stride)
        if sponge:
            _sponge(mu, v, c, damping, total, w_stride, False, box, stride, kz, kx, reach)
        else:
            _interior(mu, v, c, inside, stride, kz, kx, reach)
            for sx in range(strips_x.shape[0]):
                part = (first_row, last_row, strips_x[sx, 0], strips_x[sx, 1])
                _adjoint_edge_x(
                    mu, v, c, p_x, z_x, ax, bx, slope_x, row_t, row_flow, row_lift, part, stride, kz, kx, dx, reach
                )
            for sz in range(strips_z.shape[0]):
                part = (strips_z[sz, 0], strips_z[sz, 1], box[2], box[3])
                _adjoint_edge_z(mu, v, c, p_z, z_z, az, bz, slope_z, t, flow, lift, part, stride, kz, kx, dz, reach)
                for sx in range(strips_x.shape[0]):
                    corner = (strips_z[sz, 0], strips_z[sz, 1], strips_x[sx, 0], strips_x[sx, 1])
                    _adjoint_corner_x(
                        mu, v, c, p_x, z_x, ax, bx, slope_x, row_t, row_flow, row_lift, corner, stride, kx, dx, reach
                    )
        for n in range(receiver_cell.size):
            i = receiver_cell[n]
            v[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
        if free_surface:
            _mirror(v, box, stride, reach)
        mu, v = v, mu
