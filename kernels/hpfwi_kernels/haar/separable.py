"""Wavelets with more than two taps, one axis after the other; the loops use it where the Haar rows do not serve.

`lines` holds [row, cell]: intermediate rows, and in its last row one padded row.
"""

import numpy as np

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.haar.layout import COLUMNS, PAD, PHASE, ROWS, row_start

ZERO, ONE, TWO, FOUR = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(4)


@hot
def analyse_separably(padded, source, line, low, high, lines):
    """Coefficients of the plane of `source`, written to the four planes of `line`."""
    taps = np.uint64(low.size)
    pad = taps // TWO - ONE
    rows, columns = source[ROWS], source[COLUMNS]
    wide = lines[lines.shape[0] - 1]
    for r in range(rows):
        at = row_start(source, r + source[PAD]) + source[PAD]
        for i in range(wide.size):
            wide[i] = 0
        for i in range(columns):
            wide[pad + i] = padded[at + i]
        for j in range(line[COLUMNS]):
            smooth = detail = low.dtype.type(0)
            for k in range(taps):
                smooth += low[k] * wide[j + j + k]
                detail += high[k] * wide[j + j + k]
            lines[r, j] = smooth
            lines[rows + r, j] = detail
    for i in range(line[ROWS]):
        for s in range(FOUR):
            taps_down = high if s & ONE else low
            first = rows if s & TWO else ZERO
            to = row_start(line, i + line[PAD]) + line[PAD] + s * FOUR * line[PHASE]
            for j in range(line[COLUMNS]):
                padded[to + j] = 0
            for k in range(taps):
                r = i + i + k
                if pad <= r < rows + pad:
                    for j in range(line[COLUMNS]):
                        padded[to + j] += taps_down[k] * lines[first + r - pad, j]


@hot
def synthesise_separably(filtered, source, line, low, high, lines):
    """The transpose of analyse_separably, to lines[row, :columns]."""
    taps = np.uint64(low.size)
    pad = taps // TWO - ONE
    last = np.uint64(lines.shape[0])
    smooth, detail, wide = lines[last - np.uint64(3)], lines[last - TWO], lines[last - ONE]
    plane = FOUR * line[PHASE]
    for r in range(source[ROWS]):
        for j in range(line[COLUMNS]):
            smooth[j] = 0
            detail[j] = 0
        for k in range(taps):
            twice = r + pad - k
            if r + pad >= k and twice & ONE == ZERO and twice >> ONE < line[ROWS]:
                at = row_start(line, twice >> ONE)
                for j in range(line[COLUMNS]):
                    smooth[j] += low[k] * filtered[at + j] + high[k] * filtered[at + plane + j]
                    detail[j] += (
                        low[k] * filtered[at + TWO * plane + j] + high[k] * filtered[at + TWO * plane + plane + j]
                    )
        for i in range(wide.size):
            wide[i] = 0
        for j in range(line[COLUMNS]):
            for k in range(taps):
                wide[j + j + k] += low[k] * smooth[j] + high[k] * detail[j]
        for i in range(source[COLUMNS]):
            lines[r, i] = wide[pad + i]
