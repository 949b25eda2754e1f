"""Exact sums: against rational arithmetic, in every order, at the edges of the scale."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpfwi_cluster import fixed_point

finite = st.floats(-1e6, 1e6, width=32)
item_arrays = st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=20).map(
    lambda rows: np.array(rows, np.float32)
)


def summed(rows: np.ndarray, exponent: int) -> np.ndarray:
    quantum = fixed_point.quantum_exponent(exponent, len(rows))
    total = np.zeros(rows.shape[1:], np.int64)
    for row in rows:
        fixed_point.add(total, row, quantum)
    return fixed_point.as_float(total, quantum)


@settings(max_examples=60, deadline=None)
@given(item_arrays, st.randoms(use_true_random=False))
def test_order_and_partition_do_not_change_a_bit(rows: np.ndarray, random: object) -> None:
    exponent = fixed_point.with_headroom(fixed_point.largest_exponent(rows))
    quantum = fixed_point.quantum_exponent(exponent, len(rows))
    expected = summed(rows, exponent).tobytes()
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    parts = [np.zeros(3, np.int64) for _ in range(3)]
    for position, row in enumerate(order):
        fixed_point.add(parts[position % 3], rows[row], quantum)
    assert fixed_point.as_float(sum(parts, np.zeros(3, np.int64)), quantum).tobytes() == expected


@settings(max_examples=60, deadline=None)
@given(item_arrays)
def test_sum_equals_the_rational_sum_to_half_a_unit_per_item(rows: np.ndarray) -> None:
    exponent = fixed_point.with_headroom(fixed_point.largest_exponent(rows))
    unit = Fraction(2) ** fixed_point.quantum_exponent(exponent, len(rows))
    for got, column in zip(summed(rows, exponent), rows.T, strict=True):
        exact = sum((Fraction(float(value)) for value in column), Fraction(0))
        rounding = Fraction(float(np.spacing(abs(got)))) / 2
        assert abs(Fraction(float(got)) - exact) <= len(rows) * unit / 2 + rounding


def test_sum_of_float32_is_fsum_when_the_magnitudes_are_close() -> None:
    rows = np.random.default_rng(3).uniform(0.5, 1.0, (64, 1000)).astype(np.float32)
    exact = [math.fsum(column) for column in rows.T.astype(np.float64)]
    assert summed(rows, 10).tolist() == exact


def test_units_are_rounded_to_nearest() -> None:
    total = np.zeros(5, np.int64)
    fixed_point.add(total, np.array([0.75, -0.75, 1.25, 1.5, 2.5]), 0)
    assert total.tolist() == [1, -1, 1, 2, 2]


def test_largest_possible_items_do_not_overflow() -> None:
    for items in (1, 2, 3, 5, 64, 1000):
        rows = np.full((items, 1), np.nextafter(8.0, 0.0))
        assert summed(rows, 3)[0] == pytest.approx(8.0 * items, rel=1e-12)
        assert summed(-rows, 3)[0] == pytest.approx(-8.0 * items, rel=1e-12)


@pytest.mark.parametrize("power", [fixed_point.SMALLEST_EXPONENT, -149, 0, 127, fixed_point.LARGEST_EXPONENT])
def test_every_scale_of_float64_works(power: int) -> None:
    rows = np.array([[math.ldexp(0.5, power)], [math.ldexp(0.75, power)]])
    assert fixed_point.largest_exponent(rows) == power
    assert summed(rows, power + fixed_point.GROWTH_BITS)[0] == math.ldexp(1.25, power)


def test_array_longer_than_a_block_and_not_contiguous() -> None:
    rows = np.random.default_rng(5).normal(size=(3, 70_001, 2)).astype(np.float32)[:, ::-1]
    assert np.array_equal(summed(rows, 13), rows.astype(np.float64).sum(axis=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 4 elements are not finite"):
        fixed_point.largest_exponent(np.array([1.0, bad, 2.0, 3.0]))


def test_exponents_of_nothing() -> None:
    assert fixed_point.largest_exponent(np.zeros(4, np.float32)) is None
    assert fixed_point.largest_exponent(np.zeros((0, 3))) is None
    assert fixed_point.next_exponent(None, None) is None
    assert fixed_point.next_exponent(7, None) == 7


@settings(max_examples=100, deadline=None)
@given(st.integers(-900, 960), st.integers(-900, 960))
def test_a_corrected_scale_needs_no_correction(exponent: int, largest: int) -> None:
    corrected = fixed_point.corrected_exponent(exponent, largest)
    final = exponent if corrected is None else corrected
    assert largest <= final
    assert fixed_point.corrected_exponent(final, largest) is None
