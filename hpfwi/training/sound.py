"""Samples that hold NaN or infinity, named wherever they are met."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.openfwi import PairStore


def first_unsound(values: NDArray[np.float32]) -> int | None:
    """The first row of values[sample, ...] with NaN or infinity; None where all are finite.

    >>> first_unsound(np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32))
    1
    """
    sound = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return None if sound.all() else int(np.argmin(sound))


def require_sound(
    store: PairStore,
    samples: Sequence[int] | NDArray[np.int64],
    records: NDArray[np.float32],
    models: NDArray[np.float32],
) -> None:
    """Raise DataError where what was read of some samples is not finite: no writer stores that, so it is damage."""
    for name, values in (("records", records), ("model", models)):
        row = first_unsound(values)
        if row is not None:
            raise DataError(
                f"Sample {samples[row]} of {store.path} has NaN or infinity in its {name}: look for damage with "
                "`hpfwi data verify`, and take the store from a copy or make it again."
            )
