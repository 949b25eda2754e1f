"""Compiled time loops take subnormal numbers as zero, and leave the thread as they found it."""

import numpy as np
import pytest

from hpfwi_kernels import subnormals
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.subnormals import ignore_subnormals, restore

SMALL = np.float32(1e-39)
"""Below float32's least normal number, 1.2e-38."""

pytestmark = pytest.mark.skipif(not subnormals.HAS_CONTROL, reason="this processor has no such control register")


@hot
def doubled(numbers):
    state = ignore_subnormals()
    numbers[1] = numbers[0] * np.float32(2)
    restore(state)


def test_subnormals_count_as_zero_within_and_as_themselves_after() -> None:
    numbers = np.array([SMALL, 1.0], np.float32)
    assert numbers[0] > 0
    doubled(numbers)
    assert numbers[1] == 0
    assert numbers[0] * np.float32(2) > numbers[0]


def test_normal_numbers_are_left_alone() -> None:
    least = np.finfo(np.float32).tiny
    numbers = np.array([least, 1.0], np.float32)
    doubled(numbers)
    assert numbers[1] == np.float32(2) * least
