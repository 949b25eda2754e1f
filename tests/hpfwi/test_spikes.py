"""Absurd gradients: which steps are left out, that nothing of them stays, and that every rank decides alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpfwi.training.spikes import FEWEST, RECENT, SQUARE_ROOT, SpikeGuard


def after(values: list[float], factor: float | None = 1e4) -> SpikeGuard:
    guard = SpikeGuard(factor)
    for value in values:
        assert guard.accepts(value)
    return guard


def test_a_step_far_above_the_median_of_recent_ones_is_left_out() -> None:
    guard = after([0.5] * 5 + [1.0] + [3.0] * 5)
    assert guard.limit == 1e4
    assert not guard.accepts(np.nextafter(1e4, 2e4))
    assert (guard.skipped.steps, guard.skipped.in_a_row) == (1, 1)
    assert guard.skipped.limit == 1e4
    assert guard.accepts(1e4)
    assert (guard.skipped.steps, guard.skipped.in_a_row) == (1, 0)


def test_the_scale_follows_the_last_steps_and_ignores_those_left_out() -> None:
    guard = after([1.0] * 200)
    for _ in range(RECENT):
        assert not guard.accepts(1e5)
    assert guard.limit == 1e4
    for _ in range(RECENT // 2 + 1):
        assert guard.accepts(100.0)
    assert guard.limit == 1e6


@pytest.mark.parametrize("values", [[1.0] * (FEWEST - 1), [0.0] * 60])
def test_without_a_scale_only_what_adam_cannot_square_is_left_out(values: list[float]) -> None:
    assert after(values).accepts(1e18)
    assert after([1.0] * 60, factor=None).accepts(1e18)
    for largest in (1e33, math.inf, math.nan, np.nextafter(SQUARE_ROOT, math.inf)):
        guard = after(values)
        assert not guard.accepts(largest)
        assert math.isfinite(guard.skipped.largest)
    assert np.isfinite(np.square(np.float32(SQUARE_ROOT)))
    with np.errstate(over="ignore"):
        assert np.isinf(np.square(np.float32(SQUARE_ROOT * (1 + 1e-6))))


def test_a_restored_guard_decides_as_the_one_that_was_saved() -> None:
    values = list(np.exp(np.random.default_rng(2).normal(0, 6, 300)))
    whole, parts = SpikeGuard(100.0), SpikeGuard(100.0)
    decisions = []
    for value in values:
        other = SpikeGuard(100.0)
        other.load_state(parts.state())
        parts = other
        decisions.append(whole.accepts(value))
        assert parts.accepts(value) is decisions[-1]
    assert 50 < decisions.count(False) < 250
    assert parts.skipped == whole.skipped
    old = SpikeGuard(100.0)
    old.load_state({})  # a checkpoint of a version without guards
    assert old.limit == SQUARE_ROOT
