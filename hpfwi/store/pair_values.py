"""Values of a store: which are refused, sums over a shard, statistics of the whole from the sums of its shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

SLOWEST_PLAUSIBLE_MPS = 20.0
"""A model that is slower everywhere is in km/s, or holds no velocities."""


def check_values(name: str, values: NDArray[np.float32], dtype: str, sample: Callable[[int], str]) -> None:
    """Refuse values that no store should hold.

    name    "records" or "models"
    values  float32[n, …]
    dtype   they will be stored in: "float32" or "float16"
    sample  what a message calls row number n

    raises  DataError: NaN or infinity, models that are not positive m/s, records beyond float16 where that is stored
    """
    rows = values.reshape(len(values), -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    wrong = ~(np.isfinite(low) & np.isfinite(high))  # both are NaN where one value is
    problem = "and hold NaN or infinity: mend that sample at its source or leave it out"
    if not wrong.any() and name == "models":
        wrong = (low <= 0) | (high < SLOWEST_PLAUSIBLE_MPS)
        problem = "and must be positive velocities in m/s: convert them first"
    elif not wrong.any() and dtype == "float16":
        wrong = np.maximum(-low, high) > LARGEST_FLOAT16
        problem = f"beyond {LARGEST_FLOAT16:g}, where float16 ends: store float32"
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"The {name} of {sample(row)} span {low[row]:g} to {high[row]:g} {problem}.")


def sums_of(rows: NDArray[np.float32], *, as_float16: bool) -> dict[str, float]:
    """Sums over rows float32[n, value], in float64, of the values as they are stored.

    as_float16  the values are rounded to float16 first; "error" is then the largest difference and "error_squares" the
                sum of its squares
    returns     min, max, count, sum, squares (of the stored values), and the two errors

    The rows are added one by one, so the result has the same bits whatever computed them.
    """
    sums = {"min": math.inf, "max": -math.inf, "count": float(rows.size), "sum": 0.0, "squares": 0.0}
    error = {"error": 0.0, "error_squares": 0.0}
    for row in rows:
        wide = row.astype(np.float64)
        if as_float16:
            stored = row.astype(np.float16).astype(np.float64)
            difference = wide - stored
            error["error"] = max(error["error"], float(np.abs(difference).max()))
            error["error_squares"] += float(np.square(difference).sum())
            wide = stored
        sums["min"] = min(sums["min"], float(wide.min()))
        sums["max"] = max(sums["max"], float(wide.max()))
        sums["sum"] += float(wide.sum())
        sums["squares"] += float(np.square(wide).sum())
    return sums | error if as_float16 else sums


def sums_by_split(
    rows: NDArray[np.float32], first: int, splits: Mapping[str, Sequence[int]], *, as_float16: bool
) -> list[dict[str, Any]]:
    """`sums_of` the rows of each split, with its name under "split", and of those in none, under None.

    rows     float32[n, value], of the samples from number `first` on
    splits   [start, stop] of each, which do not overlap

    >>> found = sums_by_split(np.float32([[1], [2], [6]]), 10, {"train": [0, 12], "test": [12, 20]}, as_float16=False)
    >>> [(part["split"], part["max"], part["count"]) for part in found]
    [('train', 2.0, 2.0), ('test', 6.0, 1.0)]
    """
    stop = first + len(rows)
    cuts = sorted({first, stop, *(min(max(end, first), stop) for ends in splits.values() for end in ends)})
    found = []
    for start, end in pairwise(cuts):
        split = next((name for name, ends in splits.items() if ends[0] <= start < ends[1]), None)
        found.append({"split": split, **sums_of(rows[start - first : end - first], as_float16=as_float16)})
    return found


def statistics_of(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """min, max, mean and std of everything from the sums of its parts.

    >>> statistics_of([sums_of(np.float32([[1, 2], [6, 3]]), as_float16=False)])
    {'min': 1.0, 'max': 6.0, 'mean': 3.0, 'std': 1.8708286933869707}
    """
    parts = list(parts)
    count = math.fsum(part["count"] for part in parts)
    mean = math.fsum(part["sum"] for part in parts) / count
    variance = math.fsum(part["squares"] for part in parts) / count - mean * mean
    return {
        "min": min(part["min"] for part in parts),
        "max": max(part["max"] for part in parts),
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)),
    }


def float16_error_of(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Largest and relative (L2, to the stored values) error that float16 brought, from the sums of the parts."""
    parts = list(parts)
    squares = math.fsum(part["squares"] for part in parts)
    error_squares = math.fsum(part["error_squares"] for part in parts)
    return {
        "max": max(part["error"] for part in parts),
        "relative_l2": math.sqrt(error_squares / squares) if squares else 0.0,
    }
