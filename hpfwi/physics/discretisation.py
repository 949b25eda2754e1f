"""From settings and frequencies to the scheme of a run: time steps, snapshots, absorbing edges; also for deepwave."""

from __future__ import annotations

import math

from hpfwi.errors import ConfigError
from hpfwi.physics import deepwave_engine
from hpfwi.physics.grid import Grid
from hpfwi.physics.medium import Medium
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi_kernels.acoustic import Scheme
from hpfwi_kernels.errors import StabilityError
from hpfwi_kernels.stability import courant_limit, courant_number, require_stable, substeps_needed

POINTS_PER_WAVELENGTH = {2: 28.7, 4: 8.0, 6: 5.3, 8: 4.3}
"""By spatial order: grid points per wavelength at which a plane wave along an axis travels 0.2 % too slowly, from the
symbol of the second difference (its square root is the numerical wavenumber)."""

SNAPSHOT_MARGIN = 2.0
"""Snapshots for the gradient sample this multiple of the wavelet's highest frequency without aliasing. The field that
is kept holds no more than the highest frequency, but the field it is multiplied with comes from residuals that the end
of the records cuts off, which spreads them over all frequencies. Measured on folded models with Ricker wavelets of 8
and 12 Hz as the error (norms) of the gradient against a snapshot at every step: margin 3: 4e-6; 2: 1e-5 to 1e-3, the
latter for records cut off in the middle of the arrivals; 1.5: 1e-4 to 1e-2; 1: 1e-2 to 3e-2."""

STAGGERED_SNAPSHOT_MARGIN = 3.0
"""The same for deepwave's staggered propagators, whose gradient takes first derivatives where the acoustic one takes
second ones and lets more of the cut's high frequencies through: for records cut off in the middle of the arrivals,
margin 3: 1e-3 to 2e-3; 2: 2e-2 to 4e-2; for records cut after them 1e-7 and 1e-4."""


def build_scheme(
    settings: ModellingSettings,
    grid: Grid,
    dt_s: float,
    *,
    peak_hz: float,
    highest_hz: float,
    medium: Medium | None,
    max_velocity_mps: float,
    min_velocity_mps: float | None,
) -> Scheme:
    """What a propagator needs to know of a run.

    dt_s                  sample interval of the records
    peak_hz, highest_hz   of the wavelet
    medium                what deepwave computes in; None for hpfwi's own kernels

    raises  ConfigError, hpfwi_kernels.errors.StabilityError: see `Simulator`
    """
    if settings.boundary == "sponge" and min_velocity_mps is None:
        raise ConfigError('boundary="sponge" needs the lowest velocity of the run as min_velocity_mps.')
    if medium is not None:
        limit = stability_limit(settings, medium, min_velocity_mps, max_velocity_mps)
        courant = courant_number(medium.fastest_mps(max_velocity_mps), dt_s, grid.spacing_m)
        substeps = _substeps_of_deepwave(settings, dt_s, courant, limit)
    elif settings.substeps == "auto":
        substeps = substeps_needed(max_velocity_mps, dt_s, grid.spacing_m, settings.order)
    else:
        substeps = settings.substeps
        require_stable(max_velocity_mps, dt_s, grid.spacing_m, settings.order, substeps)
    if settings.store_every == "auto":
        store_every = snapshot_interval(highest_hz, dt_s / substeps, snapshot_margin(medium))
    else:
        store_every = settings.store_every
    return Scheme(
        spacing_m=grid.spacing_m,
        dt_s=dt_s,
        order=settings.order,
        absorbing=settings.widths(len(grid.shape)),
        boundary=settings.boundary,
        free_surface=settings.free_surface,
        pml_hz=peak_hz if settings.pml_hz is None else settings.pml_hz,
        max_velocity_mps=max_velocity_mps,
        min_velocity_mps=min_velocity_mps if settings.boundary == "sponge" else None,
        substeps=substeps,
        store_every=store_every,
    )


def stability_limit(
    settings: ModellingSettings, medium: Medium | None, min_velocity_mps: float | None, max_velocity_mps: float
) -> float:
    """Courant number up to which the scheme of the settings is stable, for hpfwi's own kernels or in a medium."""
    if medium is None:
        return courant_limit(settings.order)
    return deepwave_engine.courant_limit(medium, settings.order, min_velocity_mps, max_velocity_mps)


def snapshot_margin(medium: Medium | None) -> float:
    """Multiple of the wavelet's highest frequency that snapshots sample; None is hpfwi's own kernels."""
    staggered = medium is not None and medium.physics != "acoustic"
    return STAGGERED_SNAPSHOT_MARGIN if staggered else SNAPSHOT_MARGIN


def snapshot_interval(highest_hz: float, inner_dt_s: float, margin: float = SNAPSHOT_MARGIN) -> int:
    """Time steps between snapshots that sample `margin` times the wavelet's highest frequency without aliasing.

    >>> snapshot_interval(37.5, 0.0009)
    7
    """
    return max(1, math.floor(1 / (2 * margin * highest_hz * inner_dt_s)))


def _substeps_of_deepwave(settings: ModellingSettings, dt_s: float, courant: float, limit: float) -> int:
    """Time steps per sample where a sample in one step has this Courant number."""
    needed = deepwave_engine.least_substeps(courant, limit)
    if settings.substeps == "auto":
        return needed
    if settings.substeps < needed:
        raise StabilityError(
            f"dt_s={dt_s:g} with substeps={settings.substeps} is unstable: Courant number "
            f"{courant / settings.substeps:.3f} exceeds {limit:.3f} for {settings.physics} waves of order "
            f"{settings.order}; use substeps={needed}."
        )
    return settings.substeps
