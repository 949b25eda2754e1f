"""Products of transformed maps and filters, one of the 36 numbers after the other."""

import numpy as np

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes
from hpfwi_kernels.winograd import product
from hpfwi_kernels.winograd.product import correlate, multiply

TWO, THREE = np.uint64(2), np.uint64(3)
ROWS, COLUMNS = np.uint64(product.ROWS), np.uint64(product.COLUMNS)


@hot
def multiply_terms(filters, seen, out, first, end, outputs, inputs, vectors, stride, seen_plane, out_plane):
    """Numbers first to end - 1 of the output: filters [36, output / ROWS, input, ROWS] times seen [36, input, tile]."""
    width = lanes(seen)
    for term in range(first, end):
        u, v, m = term * outputs * inputs, term * seen_plane, term * out_plane
        for vector in range(np.uint64(0), vectors, THREE):
            at = vector * width
            left = vectors - vector
            for n in range(np.uint64(0), outputs, ROWS):
                to = m + n * stride + at
                if left >= THREE:
                    multiply(filters, u + n * inputs, seen, v + at, stride, out, to, inputs, 3)
                elif left == TWO:
                    multiply(filters, u + n * inputs, seen, v + at, stride, out, to, inputs, 2)
                else:
                    multiply(filters, u + n * inputs, seen, v + at, stride, out, to, inputs, 1)


@hot
def correlate_terms(unmade, seen, sums, first, end, outputs, inputs, vectors, stride, unmade_plane, seen_plane):
    """Add to numbers first to end - 1 of the filters' gradient, sums [36, output / rows, input / COLUMNS, lane]."""
    rows = lanes(seen) // COLUMNS
    for term in range(first, end):
        for n in range(np.uint64(0), outputs, rows):
            for k in range(np.uint64(0), inputs, COLUMNS):
                to = term * outputs * inputs + n * inputs + k * rows
                correlate(
                    unmade, term * unmade_plane + n * stride, seen, term * seen_plane + k * stride, stride, sums, to,
                    vectors,
                )  # fmt: skip
