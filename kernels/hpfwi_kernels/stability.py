"""Courant number and limit of the second-order-in-time, central-difference acoustic scheme.

For a leap-frog step the scheme is stable while ``v dt sqrt(sum_axis 1/h_axis²)`` stays below ``2 / sqrt(s)``, where
``s`` is the largest eigenvalue of the one-dimensional second-difference operator on unit spacing, reached at the
Nyquist wavenumber.
"""

import math
from collections.abc import Sequence

from hpfwi_kernels.errors import StabilityError
from hpfwi_kernels.stencils import second_derivative


def courant_limit(order: int) -> float:
    """Largest stable Courant number of the interior scheme (orders 2, 4, 6, 8: 1.000, 0.866, 0.814, 0.784)."""
    centre, *pairs = second_derivative(order)
    # At the Nyquist wavenumber neighbours alternate in sign.
    eigenvalue = -centre - 2.0 * sum(weight * (-1) ** distance for distance, weight in enumerate(pairs, start=1))
    return 2.0 / math.sqrt(eigenvalue)


def courant_number(max_velocity_mps: float, dt_s: float, spacing_m: Sequence[float]) -> float:
    """Courant number v dt sqrt(sum 1/h²), dimensionless."""
    return max_velocity_mps * dt_s * math.sqrt(sum(1.0 / h**2 for h in spacing_m))


def largest_stable_dt(max_velocity_mps: float, spacing_m: Sequence[float], order: int) -> float:
    """Largest stable time step in seconds."""
    return courant_limit(order) / courant_number(max_velocity_mps, 1.0, spacing_m)


def substeps_needed(max_velocity_mps: float, dt_s: float, spacing_m: Sequence[float], order: int) -> int:
    """Smallest number of equal inner steps that makes dt_s stable."""
    ratio = courant_number(max_velocity_mps, dt_s, spacing_m) / courant_limit(order)
    # A step that is stable to rounding must not be split in two.
    return max(1, math.ceil(ratio - 1e-9))


def require_stable(max_velocity_mps: float, dt_s: float, spacing_m: Sequence[float], order: int, substeps: int) -> None:
    """Raise StabilityError, naming the largest stable step, when dt_s / substeps is above the Courant limit."""
    needed = substeps_needed(max_velocity_mps, dt_s, spacing_m, order)
    if substeps >= needed:
        return
    number = courant_number(max_velocity_mps, dt_s / substeps, spacing_m)
    largest = largest_stable_dt(max_velocity_mps, spacing_m, order)
    raise StabilityError(
        f"dt_s={dt_s:g} with substeps={substeps} is unstable: Courant number {number:.3f} exceeds "
        f"{courant_limit(order):.3f} for order {order} and v_max={max_velocity_mps:g} m/s on cells of "
        f"{' x '.join(f'{h:g}' for h in spacing_m)} m. "
        f"Use dt_s <= {largest * substeps:.6g}, or substeps={needed}."
    )


LARGEST_DAMPING = 2.0
"""A sponge's ``x² - (2 - k - r) x + (1 - k)`` has a root outside the unit circle for every larger k, whatever c is."""


def require_stable_sponge(damping: float, dt_s: float) -> None:
    """Raise StabilityError when a sponge damps by more in one inner step of dt_s than any velocity allows.

    damping   largest k of ``p+ = c lap(p) + (2 - k) p - (1 - k) p-``
    """
    if damping > LARGEST_DAMPING:
        raise StabilityError(
            f"A sponge that damps by {damping:.3g} in a step of {dt_s:g} s is unstable: at most {LARGEST_DAMPING:g} is "
            "stable. Make the sponge wider or dt_s smaller."
        )
