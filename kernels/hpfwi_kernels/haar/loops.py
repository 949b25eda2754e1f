"""The compiled loops over planes: pad, transform, filter, transform back; forward, and gradient.

`table` describes the layouts (layout.py), one line per level; `padded` holds a plane and its coefficients, `filtered`
what comes out of the filters, both in those layouts. Indices are uint64 and never negative: Numba's wrap-around test on
signed ones keeps LLVM from vectorising.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum
from hpfwi_kernels.haar.filtering import ONE, THREE, TWO, convolve, correlate, streams
from hpfwi_kernels.haar.layout import CELLS, COLUMNS, PAD, PHASE, ROWS, START, STRIDE, row_start
from hpfwi_kernels.haar.separable import analyse_separably, synthesise_separably

ZERO, FOUR, FIFTEEN = np.uint64(0), np.uint64(4), np.uint64(15)


@hot
def _whole(columns):
    """Columns rounded up to whole vectors."""
    return (columns + FIFTEEN) & ~FIFTEEN


@hot
def _fill(x, o, padded, line):
    """Copy the plane at x[o:] between the zeros of the layout."""
    for y in range(line[ROWS]):
        to = row_start(line, y + line[PAD]) + line[PAD]
        at = o + y * line[COLUMNS]
        for i in range(line[COLUMNS]):
            padded[to + i] = x[at + i]


@hot
def _split(v, top, bottom, out, to, plane, half):
    """Haar coefficients of two padded rows.

    v and out are the same memory under two names, for the compiler to see that no store changes what is read. `half` is
    1/2 on the coefficients' columns and 0 up to the next whole vector, so that the vectors leave zeros there.
    """
    to1, to2, to3 = to + plane, to + TWO * plane, to + THREE * plane
    for j in range(np.uint64(half.size)):
        a, b = v[top + j + j], v[top + j + j + ONE]
        c, d = v[bottom + j + j], v[bottom + j + j + ONE]
        above, below, over, under = a + b, c + d, a - b, c - d
        out[to + j] = half[j] * (above + below)
        out[to1 + j] = half[j] * (above - below)
        out[to2 + j] = half[j] * (over + under)
        out[to3 + j] = half[j] * (over - under)


@hot
def _join(filtered, at, plane, columns, top, bottom):
    """Two rows from their Haar coefficients: the transpose of _split."""
    half = filtered.dtype.type(0.5)
    at1, at2, at3 = at + plane, at + TWO * plane, at + THREE * plane
    for j in range(_whole(columns)):
        low, rows, sides, cross = filtered[at + j], filtered[at1 + j], filtered[at2 + j], filtered[at3 + j]
        above, below, over, under = low + rows, low - rows, sides + cross, sides - cross
        top[j + j], top[j + j + ONE] = half * (above + over), half * (above - over)
        bottom[j + j], bottom[j + j + ONE] = half * (below + under), half * (below - under)


@hot
def _analyse(padded, table, low, high, halves, lines):
    """Coefficients of every level from the padded plane."""
    for level in range(1, table.shape[0]):
        source, line = table[level - 1], table[level]
        plane = FOUR * line[PHASE]
        if low.size > 2:
            analyse_separably(padded, source, line, low, high, lines)
        else:
            half = halves[level, : _whole(line[COLUMNS])]
            for i in range(line[ROWS]):
                top = row_start(source, i + i + source[PAD]) + source[PAD]
                bottom = row_start(source, i + i + ONE + source[PAD]) + source[PAD]
                _split(padded, top, bottom, padded, row_start(line, i + line[PAD]) + line[PAD], plane, half)


@hot
def _synthesise(filtered, table, low, high, lines, bias, out, o):
    """Planes from filtered coefficients, coarsest first, and out[o:] from the last one and the filtered plane."""
    plane, top = table[0], lines[0]
    for level in range(table.shape[0] - 1, 0, -1):
        source, line = table[level - 1], table[level]
        if low.size > 2:
            synthesise_separably(filtered, source, line, low, high, lines)
        for y in range(source[ROWS]):
            if low.size > 2:
                top = lines[y]
            elif y & ONE == ZERO:
                _join(filtered, row_start(line, y >> ONE), FOUR * line[PHASE], line[COLUMNS], lines[0], lines[1])
                top = lines[0]
            else:
                top = lines[1]
            to = row_start(source, y)
            if level > 1:
                for i in range(source[COLUMNS]):
                    filtered[to + i] += top[i]
            else:
                at = o + y * source[COLUMNS]
                for i in range(source[COLUMNS]):
                    out[at + i] = filtered[to + i] + top[i] + bias
    if table.shape[0] == 1:
        for y in range(plane[ROWS]):
            to, at = row_start(plane, y), o + y * plane[COLUMNS]
            for i in range(plane[COLUMNS]):
                out[at + i] = filtered[to + i] + bias


@hot
def _filter(padded, filtered, table, base, bands, channel, channels, reach):
    """Filter the plane and every band: base is [channel, k, k] and bands [level, channel, 4, k, k], both flat."""
    taps = np.uint64(len(reach) * len(reach))
    for level in range(table.shape[0]):
        line = table[level]
        for s in range(FOUR if level else ONE):
            start = line[START] + s * FOUR * line[PHASE]
            rows = streams(start, line[STRIDE], line[PHASE])
            if level:
                at = (((np.uint64(level) - ONE) * channels + channel) * FOUR + s) * taps
                convolve(padded, rows, bands, at, filtered, start, line[PHASE], line[CELLS], reach)
            else:
                convolve(padded, rows, base, channel * taps, filtered, start, line[PHASE], line[CELLS], reach)


@hot
def _filter_gradient(gradient, padded, table, sums, reach):
    """Add the gradient of every filter of one channel to sums: base first, then [level, 4, k, k]."""
    taps = np.uint64(len(reach) * len(reach))
    at = ZERO
    for level in range(table.shape[0]):
        line = table[level]
        for s in range(FOUR if level else ONE):
            start = line[START] + s * FOUR * line[PHASE]
            rows = streams(start, line[STRIDE], line[PHASE])
            # The same rows of the gradient without the padding in front of them.
            pad = line[PAD]
            to = (
                rows[len(reach) // 2] + pad, rows[len(reach) // 2 + 1] + pad,
                rows[len(reach) // 2 + 2] + pad, rows[len(reach) // 2 + 3] + pad,
            )  # fmt: skip
            correlate(gradient, padded, rows, to, sums, at, line[CELLS], reach)
            at += taps


@hot_sum
def _total(v, o, cells):
    total = v.dtype.type(0)
    for i in range(cells):
        total += v[o + i]
    return total


@hot
def forward_planes(
    x, base, bias, bands, out, first, end, channels, table, low, high, halves, padded, filtered, lines, reach
):  # fmt: skip
    """Planes first to end - 1 of x [sample, channel] through the whole layer."""
    size = table[0, ROWS] * table[0, COLUMNS]
    for q in range(first, end):
        channel = q % channels
        _fill(x, q * size, padded, table[0])
        _analyse(padded, table, low, high, halves, lines)
        _filter(padded, filtered, table, base, bands, channel, channels, reach)
        _synthesise(filtered, table, low, high, lines, bias[channel], out, q * size)


@hot
def gradient_planes(
    x, gradient, base, none, bands, out, sums, first, end, samples, group, channels, wants_x, wants_sums,
    table, low, high, halves, padded, padded_gradient, filtered, lines, reach,
):  # fmt: skip
    """Tasks first to end - 1; a task is one channel of `group` samples, its sums are sums[task].

    base, bands   the filters turned by half a turn, which makes the forward pass its own transpose
    none          zeros instead of a bias
    """
    size = table[0, ROWS] * table[0, COLUMNS]
    for task in range(first, end):
        channel = task % channels
        sample = (task // channels) * group
        for n in range(sample, min(sample + group, samples)):
            o = (n * channels + channel) * size
            _fill(gradient, o, padded_gradient, table[0])
            _analyse(padded_gradient, table, low, high, halves, lines)
            if wants_x:
                _filter(padded_gradient, filtered, table, base, bands, channel, channels, reach)
                _synthesise(filtered, table, low, high, lines, none[channel], out, o)
            if wants_sums:
                _fill(x, o, padded, table[0])
                _analyse(padded, table, low, high, halves, lines)
                _filter_gradient(padded_gradient, padded, table, sums[task], reach)
                sums[task, sums.shape[1] - 1] += _total(gradient, o, size)


@hot
def transform_planes(x, out, first, end, table, low, high, halves, padded, lines):
    """One level of coefficients of planes first to end - 1, band after band."""
    plane, line = table[0], table[1]
    size, cells = plane[ROWS] * plane[COLUMNS], line[ROWS] * line[COLUMNS]
    for q in range(first, end):
        _fill(x, q * size, padded, plane)
        _analyse(padded, table, low, high, halves, lines)
        for s in range(FOUR):
            for i in range(line[ROWS]):
                at = row_start(line, i) + s * FOUR * line[PHASE]
                to = (q * FOUR + s) * cells + i * line[COLUMNS]
                for j in range(line[COLUMNS]):
                    out[to + j] = padded[at + j]


@hot
def inverse_planes(bands, out, first, end, table, low, high, halves, filtered, lines):
    """Planes first to end - 1 from one level of coefficients; `filtered` holds zeros where its plane is."""
    plane, line = table[0], table[1]
    size, cells = plane[ROWS] * plane[COLUMNS], line[ROWS] * line[COLUMNS]
    for q in range(first, end):
        for s in range(FOUR):
            for i in range(line[ROWS]):
                to = row_start(line, i) + s * FOUR * line[PHASE]
                at = (q * FOUR + s) * cells + i * line[COLUMNS]
                for j in range(line[COLUMNS]):
                    filtered[to + j] = bands[at + j]
        _synthesise(filtered, table, low, high, lines, out.dtype.type(0), out, q * size)
