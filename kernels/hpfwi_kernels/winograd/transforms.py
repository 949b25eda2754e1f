"""The transforms of tiles between maps and the 36 numbers, and those of filters and of their gradients.

One-dimensional transforms along columns, then along rows, on vectors that hold one cell of many tiles: `points` is
(a, b, a², b², a² + b², 1 / (2 a² (a² - b²)), 1 / (2 b² (b² - a²))) with the polynomials evaluated at 0, a, -a, b, -b
and infinity. Indices are uint64 and never negative, as in the other loops.
"""

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum
from hpfwi_kernels.vectors import lanes, load, put
from hpfwi_kernels.winograd.product import join, split

ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX = (np.uint64(n) for n in range(7))
EIGHT, NINE, TWELVE = (np.uint64(n) for n in (8, 9, 12))


@hot
def _seen(d, points):
    """Six input cells to six numbers."""
    a, b, aa, bb, both, _, _ = points
    near, far = d[4] - bb * d[2], d[4] - aa * d[2]
    steep, flat = a * (d[3] - bb * d[1]), b * (d[3] - aa * d[1])
    return (
        d[0] + d[4] - both * d[2], near + steep, near - steep, far + flat, far - flat, d[1] + d[5] - both * d[3]
    )  # fmt: skip


@hot
def _made(m, points):
    """Six numbers to four output cells."""
    a, b, aa, bb, _, _, _ = points
    s, e, u, v = m[1] + m[2], a * (m[1] - m[2]), m[3] + m[4], b * (m[3] - m[4])
    return m[0] + s + u, e + v, aa * s + bb * u, aa * e + bb * v + m[5]


@hot
def _unmade(y, points):
    """The transpose of `_made`."""
    a, b, aa, bb, _, _, _ = points
    near, far = y[0] + aa * y[2], y[0] + bb * y[2]
    steep, flat = a * (y[1] + aa * y[3]), b * (y[1] + bb * y[3])
    return y[0], near + steep, near - steep, far + flat, far - flat, y[3]


@hot
def _evaluated(w, points):
    """Three filter cells to six numbers."""
    a, b, aa, bb, _, near, far = points
    s, e, u, v = near * (w[0] + aa * w[2]), near * a * w[1], far * (w[0] + bb * w[2]), far * b * w[1]
    return w[0], s + e, s - e, u + v, u - v, w[2]


@hot
def _unevaluated(u, points):
    """The transpose of `_evaluated`."""
    a, b, aa, bb, _, near, far = points
    s, e, t, v = near * (u[1] + u[2]), near * a * (u[1] - u[2]), far * (u[3] + u[4]), far * b * (u[3] - u[4])
    return u[0] + s + t, e + v, aa * s + bb * t + u[5]


@hot
def _six(v, at, step):
    """The vectors at at, at + step, ... of six."""
    return (
        load(v, at), load(v, at + step), load(v, at + TWO * step), load(v, at + THREE * step),
        load(v, at + FOUR * step), load(v, at + FIVE * step),
    )  # fmt: skip


@hot
def _put_six(v, at, step, six):
    put(v, at, six[0])
    put(v, at + step, six[1])
    put(v, at + TWO * step, six[2])
    put(v, at + THREE * step, six[3])
    put(v, at + FOUR * step, six[4])
    put(v, at + FIVE * step, six[5])


@hot
def _seen_twice(c0, c1, c2, c3, c4, c5, points, out, at, plane):
    """Write the 36 numbers of transformed columns."""
    _put_six(out, at, plane, _seen((c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), points))
    _put_six(out, at + SIX * plane, plane, _seen((c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]), points))
    _put_six(out, at + TWO * SIX * plane, plane, _seen((c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]), points))
    _put_six(out, at + THREE * SIX * plane, plane, _seen((c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]), points))
    _put_six(out, at + FOUR * SIX * plane, plane, _seen((c0[4], c1[4], c2[4], c3[4], c4[4], c5[4]), points))
    _put_six(out, at + FIVE * SIX * plane, plane, _seen((c0[5], c1[5], c2[5], c3[5], c4[5], c5[5]), points))


@hot
def _column(phases, at, phase, pitch):
    """Six cells of one column of a tile, whose first is in the plane at `at`."""
    return (
        load(phases, at), load(phases, at + FOUR * phase), load(phases, at + EIGHT * phase),
        load(phases, at + TWELVE * phase), load(phases, at + pitch), load(phases, at + FOUR * phase + pitch),
    )  # fmt: skip


@hot
def _cut(x, o, rows, columns, border, phases, phase, pitch, line):
    """Cut the map at x[o:] with `border` zeros before it into its 16 planes; line is zeros, 8 x the pitch and more."""
    width = np.uint64(line.size) // TWO
    for row in range(FOUR * ((rows + THREE) // FOUR + ONE)):
        source = width
        if border <= row < rows + border:
            source = ZERO
            at = o + (row - border) * columns
            for i in range(columns):
                line[border + i] = x[at + i]
        to = (row & THREE) * FOUR * phase + (row >> TWO) * pitch
        for i in range(ZERO, pitch, lanes(x)):
            p0, p1, p2, p3 = split(line, source + FOUR * i)
            put(phases, to + i, p0)
            put(phases, to + phase + i, p1)
            put(phases, to + TWO * phase + i, p2)
            put(phases, to + THREE * phase + i, p3)


@hot
def _no_more(v, at, end, plane, terms):
    """Zeros in the lanes from at to end - 1, which no tile wrote, of all numbers."""
    for _ in range(terms):
        for i in range(at, end):
            v[i] = 0
        at, end = at + plane, end + plane


@hot
def see_planes(
    x, sample, channels, rows, columns, first, end, samples, tiles, phase, pitch, vectors, stride, plane, points,
    out, phases, line,
):  # fmt: skip
    """Input cells of channels first to end - 1 to numbers: x [sample, channel] from `sample` on, to out."""
    step = lanes(x)
    for channel in range(first, end):
        to = channel * stride
        for s in range(samples):
            o = ((sample + s) * channels + channel) * rows * columns
            _cut(x, o, rows, columns, ONE, phases, phase, pitch, line)
            for q in range(ZERO, tiles, step):
                _seen_twice(
                    _seen(_column(phases, q, phase, pitch), points),
                    _seen(_column(phases, q + phase, phase, pitch), points),
                    _seen(_column(phases, q + TWO * phase, phase, pitch), points),
                    _seen(_column(phases, q + THREE * phase, phase, pitch), points),
                    _seen(_column(phases, q + ONE, phase, pitch), points),
                    _seen(_column(phases, q + phase + ONE, phase, pitch), points),
                    points, out, to + s * tiles + q, plane,
                )  # fmt: skip
        _no_more(out, to + samples * tiles, to + vectors * step, plane, SIX * SIX)


@hot_sum
def _total(v, o, cells):
    total = v.dtype.type(0)
    for i in range(cells):
        total += v[o + i]
    return total


@hot
def _four(phases, at, phase):
    """Four cells of one column of output."""
    return (
        load(phases, at), load(phases, at + FOUR * phase), load(phases, at + EIGHT * phase),
        load(phases, at + TWELVE * phase),
    )  # fmt: skip


@hot
def unmake_planes(
    gradient, sample, channels, rows, columns, first, end, samples, tiles, phase, pitch, vectors, stride, plane,
    points, out, phases, line, sums,
):  # fmt: skip
    """The transpose of `make_planes`, of channels first to end - 1; adds every channel's total to sums."""
    step = lanes(gradient)
    size = rows * columns
    for channel in range(first, end):
        to = channel * stride
        for s in range(samples):
            o = ((sample + s) * channels + channel) * size
            sums[channel] += _total(gradient, o, size)
            _cut(gradient, o, rows, columns, ZERO, phases, phase, pitch, line)
            for q in range(ZERO, tiles, step):
                c0 = _unmade(_four(phases, q, phase), points)
                c1 = _unmade(_four(phases, q + phase, phase), points)
                c2 = _unmade(_four(phases, q + TWO * phase, phase), points)
                c3 = _unmade(_four(phases, q + THREE * phase, phase), points)
                at = to + s * tiles + q
                _put_six(out, at, plane, _unmade((c0[0], c1[0], c2[0], c3[0]), points))
                _put_six(out, at + SIX * plane, plane, _unmade((c0[1], c1[1], c2[1], c3[1]), points))
                _put_six(out, at + TWO * SIX * plane, plane, _unmade((c0[2], c1[2], c2[2], c3[2]), points))
                _put_six(out, at + THREE * SIX * plane, plane, _unmade((c0[3], c1[3], c2[3], c3[3]), points))
                _put_six(out, at + FOUR * SIX * plane, plane, _unmade((c0[4], c1[4], c2[4], c3[4]), points))
                _put_six(out, at + FIVE * SIX * plane, plane, _unmade((c0[5], c1[5], c2[5], c3[5]), points))
        _no_more(out, to + samples * tiles, to + vectors * step, plane, SIX * SIX)


@hot
def make_planes(
    numbers, sample, channels, rows, columns, first, end, samples, tiles, phase, pitch, stride, plane, points,
    bias, out, phases, line,
):  # fmt: skip
    """Numbers to output cells of channels first to end - 1: out [sample, channel] from `sample` on, plus the bias."""
    step = lanes(out)
    for channel in range(first, end):
        for s in range(samples):
            for q in range(ZERO, tiles, step):
                at = channel * stride + s * tiles + q
                c0 = _made(_six(numbers, at, SIX * plane), points)
                c1 = _made(_six(numbers, at + plane, SIX * plane), points)
                c2 = _made(_six(numbers, at + TWO * plane, SIX * plane), points)
                c3 = _made(_six(numbers, at + THREE * plane, SIX * plane), points)
                c4 = _made(_six(numbers, at + FOUR * plane, SIX * plane), points)
                c5 = _made(_six(numbers, at + FIVE * plane, SIX * plane), points)
                _put_four(phases, q, phase, _made((c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), points))
                _put_four(phases, q + FOUR * phase, phase, _made((c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]), points))
                _put_four(phases, q + EIGHT * phase, phase, _made((c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]), points))
                _put_four(phases, q + TWELVE * phase, phase, _made((c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]), points))
            o = ((sample + s) * channels + channel) * rows * columns
            offset = bias[channel]
            for row in range(rows):
                at = (row & THREE) * FOUR * phase + (row >> TWO) * pitch
                for i in range(ZERO, pitch, step):
                    parts = (
                        load(phases, at + i), load(phases, at + phase + i),
                        load(phases, at + TWO * phase + i), load(phases, at + THREE * phase + i),
                    )  # fmt: skip
                    join(line, FOUR * i, parts)
                to = o + row * columns
                for i in range(columns):
                    out[to + i] = line[i] + offset


@hot
def _put_four(phases, at, phase, four):
    put(phases, at, four[0])
    put(phases, at + phase, four[1])
    put(phases, at + TWO * phase, four[2])
    put(phases, at + THREE * phase, four[3])


@hot
def _three(v, at, step):
    return load(v, at), load(v, at + step), load(v, at + TWO * step)


@hot
def _put_three(v, at, step, three):
    put(v, at, three[0])
    put(v, at + step, three[1])
    put(v, at + TWO * step, three[2])


@hot
def evaluate_filters(
    weight, outputs, inputs, output_step, input_step, turned, block, first, end, points, numbers, nine
):  # fmt: skip
    """Filters to numbers [36, output / block, input, block], vectors first to end - 1 of each.

    weight   cell c of a filter is weight[output output_step + input input_step + c], or 8 - c if turned by half a turn
    nine     work space: nine vectors
    """
    step, size = lanes(numbers), outputs * inputs
    for vector in range(first, end):
        at = vector * step
        n, k = at // (inputs * block) * block, at // block % inputs
        for lane in range(step):
            source = (n + lane % block) * output_step + (k + lane // block) * input_step
            for cell in range(NINE):
                nine[cell * step + lane] = weight[source + (EIGHT - cell if turned else cell)]
        c0 = _evaluated(_three(nine, ZERO, THREE * step), points)
        c1 = _evaluated(_three(nine, step, THREE * step), points)
        c2 = _evaluated(_three(nine, TWO * step, THREE * step), points)
        _put_six(numbers, at, size, _evaluated((c0[0], c1[0], c2[0]), points))
        _put_six(numbers, at + SIX * size, size, _evaluated((c0[1], c1[1], c2[1]), points))
        _put_six(numbers, at + TWO * SIX * size, size, _evaluated((c0[2], c1[2], c2[2]), points))
        _put_six(numbers, at + THREE * SIX * size, size, _evaluated((c0[3], c1[3], c2[3]), points))
        _put_six(numbers, at + FOUR * SIX * size, size, _evaluated((c0[4], c1[4], c2[4]), points))
        _put_six(numbers, at + FIVE * SIX * size, size, _evaluated((c0[5], c1[5], c2[5]), points))


@hot
def unevaluate_filters(numbers, outputs, inputs, block, first, end, points, weight, nine):
    """The transpose of `evaluate_filters`, of numbers [36, output / rows, input / block, rows, block] to weight."""
    step, size = lanes(numbers), outputs * inputs
    rows = step // block
    for vector in range(first, end):
        at = vector * step
        c0 = _unevaluated(_six(numbers, at, SIX * size), points)
        c1 = _unevaluated(_six(numbers, at + size, SIX * size), points)
        c2 = _unevaluated(_six(numbers, at + TWO * size, SIX * size), points)
        c3 = _unevaluated(_six(numbers, at + THREE * size, SIX * size), points)
        c4 = _unevaluated(_six(numbers, at + FOUR * size, SIX * size), points)
        c5 = _unevaluated(_six(numbers, at + FIVE * size, SIX * size), points)
        _put_three(nine, ZERO, step, _unevaluated((c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), points))
        _put_three(nine, THREE * step, step, _unevaluated((c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]), points))
        _put_three(nine, SIX * step, step, _unevaluated((c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]), points))
        n, k = at // (inputs * rows) * rows, at // rows % inputs
        for lane in range(step):
            to = ((n + lane // block) * inputs + k + lane % block) * NINE
            for cell in range(NINE):
                weight[to + cell] = nine[cell * step + lane]
