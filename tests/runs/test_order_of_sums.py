"""The comparisons of this folder can fail: sums in float32 betray the order of their items, fixed-point sums do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi_cluster import fixed_point, ledger

ORDERS = [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (2, 5, 0, 3, 1, 4)]
SHORT: dict[str, object] = {
    "inversion__iterations": 3,
    "inversion__diagnostics_every": 100,
    "inversion__snapshot_every": 100,
}


def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the sum of a replica in float32, in the lower half of each of its 64-bit integers."""

    def view(total: np.ndarray) -> np.ndarray:
        return total.view(np.float32)[..., ::2]

    def add(total: np.ndarray, array: np.ndarray, quantum: int) -> None:
        view(total)[...] += array

    monkeypatch.setattr(fixed_point, "add", add)
    monkeypatch.setattr(fixed_point, "as_float", lambda total, quantum: view(total).astype(np.float64))


def states(run: Any, parent: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the bits of one run for each order in which the items are computed."""
    found = []
    for order in ORDERS:
        served: list[int] = []

        def by(items: Sequence[int], costs: object, order: Any = order, served: list[int] = served) -> list[int]:
            served += order
            return [item for item in order if item in items]

        monkeypatch.setattr(ledger, "dearest_first", by)
        found.append(run(parent / "".join(map(str, order)), **SHORT).bits)
        assert served == list(order) * 3
    return found


@pytest.fixture(autouse=True)
def one_item_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi import parallel

    monkeypatch.setattr(parallel, "local_threads", lambda settings: 1)


def test_the_order_of_items_changes_no_bit(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = states(run, tmp_path, monkeypatch)
    assert all(other == first for other in others)


def test_with_a_float32_sum_it_would(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)
    found = states(run, tmp_path, monkeypatch)
    models = [bits["model/inverted"][2] for bits in found]
    assert len(set(models)) == len(ORDERS)
    velocities = [np.frombuffer(model, np.float32) for model in models]
    for other in velocities[1:]:  # the patch adds the same items: everything but the last bits agrees
        np.testing.assert_allclose(other, velocities[0], rtol=1e-4)
