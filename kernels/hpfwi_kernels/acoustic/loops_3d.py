"""The compiled loops in three dimensions: blocks of planes over a few time steps, forward and adjoint.

A field is a stack of planes, each laid out as a 2-D field (`loops.py`), with R guard planes above and below. A few rows
of one plane are updated at a time, in the passes of regions_3d.py.

A block takes `spans[tile, level]`, the planes to update at each of its time levels. Spans of later levels lie R planes
lower, so a block finds every neighbour it needs already computed, by itself or by the block below it in the order of
tiles, and a plane that was read for one level is still in the cache for the next. `blocks.py` makes the spans and
says which blocks must be done before which. Where the wavefield is run backwards (boundary_3d.py) its planes go through
the same blocks.
"""

import numpy as np

from hpfwi_kernels.acoustic.boundary_3d import move_ring, unwind
from hpfwi_kernels.acoustic.regions import DROP, KEEP, LANES, LEFT
from hpfwi_kernels.acoustic.regions_3d import (
    adjoint_across,
    adjoint_along,
    correlate,
    laplacian,
    layer_across,
    layer_along,
    leap,
    leap_damped,
)
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.subnormals import ignore_subnormals, restore

NONE = np.uint64(0)
ONE = np.uint64(1)
FIRST = np.uint64(LANES)


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
    stored, store, store_every, first_stored, ring, save_ring, core,
    spans, first_tile, last_tile, first_step, levels,
):  # fmt: skip
    """Run blocks first_tile to last_tile - 1 of one shot over the time steps first_step to first_step + levels - 1.

    u, v       fields: u holds even steps and v odd ones            w        scratch of the longest tile's rows
    packed_z   plane's place in psi_z and zeta_z, 0 where no layer acts; packed_y the same for rows
    strips_x   [n, 3]: first and last+1 column of a layer and its place in a packed row
    tiles_y    [n, 2]: first and last+1 row of what is updated at a time; all its rows are in one layer or in none
    drive      [source, step]     records  [step, receiver], added to
    stored     [slot, z·y·x], written when `store`; slot 0 belongs to step first_stored
    ring       [step, cell], the cells around the core, written when `save_ring`
    core       first and last+1 guarded plane, row and column (of a row with its margin) of the cells no layer touches
    *_start    [plane + 1]: the taps of a plane are those from start[plane] to start[plane + 1] - 1
    """
    state = ignore_subnormals()
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
            if save_ring:
                move_ring(now, ring[step], low, high, core, plane, stride, guard, False)
            keep = store and step % store_every == 0
            w_out = stored[(step - first_stored) // store_every] if keep else stored[0]
            for t in range(tiles_y.shape[0]):
                top, rows = tiles_y[t, 0], tiles_y[t, 1] - tiles_y[t, 0]
                for z in range(low, high):
                    corner = z * plane + top * stride + LEFT
                    line = (z - guard) * rows_of_plane + (top - guard)
                    laplacian(now, new, c, w, corner, rows, width, plane, stride, kz, ky, kx, reach)
                    if packed_z[z] > 0:
                        packed = (packed_z[z] * rows_of_plane + (top - guard)) * width
                        layer_across(
                            now, w, psi_z_now, psi_z_new, zeta_z, az, bz, slope_z, z, NONE,
                            corner, rows, width, plane, stride, packed, rows_of_plane * width, kz, dz, reach,
                        )  # fmt: skip
                    if packed_y[top] > 0:
                        packed = ((z - guard) * packed_rows + packed_y[top]) * width
                        layer_across(
                            now, w, psi_y_now, psi_y_new, zeta_y, ay, by, slope_y, top, ONE,
                            corner, rows, width, stride, stride, packed, width, ky, dy, reach,
                        )  # fmt: skip
                    for s in range(strips_x.shape[0]):
                        packed = FIRST + line * packed_row + strips_x[s, 2]
                        layer_along(
                            now, w, psi_x, zeta_x, ax, bx, slope_x, corner, rows, width, stride,
                            packed, packed_row, strips_x[s, 0], strips_x[s, 1], kx, dx, reach,
                        )  # fmt: skip
                    slot = line * width
                    if sponge:
                        if keep:
                            leap_damped(now, new, c, damping, w, w_out, slot, KEEP, corner, rows, width, stride)
                        else:
                            leap_damped(now, new, c, damping, w, w_out, slot, DROP, corner, rows, width, stride)
                    elif keep:
                        leap(now, new, c, w, w_out, slot, KEEP, corner, rows, width, stride)
                    else:
                        leap(now, new, c, w, w_out, slot, DROP, corner, rows, width, stride)
            for n in range(source_start[low], source_start[high]):
                i = source_cell[n]
                new[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
            if free_surface:
                _mirror(new, low, high, plane, reach)
    restore(state)


@hot
def march_back(
    mu_even, mu_odd, c, damping, w, p_z, p_z_next, z_z, z_z_next, p_y, p_y_next, z_y, z_y_next, p_x, z_x,
    az, ay, ax, bx, slope_x, weights_z, weights_y, packed_z, packed_y, strips_x, tiles_y,
    numbers, kz, ky, kx, dx, reach, sponge, free_surface,
    source_cell, source_point, source_weight, source_start, source_product, drive, drive_gradient,
    receiver_cell, receiver_point, receiver_weight, receiver_start, residual,
    stored, store_every, first_stored, total, ring, rebuild, core, field_even, field_odd,
    spans, first_tile, last_tile, first_back, levels,
):  # fmt: skip
    """Run blocks of one shot's adjoint over the steps that are first_back to first_back + levels - 1 before the last.

    residual        [step, receiver]
    drive_gradient  [source, step], added to
    source_product  [source tap, step], written: weight times mu at the tap, the source's own part of the gradient
    total           [z·y·x], += sum over stored steps of mu w
    rebuild         take w from the wavefield itself, which is run backwards in the core between the cells in `ring`:
                    field_even and field_odd hold u at the last even and the last odd step
    """
    state = ignore_subnormals()
    plane, stride, width, rows_of_plane, packed_rows, packed_row = numbers
    guard = np.uint64(len(reach))
    steps = residual.shape[0]
    for tile in range(first_tile, last_tile):
        for level in range(levels):
            back = first_back + level
            step = steps - 1 - back
            low, high = spans[tile, level, 0], spans[tile, level, 1]
            field, field_new = (field_even, field_odd) if step % 2 == 0 else (field_odd, field_even)
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
            w_in = stored[(step - first_stored) // store_every] if kept and not rebuild else stored[0]
            for t in range(tiles_y.shape[0]):
                top, rows = tiles_y[t, 0], tiles_y[t, 1] - tiles_y[t, 0]
                for z in range(low, high):
                    corner = z * plane + top * stride + LEFT
                    line = (z - guard) * rows_of_plane + (top - guard)
                    laplacian(mu, new, c, w, corner, rows, width, plane, stride, kz, ky, kx, reach)
                    if rebuild:
                        unwind(
                            field, field_new, c, mu, total, kept, z, top, tiles_y[t, 1], core, plane, stride, width,
                            rows_of_plane, kz, ky, kx, reach,
                        )  # fmt: skip
                    elif kept:
                        correlate(mu, total, w_in, line * width, corner, rows, width, stride)
                    if packed_z[z] > 0:
                        packed = (packed_z[z] * rows_of_plane + (top - guard)) * width
                        adjoint_across(
                            mu, w, pz, pz_new, zz, zz_new, az, weights_z, z, NONE,
                            corner, rows, width, plane, stride, packed, rows_of_plane * width, reach,
                        )  # fmt: skip
                    if packed_y[top] > 0:
                        packed = ((z - guard) * packed_rows + packed_y[top]) * width
                        adjoint_across(
                            mu, w, py, py_new, zy, zy_new, ay, weights_y, top, ONE,
                            corner, rows, width, stride, stride, packed, width, reach,
                        )  # fmt: skip
                    for s in range(strips_x.shape[0]):
                        packed = FIRST + line * packed_row + strips_x[s, 2]
                        adjoint_along(
                            mu, w, p_x, z_x, ax, bx, slope_x, corner, rows, width, stride,
                            packed, packed_row, strips_x[s, 0], strips_x[s, 1], kx, dx, reach,
                        )  # fmt: skip
                    if sponge:
                        leap_damped(mu, new, c, damping, w, w, NONE, DROP, corner, rows, width, stride)
                    else:
                        leap(mu, new, c, w, w, NONE, DROP, corner, rows, width, stride)
            for n in range(receiver_start[low], receiver_start[high]):
                i = receiver_cell[n]
                new[i] += c[i] * (receiver_weight[n] * residual[step, receiver_point[n]])
            if free_surface:
                _mirror(new, low, high, plane, reach)
            if rebuild and step > 0:
                for n in range(source_start[low], source_start[high]):
                    i = source_cell[n]
                    field_new[i] += c[i] * (source_weight[n] * drive[source_point[n], step])
                move_ring(field_new, ring[step - 1], low, high, core, plane, stride, guard, True)
                if free_surface:
                    _mirror(field_new, low, high, plane, reach)
    restore(state)
