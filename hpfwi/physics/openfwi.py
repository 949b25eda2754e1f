"""Records as OpenFWI's were made, so that networks can train on pairs computed here and be used on its data.

The recipe behind the public 70 x 70 families: second order in time and fourth in space on cells of 10 m, 120 cells of
sponge on every side and no free surface, a Ricker wavelet of 15 Hz that starts 74 samples before its peak, 1 ms, 1000
samples, five sources and a receiver in every column, all in row 1. In the equation's terms (`simulator`) the wavelet is
f itself: a step adds (v dt)² s, whatever the cell size. Sample n is the field after step n and its injection, which is
sample n + 1 of the propagator.

The sponge's strength is proportional to the lowest velocity of each model. The gradient takes it as a constant: what
the edges absorb more or less when the slowest cell changes is not part of the derivative.

As in the public code the padded grid is periodic: waves that leave it enter again on the other side. It shows where the
top of a map is fast, because the sponge is made for the slowest velocity: a wall instead changes whole records by up to
2e-2 of their norm (4400 m/s at the top over 1600 m/s).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpfwi.errors import DataError
from hpfwi.physics.device import Device
from hpfwi.physics.grid import Grid
from hpfwi.physics.memory import budget_bytes, forward_bytes
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.survey import Survey

SLOWEST_MPS = 1500.0
FASTEST_MPS = 4500.0
"""Range of OpenFWI's velocities, m/s."""

CPML_CELLS = 20
"""Width of the C-PML that may take the sponge's place."""

WAVELET_LENGTH = 2.2
"""Length of the wavelet in periods of its peak frequency, before rounding to an odd number of samples."""


class OpenFwiSettings(BaseModel):
    """How records are made from a velocity map; the defaults are those of OpenFWI's 70 x 70 families."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_m: float = Field(default=10.0, gt=0, allow_inf_nan=False, description="Size of the square cells, m.")
    dt_s: float = Field(default=0.001, gt=0, allow_inf_nan=False, description="Time step, s.")
    steps: int = Field(default=1000, ge=2, description="Time steps.")
    keep_every: int = Field(default=1, ge=1, description="Every how many time steps a sample is kept, from the first.")
    shots: int = Field(default=5, ge=1, description="Shots, spread from the first column to the last.")
    depth_cells: int = Field(default=1, ge=0, description="Row of the sources and receivers.")
    peak_hz: float = Field(
        default=15.0, gt=0, allow_inf_nan=False, description="Peak frequency of the Ricker wavelet, Hz."
    )
    absorbing_cells: int = Field(default=120, ge=2, description="Width of the sponge on every side, cells.")

    @property
    def samples(self) -> int:
        """Samples per trace."""
        return -(-self.steps // self.keep_every)


def modelling_of(physics: Mapping[str, Any], records_shape: tuple[int, int, int]) -> OpenFwiSettings:
    """How the records of a store of pairs were made, as far as its physics say.

    records_shape   (shot, time, receiver) of a sample
    raises          DataError: they do not say

    >>> modelling_of({"recipe": "openfwi"}, (5, 1000, 70)) == OpenFwiSettings()
    True
    """
    try:
        if "scheme" in physics:
            return OpenFwiSettings.model_validate(physics["scheme"])
        if physics.get("recipe") == "openfwi":
            return OpenFwiSettings(shots=records_shape[0], steps=records_shape[1])
    except ValidationError as error:
        raise DataError(f"its scheme is not one of this program ({error.errors()[0]['msg'].lower()}).") from error
    raise DataError(
        "the store does not say how they were made; take pairs of `hpfwi data generate`, `data slices` or "
        "`data convert openfwi`."
    )


def openfwi_wavelet(settings: OpenFwiSettings) -> NDArray[np.float64]:
    """The source term of every step, float64[step], Pa/m²: a Ricker wavelet of odd length, then zeros.

    Its length is 2 floor(int(2.2 / (peak_hz dt_s)) / 2) + 1 samples with the peak in the middle.

    >>> wavelet = openfwi_wavelet(OpenFwiSettings())
    >>> int(wavelet.argmax()), float(wavelet.max()), int((wavelet != 0).sum()), f"{wavelet[0]:.3e}"
    (73, 1.0, 147, '-1.644e-04')
    """
    half = int(WAVELET_LENGTH / (settings.peak_hz * settings.dt_s)) // 2
    phase = (half - np.arange(2 * half + 1)) * (settings.peak_hz * settings.dt_s * np.pi)
    ricker = (1 - 2 * phase**2) * np.exp(-(phase**2))
    wavelet = np.zeros(settings.steps)
    wavelet[: len(ricker)] = ricker[: settings.steps]
    return wavelet


def source_columns(columns: int, shots: int) -> NDArray[np.int64]:
    """Columns of the sources, int64[shot], from the first column to the last.

    >>> source_columns(70, 5).tolist(), source_columns(70, 1).tolist()
    ([0, 17, 34, 52, 69], [34])
    """
    if shots == 1:
        return np.array([(columns - 1) // 2])
    return np.rint(np.linspace(0, columns - 1, shots)).astype(np.int64)


class OpenFwiSimulator:
    """Records of velocity maps of one shape; safe to use from several threads.

    shape        rows and columns of the maps
    store_every  as in `ModellingSettings`; 1 gives the exact discrete gradient
    device       as in `Simulator`
    boundary     "sponge" as OpenFWI's records were made; "cpml" takes CPML_CELLS cells of C-PML in its place, which
                 absorb better: records differ by what the sponge lets return

    raises  DataError: depth_cells below the maps, a wavelet cut off before its peak
            ConfigError: device="cuda" without a GPU that can be used
            hpfwi_kernels.errors.StabilityError: a time step too long for 4500 m/s on such cells
    """

    def __init__(
        self,
        shape: tuple[int, int],
        settings: OpenFwiSettings | None = None,
        *,
        store_every: int | Literal["auto"] = "auto",
        device: Device = "auto",
        boundary: Literal["sponge", "cpml"] = "sponge",
    ) -> None:
        self.settings = settings = OpenFwiSettings() if settings is None else settings
        self.grid = Grid(shape, (settings.spacing_m, settings.spacing_m))
        if settings.depth_cells >= shape[0]:
            raise DataError(
                f"depth_cells={settings.depth_cells} lies below a map of {shape[0]} rows: use at most {shape[0] - 1}."
            )
        wavelet = openfwi_wavelet(settings)
        if wavelet.max() < 1.0:
            raise DataError(
                f"{settings.steps} steps of {settings.dt_s:g} s end before the peak of a wavelet of "
                f"{settings.peak_hz:g} Hz: record longer, or raise peak_hz."
            )
        # One more sample than is kept: the propagator's first is the field before any step.
        drive = np.append(wavelet, 0.0) * self.grid.cell_area_m2
        self._simulator = Simulator(
            self.grid,
            self._survey(),
            np.broadcast_to(drive, (settings.shots, 1, len(drive))).astype(np.float32),
            ModellingSettings(
                order=4,
                absorbing_cells=settings.absorbing_cells if boundary == "sponge" else CPML_CELLS,
                boundary=boundary,
                free_surface=False,
                substeps=1,
                store_every=store_every,
            ),
            FASTEST_MPS,
            SLOWEST_MPS,
            device=device,
        )

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver) of the records of one map."""
        return self.settings.shots, self.settings.samples, self.grid.shape[1]

    @property
    def updates(self) -> int:
        """Cells (sponge included) times steps of all shots of one map."""
        return self._simulator.updates_per_shot * self.settings.shots

    @property
    def physics(self) -> dict[str, Any]:
        """What a store of pairs says about its records: plain JSON values, SI units."""
        survey, settings = self._simulator.survey, self.settings
        return {
            "dx_m": settings.spacing_m,
            "dz_m": settings.spacing_m,
            "dt_s": settings.dt_s * settings.keep_every,
            "peak_hz": settings.peak_hz,
            "sources_m": survey.sources_m[:, 0].tolist(),
            "receivers_m": survey.receivers_m[0].tolist(),
            "records_unit": "Pa",
            "scheme": settings.model_dump(),
        }

    def predict(self, velocity: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
        """Records of one map, [shot, time, receiver] in Pa, differentiable in the velocity.

        velocity  float32 (or float64) [z, x], m/s
        threads   shots computed at the same time; the bits do not depend on it

        raises  as `Simulator.predict`
        """
        simulator = self._simulator.with_slowest(_slowest_mps(velocity))
        return self._recorded(simulator.predict(velocity, range(self.settings.shots), threads))

    def records(self, velocity: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """Records of one map float32[z, x] in m/s, float32[shot, time, receiver] in Pa; see `records_of`."""
        return self.records_of(velocity[None], threads=threads)[0]

    def predict_each(self, velocities: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
        """Records of several maps in one call, [map, shot, time, receiver] in Pa; no gradient is kept.

        velocities  float32 (or float64) [map, z, x], m/s; each has a sponge for its own slowest velocity
        threads     shots computed at the same time; the bits do not depend on it

        raises  as `Simulator.predict_each`
        """
        slowest = [_slowest_mps(velocity) for velocity in velocities]
        return self._recorded(self._simulator.predict_each(velocities, slowest, threads=threads))

    def records_of(self, velocities: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """Records of several maps float32[map, z, x] in m/s, float32[map, shot, time, receiver] in Pa.

        On the CPU the bits of a map are those of `records`, whatever the others. On a GPU one call takes as many maps
        as memory allows, and their number decides which kernels run.

        threads  shots computed at the same time on the CPU

        raises  as `Simulator.predict`
        """
        found = np.empty((len(velocities), *self.records_shape), np.float32)
        most = _maps_per_call(self._simulator.device, self._bytes_per_map)
        for first in range(0, len(velocities), most):
            maps = slice(first, first + most)
            velocity = torch.tensor(velocities[maps], dtype=torch.float32, device=self._simulator.device)
            with torch.no_grad():
                if len(velocity) == 1:  # a model that all shots share needs its coefficients once
                    records = self.predict(velocity[0], threads=threads)[None]
                else:
                    records = self.predict_each(velocity, threads=threads)
            torch.from_numpy(found[maps]).copy_(records)
        return found

    def _recorded(self, gathers: torch.Tensor) -> torch.Tensor:
        """[..., time, receiver] of gathers [..., receiver, time] that begin with the field before the first step."""
        return gathers[..., 1 :: self.settings.keep_every].transpose(-2, -1)

    @property
    def _bytes_per_map(self) -> int:
        survey = self._simulator.survey
        return forward_bytes(self.grid.shape, survey.shots, survey.samples, survey.receivers, self._simulator.scheme)

    def _survey(self) -> Survey:
        settings, grid = self.settings, self.grid
        sources = np.empty((settings.shots, 1, 2))
        sources[..., 0] = settings.depth_cells * settings.spacing_m
        sources[:, 0, 1] = source_columns(grid.shape[1], settings.shots) * settings.spacing_m
        receivers = np.empty((settings.shots, grid.shape[1], 2))
        receivers[..., 0] = settings.depth_cells * settings.spacing_m
        receivers[..., 1] = grid.distances_m()
        return Survey(sources, receivers, settings.dt_s, settings.steps + 1)


def _maps_per_call(device: torch.device, bytes_per_map: int) -> int:
    """Maps of one call: one on the CPU, which gains nothing by more; a GPU, which one leaves mostly idle, takes as many
    as its memory holds."""
    return 1 if device.type == "cpu" else max(1, budget_bytes(device) // bytes_per_map)


def _slowest_mps(velocity: torch.Tensor) -> float:
    """What the sponge of a map is made for; raises DataError where that is not above zero."""
    slowest = float(velocity.detach().min()) if velocity.numel() else 0.0
    if not slowest > 0:
        raise DataError(f"A velocity of {slowest:g} m/s cannot be modelled: every cell must be above zero.")
    return slowest
