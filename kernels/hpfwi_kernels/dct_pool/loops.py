"""The compiled loops over planes.

A table is a product of a row factor and a column factor, and multiplying by either keeps or reverses order. So the
extremes over a column are taken once per distinct row frequency, over all frequencies that share it, and the sixteen
frequencies meet only at the end, on one row of extremes each. Sums over cells for the mean need no product at all: the
tables' average is one table.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum
from hpfwi_kernels.dct_pool import plan

LANES = np.uint64(plan.LANES)
ZERO, ONE, TWO, THREE, FOUR, EIGHT = (np.uint64(n) for n in (0, 1, 2, 3, 4, 8))


@hot_sum
def _weighted(x, o, weight):
    """The plane's sum with weights, which is the mean of all products."""
    total = x.dtype.type(0)
    for i in range(np.uint64(weight.size)):
        total += weight[i] * x[o + i]
    return total


@hot
def _pool(x, o, columns, row_bins, row_weight, widths, pick, line, averages, pooled):
    """Adaptive average pooling; columns beyond the last repeat it, so that vectors need no end.

    widths   of the columns' bins, each once; `averages` takes one row of moving averages per width
    pick     where in `averages` each pooled column stands: the moving average of its width at its first cell
    """
    for i in range(np.uint64(row_bins.shape[0])):
        first = o + row_bins[i, 0] * columns
        for c in range(columns):
            line[c] = x[first + c]
        for r in range(row_bins[i, 0] + ONE, row_bins[i, 1]):
            at = o + r * columns
            for c in range(columns):
                line[c] += x[at + c]
        for n in range(np.uint64(widths.size)):
            _average(line, columns, widths[n], row_weight[i], averages, n * columns)
        # Picked into the array it is picked from: the compiler then leaves it to plain loads, which are quicker here
        # than gather instructions.
        to = np.uint64(widths.size) * columns
        for j in range(np.uint64(pick.size)):
            averages[to + j] = averages[pick[j]]
        for j in range(np.uint64(pick.size)):
            pooled[i, j] = averages[to + j]


@hot
def _average(line, columns, width, weight, averages, to):
    """Weight times the means of `width` cells from every cell on; those that would reach over the end are not used."""
    scale = weight / line.dtype.type(width)
    for c in range(columns):
        averages[to + c] = scale * line[c]
    for d in range(ONE, width):
        for c in range(columns - d):
            averages[to + c] += scale * line[c + d]


@hot
def _extremes(a, b, c, d, f, i, high, low):
    """Widen the extremes of every column by four pooled rows times their factors f[i:]."""
    f0, f1, f2, f3 = f[i], f[i + ONE], f[i + TWO], f[i + THREE]
    for j in range(np.uint64(high.size)):
        p, q, r, s = f0 * a[j], f1 * b[j], f2 * c[j], f3 * d[j]
        above, below = (p, q) if p > q else (q, p)
        over, under = (r, s) if r > s else (s, r)
        most, least = (above if above > over else over), (below if below < under else under)
        high[j] = most if most > high[j] else high[j]
        low[j] = least if least < low[j] else low[j]


@hot
def _widest(high, low, g, most, least):
    """The largest and the smallest product of a row of extremes and its factors; most and least are for its own use."""
    for j in range(LANES):
        p, q = g[j] * high[j], g[j] * low[j]
        most[j], least[j] = (p, q) if p > q else (q, p)
    for first in range(LANES, np.uint64(high.size), LANES):
        for lane in range(LANES):
            p, q = g[first + lane] * high[first + lane], g[first + lane] * low[first + lane]
            above, below = (p, q) if p > q else (q, p)
            most[lane] = above if above > most[lane] else most[lane]
            least[lane] = below if below < least[lane] else least[lane]
    for lane in range(EIGHT):
        most[lane] = most[lane + EIGHT] if most[lane + EIGHT] > most[lane] else most[lane]
        least[lane] = least[lane + EIGHT] if least[lane + EIGHT] < least[lane] else least[lane]
    for lane in range(FOUR):
        most[lane] = most[lane + FOUR] if most[lane + FOUR] > most[lane] else most[lane]
        least[lane] = least[lane + FOUR] if least[lane + FOUR] < least[lane] else least[lane]
    highest, lowest = most[0], least[0]
    for lane in range(ONE, FOUR):
        highest = most[lane] if most[lane] > highest else highest
        lowest = least[lane] if least[lane] < lowest else lowest
    return highest, lowest


@hot
def _first_cell(value, high, low, pooled, f, g, side):
    """First cell in row-major order whose product is `value`, the largest or the smallest there is."""
    beyond = np.int32(high.size)
    first, last = beyond, np.int32(-1)
    for j in range(np.uint64(high.size)):
        match = (g[j] * high[j] == value) | (g[j] * low[j] == value)
        first = min(first, np.int32(j) if match else beyond)
        last = max(last, np.int32(j) if match else np.int32(-1))
    row, found = side, ZERO
    for j in range(np.uint64(first), min(np.uint64(last + np.int32(1)), side)):
        if (g[j] * high[j] == value) | (g[j] * low[j] == value):
            for i in range(row):
                if g[j] * (f[i] * pooled[i, j]) == value:
                    row, found = i, np.uint64(j)
                    break
    return row * side + found


@hot
def _careful(pooled, f, g, side):
    """Extremes and their first cells, one product after the other: NaN wins, and the last NaN, as in torch."""
    most = least = g[0] * (f[0] * pooled[0, 0])
    at_most = at_least = ZERO
    for i in range(side):
        for j in range(side):
            p = g[j] * (f[i] * pooled[i, j])
            if p > most or p != p:
                most, at_most = p, i * side + j
            if p < least or p != p:
                least, at_least = p, i * side + j
    return most, least, at_most, at_least


@hot
def forward_planes(
    x, first, end, columns, weight, row_bins, row_weight, widths, pick, row_factor, column_factor, pairs,
    mean, high, low, positions, wants_positions, line, averages, pooled, highs, lows, upper, lower,
):  # fmt: skip
    """Planes first to end - 1 of x: mean, high, low [plane] and positions [plane, 2, frequency].

    row_factor, column_factor   one line per distinct frequency of an axis, repeating the last cell up to whole blocks
    pairs                       [frequency, 2]: which lines a frequency multiplies
    """
    side = np.uint64(row_bins.shape[0])
    count = np.uint64(pairs.shape[0])
    share = x.dtype.type(1) / x.dtype.type(pairs.shape[0])
    for q in range(first, end):
        o = q * np.uint64(weight.size)
        mean[q] = _weighted(x, o, weight)
        _pool(x, o, columns, row_bins, row_weight, widths, pick, line, averages, pooled)
        for i in range(side, np.uint64(pooled.shape[0])):
            for j in range(np.uint64(pooled.shape[1])):
                pooled[i, j] = pooled[side - ONE, j]
        finite = mean[q] - mean[q] == 0
        for u in range(np.uint64(row_factor.shape[0])):
            for j in range(np.uint64(pooled.shape[1])):
                highs[u, j] = row_factor[u, 0] * pooled[0, j]
                lows[u, j] = highs[u, j]
        for i in range(ZERO, np.uint64(pooled.shape[0]), FOUR):
            a, b, c, d = pooled[i], pooled[i + ONE], pooled[i + TWO], pooled[i + THREE]
            for u in range(np.uint64(row_factor.shape[0])):
                _extremes(a, b, c, d, row_factor[u], i, highs[u], lows[u])
        total_high = total_low = x.dtype.type(0)
        for k in range(count):
            f, g = row_factor[pairs[k, 0]], column_factor[pairs[k, 1]]
            tall, deep = highs[pairs[k, 0]], lows[pairs[k, 0]]
            if finite:
                most, least = _widest(tall, deep, g, upper, lower)
                if wants_positions:
                    positions[q, 0, k] = _first_cell(most, tall, deep, pooled, f, g, side)
                    positions[q, 1, k] = _first_cell(least, tall, deep, pooled, f, g, side)
            else:
                most, least, at_most, at_least = _careful(pooled, f, g, side)
                if wants_positions:
                    positions[q, 0, k], positions[q, 1, k] = at_most, at_least
            total_high += most
            total_low += least
        high[q], low[q] = share * total_high, share * total_low


@hot
def gradient_planes(
    out, first, end, columns, weight, row_bins, row_weight, column_bins, row_factor, column_factor, pairs,
    mean, high, low, positions,
):  # fmt: skip
    """Planes first to end - 1 of x's gradient: the average table, and the bins of the cells that hold the extremes."""
    side = np.uint64(row_bins.shape[0])
    share = out.dtype.type(1) / out.dtype.type(pairs.shape[0])
    for q in range(first, end):
        o = q * np.uint64(weight.size)
        scale = mean[q]
        for cell in range(np.uint64(weight.size)):
            out[o + cell] = scale * weight[cell]
        for which in range(TWO):
            from_above = share * (low[q] if which else high[q])
            for k in range(np.uint64(pairs.shape[0])):
                i, j = divmod(np.uint64(positions[q, which, k]), side)
                c_first, c_end = column_bins[j, 0], column_bins[j, 1]
                value = from_above * row_factor[pairs[k, 0], i] * column_factor[pairs[k, 1], j]
                value *= row_weight[i] / out.dtype.type(c_end - c_first)
                for r in range(row_bins[i, 0], row_bins[i, 1]):
                    for c in range(c_first, c_end):
                        out[o + r * columns + c] += value
