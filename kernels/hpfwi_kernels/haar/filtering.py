"""The two loops where the time goes: k x k filters over padded planes, and the correlation that is their gradient.

Both run over four output rows at once (layout.py): a sample is loaded once per shift along the row and used for up to
four outputs, which keeps the multipliers busy instead of the load ports. A tuple `reach` of k ones selects the filter:
its length is part of its type, so each k compiles to its own straight-line body. k is 3, 5 or 7.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum

ONE, TWO, THREE, FOUR, FIVE, SIX = (np.uint64(n) for n in range(1, 7))
SIDES = (3, 5, 7)
# As NumPy integers: a literal would compile its callees once per value.
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9 = (np.int64(n) for n in range(10))


@hot
def streams(start, stride, phase):
    """Where the padded rows 0 to 9 of a plane start."""
    return (
        start, start + phase, start + TWO * phase, start + THREE * phase,
        start + stride, start + phase + stride, start + TWO * phase + stride, start + THREE * phase + stride,
        start + TWO * stride, start + phase + TWO * stride,
    )  # fmt: skip


@hot
def _load(v, i, reach):
    """The k samples from i on; the rest repeat the first and are never used."""
    v0, v1, v2 = v[i], v[i + ONE], v[i + TWO]
    v3 = v4 = v5 = v6 = v0
    if len(reach) > 3:
        v3, v4 = v[i + THREE], v[i + FOUR]
    if len(reach) > 5:
        v5, v6 = v[i + FIVE], v[i + SIX]
    return v0, v1, v2, v3, v4, v5, v6


@hot
def _dot(total, v, w, o, row, reach):
    """Add one row of the filter at w[o:] times the loaded samples."""
    o = o + np.uint64(row * len(reach))
    total += w[o] * v[0]
    total += w[o + ONE] * v[1]
    total += w[o + TWO] * v[2]
    if len(reach) > 3:
        total += w[o + THREE] * v[3]
        total += w[o + FOUR] * v[4]
    if len(reach) > 5:
        total += w[o + FIVE] * v[5]
        total += w[o + SIX] * v[6]
    return total


@hot
def _feed(t0, t1, t2, t3, v, i, m, w, o, reach):
    """What padded row m adds to the four outputs: it is row m - j of the filter for output j."""
    k = len(reach)
    if m < k + 3:
        loaded = _load(v, i, reach)
        if m < k:
            t0 = _dot(t0, loaded, w, o, m, reach)
        if 1 <= m < k + 1:
            t1 = _dot(t1, loaded, w, o, m - R1, reach)
        if 2 <= m < k + 2:
            t2 = _dot(t2, loaded, w, o, m - R2, reach)
        if m >= 3:
            t3 = _dot(t3, loaded, w, o, m - R3, reach)
    return t0, t1, t2, t3


@hot
def convolve(v, rows, w, o, out, to, phase, cells, reach):
    """Filter a padded plane: out[to + j phase + i] for the four phases j and every cell i."""
    to1, to2, to3 = to + phase, to + TWO * phase, to + THREE * phase
    zero = v.dtype.type(0)
    for i in range(cells):
        t0 = t1 = t2 = t3 = zero
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[0] + i, R0, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[1] + i, R1, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[2] + i, R2, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[3] + i, R3, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[4] + i, R4, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[5] + i, R5, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[6] + i, R6, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[7] + i, R7, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[8] + i, R8, w, o, reach)
        t0, t1, t2, t3 = _feed(t0, t1, t2, t3, v, rows[9] + i, R9, w, o, reach)
        out[to + i] = t0
        out[to1 + i] = t1
        out[to2 + i] = t2
        out[to3 + i] = t3


@hot_sum
def _gather(sums, d, v, reach):
    """Add d times each loaded sample to its own sum."""
    s0, s1, s2, s3, s4, s5, s6 = sums
    s0 += d * v[0]
    s1 += d * v[1]
    s2 += d * v[2]
    if len(reach) > 3:
        s3 += d * v[3]
        s4 += d * v[4]
    if len(reach) > 5:
        s5 += d * v[5]
        s6 += d * v[6]
    return s0, s1, s2, s3, s4, s5, s6


@hot_sum
def _spread(sums, d, v, i, m, reach):
    """What padded row m adds to the filter's gradient: to row m - j from the four output rows j."""
    k = len(reach)
    s0, s1, s2, s3, s4, s5, s6 = sums
    if m < k + 3:
        loaded = _load(v, i, reach)
        if m < 4:
            s0 = _gather(s0, d[m], loaded, reach)
        if 1 <= m < 5:
            s1 = _gather(s1, d[m - R1], loaded, reach)
        if 2 <= m < 6:
            s2 = _gather(s2, d[m - R2], loaded, reach)
        if k > 3 and 3 <= m < 7:
            s3 = _gather(s3, d[m - R3], loaded, reach)
        if k > 3 and 4 <= m < 8:
            s4 = _gather(s4, d[m - R4], loaded, reach)
        if k > 5 and 5 <= m < 9:
            s5 = _gather(s5, d[m - R5], loaded, reach)
        if k > 5 and m >= 6:
            s6 = _gather(s6, d[m - R6], loaded, reach)
    return s0, s1, s2, s3, s4, s5, s6


@hot_sum
def correlate(d, v, rows, to, sums, o, cells, reach):
    """Add the gradient of the filter to sums[o:]: d is the padded gradient of convolve's output, v its padded input.

    rows are the padded rows 0 to 9 of v, to the unpadded rows 0 to 3 of d. The zeros around d keep what lies between
    rows out of the sums.
    """
    zero = v.dtype.type(0)
    none = (zero, zero, zero, zero, zero, zero, zero)
    s = (none, none, none, none, none, none, none)
    for i in range(cells):
        e = (d[to[0] + i], d[to[1] + i], d[to[2] + i], d[to[3] + i])
        s = _spread(s, e, v, rows[0] + i, R0, reach)
        s = _spread(s, e, v, rows[1] + i, R1, reach)
        s = _spread(s, e, v, rows[2] + i, R2, reach)
        s = _spread(s, e, v, rows[3] + i, R3, reach)
        s = _spread(s, e, v, rows[4] + i, R4, reach)
        s = _spread(s, e, v, rows[5] + i, R5, reach)
        s = _spread(s, e, v, rows[6] + i, R6, reach)
        s = _spread(s, e, v, rows[7] + i, R7, reach)
        s = _spread(s, e, v, rows[8] + i, R8, reach)
        s = _spread(s, e, v, rows[9] + i, R9, reach)
    k = len(reach)
    for y in range(k):
        for x in range(k):
            sums[o + np.uint64(y * k + x)] += s[y][x]
