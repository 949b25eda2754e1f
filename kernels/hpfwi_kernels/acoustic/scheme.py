"""What a propagation is computed with: spacing, time step, order, boundaries."""

import math
from dataclasses import dataclass
from typing import Literal

from hpfwi_kernels.errors import ModelError
from hpfwi_kernels.stencils import require_order

# Number and names of the sides of a model, by its dimensions.
SIDES = {2: ("four", "top, bottom, left, right"), 3: ("six", "top, bottom, front, back, left, right")}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Discretisation of the scalar wave equation in two or three dimensions; frozen, checked on construction.

    Raises ModelError with the value, the limit and the remedy when a setting makes no sense.
    """

    spacing_m: tuple[float, ...]
    """Cell size (dz, dx) or (dz, dy, dx) in m; how many there are is the number of dimensions."""
    dt_s: float
    """Sample interval of wavelet and records in s; the inner time step is dt_s / substeps."""
    order: int
    """Spatial order: 2, 4, 6 or 8."""
    absorbing: tuple[int, ...]
    """Width of the absorbing layer in cells: top, bottom, left, right; in 3-D top, bottom, front (low y), back,
    left, right. A side of width 0 reflects (u = 0 outside)."""
    boundary: Literal["cpml", "sponge"]
    """What absorbs: the convolutional PML, or the sponge OpenFWI's records were made with."""
    free_surface: bool
    """Pressure is zero on the model's first row and odd about it; the top width must then be 0."""
    pml_hz: float
    """Frequency in Hz that sets the C-PML's complex frequency shift; the wavelet's peak is a good value."""
    max_velocity_mps: float
    """Velocity in m/s that sets the C-PML's strength; fix it for a run, or the layer changes with the model."""
    min_velocity_mps: float | tuple[float, ...] | None = None
    """Velocity in m/s that sets the sponge's strength, or one for each model where every shot has its own; used by
    boundary "sponge" alone."""
    substeps: int = 1
    """Inner time steps per sample; wavelet and records are resampled by band-limited interpolation."""
    store_every: int = 1
    """Every how many inner steps enter the velocity gradient; 1 is the exact discrete gradient."""

    def __post_init__(self) -> None:
        require_order(self.order)
        if len(self.spacing_m) not in SIDES:
            raise ModelError(f"spacing_m={self.spacing_m} must be the cell size (dz, dx) or (dz, dy, dx) in m.")
        for name, value in (
            *((f"spacing_m[{axis}]", size) for axis, size in enumerate(self.spacing_m)),
            ("dt_s", self.dt_s),
            ("max_velocity_mps", self.max_velocity_mps),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ModelError(f"{name}={value!r} must be a positive number.")
        how_many, sides = SIDES[len(self.spacing_m)]
        if len(self.absorbing) != 2 * len(self.spacing_m) or min(self.absorbing) < 0:
            raise ModelError(f"absorbing={self.absorbing} must be {how_many} widths in cells ({sides}), none below 0.")
        if self.boundary not in ("cpml", "sponge"):
            raise ModelError(f'boundary="{self.boundary}" is not available; use "cpml" or "sponge".')
        if self.free_surface and self.absorbing[0] != 0:
            raise ModelError(
                f"absorbing={self.absorbing} has a top layer of {self.absorbing[0]} cells above a free surface; "
                "set the top width to 0, or free_surface to false."
            )
        if not (math.isfinite(self.pml_hz) and self.pml_hz >= 0):
            raise ModelError(f"pml_hz={self.pml_hz!r} must be a frequency of at least 0 Hz.")
        if self.boundary == "sponge":
            for model, made_for in enumerate(self.sponges_mps or (None,)):
                if made_for is None or not made_for > 0:
                    which = f"[{model}]" if isinstance(self.min_velocity_mps, tuple) else ""
                    raise ModelError(
                        f"min_velocity_mps{which}={made_for} must be positive: the sponge is scaled by it."
                    )
        for name, count in (("substeps", self.substeps), ("store_every", self.store_every)):
            if count < 1 or count != int(count):
                raise ModelError(f"{name}={count!r} must be a whole number of at least 1.")

    @property
    def dimensions(self) -> int:
        """2 for models [z, x], 3 for models [z, y, x]."""
        return len(self.spacing_m)

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Width of the absorbing layer at the low and the high end of every axis, in cells."""
        return tuple(zip(self.absorbing[::2], self.absorbing[1::2], strict=True))

    @property
    def radius(self) -> int:
        """Reach of the stencil in cells."""
        return self.order // 2

    @property
    def sponges_mps(self) -> tuple[float, ...]:
        """Velocities in m/s that sponges are made for: one for all shots or one for each, none with a C-PML."""
        given = self.min_velocity_mps if self.boundary == "sponge" else None
        if given is None:
            return ()
        return given if isinstance(given, tuple) else (given,)

    def sponge_mps(self, shot: int) -> float | None:
        """Velocity in m/s that the sponge of a shot is made for, None with a C-PML."""
        made_for = self.sponges_mps
        return made_for[shot if len(made_for) > 1 else 0] if made_for else None

    @property
    def inner_dt_s(self) -> float:
        """Time step of the recursion in s."""
        return self.dt_s / self.substeps

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Cells of a model of that shape together with its absorbing layers."""
        return tuple(cells + low + high for cells, (low, high) in zip(shape, self.widths, strict=True))

    def stored_steps(self, samples: int) -> int:
        """Number of wavefields kept for the velocity gradient of a record of that many samples."""
        return -(-(samples * self.substeps) // self.store_every)
