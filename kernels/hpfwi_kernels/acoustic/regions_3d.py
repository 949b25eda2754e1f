"""The compiled passes over a few rows of one plane in three dimensions: Laplacian, layers, step, and their adjoints.

The Laplacian of the rows goes to a scratch `w` that stays in the nearest cache, each absorbing layer that acts on them
adds its change to it, and the last pass takes the step. More than half of the cells of a small model lie in a layer,
and this way every layer is one short loop instead of one for each of 26 edges and corners.

Layers across rows (along z and y) are the same loop with another distance between neighbours. Their memories hold the
layer's planes or rows alone, with R zero ones around, and are double, since neighbours read what the step before left.
The adjoint of such a layer is a stencil on mu, Z and P with weights of its own for every plane or row. The layer along
x keeps its neighbours in registers, so its memory is updated in place.
"""

import numpy as np

from hpfwi_kernels.acoustic.prefetching import prefetch
from hpfwi_kernels.acoustic.regions import column_first, column_second, row_first, row_second, terms_first, terms_second
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes, load, put, stream, unpack

NONE = np.uint64(0)
ONE = np.uint64(1)
TWO = np.uint64(2)
TERMS = np.uint64(5)
ROWS_AHEAD = np.uint64(4)


@hot
def laplacian(u, v, c, w, corner, rows, width, hop, stride, kz, ky, kx, reach):
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
def layer_across(
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
def layer_along(
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
            more = gain * plain + (load(slope, x) * q + terms_first(psi_low, psi_here, psi_high, d, reach))
            change = gain * (plain + more) + decay * load(zeta, j)
            put(psi, j, decay * (gain * q + psi_here))
            put(zeta, j, change)
            put(w, o, load(w, o) + (more + change))
            low, here = here, high
            psi_low, psi_here = psi_here, psi_high


@hot
def leap(u, v, c, w, stored, slot, keep, corner, rows, width, stride):
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
def leap_damped(u, v, c, damping, w, stored, slot, keep, corner, rows, width, stride):
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
def correlate(mu, total, stored, slot, corner, rows, width, stride):
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
def adjoint_across(
    mu, w, p, p_next, z, z_next, a, weights, at, at_step, corner, rows, width, hop, stride, packed, packed_hop, reach
):  # fmt: skip
    """Add to w the transpose of `layer_across`.

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
def adjoint_along(mu, w, p, z, a, b, slope, corner, rows, width, stride, packed, packed_row, first, last, k, d, reach):
    """Add to w the transpose of `layer_along`. T and A stay in registers, so p and z are updated in place."""
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
            gained = terms_second(lift_low, lift, lift_high, k, reach) - terms_first(
                flow_low, flow, flow_high, d, reach
            )
            decay = load(a, x)
            new_p = decay * (load(p, j) - terms_first(t_low, t, t_high, d, reach))
            put(z, j, decay * (here + load(z, j)))
            put(p, j, new_p)
            put(w, o, load(w, o) + gained)
            t_low, flow_low, lift_low = t, flow, lift
            here, t, flow, lift = high, t_high, flow_high, lift_high
