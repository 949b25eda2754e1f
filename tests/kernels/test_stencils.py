"""Rounded weights: they annihilate constants, and on parabolas they differ from the exact ones by rounding alone."""

import numpy as np
import pytest

from hpfwi_kernels.stencils import ORDERS, rounded_laplacian, rounded_second_derivative

SPACINGS = [(10.0, 10.0), (12.5, 7.3), (3.0, 25.0), (10.0, 9.0, 11.0)]


@pytest.mark.parametrize("spacing_m", SPACINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_laplacian_of_a_constant_is_zero(order: int, spacing_m: tuple[float, ...]) -> None:
    centre, *axes = rounded_laplacian(order, spacing_m, np.dtype(np.float32))
    left = float(centre) + 2.0 * sum(float(weight) for axis in axes for weight in axis)
    # Orders from 4 on choose an axis' last one or two weights so that its sum vanishes: their rounding is what is left.
    # With one weight to an axis nothing is finer than the centre.
    chosen = {2: 0, 4: 1, 6: 2, 8: 2}[order]
    last = [axis[k] for axis in axes for k in range(order // 2 - chosen, order // 2)] or [centre]
    limit = sum(float(np.spacing(np.float32(abs(weight)))) for weight in last)
    assert abs(left) <= limit


@pytest.mark.parametrize("spacing_m", SPACINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_laplacian_has_the_weights_of_its_axes(order: int, spacing_m: tuple[float, ...]) -> None:
    centre, *axes = rounded_laplacian(order, spacing_m, np.dtype(np.float32))
    single = [rounded_second_derivative(order, h, np.dtype(np.float32)) for h in spacing_m]
    rounding = float(np.spacing(np.float32(abs(centre))))
    assert abs(float(centre) - sum(float(weights[0]) for weights in single)) <= 0.5 * rounding
    for axis, weights in zip(axes, single, strict=True):
        assert len(axis) == 4
        assert not any(axis[order // 2 :])
        for ours, theirs in zip(axis, weights[1:], strict=False):
            assert abs(float(ours) - float(theirs)) <= 0.5 * rounding


def test_float64_weights_are_the_sums_of_the_axes() -> None:
    centre, *axes = rounded_laplacian(4, (1.0, 1.0), np.dtype(np.float64))
    np.testing.assert_allclose(
        [centre, *axes[0], *axes[1]], [-5, 4 / 3, -1 / 12, 0, 0, 4 / 3, -1 / 12, 0, 0], rtol=1e-15
    )
