"""The compiled loops that run a 3-D wavefield backwards in time, in the core, which no layer touches.

There a step has no memory and can be undone: u(t-1) = c (w + f) + 2 u(t) - u(t+1). What a step backwards reads outside
the core are the R cells beyond each of its faces: the ring, which the forward run saves at every step. A star-shaped
stencil needs no edges or corners of it. Cells of the ring are brought back with the plane they lie in, when that plane
has been undone, so that blocks of planes and threads wait for each other as they do in the forward run.
"""

import numpy as np

from hpfwi_kernels.acoustic.prefetching import prefetch
from hpfwi_kernels.acoustic.regions import LEFT, column_second, row_second
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes, load, put

TWO = np.uint64(2)
ROWS_AHEAD = np.uint64(4)


@hot
def _move(field, ring, n, corner, rows, columns, stride, restore):
    """Copy `rows` x `columns` cells of a plane, from cell `corner` on, to ring[n:], or back."""
    for y in range(rows):
        row, place = corner + y * stride, n + y * columns
        if restore:
            for x in range(columns):
                field[row + x] = ring[place + x]
        else:
            for x in range(columns):
                ring[place + x] = field[row + x]


@hot
def move_ring(field, ring, low, high, core, plane, stride, radius, restore):
    """Copy the ring's cells in the planes low to high - 1 of a field to `ring`, or back.

    ring   [cell]: the planes below the core, those above it, then the cells around it plane by plane. Guard planes are
           none of low to high - 1, so beside a side without a layer their places are neither written nor read
    """
    rows, columns = core[3] - core[2], core[5] - core[4]
    face, around = rows * columns, TWO * radius * (rows + columns)
    for z in range(max(low, core[0] - radius), min(high, core[1] + radius)):
        corner = z * plane + core[2] * stride + core[4]
        if z < core[0]:
            _move(field, ring, (z + radius - core[0]) * face, corner, rows, columns, stride, restore)
        elif z >= core[1]:
            _move(field, ring, (z + radius - core[1]) * face, corner, rows, columns, stride, restore)
        else:
            n = TWO * radius * face + (z - core[0]) * around
            _move(field, ring, n, corner - radius * stride, radius, columns, stride, restore)
            n += radius * columns
            _move(field, ring, n, corner + rows * stride, radius, columns, stride, restore)
            n += radius * columns
            _move(field, ring, n, corner - radius, rows, radius, stride, restore)
            n += radius * rows
            _move(field, ring, n, corner + columns, rows, radius, stride, restore)


@hot
def unwind(
    u, v, c, mu, total, counts, z, top, bottom, core, plane, stride, width, rows_of_plane, kz, ky, kx, reach
):  # fmt: skip
    """v = u(t+1) becomes u(t-1) on the core's cells in rows top to bottom - 1 of plane z, but for the source's part.

    total   [z·y·x], += mu w there where the step counts
    """
    if z < core[0] or z >= core[1]:
        return
    step, guard = lanes(u), np.uint64(len(reach))
    ahead = guard * plane + ROWS_AHEAD * stride
    for y in range(max(top, core[2]), min(bottom, core[3])):
        row = z * plane + y * stride
        slot = ((z - guard) * rows_of_plane + (y - guard)) * width
        low, here = load(u, row + core[4] - step), load(u, row + core[4])
        for x in range(core[4], core[5], step):
            i, o = row + x, slot + (x - LEFT)
            high = load(u, i + step)
            prefetch(u, i + ahead)
            prefetch(v, i + ROWS_AHEAD * stride)
            w = (
                column_second(u, i, plane, here, kz, reach)
                + column_second(u, i, stride, here, ky, reach)
                + row_second(u, i, low, here, high, kx, reach)
            )
            if counts:
                put(total, o, load(total, o) + load(mu, i) * w)
            put(v, i, load(c, i) * w + (here + here - load(v, i)))
            low, here = here, high
