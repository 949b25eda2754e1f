"""Gathers from velocity: the only place where the science layer calls a propagator.

The equation is (1/v²) u_tt = ∇²u + f with u in Pa and f in Pa/m². A source is a line source: its wavelet is f
integrated over its area, in Pa, so here it is divided by the area of one cell, and gathers do not change when cells get
smaller.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics import deepwave_engine
from hpfwi.physics.deepwave_engine import DeepwaveEngine
from hpfwi.physics.grid import Grid
from hpfwi.physics.medium import LEAST_VP_VS, Physics, build_medium
from hpfwi.physics.memory import fair_share_bytes
from hpfwi.physics.model import EarthModel
from hpfwi.physics.source import ENERGY_SHARE, highest_frequency_hz, peak_frequency_hz
from hpfwi.physics.survey import Survey
from hpfwi_kernels.acoustic import (
    Choice,
    Memory,
    Points,
    Scheme,
    choose,
    gpus_usable,
    off_grid,
    peak_bytes,
    propagate,
)
from hpfwi_kernels.buffers import Pool
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

SIMULATION_BYTES = 256 * 2**20
"""Memory for the gathers of one group of shots in `simulate`."""


class ModellingSettings(BaseModel):
    """How waves are computed; the defaults suit surface records over a free surface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Literal[2, 4, 6, 8] = Field(default=8, description="Order of the spatial derivatives: 2, 4, 6 or 8.")
    absorbing_cells: int | tuple[int, int, int, int] = Field(
        default=20,
        description="Width of the absorbing edges in cells: one number (the top is left out under a free surface), or "
        "[top, bottom, left, right].",
    )
    boundary: Literal["cpml", "sponge"] = Field(
        default="cpml", description='What absorbs at the edges: "cpml" (convolutional PML) or "sponge" (as in OpenFWI).'
    )
    free_surface: bool = Field(default=True, description="Pressure is zero on the top row, which reflects waves.")
    substeps: int | Literal["auto"] = Field(
        default="auto", description='Time steps per sample; "auto" takes as many as stability needs.'
    )
    pml_hz: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Frequency the C-PML is made for, Hz; None is the wavelet's peak.",
    )
    store_every: int | Literal["auto"] = Field(
        default="auto",
        description='Every how many time steps a snapshot is kept for the gradient; "auto" is as rarely as the '
        "wavelet's frequencies allow, 1 is the exact discrete gradient.",
    )
    memory: Literal["auto", "store", "checkpoint", "boundary"] = Field(
        default="auto",
        description="How the wavefield reaches the gradient: kept (store), computed again (checkpoint: same bits, less "
        'memory, one more forward run), or run backwards (boundary: least memory, no gradient in the layers); "auto" '
        "is store where it fits memory_budget_gb, else checkpoint.",
    )
    memory_budget_gb: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Memory in GB for the wavefields of the shots that are computed together "
        "(inversion.shots_per_item); None is half of the memory that is free, divided by this machine's cores.",
    )
    engine: Literal["hpfwi", "deepwave"] = Field(
        default="hpfwi",
        description='Who computes the waves: "hpfwi" (its own kernels, acoustic) or "deepwave" (every physics).',
    )
    physics: Physics = Field(
        default="acoustic",
        description='What waves feel: "acoustic" (velocity alone), "variable-density", "elastic" or "viscoacoustic" '
        '(attenuation); all but the first need engine = "deepwave".',
    )
    density: float | str = Field(
        default="gardner",
        description='Density: "gardner" is 310 v^0.25 kg/m³ with the P velocity v in m/s; or one number, or a .npy '
        "file [z, x], kg/m³. For every physics but acoustic.",
    )
    vp_vs_ratio: float = Field(
        default=1.7320508,
        gt=LEAST_VP_VS,
        allow_inf_nan=False,
        description="P velocity divided by shear velocity, for elastic physics without shear_velocity.",
    )
    shear_velocity: str | None = Field(
        default=None,
        description="Shear velocity of elastic physics that stays as it is, a .npy file [z, x], m/s (0 in liquids); "
        "None divides the P velocity by vp_vs_ratio.",
    )
    quality_factor: float | str = Field(
        default=50.0,
        description="Quality factor of viscoacoustic physics at quality_hz, 1 or more: one number, or a .npy file "
        "[z, x].",
    )
    quality_hz: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Frequency at which quality_factor and the velocity of viscoacoustic physics hold, Hz; None is the "
        "wavelet's peak.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> ModellingSettings:
        widths = (self.absorbing_cells,) if isinstance(self.absorbing_cells, int) else self.absorbing_cells
        if min(widths) < 0:
            raise ValueError(f"absorbing_cells={self.absorbing_cells} must not be negative.")
        if self.free_surface and len(widths) == 4 and widths[0] != 0:
            raise ValueError(
                f"absorbing_cells={list(widths)} has {widths[0]} cells at the top, where free_surface=true reflects: "
                "use 0 there, or free_surface=false."
            )
        for name in ("substeps", "store_every"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f'{name}={value} must be at least 1, or "auto".')
        if (refusal := deepwave_engine.unsupported(self)) is not None:
            raise ValueError(refusal)
        return self

    def widths(self) -> tuple[int, int, int, int]:
        """Absorbing cells (top, bottom, left, right)."""
        if isinstance(self.absorbing_cells, int):
            side = self.absorbing_cells
            return (0 if self.free_surface else side, side, side, side)
        return self.absorbing_cells


@dataclass(frozen=True)
class Derived:
    """A value that follows from the settings, and why."""

    name: str
    value: float | int | str
    reason: str
    warning: bool = False
    """True where the value is outside what gives good results."""


class Simulator:
    """The gathers of a survey as a differentiable function of the velocity.

    Everything that does not depend on the velocity is fixed here: positions, wavelet, time step, absorbing edges. The
    object does not change afterwards, so `predict` may be called from several threads.

    grid              of the velocity
    wavelet           float32[shot, source, time], Pa (line source, see above)
    max_velocity_mps  highest velocity that will ever be used; it decides the time step and the C-PML, which therefore
                      stay the same while an inversion changes the model
    min_velocity_mps  lowest velocity that will be used; needed for boundary="sponge", and for density="gardner"
                      where the physics has a density

    raises  DataError: positions outside the model or on the free surface, a wavelet that does not fit the survey, a
            file of density, shear velocity or quality factor that does not fit the grid
            ConfigError: boundary="sponge", or a density that follows the velocity, without min_velocity_mps
            hpfwi_kernels.errors.StabilityError: substeps is a number and too small
    """

    def __init__(
        self,
        grid: Grid,
        survey: Survey,
        wavelet: NDArray[np.float32],
        settings: ModellingSettings,
        max_velocity_mps: float,
        min_velocity_mps: float | None = None,
    ) -> None:
        survey.check(grid)
        if settings.free_surface:
            _check_below_surface(survey, grid)
        _check_wavelet(wavelet, survey)
        self.grid = grid
        self.survey = survey
        self.settings = settings
        self.peak_hz = peak_frequency_hz(wavelet, survey.dt_s)
        self.highest_hz = highest_frequency_hz(wavelet, survey.dt_s)
        self.medium = None if settings.engine == "hpfwi" else build_medium(settings, grid, self.peak_hz)
        self.fastest_mps = max_velocity_mps if self.medium is None else self.medium.fastest_mps(max_velocity_mps)
        self.courant_limit = (
            courant_limit(settings.order)
            if self.medium is None
            else deepwave_engine.courant_limit(self.medium, settings.order, min_velocity_mps, max_velocity_mps)
        )
        staggered = self.medium is not None and self.medium.physics != "acoustic"
        self.snapshot_margin = STAGGERED_SNAPSHOT_MARGIN if staggered else SNAPSHOT_MARGIN
        self.scheme = _scheme(self, max_velocity_mps, min_velocity_mps)
        self.device = torch.device("cuda" if settings.engine == "hpfwi" and gpus_usable() else "cpu")
        self._pool = Pool()
        self._wavelet = torch.from_numpy(np.asarray(wavelet, dtype=np.float64) / grid.cell_area_m2)
        self._sources = _points(survey.sources_m, grid, settings.free_surface)
        self._receivers = _points(survey.receivers_m, grid, settings.free_surface)
        self._deepwave = (
            None
            if self.medium is None
            else DeepwaveEngine(self.medium, self.scheme, grid.shape, self._sources, self._receivers)
        )

    @property
    def updates_per_shot(self) -> int:
        """Cells (absorbing edges included) times time steps of one shot: its cost, up to a factor."""
        rows, columns = self.scheme.padded(self.grid.shape)
        return rows * columns * self.survey.samples * self.scheme.substeps

    @property
    def stored_bytes_per_shot(self) -> int:
        """Memory for the snapshots of one shot while its gradient is computed, bytes, without the padding of rows."""
        rows, columns = self.scheme.padded(self.grid.shape)
        fields = 1 if self.medium is None else deepwave_engine.histories(self.medium)
        return 4 * rows * columns * fields * self.scheme.stored_steps(self.survey.samples)

    def held(self, shots: int, threads: int = 1) -> Choice:
        """How the wavefields of so many shots, computed together, reach their gradient, and why.

        raises  hpfwi_kernels.errors.ModelError: nothing that `memory` allows fits the budget
        """
        settings, mode = self.settings, self.settings.memory
        if self.medium is not None:
            return self._held_by_deepwave(shots)
        work = (self.grid.shape, shots, self.survey.samples, self.survey.receivers, self.scheme)
        if self.device.type == "cuda":
            threads = shots  # all at the same time
        if mode == "auto":
            given_gb = settings.memory_budget_gb
            budget = _budget_bytes(self.device) if given_gb is None else int(given_gb * 1e9)
            return choose(*work, threads=threads, budget_bytes=budget, exact=True)
        memory = Memory(mode=mode)
        return Choice(memory, peak_bytes(*work, memory, threads=threads), "as set")

    def _held_by_deepwave(self, shots: int) -> Choice:
        needed, budget_gb = shots * self.stored_bytes_per_shot, self.settings.memory_budget_gb
        if budget_gb is not None and needed > budget_gb * 1e9:
            raise ConfigError(
                f"The wavefields of {shots} shots take {needed / 1e6:.3g} MB in deepwave, more than memory_budget_gb="
                f"{budget_gb:g}: lower inversion.shots_per_item, raise store_every or raise the budget."
            )
        return Choice(Memory(), needed, f"deepwave keeps its wavefields, {needed / 1e6:.3g} MB")

    def with_slowest(self, min_velocity_mps: float) -> Simulator:
        """This simulator with a sponge for another lowest velocity; everything else, buffers too, is shared."""
        other = copy.copy(self)
        other.scheme = replace(self.scheme, min_velocity_mps=min_velocity_mps)
        return other

    def predict(self, velocity: torch.Tensor, shots: Sequence[int], threads: int = 1) -> torch.Tensor:
        """Gathers of some shots, [shot, receiver, time] in Pa, differentiable in the velocity.

        velocity  float32 (or float64) [z, x], m/s; gathers come back to its device. Where this process has a GPU that
                  the kernel can use, a float32 velocity is computed there
        shots     indices into the survey; the result has their order
        threads   shots computed at the same time; the bits do not depend on it. deepwave ignores it: see there

        raises  DataError: no shot, or one that does not exist; a velocity that does not fit the grid
                hpfwi_kernels.errors.KernelError, with deepwave hpfwi.errors.NumericsError: a velocity that is not
                positive and finite, or too high to be stable
        """
        indices = [int(shot) for shot in shots]
        outside = [shot for shot in indices if not 0 <= shot < self.survey.shots]
        if outside or not indices:
            what = f"shot {outside[0]} does not exist" if outside else "no shot is asked for"
            raise DataError(f"Nothing to predict: {what}; the survey has shots 0 to {self.survey.shots - 1}.")
        if tuple(velocity.shape) != self.grid.shape:
            raise DataError(
                f"A velocity of shape {tuple(velocity.shape)} does not fit the grid of {self.grid.shape} cells."
            )
        if self._deepwave is not None:
            if torch.is_grad_enabled():
                self.held(len(indices))  # refuses what does not fit
            return self._deepwave.predict(
                velocity, self._wavelet[indices], self._sources.of_shots(indices), self._receivers.of_shots(indices)
            )
        device = self.device if velocity.dtype == torch.float32 else velocity.device
        gathers = propagate(
            velocity.to(device),
            self._wavelet[indices].to(device, velocity.dtype),
            self._sources.of_shots(indices),
            self._receivers.of_shots(indices),
            self.scheme,
            threads=threads,
            pool=self._pool,
            memory=self.held(len(indices), threads).memory if torch.is_grad_enabled() else Memory(),
        )
        return gathers.to(velocity.device)


def _budget_bytes(device: torch.device) -> int:
    """Memory for wavefields: a fair share of this machine's, or most of what is free on a GPU."""
    if device.type == "cpu":
        return fair_share_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.8 * free)


def _scheme(simulator: Simulator, max_velocity_mps: float, min_velocity_mps: float | None) -> Scheme:
    settings, grid, dt_s = simulator.settings, simulator.grid, simulator.survey.dt_s
    if settings.boundary == "sponge" and min_velocity_mps is None:
        raise ConfigError('boundary="sponge" needs the lowest velocity of the run as min_velocity_mps.')
    if simulator.medium is not None:
        substeps = _substeps_of_deepwave(simulator)
    elif settings.substeps == "auto":
        substeps = substeps_needed(max_velocity_mps, dt_s, grid.spacing_m, settings.order)
    else:
        substeps = settings.substeps
        require_stable(max_velocity_mps, dt_s, grid.spacing_m, settings.order, substeps)
    if settings.store_every == "auto":
        store_every = snapshot_interval(simulator.highest_hz, dt_s / substeps, simulator.snapshot_margin)
    else:
        store_every = settings.store_every
    return Scheme(
        spacing_m=grid.spacing_m,
        dt_s=dt_s,
        order=settings.order,
        absorbing=settings.widths(),
        boundary=settings.boundary,
        free_surface=settings.free_surface,
        pml_hz=simulator.peak_hz if settings.pml_hz is None else settings.pml_hz,
        max_velocity_mps=max_velocity_mps,
        min_velocity_mps=min_velocity_mps if settings.boundary == "sponge" else None,
        substeps=substeps,
        store_every=store_every,
    )


def snapshot_interval(highest_hz: float, inner_dt_s: float, margin: float = SNAPSHOT_MARGIN) -> int:
    """Time steps between snapshots that sample `margin` times the wavelet's highest frequency without aliasing.

    >>> snapshot_interval(37.5, 0.0009)
    7
    """
    return max(1, math.floor(1 / (2 * margin * highest_hz * inner_dt_s)))


def _substeps_of_deepwave(simulator: Simulator) -> int:
    settings, dt_s, limit = simulator.settings, simulator.survey.dt_s, simulator.courant_limit
    courant = courant_number(simulator.fastest_mps, dt_s, simulator.grid.spacing_m)
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


def _points(positions_m: NDArray[np.float64], grid: Grid, free_surface: bool) -> Points:
    # A position that rounding puts a hair outside has passed Survey.check, so it belongs on the edge.
    cells = np.clip(grid.cells_of(positions_m), 0.0, np.array(grid.shape) - 1.0)
    return off_grid(cells, grid.shape, free_surface=free_surface)


def _check_below_surface(survey: Survey, grid: Grid) -> None:
    limit_m = grid.origin_m[0] + 1e-6 * grid.spacing_m[0]
    for name, positions in (("source", survey.sources_m), ("receiver", survey.receivers_m)):
        on_surface = positions[..., 0] <= limit_m
        if on_surface.any():
            shot, point = (int(index) for index in np.argwhere(on_surface)[0])
            raise DataError(
                f"Shot {shot}: {name} {point} lies on the free surface at z={positions[shot, point, 0]:g} m, where the "
                f"pressure is zero: move it down by a cell ({grid.spacing_m[0]:g} m), or set free_surface=false."
            )


def _check_wavelet(wavelet: NDArray[np.float32], survey: Survey) -> None:
    expected = (survey.shots, survey.sources_m.shape[1], survey.samples)
    if wavelet.shape != expected:
        raise DataError(
            f"A wavelet of shape {wavelet.shape} does not fit the survey: (shots, sources, samples) are {expected}."
        )
    finite = np.isfinite(wavelet).all(axis=(1, 2))
    if not finite.all():
        raise DataError(f"The wavelet of shot {int(np.argmin(finite))} holds NaN or infinity.")


def simulate(
    model: EarthModel,
    survey: Survey,
    wavelet: NDArray[np.float32],
    settings: ModellingSettings,
    *,
    threads: int = 1,
    max_velocity_mps: float | None = None,
    min_velocity_mps: float | None = None,
    group_bytes: int = SIMULATION_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The gathers of a whole survey, float32[shot, receiver, time], Pa.

    max_velocity_mps  what time step and C-PML are made for; None is the model's own highest velocity
    min_velocity_mps  what a sponge is made for; None is the model's own lowest velocity
    group_bytes       shots are computed in groups whose gathers take at most this much memory (one shot at least)
    progress          called after every group with (shots done, shots in all)

    raises  see `Simulator`
    """
    simulator = Simulator(
        model.grid,
        survey,
        wavelet,
        settings,
        model.fastest_mps if max_velocity_mps is None else max_velocity_mps,
        model.slowest_mps if min_velocity_mps is None else min_velocity_mps,
    )
    # The kernel holds a shot's record at every inner step, and once more while it is resampled.
    bytes_per_shot = 2 * 4 * survey.receivers * survey.samples * simulator.scheme.substeps
    group = max(1, min(group_bytes // bytes_per_shot, 4 * threads))
    velocity = torch.tensor(model.velocity)
    gathers = np.empty((survey.shots, survey.receivers, survey.samples), dtype=np.float32)
    with torch.no_grad():
        for first in range(0, survey.shots, group):
            shots = range(first, min(first + group, survey.shots))
            gathers[first : shots.stop] = simulator.predict(velocity, shots, threads).numpy()
            if progress is not None:
                progress(shots.stop, survey.shots)
    return gathers


def simulate_observed(
    true_model: EarthModel,
    survey: Survey,
    wavelet: NDArray[np.float32],
    settings: ModellingSettings,
    *,
    refine: int = 2,
    order: Literal[2, 4, 6, 8] | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Gathers to stand in for observed ones: computed more finely than an inversion will compute them.

    Records from the very scheme that inverts them flatter the result. The grid is refined `refine` times between its
    nodes with velocity linear in between (`EarthModel.refined`), so positions in metres, the free surface and the edges
    stay where they are; the absorbing edges keep their width in metres; the records keep dt_s, and the time step is
    split as stability needs. `order` may differ from the inversion's; None keeps it.

    returns  float32[shot, receiver, time], Pa
    raises   see `Simulator`; DataError: refine below 1
    """
    model = true_model if refine == 1 else true_model.refined(refine)
    top, bottom, left, right = (cells * refine for cells in settings.widths())
    finer = settings.model_copy(
        update={
            "order": settings.order if order is None else order,
            "absorbing_cells": (top, bottom, left, right),
            "substeps": "auto",
        }
    )
    return simulate(model, survey, wavelet, finer, threads=threads, progress=progress)


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
    widths_m = [
        cells * grid.spacing_m[axis] for cells, axis in zip(scheme.absorbing, (0, 0, 1, 1), strict=True) if cells
    ]
    thin_m = min(widths_m, default=0.0)
    rows, columns = scheme.padded(grid.shape)
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
            f"top/bottom/left/right; the thinnest is {thin_m:g} m, "
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
            f"{scheme.stored_steps(survey.samples)} snapshots of {rows} x {columns} cells in float32"
            + ("" if simulator.medium is None else f", {deepwave_engine.histories(simulator.medium)} wavefields each"),
        ),
        Derived("memory", held.memory.mode, held.reason),
        Derived(
            "updates_per_shot",
            simulator.updates_per_shot,
            f"{rows} x {columns} cells, absorbing edges included, times {steps} time steps",
        ),
    ]


def _engine(simulator: Simulator) -> Derived:
    if simulator.medium is None:
        where = "Numba on the CPU" if simulator.device.type == "cpu" else f"CUDA on {torch.cuda.get_device_name()}"
        return Derived("engine", "hpfwi", f"acoustic waves at constant density: hpfwi's own kernel, {where}")
    alone = simulator.settings.physics != "acoustic"
    why = f"{simulator.settings.physics} waves are beyond hpfwi's own kernel" if alone else "as set"
    return Derived("engine", "deepwave", f"{why}: {deepwave_engine.described(simulator.medium)}, compiled C on the CPU")
