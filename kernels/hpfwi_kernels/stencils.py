"""Central-difference weights on a regular grid of unit spacing (Fornberg 1988, Math. Comp. 51, table 1)."""

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
