"""The geometry of records: what a network learns about their physics without being told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpfwi.store.openfwi import PairStore

GEOMETRY = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m")


def differing(physics: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the geometry that two stores' physics do not share; a value that is not known agrees with all.

    >>> differing({"dt_s": 0.001, "dx_m": 10.0}, {"dt_s": 0.002, "dx_m": None})
    ['dt_s']
    """
    return [name for name in GEOMETRY if not _agree(physics.get(name), other.get(name))]


def difference(trained_on: Mapping[str, Any], store: PairStore) -> str | None:
    """The first difference between a store and the physics of the pairs that trained a network, as a main clause."""
    for name in differing(trained_on, store.physics):
        now, then = _short(store.physics[name]), _short(trained_on[name])
        return f"{store.path} has {name} = {now} and the pairs that trained this network had {then}"
    return None


def _agree(first: Any, second: Any) -> bool:
    """Whether two values, or lists of positions, are the same to rounding."""
    if first is None or second is None:
        return True
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-6, atol=0.0))


def _short(value: Any) -> str:
    """A value for a sentence; of a list its length."""
    return f"{len(value)} positions" if isinstance(value, list) else f"{value:g}"
