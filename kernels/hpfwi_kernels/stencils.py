"""Central-difference weights on a regular grid of unit spacing (Fornberg 1988, Math. Comp. 51, table 1)."""

import numpy as np

from hpfwi_kernels.errors import ModelError

ORDERS = (2, 4, 6, 8)

_SECOND = {
    2: (-2.0, 1.0),
    4: (-5 / 2, 4 / 3, -1 / 12),
    6: (-49 / 18, 3 / 2, -3 / 20, 1 / 90),
    8: (-205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560),
}
_FIRST = {
    2: (1 / 2,),
    4: (2 / 3, -1 / 12),
    6: (3 / 4, -3 / 20, 1 / 60),
    8: (4 / 5, -1 / 5, 4 / 105, -1 / 280),
}


def require_order(order: int) -> None:
    """Raise ModelError unless the spatial order is one of 2, 4, 6, 8."""
    if order not in ORDERS:
        raise ModelError(f"order={order} is not available; use one of {', '.join(map(str, ORDERS))}.")


def second_derivative(order: int) -> tuple[float, ...]:
    """Weights of d²/dx²: centre, then the weight of ``a[i+m] + a[i-m]`` for m = 1 .. order/2."""
    require_order(order)
    return _SECOND[order]


def first_derivative(order: int) -> tuple[float, ...]:
    """Weights of d/dx: the weight of ``a[i+m] - a[i-m]`` for m = 1 .. order/2."""
    require_order(order)
    return _FIRST[order]


def rounded_second_derivative(order: int, spacing_m: float, dtype: np.dtype) -> tuple[np.floating, ...]:
    """Weights of d²/dx² on a spacing, in a field's dtype, that still annihilate constants.

    Weights rounded one by one do not sum to zero. In float32 that is a term proportional to the field, which shifts
    the phase of a long record: measured at order 8, 4e-6 of the record instead of 1e-6. The smallest weights have the
    finest rounding, so they absorb the others' errors in the sum and, where two are free, in the second moment.
    """
    number = dtype.type
    exact = np.array(second_derivative(order)) / spacing_m**2
    reach = len(exact) - 1
    weights = exact.astype(dtype).astype(np.float64)
    distance = np.arange(reach + 1, dtype=np.float64)
    if reach == 1:
        weights[0] = -2.0 * weights[1]
    elif reach == 2:
        weights[2] = -(weights[0] + 2.0 * weights[1]) / 2.0
    else:
        sum_left = -(weights[0] + 2.0 * weights[1 : reach - 1].sum()) / 2.0
        moment_left = (exact * distance**2).sum() - (weights[: reach - 1] * distance[: reach - 1] ** 2).sum()
        free = np.array([[1.0, 1.0], distance[reach - 1 :] ** 2])
        weights[reach - 1 :] = np.linalg.solve(free, [sum_left, moment_left])
    return tuple(number(weight) for weight in weights)


def rounded_laplacian(
    order: int, spacing_m: tuple[float, ...], dtype: np.dtype
) -> tuple[np.floating, *tuple[tuple[np.floating, ...], ...]]:
    """The weight of a cell itself in the Laplacian, and of its neighbours along every axis, in a field's dtype.

    returns   (centre, weights of axis 0, ...), those of an axis for the distances 1 to 4, zeros beyond order/2

    They annihilate constants: what rounding the sum of the axes' own weights leaves goes to the smallest weight of the
    first axis.
    """
    axes = [rounded_second_derivative(order, h, dtype) for h in spacing_m]
    exact = sum(float(weights[0]) for weights in axes)
    centre = dtype.type(exact)
    first = [*axes[0][1:-1], dtype.type(float(axes[0][-1]) + (exact - float(centre)) / 2.0)]
    rest = [list(weights[1:]) for weights in axes[1:]]
    zero = dtype.type(0)
    return centre, *((*weights, *(zero,) * (4 - len(weights))) for weights in (first, *rest))
