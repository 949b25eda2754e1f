"""The compiled time loops: one shot, all time steps, forward and adjoint.

Fields are flat arrays of rows of `stride` cells. A row holds MARGIN zero cells and then the padded model's columns,
rounded up to a multiple of LANES; the next row's margin is the right-hand guard. Every index is a uint64 that is never
negative, since Numba's wrap-around test on signed indices keeps LLVM from vectorising. Rounded-up columns have
c = a = b = b' = 0 and stay exactly zero, so no loop has a remainder.

The interior update runs over all cells as if no layer existed; strips then add what the C-PML changes. A strip spans
every cell whose update the layer touches: width + R cells forward, width + 2R in the adjoint. The equations are in
README.md; `reference.py` states them without the layout.

A tuple `reach` of R ones selects the order: its length is part of its type, so each order compiles to its own loop.
"""

import numpy as np

from hpfwi_kernels.compiling import hot

MARGIN = 16
LANES = 16
ONE = np.uint64(1)


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
def _interior(u, v, c, box, stride, kz, kx, reach):
    """v(t-1) becomes v(t+1) = c lap u + 2 u - v on every cell of the box."""
    for y in range(box[0], box[1]):
        row = y * stride
        for x in range(box[2], box[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _interior_stored(u, v, c, w_out, w_stride, box, stride, kz, kx, reach):
    """_interior that also keeps the bracket w."""
    for y in range(box[0], box[1]):
        row = y * stride
        w_row = (y - box[0]) * w_stride
        for x in range(box[2], box[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            w_out[w_row + (x - box[2])] = w
            v[i] = c[i] * w + (u[i] + u[i] - v[i])


@hot
def _sponge(u, v, c, damping, w_out, w_stride, store, box, stride, kz, kx, reach):
    """v(t-1) becomes c lap u + (2 - k) u - (1 - k) v; keeps the bracket when asked."""
    for y in range(box[0], box[1]):
        row = y * stride
        for x in range(box[2], box[3]):
            i = row + x
            w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
            v[i] = c[i] * w + (u[i] + u[i] - v[i]) - damping[i] * (u[i] - v[i])
        if store:
            w_row = (y - box[0]) * w_stride
            for x in range(box[2], box[3]):
                i = row + x
                w = _second(u, i, stride, kz, reach) + _second(u, i, ONE, kx, reach)
                w_out[w_row + (x - box[2])] = w


@hot
def _strip_x(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, store, strip, box, stride, k, d, reach):
    """Add the lateral C-PML's part on columns strip[0] .. strip[1] of every row. psi arrays hold a·psi."""
    for y in range(box[0], box[1]):
        row = y * stride
        w_row = (y - box[0]) * w_stride
        for x in range(strip[0], strip[1]):
            i = row + x
            plain = _second(u, i, ONE, k, reach)
            q = _first(u, i, ONE, d, reach)
            t = plain + (b[x] * plain + (slope[x] * q + _first(psi, i, ONE, d, reach)))
            change = b[x] * t + a[x] * zeta[i]
            psi_next[i] = a[x] * (b[x] * q + psi[i])
            zeta[i] = change
            extra = change + (t - plain)
            v[i] += c[i] * extra
            if store:
                w_out[w_row + (x - box[2])] += extra


@hot
def _strip_z(u, v, c, psi, psi_next, zeta, a, b, slope, w_out, w_stride, store, strip, box, stride, k, d, reach):
    """Add the vertical C-PML's part on rows strip[0] .. strip[1]. psi arrays hold a·psi."""
    for y in range(strip[0], strip[1]):
        row = y * stride
        w_row = (y - box[0]) * w_stride
        decay, gain, tilt = a[y], b[y], slope[y]
        for x in range(box[2], box[3]):
            i = row + x
            plain = _second(u, i, stride, k, reach)
            q = _first(u, i, stride, d, reach)
            t = plain + (gain * plain + (tilt * q + _first(psi, i, stride, d, reach)))
            change = gain * t + decay * zeta[i]
            psi_next[i] = decay * (gain * q + psi[i])
            zeta[i] = change
            extra = change + (t - plain)
            v[i] += c[i] * extra
            if store:
                w_out[w_row + (x - box[2])] += extra


@hot
def _adjoint_strip_x(mu, v, c, p, z, a, b, slope, t, flow, rise, strip, box, stride, k, d, reach):
    """Transpose of _strip_x on mu. t, flow and rise are scratch rows: T, A = b'T + bP and (1+b)T - mu."""
    radius = np.uint64(len(reach))
    for y in range(box[0], box[1]):
        row = y * stride
        for x in range(strip[0] - radius, strip[1] + radius):
            i = row + x
            extra = b[x] * (mu[i] + z[i])
            whole = mu[i] + extra
            t[x] = whole
            rise[x] = extra + b[x] * whole
            flow[x] = slope[x] * whole + b[x] * p[i]
        for x in range(strip[0], strip[1]):
            i = row + x
            v[i] += c[i] * (_second(rise, x, ONE, k, reach) - _first(flow, x, ONE, d, reach))
            p[i] = a[x] * (p[i] - _first(t, x, ONE, d, reach))
            z[i] = a[x] * (mu[i] + z[i])


@hot
def _adjoint_strip_z(mu, v, c, p, z, a, b, slope, t, flow, rise, strip, box, stride, k, d, reach):
    """Transpose of _strip_z on mu. t, flow and rise are scratch fields: T, A = b'T + bP and (1+b)T - mu."""
    radius = np.uint64(len(reach))
    for y in range(strip[0] - radius, strip[1] + radius):
        row = y * stride
        gain, tilt = b[y], slope[y]
        for x in range(box[2], box[3]):
            i = row + x
            extra = gain * (mu[i] + z[i])
            whole = mu[i] + extra
            t[i] = whole
            rise[i] = extra + gain * whole
            flow[i] = tilt * whole + gain * p[i]
    for y in range(strip[0], strip[1]):
        row = y * stride
        decay = a[y]
        for x in range(box[2], box[3]):
            i = row + x
            v[i] += c[i] * (_second(rise, i, stride, k, reach) - _first(flow, i, stride, d, reach))
            p[i] = decay * (p[i] - _first(t, i, stride, d, reach))
            z[i] = decay * (mu[i] + z[i])


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
def march(
    u, v, c, damping, psi_x, psi_x_next, zeta_x, psi_z, psi_z_next, zeta_z, ax, bx, sx, az, bz, sz,
    strips_x, strips_z, box, stride, kz, kx, dz, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, drive, receiver_cell, receiver_point, receiver_weight, records,
    stored, store, store_every, w_stride,
):  # fmt: skip
    """Run one shot forward.

    drive    [source, step]       records  [step, receiver], written     stored  [slot, z·x], written when `store`
    u, v     fields at t = 0 and t = -1, zero                            strips  [n, 2] first and last+1 column or row
    """
    steps = drive.shape[1]
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
                _interior_stored(u, v, c, w_out, w_stride, box, stride, kz, kx, reach)
            else:
                _interior(u, v, c, box, stride, kz, kx, reach)
            for s in range(strips_x.shape[0]):
                strip = (strips_x[s, 0], strips_x[s, 1])
                _strip_x(
                    u,
                    v,
                    c,
                    psi_x,
                    psi_x_next,
                    zeta_x,
                    ax,
                    bx,
                    sx,
                    w_out,
                    w_stride,
                    keep,
                    strip,
                    box,
                    stride,
                    kx,
                    dx,
                    reach,
                )
            for s in range(strips_z.shape[0]):
                strip = (strips_z[s, 0], strips_z[s, 1])
                _strip_z(
                    u,
                    v,
                    c,
                    psi_z,
                    psi_z_next,
                    zeta_z,
                    az,
                    bz,
                    sz,
                    w_out,
                    w_stride,
                    keep,
                    strip,
                    box,
                    stride,
                    kz,
                    dz,
                    reach,
                )
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
    mu, v, c, damping, p_x, z_x, p_z, z_z, ax, bx, sx, az, bz, sz, row_t, row_flow, row_rise, t, flow, rise,
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
            _interior(mu, v, c, box, stride, kz, kx, reach)
            for s in range(strips_x.shape[0]):
                strip = (strips_x[s, 0], strips_x[s, 1])
                _adjoint_strip_x(
                    mu, v, c, p_x, z_x, ax, bx, sx, row_t, row_flow, row_rise, strip, box, stride, kx, dx, reach
                )
            for s in range(strips_z.shape[0]):
                strip = (strips_z[s, 0], strips_z[s, 1])
                _adjoint_strip_z(mu, v, c, p_z, z_z, az, bz, sz, t, flow, rise, strip, box, stride, kz, dz, reach)
        for n in range(receiver_cell.size):
            i = receiver_cell[n]
            v[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
        if free_surface:
            _mirror(v, box, stride, reach)
        mu, v = v, mu
