"""The compiled loops over planes of [plane, row, column]."""

import numpy as np

from hpfwi_kernels.compiling import hot

ZERO, ONE, TWO = (np.uint64(n) for n in range(3))


@hot
def average_planes(x, first, end, rows, columns, factor, out, line):
    """Means over factor x factor cells of planes first to end - 1; line is a row of work space."""
    down, across = rows // factor, columns // factor
    share = x.dtype.type(1) / x.dtype.type(factor * factor)
    for q in range(first, end):
        for row in range(down):
            o = q * rows * columns + row * factor * columns
            for i in range(columns):
                line[i] = share * x[o + i]
            for r in range(ONE, factor):
                for i in range(columns):
                    line[i] += share * x[o + r * columns + i]
            to = (q * down + row) * across
            if factor == TWO:
                for i in range(across):
                    out[to + i] = line[i + i] + line[i + i + ONE]
            else:
                for i in range(across):
                    total = line[i * factor]
                    for c in range(ONE, factor):
                        total += line[i * factor + c]
                    out[to + i] = total


@hot
def spread_planes(gradient, first, end, rows, columns, factor, out, line):
    """The transpose of `average_planes`."""
    down, across = rows // factor, columns // factor
    share = gradient.dtype.type(1) / gradient.dtype.type(factor * factor)
    for q in range(first, end):
        for i in range(across * factor, columns):
            line[i] = 0
        for row in range(down):
            at = (q * down + row) * across
            if factor == TWO:
                for i in range(across):
                    value = share * gradient[at + i]
                    line[i + i], line[i + i + ONE] = value, value
            else:
                for i in range(across):
                    for c in range(factor):
                        line[i * factor + c] = share * gradient[at + i]
            for r in range(factor):
                o = q * rows * columns + (row * factor + r) * columns
                for i in range(columns):
                    out[o + i] = line[i]
        for i in range((q * rows + down * factor) * columns, (q + ONE) * rows * columns):
            out[i] = 0


@hot
def maximum_planes(x, first, end, rows, columns, out, chosen):
    """Maxima over 2 x 2 cells of planes first to end - 1, and which of the four: the first of equals, the last NaN."""
    down, across = (rows + ONE) // TWO, (columns + ONE) // TWO
    for q in range(first, end):
        for row in range(down):
            top = (q * rows + row + row) * columns
            below = top + (columns if row + row + ONE < rows else ZERO)
            to = (q * down + row) * across
            for i in range(columns // TWO):
                a, b = x[top + i + i], x[top + i + i + ONE]
                c, d = x[below + i + i], x[below + i + i + ONE]
                upper, lower = (b if b > a or b != b else a), (d if d > c or d != d else c)
                up, low = np.uint8(b > a or b != b), np.uint8(2) + np.uint8(d > c or d != d)
                under = lower > upper or lower != lower
                out[to + i] = lower if under else upper
                chosen[to + i] = low if under else up
            if columns % TWO:
                a, c = x[top + columns - ONE], x[below + columns - ONE]
                under = c > a or c != c
                out[to + across - ONE] = c if under else a
                chosen[to + across - ONE] = 2 if under else 0
            if below == top:  # the second row is the first again: its choices are those above
                for i in range(across):
                    chosen[to + i] &= np.uint8(1)


@hot
def choose_planes(gradient, chosen, first, end, rows, columns, out):
    """The transpose of `maximum_planes` for the choices it made."""
    down, across = (rows + ONE) // TWO, (columns + ONE) // TWO
    none = gradient.dtype.type(0)
    for q in range(first, end):
        for row in range(down):
            top = (q * rows + row + row) * columns
            at = (q * down + row) * across
            for i in range(columns // TWO):
                value, which = gradient[at + i], chosen[at + i]
                out[top + i + i] = value if which == 0 else none
                out[top + i + i + ONE] = value if which == 1 else none
            if columns % TWO:
                which = chosen[at + across - ONE]
                out[top + columns - ONE] = gradient[at + across - ONE] if which == 0 else none
            if row + row + ONE < rows:
                below = top + columns
                for i in range(columns // TWO):
                    value, which = gradient[at + i], chosen[at + i]
                    out[below + i + i] = value if which == 2 else none
                    out[below + i + i + ONE] = value if which == 3 else none
                if columns % TWO:
                    which = chosen[at + across - ONE]
                    out[below + columns - ONE] = gradient[at + across - ONE] if which == 2 else none


@hot
def resample_planes(x, first, end, rows, columns, above, below, down, left, right, along, out, line):
    """Bilinear values of planes first to end - 1: between rows `above` and `below`, with share `down` of the second."""
    new_rows, new_columns = np.uint64(above.size), np.uint64(left.size)
    one = x.dtype.type(1)
    for q in range(first, end):
        for row in range(new_rows):
            o, p = (q * rows + above[row]) * columns, (q * rows + below[row]) * columns
            lower = down[row]
            upper = one - lower
            for i in range(columns):
                line[i] = upper * x[o + i] + lower * x[p + i]
            to = (q * new_rows + row) * new_columns
            for i in range(new_columns):
                out[to + i] = (one - along[i]) * line[left[i]] + along[i] * line[right[i]]


@hot
def gather_planes(gradient, first, end, rows, columns, above, below, down, left, right, along, out, lines):
    """The transpose of `resample_planes`; lines is work space of [rows, new columns]."""
    new_rows, new_columns = np.uint64(above.size), np.uint64(left.size)
    one = gradient.dtype.type(1)
    for q in range(first, end):
        for row in range(rows):
            for i in range(new_columns):
                lines[row, i] = 0
        for row in range(new_rows):
            at = (q * new_rows + row) * new_columns
            lower = down[row]
            upper = one - lower
            over, under = lines[above[row]], lines[below[row]]
            for i in range(new_columns):
                over[i] += upper * gradient[at + i]
            for i in range(new_columns):
                under[i] += lower * gradient[at + i]
        for row in range(rows):
            o = (q * rows + row) * columns
            for i in range(columns):
                out[o + i] = 0
            for i in range(new_columns):
                value = lines[row, i]
                out[o + left[i]] += (one - along[i]) * value
                out[o + right[i]] += along[i] * value
