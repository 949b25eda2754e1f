"""The compiled loops in three dimensions: blocks of planes over a few time steps, forward and adjoint.

A field is a stack of planes, each laid out as a 2-D field (`loops.py`), with R guard planes above and below. A few rows
of one plane are updated at a time: the Laplacian goes to a scratch `w` that stays in the nearest cache, each absorbing
layer that acts on those rows adds its change to it, and the last pass takes the step. More than half of the cells of a
small model lie in a layer, and this way every layer is one short loop instead of one for each of 26 edges and corners.

Layers across rows (along z and y) are the same loop with another distance between neighbours. Their memories hold the
layer's planes or rows alone, with R zero ones around, and are double, since neighbours read what the step before left.
The adjoint of such a layer is a stencil on mu, Z and P with weights of its own for every plane or row. The layer along
x keeps its neighbours in registers, so its memory is updated in place.

A block takes `spans[tile, level]`, the planes to update at each of its time levels. Spans of later levels lie R planes
lower, so a block finds every neighbour it needs already computed, by itself or by the block below it in the order of
tiles, and a plane that was read for one level is still in the cache for the next. `layout_3d.py` makes the spans and
says which blocks must be done before which.
"""

import numpy as np

from hpfwi_kernels.acoustic.adjoint_regions import _terms_first, _terms_second
from hpfwi_kernels.acoustic.prefetching import prefetch
from hpfwi_kernels.acoustic.regions import DROP, KEEP, LANES, LEFT, column_first, column_second, row_first, row_second
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes, load, put, stream, unpack

NONE = np.uint64(0)
ONE = np.uint64(1)
TWO = np.uint64(2)
TERMS = np.uint64(5)
FIRST = np.uint64(LANES)
ROWS_AHEAD = np.uint64(4)


@hot
def _laplacian(u, v, c, w, corner, rows, width, hop, stride, kz, ky, kx, reach):
    """w = the Laplacian of `rows` rows, the first of which starts at cell `corner`; planes are `hop` cells apart.

    Asks for what comes from memory before it is needed: the next rows of the farthest plane, and these rows of v and c.
    """
    step, ahead = lanes(u), np.uint64(len(reach)) * hop + ROWS_AHEAD * stride
    for n in range(NONE, rows, ONE):
        row = corner + n * stride
        low, here = load(u, row - step), load(u, row)
        for x in range(NONE, width, step):
            i = row + x
            high = load(u, i + step)
            prefetch(u, i + ahead)
            prefetch(v, i)
            prefetch(c, i)
            total = (
                column_second(u, i, hop, here, kz, reach)
                + column_second(u, i, stride, here, ky, reach)
                + row_second(u, i, low, here, high, kx, reach)
            )
            put(w, n * width + x, total)
            low, here = here, high


@hot
def _layer_across(
    u, w, psi, psi_next, zeta, a, b, slope, at, at_step, corner, rows, width, hop, stride, packed, packed_hop,
    k, d, reach,
):  # fmt: skip
    """Add to w what a C-PML across the rows changes. psi arrays hold a·psi; `packed` is the first cell in them."""
    step = lanes(u)
    ahead = ROWS_AHEAD * width
    psi_ahead = ahead + np.uint64(len(reach)) * packed_hop
    for n in range(NONE, rows, ONE):
        decay, gain, tilt = a[at + n * at_step], b[at + n * at_step], slope[at + n * at_step]
        for x in range(NONE, width, step):
            i, j, o = corner + n * stride + x, packed + n * width + x, n * width + x
            prefetch(psi, j + psi_ahead)
            prefetch(psi_next, j + ahead)
            prefetch(zeta, j + ahead)
            plain = column_second(u, i, hop, load(u, i), k, reach)
            q = column_first(u, i, hop, d, reach)
            more = gain * plain + (tilt * q + column_first(psi, j, packed_hop, d, reach))
            change = gain * (plain + more) + decay * load(zeta, j)
            put(psi_next, j, decay * (gain * q + load(psi, j)))
            put(zeta, j, change)
            put(w, o, load(w, o) + (more + change))


@hot
def _layer_along(
    u, w, psi, zeta, a, b, slope, corner, rows, width, stride, packed, packed_row, first, last, k, d, reach
):
    """Add to w what a C-PML along the rows changes on columns first to last - 1. psi holds a·psi."""
    step = lanes(u)
    ahead = ROWS_AHEAD * packed_row
    for n in range(NONE, rows, ONE):
        row, packed_n = corner + n * stride, packed + n * packed_row
        low, here = load(u, row + first - step), load(u, row + first)
        psi_low, psi_here = load(psi, packed_n - step), load(psi, packed_n)
        for x in range(first, last, step):
            i, j, o = row + x, packed_n + (x - first), n * width + x
            high, psi_high = load(u, i + step), load(psi, j + step)
            prefetch(psi, j + ahead)
            prefetch(zeta, j + ahead)
            decay, gain = load(a, x), load(b, x)
            plain = row_second(u, i, low, here, high, k, reach)
            q = row_first(u, i, low, here, high, d, reach)
            more = gain * plain + (load(slope, x) * q + _terms_first(psi_low, psi_here, psi_high, d, reach))
            change = gain * (plain + more) + decay * load(zeta, j)
            put(psi, j, decay * (gain * q + psi_here))
            put(zeta, j, change)
            put(w, o, load(w, o) + (more + change))
            low, here = here, high
            psi_low, psi_here = psi_here, psi_high


@hot
def _leap(u, v, c, w, stored, slot, keep, corner, rows, width, stride):
    """v(t-1) becomes v(t+1) = c w + 2 u - v; w goes to stored from `slot` on."""
    step = lanes(u)
    for n in range(NONE, rows, ONE):
        for x in range(NONE, width, step):
            i, o = corner + n * stride + x, n * width + x
            bracket, here = load(w, o), load(u, i)
            if len(keep) > 1:
                stream(stored, slot + o, bracket)
            put(v, i, load(c, i) * bracket + (here + here - load(v, i)))


@hot
def _leap_damped(u, v, c, damping, w, stored, slot, keep, corner, rows, width, stride):
    """v(t-1) becomes c w + (2 - k) u - (1 - k) v."""
    step = lanes(u)
    for n in range(NONE, rows, ONE):
        for x in range(NONE, width, step):
            i, o = corner + n * stride + x, n * width + x
            bracket, here, before = load(w, o), load(u, i), load(v, i)
            if len(keep) > 1:
                stream(stored, slot + o, bracket)
            put(v, i, load(c, i) * bracket + (here + here - before) - load(damping, i) * (here - before))


@hot
def _correlate(mu, total, stored, slot, corner, rows, width, stride):
    """total += mu w."""
    step = lanes(mu)
    for n in range(NONE, rows, ONE):
        for x in range(NONE, width, step):
            i, o = corner + n * stride + x, slot + n * width + x
            prefetch(total, o + ROWS_AHEAD * width)
            prefetch(stored, o + ROWS_AHEAD * width)
            put(total, o, load(total, o) + load(mu, i) * unpack(stored, o, mu))


@hot
def _weighted(field, i, hop, weights, at, reach):
    """Sum of the vectors at distances of 1 to R times hop on both sides of cell i, each with a weight of its own."""
    total = weights[at + ONE] * load(field, i + hop) + weights[at + TWO] * load(field, i - hop)
    for m in range(TWO, np.uint64(len(reach)) + ONE, ONE):
        far = m * hop
        total = total + (
            weights[at + TWO * m - ONE] * load(field, i + far) + weights[at + TWO * m] * load(field, i - far)
        )
    return total


@hot
def _adjoint_across(
    mu, w, p, p_next, z, z_next, a, weights, at, at_step, corner, rows, width, hop, stride, packed, packed_hop, reach
):  # fmt: skip
    """Add to w the transpose of `_layer_across`.

    weights  for every plane or row, TERMS times the weight of the cell itself and of its 2 R neighbours: what mu, Z
             and P add to the bracket, and what mu and Z subtract from P
    """
    step, taps = lanes(mu), TWO * np.uint64(len(reach)) + ONE
    ahead = ROWS_AHEAD * width
    far = ahead + np.uint64(len(reach)) * packed_hop
    for n in range(NONE, rows, ONE):
        line = at + n * at_step
        decay = a[line]
        of_mu = line * TERMS * taps
        of_z = of_mu + taps
        of_p = of_z + taps
        mu_to_p = of_p + taps
        z_to_p = mu_to_p + taps
        for x in range(NONE, width, step):
            i, j, o = corner + n * stride + x, packed + n * width + x, n * width + x
            prefetch(p, j + far)
            prefetch(z, j + far)
            prefetch(p_next, j + ahead)
            prefetch(z_next, j + ahead)
            here, z_here = load(mu, i), load(z, j)
            gained = (weights[of_mu] * here + weights[of_z] * z_here + _weighted(mu, i, hop, weights, of_mu, reach)) + (
                _weighted(z, j, packed_hop, weights, of_z, reach) + _weighted(p, j, packed_hop, weights, of_p, reach)
            )
            lost = _weighted(mu, i, hop, weights, mu_to_p, reach) + _weighted(z, j, packed_hop, weights, z_to_p, reach)
            put(p_next, j, decay * (load(p, j) - lost))
            put(z_next, j, decay * (here + z_here))
            put(w, o, load(w, o) + gained)


@hot
def _along_terms(mu, p, z, b, slope, i, j, x):
    """mu, T, A and (1 + b) T - mu at one vector of a layer along the row."""
    here, gain = load(mu, i), load(b, x)
    more = gain * (here + load(z, j))
    t = here + more
    return here, t, load(slope, x) * t + gain * load(p, j), more + gain * t


@hot
def _adjoint_along(mu, w, p, z, a, b, slope, corner, rows, width, stride, packed, packed_row, first, last, k, d, reach):
    """Add to w the transpose of `_layer_along`. T and A stay in registers, so p and z are updated in place."""
    step = lanes(mu)
    ahead = ROWS_AHEAD * packed_row
    for n in range(NONE, rows, ONE):
        row, packed_n = corner + n * stride, packed + n * packed_row
        # Before the strip no layer acts: T = mu and A = 0.
        t_low = load(mu, row + first - step)
        flow_low = t_low - t_low
        lift_low = flow_low
        here, t, flow, lift = _along_terms(mu, p, z, b, slope, row + first, packed_n, first)
        for x in range(first, last, step):
            i, j, o = row + x, packed_n + (x - first), n * width + x
            prefetch(p, j + ahead)
            prefetch(z, j + ahead)
            # b = 0 after the strip, whatever p and z hold there.
            high, t_high, flow_high, lift_high = _along_terms(mu, p, z, b, slope, i + step, j + step, x + step)
            gained = _terms_second(lift_low, lift, lift_high, k, reach) - _terms_first(
                flow_low, flow, flow_high, d, reach
            )
            decay = load(a, x)
            new_p = decay * (load(p, j) - _terms_first(t_low, t, t_high, d, reach))
            put(z, j, decay * (here + load(z, j)))
            put(p, j, new_p)
            put(w, o, load(w, o) + gained)
            t_low, flow_low, lift_low = t, flow, lift
            here, t, flow, lift = high, t_high, flow_high, lift_high


@hot
def _mirror(v, low, high, plane, reach):
    """Refill guard planes above a free surface with the odd image of the planes low to high - 1."""
    surface = np.uint64(len(reach))
    for m in range(ONE, surface + ONE, ONE):
        if low <= surface + m < high:
            up, down = (surface - m) * plane, (surface + m) * plane
            for i in range(plane):
                v[up + i] = -v[down + i]


@hot
def march(
    u, v, c, damping, w, psi_z, psi_z_next, zeta_z, psi_y, psi_y_next, zeta_y, psi_x, zeta_x,
    az, bz, slope_z, ay, by, slope_y, ax, bx, slope_x, packed_z, packed_y, strips_x, tiles_y,
    numbers, kz, ky, kx, dz, dy, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, drive,
    receiver_cell, receiver_point, receiver_weight, receiver_start, records,
    stored, store, store_every, first_stored, spans, first_tile, last_tile, first_step, levels,
):  # fmt: skip
    """Run blocks first_tile to last_tile - 1 of one shot over the time steps first_step to first_step + levels - 1.

    u, v       fields: u holds even steps and v odd ones            w        scratch of the longest tile's rows
    packed_z   plane's place in psi_z and zeta_z, 0 where no layer acts; packed_y the same for rows
    strips_x   [n, 3]: first and last+1 column of a layer and its place in a packed row
    tiles_y    [n, 2]: first and last+1 row of what is updated at a time; all its rows are in one layer or in none
    drive      [source, step]     records  [step, receiver], added to
    stored     [slot, z·y·x], written when `store`; slot 0 belongs to step first_stored
    *_start    [plane + 1]: the taps of a plane are those from start[plane] to start[plane + 1] - 1
    """
    plane, stride, width, rows_of_plane, packed_rows, packed_row = numbers
    guard = np.uint64(len(reach))
    for tile in range(first_tile, last_tile):
        for level in range(levels):
            step = first_step + level
            low, high = spans[tile, level, 0], spans[tile, level, 1]
            if step % 2 == 0:
                now, new, psi_z_now, psi_z_new, psi_y_now, psi_y_new = u, v, psi_z, psi_z_next, psi_y, psi_y_next
            else:
                now, new, psi_z_now, psi_z_new, psi_y_now, psi_y_new = v, u, psi_z_next, psi_z, psi_y_next, psi_y
            for n in range(receiver_start[low], receiver_start[high]):
                records[step, receiver_point[n]] += receiver_weight[n] * now[receiver_cell[n]]
            keep = store and step % store_every == 0
            w_out = stored[(step - first_stored) // store_every] if keep else stored[0]
            for t in range(tiles_y.shape[0]):
                top, rows = tiles_y[t, 0], tiles_y[t, 1] - tiles_y[t, 0]
                for z in range(low, high):
                    corner = z * plane + top * stride + LEFT
                    line = (z - guard) * rows_of_plane + (top - guard)
                    _laplacian(now, new, c, w, corner, rows, width, plane, stride, kz, ky, kx, reach)
                    if packed_z[z] > 0:
                        packed = (packed_z[z] * rows_of_plane + (top - guard)) * width
                        _layer_across(
                            now, w, psi_z_now, psi_z_new, zeta_z, az, bz, slope_z, z, NONE,
                            corner, rows, width, plane, stride, packed, rows_of_plane * width, kz, dz, reach,
                        )  # fmt: skip
                    if packed_y[top] > 0:
                        packed = ((z - guard) * packed_rows + packed_y[top]) * width
                        _layer_across(
                            now, w, psi_y_now, psi_y_new, zeta_y, ay, by, slope_y, top, ONE,
                            corner, rows, width, stride, stride, packed, width, ky, dy, reach,
                        )  # fmt: skip
                    for s in range(strips_x.shape[0]):
                        packed = FIRST + line * packed_row + strips_x[s, 2]
                        _layer_along(
                            now, w, psi_x, zeta_x, ax, bx, slope_x, corner, rows, width, stride,
                            packed, packed_row, strips_x[s, 0], strips_x[s, 1], kx, dx, reach,
                        )  # fmt: skip
                    slot = line * width
                    if sponge:
                        if keep:
                            _leap_damped(now, new, c, damping, w, w_out, slot, KEEP, corner, rows, width, stride)
                        else:
                            _leap_damped(now, new, c, damping, w, w_out, slot, DROP, corner, rows, width, stride)
                    elif keep:
                        _leap(now, new, c, w, w_out, slot, KEEP, corner, rows, width, stride)
                    else:
                        _leap(now, new, c, w, w_out, slot, DROP, corner, rows, width, stride)
            for n in range(source_start[low], source_start[high]):
                i = source_cell[n]
                new[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
            if free_surface:
                _mirror(new, low, high, plane, reach)


@hot
def march_back(
    mu_even, mu_odd, c, damping, w, p_z, p_z_next, z_z, z_z_next, p_y, p_y_next, z_y, z_y_next, p_x, z_x,
    az, ay, ax, bx, slope_x, weights_z, weights_y, packed_z, packed_y, strips_x, tiles_y,
    numbers, kz, ky, kx, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, source_product, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, receiver_start, residual,
    stored, store_every, first_stored, total, spans, first_tile, last_tile, first_back, levels,
):  # fmt: skip
    """Run blocks of one shot's adjoint over the steps that are first_back to first_back + levels - 1 before the last.

    residual        [step, receiver]
    drive_gradient  [source, step], added to
    source_product  [source tap, step], written: weight times mu at the tap, the source's own part of the gradient
    total           [z·y·x], += sum over stored steps of mu w
    """
    plane, stride, width, rows_of_plane, packed_rows, packed_row = numbers
    guard = np.uint64(len(reach))
    steps = residual.shape[0]
    for tile in range(first_tile, last_tile):
        for level in range(levels):
            back = first_back + level
            step = steps - 1 - back
            low, high = spans[tile, level, 0], spans[tile, level, 1]
            if back % 2 == 0:
                mu, new = mu_even, mu_odd
                pz, pz_new, zz, zz_new, py, py_new, zy, zy_new = (
                    p_z, p_z_next, z_z, z_z_next, p_y, p_y_next, z_y, z_y_next,
                )  # fmt: skip
            else:
                mu, new = mu_odd, mu_even
                pz, pz_new, zz, zz_new, py, py_new, zy, zy_new = (
                    p_z_next, p_z, z_z_next, z_z, p_y_next, p_y, z_y_next, z_y,
                )  # fmt: skip
            for n in range(source_start[low], source_start[high]):
                product = source_weight[n] * mu[source_cell[n]]
                source_product[n, step] = product
                drive_gradient[source_point[n], step] += product
            kept = step % store_every == 0
            w_in = stored[(step - first_stored) // store_every] if kept else stored[0]
            for t in range(tiles_y.shape[0]):
                top, rows = tiles_y[t, 0], tiles_y[t, 1] - tiles_y[t, 0]
                for z in range(low, high):
                    corner = z * plane + top * stride + LEFT
                    line = (z - guard) * rows_of_plane + (top - guard)
                    _laplacian(mu, new, c, w, corner, rows, width, plane, stride, kz, ky, kx, reach)
                    if kept:
                        _correlate(mu, total, w_in, line * width, corner, rows, width, stride)
                    if packed_z[z] > 0:
                        packed = (packed_z[z] * rows_of_plane + (top - guard)) * width
                        _adjoint_across(
                            mu, w, pz, pz_new, zz, zz_new, az, weights_z, z, NONE,
                            corner, rows, width, plane, stride, packed, rows_of_plane * width, reach,
                        )  # fmt: skip
                    if packed_y[top] > 0:
                        packed = ((z - guard) * packed_rows + packed_y[top]) * width
                        _adjoint_across(
                            mu, w, py, py_new, zy, zy_new, ay, weights_y, top, ONE,
                            corner, rows, width, stride, stride, packed, width, reach,
                        )  # fmt: skip
                    for s in range(strips_x.shape[0]):
                        packed = FIRST + line * packed_row + strips_x[s, 2]
                        _adjoint_along(
                            mu, w, p_x, z_x, ax, bx, slope_x, corner, rows, width, stride,
                            packed, packed_row, strips_x[s, 0], strips_x[s, 1], kx, dx, reach,
                        )  # fmt: skip
                    if sponge:
                        _leap_damped(mu, new, c, damping, w, w, NONE, DROP, corner, rows, width, stride)
                    else:
                        _leap(mu, new, c, w, w, NONE, DROP, corner, rows, width, stride)
            for n in range(receiver_start[low], receiver_start[high]):
                i = receiver_cell[n]
                new[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
            if free_surface:
                _mirror(new, low, high, plane, reach)
