"""The gathers of whole surveys, and of observed ones that are made up: what most callers of the modelling need."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.physics.device import Device, compute_devices
from hpfwi.physics.discretisation import snapshot_interval
from hpfwi.physics.lanes import in_lanes
from hpfwi.physics.model import EarthModel
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.survey import Survey

__all__ = ["SIMULATION_BYTES", "ModellingSettings", "simulate", "simulate_observed", "snapshot_interval"]

SIMULATION_BYTES = 256 * 2**20
"""Memory for the gathers of one group of shots in `simulate`."""


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
    device: Device | list[torch.device] = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The gathers of a whole survey, float32[shot, receiver, time], Pa.

    max_velocity_mps  what time step and C-PML are made for; None is the model's own highest velocity
    min_velocity_mps  what a sponge is made for; None is the model's own lowest velocity
    group_bytes       shots are computed in groups whose gathers take at most this much memory (one shot at least)
    device            where: every GPU of this process, each with groups of its own, or the CPU; or these devices
    progress          called after every group with (shots done, shots in all)

    raises  see `Simulator`
    """
    devices = device if isinstance(device, list) else compute_devices(device if settings.engine == "hpfwi" else "cpu")
    simulators = [
        Simulator(
            model.grid,
            survey,
            wavelet,
            settings,
            model.fastest_mps if max_velocity_mps is None else max_velocity_mps,
            model.slowest_mps if min_velocity_mps is None else min_velocity_mps,
            device=each,
        )
        for each in devices
    ]
    # The kernel holds a shot's record at every inner step, and once more while it is resampled.
    bytes_per_shot = 2 * 4 * survey.receivers * survey.samples * simulators[0].scheme.substeps
    most = threads if devices[0].type == "cpu" else survey.shots  # a GPU is full with many
    group = max(1, min(group_bytes // bytes_per_shot, most, math.ceil(survey.shots / len(devices))))
    gathers = np.empty((survey.shots, survey.receivers, survey.samples), dtype=np.float32)
    counting, done = threading.Lock(), 0

    def predict(simulator: Simulator, first: int) -> None:
        nonlocal done
        shots = range(first, min(first + group, survey.shots))
        with torch.no_grad():  # of this thread alone
            gathers[first : shots.stop] = simulator.predict(torch.tensor(model.velocity), shots, threads).numpy()
        with counting:
            done += len(shots)
            if progress is not None:
                progress(done, survey.shots)

    in_lanes(simulators, range(0, survey.shots, group), predict)
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
    device: Device = "auto",
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
    widths = tuple(cells * refine for cells in settings.widths(len(model.grid.shape)))
    finer = settings.model_copy(
        update={
            "order": settings.order if order is None else order,
            "absorbing_cells": widths,
            "substeps": "auto",
        }
    )
    return simulate(model, survey, wavelet, finer, threads=threads, device=device, progress=progress)
