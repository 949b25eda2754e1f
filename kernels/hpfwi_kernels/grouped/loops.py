"""The compiled loops over groups of channels.

A plane is copied between zeros into rows of `pitch` cells, columns and one border: the zeros behind a row are those
before the next, so that filtering a plane is one loop without ends. What comes out between rows is not used.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum

ZERO, TWO, NINE = np.uint64(0), np.uint64(2), np.uint64(9)


@hot
def _fill(x, o, rows, columns, pitch, padded, to):
    """Copy a plane to padded[to:], row by row."""
    for y in range(rows):
        for i in range(columns):
            padded[to + y * pitch + i] = x[o + y * columns + i]


@hot
def _filter(padded, at, pitch, dilation, weight, w, cells, out, to):
    """Add the filtered plane to out[to:]; `at` is the first cell that output 0 sees."""
    below, beneath = at + dilation * pitch, at + TWO * dilation * pitch
    w0, w1, w2 = weight[w], weight[w + np.uint64(1)], weight[w + TWO]
    w3, w4, w5 = weight[w + np.uint64(3)], weight[w + np.uint64(4)], weight[w + np.uint64(5)]
    w6, w7, w8 = weight[w + np.uint64(6)], weight[w + np.uint64(7)], weight[w + np.uint64(8)]
    d, e = dilation, TWO * dilation
    for i in range(cells):
        total = out[to + i]
        total += w0 * padded[at + i] + w1 * padded[at + d + i] + w2 * padded[at + e + i]
        total += w3 * padded[below + i] + w4 * padded[below + d + i] + w5 * padded[below + e + i]
        total += w6 * padded[beneath + i] + w7 * padded[beneath + d + i] + w8 * padded[beneath + e + i]
        out[to + i] = total


@hot_sum
def _correlate(padded, at, pitch, dilation, gradient, o, cells, sums, to):
    """Add to sums[to:] the gradient of one filter; the zeros between rows of the gradient keep garbage out."""
    below, beneath = at + dilation * pitch, at + TWO * dilation * pitch
    d, e = dilation, TWO * dilation
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = padded.dtype.type(0)
    for i in range(cells):
        g = gradient[o + i]
        s0 += g * padded[at + i]
        s1 += g * padded[at + d + i]
        s2 += g * padded[at + e + i]
        s3 += g * padded[below + i]
        s4 += g * padded[below + d + i]
        s5 += g * padded[below + e + i]
        s6 += g * padded[beneath + i]
        s7 += g * padded[beneath + d + i]
        s8 += g * padded[beneath + e + i]
    found = (s0, s1, s2, s3, s4, s5, s6, s7, s8)
    for cell in range(NINE):
        sums[to + cell] += found[cell]


@hot
def forward_groups(x, weight, members, first, end, samples, channels, rows, columns, dilation, out, padded, filtered):
    """Groups first to end - 1 of x [sample, channel, row, column], each of `members` channels.

    padded, filtered   a group's planes with zeros around them, and one plane of sums
    """
    pitch = columns + dilation
    cells, plane = rows * pitch, (rows + TWO * dilation) * pitch + dilation
    inside = dilation * pitch + dilation
    for group in range(first, end):
        for sample in range(samples):
            channel = sample * channels + group * members
            for k in range(members):
                _fill(x, (channel + k) * rows * columns, rows, columns, pitch, padded, k * plane + inside)
            for n in range(members):
                for i in range(cells):
                    filtered[i] = 0
                for k in range(members):
                    w = ((group * members + n) * members + k) * NINE
                    _filter(padded, k * plane, pitch, dilation, weight, w, cells, filtered, ZERO)
                o = (channel + n) * rows * columns
                for y in range(rows):
                    for i in range(columns):
                        out[o + y * columns + i] = filtered[y * pitch + i]


@hot
def correlate_groups(
    x, gradient, members, first, end, samples, channels, rows, columns, dilation, sums, padded, spaced
):  # fmt: skip
    """Add the weight's gradient to sums [channel, member, 9], float64, for groups first to end - 1.

    padded, spaced   a group's planes with zeros around them, and a plane of the gradient with zeros between its rows
    """
    pitch = columns + dilation
    cells, plane = rows * pitch, (rows + TWO * dilation) * pitch + dilation
    inside = dilation * pitch + dilation
    for group in range(first, end):
        for sample in range(samples):
            channel = sample * channels + group * members
            for k in range(members):
                _fill(x, (channel + k) * rows * columns, rows, columns, pitch, padded, k * plane + inside)
            for n in range(members):
                _fill(gradient, (channel + n) * rows * columns, rows, columns, pitch, spaced, ZERO)
                for k in range(members):
                    to = ((group * members + n) * members + k) * NINE
                    _correlate(padded, k * plane, pitch, dilation, spaced, ZERO, cells, sums, to)
