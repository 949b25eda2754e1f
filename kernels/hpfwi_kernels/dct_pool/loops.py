"""The compiled loops over planes.

A table is a product of a row factor and a column factor, and multiplying by either keeps or reverses order. So the
extremes over a column are taken once per distinct row frequency, over all frequencies that share it, and the sixteen
frequencies meet only at the end, on one row of extremes each. Sums over cells for the mean need no product at all: the
tables' average is one table.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_extreme, hot_sum

LANES = 16
ROWS_AT_ONCE = 4
ZERO, ONE, TWO, THREE, FOUR = (np.uint64(n) for n in range(5))


@hot_sum
def _weighted(x, o, weight):
    """The plane's sum with weights, which is the mean of all products."""
    total = x.dtype.type(0)
    for i in range(np.uint64(weight.size)):
        total += weight[i] * x[o + i]
    return total


@hot
def _pool(x, o, columns, row_bins, row_weight, column_cell, column_weight, line, pooled):
    """Adaptive average pooling; columns beyond the last repeat it, so that vectors need no end.

    column_cell, column_weight   [reach, cell]: what each pooled column reads of a row, padded with weights of zero
    """
    for i in range(np.uint64(row_bins.shape[0])):
        first = o + row_bins[i, 0] * columns
        for c in range(columns):
            line[c] = x[first + c]
        for r in range(row_bins[i, 0] + ONE, row_bins[i, 1]):
            at = o + r * columns
            for c in range(columns):
                line[c] += x[at + c]
        for j in range(np.uint64(column_cell.shape[1])):
            pooled[i, j] = row_weight[i] * column_weight[0, j] * line[column_cell[0, j]]
        for d in range(ONE, np.uint64(column_cell.shape[0])):
            for j in range(np.uint64(column_cell.shape[1])):
                pooled[i, j] += row_weight[i] * column_weight[d, j] * line[column_cell[d, j]]


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


@hot_extreme
def _widest(high, low, g):
    """The largest and the smallest product of a row of extremes and its factors; undefined where there is a NaN."""
    p, q = g[0] * high[0], g[0] * low[0]
    most, least = (p, q) if p > q else (q, p)
    for j in range(np.uint64(high.size)):
        p, q = g[j] * high[j], g[j] * low[j]
        above, below = (p, q) if p > q else (q, p)
        most = above if above > most else most
        least = below if below < least else least
    return most, least


@hot
def _first_cell(value, high, low, pooled, f, g, side):
    """First cell in row-major order whose product is `value`, the largest or the smallest there is."""
    matches, column = np.int32(0), np.int32(side)
    for j in range(side):
        match = (g[j] * high[j] == value) | (g[j] * low[j] == value)
        matches += np.int32(match)
        column = min(column, np.int32(j) if match else np.int32(side))
    row = side
    last = column + np.int32(1) if matches == 1 else np.int32(side)
    found = np.uint64(column)
    for j in range(np.uint64(column), np.uint64(last)):
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
    x, first, end, columns, weight, row_bins, row_weight, column_cell, column_weight, row_factor, column_factor, pairs,
    mean, high, low, positions, wants_positions, line, pooled, highs, lows,
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
        _pool(x, o, columns, row_bins, row_weight, column_cell, column_weight, line, pooled)
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
                most, least = _widest(tall, deep, g)
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
