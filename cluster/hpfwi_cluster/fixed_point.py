"""Exact sums: items become int64 on a common scale, and integers add in any order to the same bits.

An exponent E promises that every element of every item is below 2^E in magnitude. With N items one unit of the sum is
2^quantum, quantum = E + ceil(log2 N) - 62, so the sum of N items stays below 2^62 and never overflows. E comes from the
previous iteration with headroom for growth: every rank knows it, whoever computed what.
"""

from __future__ import annotations

import math

import numpy as np

SUM_BITS = 62
"""Bits of the largest possible sum; int64 holds 63, the one to spare absorbs the rounding of N items by half a unit."""
GROWTH_BITS = 10
"""Items may be 2^10 times larger than in the previous iteration before the sum has to be started again."""
SHRINK_BITS = 16
"""Items may be 2^16 times smaller than in the previous iteration before too few bits are left (62-10-16-log2 N)."""
SMALLEST_EXPONENT = -900
"""Below this everything counts as this small, so that 2^-quantum stays inside float64."""
LARGEST_EXPONENT = 960
"""Items above 2^960 are refused, so that sums of many stay inside float64."""
_BLOCK = 1 << 14
"""Elements converted at a time: two buffers of 128 KiB stay in cache. The allocator asks the system anew for larger
ones, whose pages take three times as long as the work on them: 151 us for 27072 elements, 34 us with these."""


def largest_exponent(array: np.ndarray) -> int | None:
    """Return the smallest e with every |element| < 2^e, None if all are zero; ValueError if one is not finite.

    >>> largest_exponent(np.array([0.75, -3.0]))
    2
    """
    if array.size == 0:
        return None
    highest, lowest = float(array.max()), float(array.min())
    if not (math.isfinite(highest) and math.isfinite(lowest)):
        raise ValueError(f"{array.size - int(np.isfinite(array).sum())} of {array.size} elements are not finite")
    largest = max(highest, -lowest)
    return None if largest == 0.0 else max(math.frexp(largest)[1], SMALLEST_EXPONENT)


def quantum_exponent(exponent: int, items: int) -> int:
    """Return q such that one unit of the integer sum of this many items is 2^q.

    >>> quantum_exponent(0, 1), quantum_exponent(0, 5)
    (-62, -59)
    """
    return exponent + (items - 1).bit_length() - SUM_BITS


def add(total: np.ndarray, array: np.ndarray, quantum: int) -> None:
    """Add round(array / 2^quantum) to `total` in place.

    total   int64, C-contiguous
    array   float32 or float64, the shape of total, magnitudes within the promised exponent
    """
    scale = math.ldexp(1.0, -quantum)
    sums, values = total.reshape(-1), np.ascontiguousarray(array).reshape(-1)
    size = min(_BLOCK, values.size)
    scaled, whole = np.empty(size), np.empty(size, np.int64)
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK]
        block, units = scaled[: part.size], whole[: part.size]
        block[:] = part
        block *= scale
        np.rint(block, out=block)
        units[:] = block
        sums[start : start + _BLOCK] += units


def as_float(total: np.ndarray, quantum: int) -> np.ndarray:
    """Return an int64 sum as float64, rounded once."""
    return total.astype(np.float64) * math.ldexp(1.0, quantum)


def with_headroom(largest: int | None) -> int:
    """Return the exponent to use after items as large as 2^largest; 0 if nothing but zeros was seen."""
    return 0 if largest is None else largest + GROWTH_BITS


def corrected_exponent(exponent: int, largest: int | None) -> int | None:
    """Return the exponent a sum has to be started again with, or None if it was kept on a fitting scale.

    largest     the maximum over all items of the iteration, so that the answer does not depend on who computed what

    >>> corrected_exponent(10, 5), corrected_exponent(10, 11), corrected_exponent(10, -17)
    (None, 21, -7)
    """
    if largest is None or exponent - GROWTH_BITS - SHRINK_BITS <= largest <= exponent:
        return None
    return with_headroom(largest)


def next_exponent(exponent: int | None, largest: int | None) -> int | None:
    """Return the exponent of the next iteration; unchanged by an iteration of nothing but zeros."""
    return exponent if largest is None else with_headroom(largest)
