"""What follows from a simulator's settings, each value with its reason: for people, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpfwi.physics import deepwave_engine
from hpfwi.physics.discretisation import POINTS_PER_WAVELENGTH
from hpfwi.physics.grid import in_cells
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import ENERGY_SHARE
from hpfwi_kernels.stability import courant_number


@dataclass(frozen=True)
class Derived:
    """A value that follows from the settings, and why."""

    name: str
    value: float | int | str
    reason: str
    warning: bool = False
    """True where the value is outside what gives good results."""


def derived(simulator: Simulator, slowest_mps: float, shots_together: int) -> list[Derived]:
    """What follows from the settings, in the order in which it follows, each with its reason.

    slowest_mps      lowest velocity of the models of the run, m/s
    shots_together   shots whose gradient is computed in one go

    raises  see `Simulator.held`
    """
    scheme, grid, survey, settings = simulator.scheme, simulator.grid, simulator.survey, simulator.settings
    held = simulator.held(shots_together)
    step_m = max(grid.spacing_m)
    slow_mps = slowest_mps if simulator.medium is None else simulator.medium.slowest_mps(slowest_mps)
    points = slow_mps / (simulator.highest_hz * step_m)
    needed = POINTS_PER_WAVELENGTH[settings.order]
    courant = courant_number(simulator.fastest_mps, scheme.inner_dt_s, grid.spacing_m)
    widths_m = [cells * grid.spacing_m[side // 2] for side, cells in enumerate(scheme.absorbing) if cells]
    sides = "top/bottom/front/back/left/right" if len(grid.shape) == 3 else "top/bottom/left/right"
    thin_m = min(widths_m, default=0.0)
    padded = in_cells(scheme.padded(grid.shape))
    steps = survey.samples * scheme.substeps
    return [
        _engine(simulator),
        Derived("peak_hz", round(simulator.peak_hz, 3), "the frequency at which the wavelet has most energy"),
        Derived(
            "highest_hz",
            round(simulator.highest_hz, 3),
            f"only {ENERGY_SHARE:g} of the wavelet's energy lies above it",
        ),
        Derived(
            "points_per_wavelength",
            round(points, 2),
            f"{slow_mps:g} m/s at {simulator.highest_hz:.3g} Hz on cells of {step_m:g} m; "
            + (
                f"order {settings.order} needs {needed:g} to keep the velocity of the waves within 0.2 %"
                if points >= needed
                else f"below the {needed:g} that order {settings.order} needs to keep the velocity of the waves within "
                f"0.2 %: use cells of {slow_mps / (simulator.highest_hz * needed):.3g} m or less, a lower peak "
                "frequency or a higher order"
            ),
            warning=points < needed,
        ),
        Derived(
            "substeps",
            scheme.substeps,
            f"{simulator.fastest_mps:g} m/s with a time step of {1000 * scheme.inner_dt_s:.4g} ms has the Courant "
            f"number {courant:.3f}, below the limit {simulator.courant_limit:.3f} of order {settings.order}",
        ),
        Derived(
            "absorbing_cells",
            "/".join(str(cells) for cells in scheme.absorbing),
            f"{sides}; the thinnest is {thin_m:g} m, "
            f"{thin_m * simulator.peak_hz / slowest_mps:.2g} wavelengths of {slowest_mps:g} m/s at the peak frequency"
            + ("; the free surface needs none at the top" if settings.free_surface else ""),
        ),
        Derived(
            "pml_hz",
            round(scheme.pml_hz, 3),
            "the wavelet's peak frequency" if settings.pml_hz is None else "as set",
        ),
        Derived(
            "store_every",
            scheme.store_every,
            f"a snapshot every {1000 * scheme.store_every * scheme.inner_dt_s:.3g} ms samples frequencies up to "
            f"{simulator.snapshot_margin:g} times highest_hz"
            if settings.store_every == "auto"
            else "as set",
        ),
        Derived(
            "snapshot_megabytes_per_shot",
            round(simulator.stored_bytes_per_shot / 1e6, 2),
            f"{scheme.stored_steps(survey.samples)} snapshots of {padded} cells in float32"
            + ("" if simulator.medium is None else f", {deepwave_engine.histories(simulator.medium)} wavefields each"),
        ),
        Derived("memory", held.memory.mode, held.reason),
        Derived(
            "updates_per_shot",
            simulator.updates_per_shot,
            f"{padded} cells, absorbing edges included, times {steps} time steps",
        ),
    ]


def _engine(simulator: Simulator) -> Derived:
    if simulator.medium is None:
        where = (
            "Numba on the CPU"
            if simulator.device.type == "cpu"
            else f"CUDA on {torch.cuda.get_device_name(simulator.device)}"
        )
        return Derived("engine", "hpfwi", f"acoustic waves at constant density: hpfwi's own kernel, {where}")
    alone = simulator.settings.physics != "acoustic"
    why = f"{simulator.settings.physics} waves are beyond hpfwi's own kernel" if alone else "as set"
    return Derived("engine", "deepwave", f"{why}: {deepwave_engine.described(simulator.medium)}, compiled C on the CPU")
