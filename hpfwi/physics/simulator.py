"""The simulator: a survey's gathers as a differentiable function of the velocity, and the only caller of propagators.

The equation is (1/v²) u_tt = ∇²u + f with u in Pa and f in Pa/m². Over a model [z, x] a source is a line source: its
wavelet w is f integrated over its area, in Pa, so here it is divided by the area of one cell. Over a model [z, y, x] it
is a point source: w is f integrated over its volume, in Pa m, and is divided by the volume of one cell; in a
homogeneous whole space the pressure at distance r is w(t - r/v) / (4π r). Gathers do not change when cells get smaller.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics import deepwave_engine
from hpfwi.physics.deepwave_engine import DeepwaveEngine
from hpfwi.physics.device import Device, compute_devices
from hpfwi.physics.discretisation import build_scheme, snapshot_margin, stability_limit
from hpfwi.physics.grid import Grid, in_cells
from hpfwi.physics.medium import build_medium
from hpfwi.physics.memory import held, held_by_deepwave
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.source import highest_frequency_hz, peak_frequency_hz
from hpfwi.physics.survey import Survey
from hpfwi_kernels.acoustic import Choice, Memory, Points, Scheme, off_grid, propagate
from hpfwi_kernels.buffers import Pool


class Simulator:
    """The gathers of a survey as a differentiable function of the velocity.

    Everything that does not depend on the velocity is fixed here: positions, wavelet, time step, absorbing edges. The
    object does not change afterwards, so `predict` may be called from several threads.

    grid              of the velocity
    wavelet           float32[shot, source, time], Pa of a line source, Pa m of a point source, see above
    max_velocity_mps  highest velocity that will ever be used; it decides the time step and the C-PML, which therefore
                      stay the same while an inversion changes the model
    min_velocity_mps  lowest velocity that will be used; needed for boundary="sponge", and for density="gardner"
                      where the physics has a density
    device            that computes, or what is asked for: "auto" and "cuda" take the first GPU; deepwave is on the CPU

    raises  DataError: positions outside the model or on the free surface, a wavelet that does not fit the survey, a
            file of density, shear velocity or quality factor that does not fit the grid
            ConfigError: a 3-D model with engine="deepwave"; boundary="sponge", or a density that follows the velocity,
            without min_velocity_mps; device="cuda" without a GPU that the kernels can use
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
        *,
        device: Device | torch.device = "auto",
    ) -> None:
        survey.check(grid)
        if settings.engine == "deepwave" and len(grid.shape) != 2:
            raise ConfigError(
                f'modelling.engine = "deepwave" computes 2-D models here, not one of {in_cells(grid.shape)} cells: use '
                'engine "hpfwi" (physics "acoustic"), or a 2-D model.'
            )
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
        self.courant_limit = stability_limit(settings, self.medium, min_velocity_mps, max_velocity_mps)
        self.snapshot_margin = snapshot_margin(self.medium)
        self.scheme = build_scheme(
            settings,
            grid,
            survey.dt_s,
            peak_hz=self.peak_hz,
            highest_hz=self.highest_hz,
            medium=self.medium,
            max_velocity_mps=max_velocity_mps,
            min_velocity_mps=min_velocity_mps,
        )
        asked = device if settings.engine == "hpfwi" else "cpu"
        self.device = asked if isinstance(asked, torch.device) else compute_devices(asked)[0]
        self._pool = Pool()
        self._wavelet = torch.from_numpy(np.asarray(wavelet, dtype=np.float64) / math.prod(grid.spacing_m))
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
        return math.prod(self.scheme.padded(self.grid.shape)) * self.survey.samples * self.scheme.substeps

    @property
    def stored_bytes_per_shot(self) -> int:
        """Memory for the snapshots of one shot while its gradient is computed, bytes, without the padding of rows."""
        fields = 1 if self.medium is None else deepwave_engine.histories(self.medium)
        cells = math.prod(self.scheme.padded(self.grid.shape))
        return 4 * cells * fields * self.scheme.stored_steps(self.survey.samples)

    def held(self, shots: int, threads: int = 1) -> Choice:
        """How the wavefields of so many shots, computed together, reach their gradient, and why.

        raises  hpfwi_kernels.errors.ModelError: nothing that `memory` allows fits the budget; with deepwave ConfigError
        """
        if self.medium is not None:
            return held_by_deepwave(self.settings, shots, self.stored_bytes_per_shot)
        work = (self.grid.shape, shots, self.survey.samples, self.survey.receivers, self.scheme)
        return held(self.settings, self.device, *work, threads=threads)

    def with_slowest(self, min_velocity_mps: float) -> Simulator:
        """This simulator with a sponge for another lowest velocity; everything else, buffers too, is shared."""
        other = copy.copy(self)
        other.scheme = replace(self.scheme, min_velocity_mps=min_velocity_mps)
        return other

    def predict(self, velocity: torch.Tensor, shots: Sequence[int], threads: int = 1) -> torch.Tensor:
        """Gathers of some shots, [shot, receiver, time] in Pa, differentiable in the velocity.

        velocity  float32 (or float64) of the grid's shape, m/s; gathers come back to its device. A float32 velocity is
                  computed on the simulator's device, another one where it is
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
        memory = self.held(len(indices), threads).memory if torch.is_grad_enabled() else Memory()
        return self._propagated(velocity, indices, self.scheme, threads, memory)

    def predict_each(
        self, velocities: torch.Tensor, slowest_mps: Sequence[float] | None = None, *, threads: int = 1
    ) -> torch.Tensor:
        """Gathers of every shot in each of several models, [model, shot, receiver, time] in Pa, in one call.

        velocities   float32 (or float64) [model, z, x] or [model, z, y, x], m/s; no gradient is kept. On the CPU a
                     model's bits do not depend on the others; on a GPU their number decides which kernels run
        slowest_mps  what the sponge of each model is made for; None: all have that of this simulator
        threads      shots computed at the same time; the bits do not depend on it

        raises  DataError: velocities that do not fit the grid, or an engine that takes one model at a time
                hpfwi_kernels.errors.KernelError: as `predict`
        """
        if tuple(velocities.shape[1:]) != self.grid.shape or self._deepwave is not None:
            axes = ", ".join(("model", *self.grid.axes))
            raise DataError(
                f"Velocities of shape {tuple(velocities.shape)} cannot be modelled together: give [{axes}] on the grid "
                f'of {self.grid.shape} cells, with engine "hpfwi".'
            )
        models, shots = len(velocities), self.survey.shots
        scheme = self.scheme
        if slowest_mps is not None:
            scheme = replace(scheme, min_velocity_mps=tuple(np.repeat(slowest_mps, shots).tolist()))
        with torch.no_grad():
            each = velocities.repeat_interleave(shots, dim=0)
            gathers = self._propagated(each, list(range(shots)) * models, scheme, threads, Memory())
        return gathers.unflatten(0, (models, shots))

    def _propagated(
        self, velocity: torch.Tensor, shots: list[int], scheme: Scheme, threads: int, memory: Memory
    ) -> torch.Tensor:
        device = self.device if velocity.dtype == torch.float32 else velocity.device
        gathers = propagate(
            velocity.to(device),
            self._wavelet[shots].to(device, velocity.dtype),
            self._sources.of_shots(shots),
            self._receivers.of_shots(shots),
            scheme,
            threads=threads,
            pool=self._pool,
            memory=memory,
        )
        return gathers.to(velocity.device)


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
