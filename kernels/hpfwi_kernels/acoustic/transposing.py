"""Records change places between the time loops, which write a step at a time, and callers, who read a trace at a time.

NumPy copies a transposed array cell by cell, each from another cache line. Here square blocks are copied, whose
lines stay in the nearest cache.
"""

import numpy as np

from hpfwi_kernels.compiling import hot

BLOCK = np.uint64(16)
"""Cells along each side of a block: a cache line of float32."""


@hot
def transpose(source, out):
    """out[j, i] = source[i, j], both contiguous."""
    rows, columns = np.uint64(source.shape[0]), np.uint64(source.shape[1])
    for first_row in range(np.uint64(0), rows, BLOCK):
        last_row = min(first_row + BLOCK, rows)
        for first in range(np.uint64(0), columns, BLOCK):
            for j in range(first, min(first + BLOCK, columns)):
                for i in range(first_row, last_row):
                    out[j, i] = source[i, j]
