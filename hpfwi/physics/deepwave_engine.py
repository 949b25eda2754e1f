"""The second engine: deepwave, for the physics that hpfwi's own propagator has not.

The unknown stays the P velocity. What else the earth has follows from it or is fixed (`Medium`), so a gradient with
respect to the velocity, by deepwave's own autograd, holds every way in which the velocity enters.

Sources mean what they mean elsewhere in hpfwi: f in (1/v²) u_tt = ∇²u + f, in Pa/m², for a medium whose density is
constant around the source. deepwave's staggered propagators take a volume rate (f = ρ ∂s/∂t) or a pressure rate (times
the bulk modulus ρv²), so their amplitudes are the running sum S of Δt f, taken as S/ρ or v²S at the source's cells.
The sum acts half a time step after the pressure is recorded, which makes the leap-frog step of pressure and particle
velocity the same as the second-order step of the pressure alone: at order 2 and constant density, both engines compute
the same numbers outside the absorbing layers.

Wavelet and records are resampled here, so that deepwave is called with a time step that it has no need to split.

Threads: one call takes all of its shots, and deepwave spreads the cells of a time step over torch's threads. Bits do
not depend on their number. hpfwi's workers keep torch on one thread and compute several items side by side instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import NumericsError
from hpfwi.physics.medium import LEAST_VP_VS, Medium

if TYPE_CHECKING:
    from hpfwi.physics.modelling_settings import ModellingSettings


class Taps(Protocol):
    """Weighted cells of every point: cells int64[shot, point, tap, 2], weights float64[shot, point, tap]."""

    @property
    def cells(self) -> NDArray[np.int64]: ...

    @property
    def weights(self) -> NDArray[np.float64]: ...


class Discretisation(Protocol):
    """What a call needs to know of the scheme; see `hpfwi_kernels.acoustic.Scheme`."""

    @property
    def spacing_m(self) -> tuple[float, ...]: ...

    @property
    def order(self) -> int: ...

    @property
    def absorbing(self) -> tuple[int, ...]: ...

    @property
    def free_surface(self) -> bool: ...

    @property
    def pml_hz(self) -> float: ...

    @property
    def max_velocity_mps(self) -> float: ...

    @property
    def substeps(self) -> int: ...

    @property
    def store_every(self) -> int: ...

    @property
    def inner_dt_s(self) -> float: ...


def unsupported(settings: ModellingSettings) -> str | None:
    """Why these settings cannot be used together, one sentence, or None."""
    if settings.engine == "hpfwi":
        if settings.physics != "acoustic":
            return f'physics="{settings.physics}" is beyond hpfwi\'s own propagator: use engine="deepwave" for it.'
        return None
    if settings.boundary != "cpml":
        return f'boundary="{settings.boundary}" is not in deepwave: use boundary="cpml", or engine="hpfwi".'
    if settings.memory not in ("auto", "store"):
        return (
            f'memory="{settings.memory}" is not available with engine="deepwave", which keeps its wavefields: use '
            'memory="auto" or "store", and a larger store_every or fewer inversion.shots_per_item to need less.'
        )
    cells = settings.absorbing_cells
    widths = settings.widths(2 if isinstance(cells, int) else len(cells) // 2)
    if 0 in (widths[1:] if settings.free_surface else widths):
        return (
            f"absorbing_cells={list(widths)} leaves a side without a layer, where the walls of deepwave "
            'differ from hpfwi\'s: give every side but a free surface 1 cell at least, or use engine="hpfwi".'
        )
    return None


def courant_limit(medium: Medium, order: int, min_velocity_mps: float | None, max_velocity_mps: float) -> float:
    """Largest stable Courant number of the medium's fastest wave, for models between two velocities.

    On a staggered grid the density between two cells is their mean, so a stiff cell beside a light one is as fast as
    √(ρmax/ρmin) times its own velocity at most. For elastic media deepwave's own check bounds the stiffness further by
    λ + 2μ + |λ|, which is up to twice ρv².

    raises  ConfigError: the density follows the velocity and there is no lowest velocity
    """
    import deepwave

    limit = float(deepwave.discretisation.critical_courant_number(order, propagator=_propagator(medium)))
    if medium.physics == "acoustic":
        return limit
    contrast = medium.density_contrast(min_velocity_mps, max_velocity_mps)
    if medium.physics == "elastic":
        share = 0.0 if medium.shear is not None else medium.vp_vs_ratio**-2
        contrast *= max(2 * (1 - share), 2 * share)
    return limit / math.sqrt(contrast) * (1 - 1e-6)  # deepwave's own check rounds


def histories(medium: Medium) -> int:
    """Wavefields that deepwave keeps of a snapshot: one for every derivative that meets the gradient of a model."""
    follows = medium.density is None
    match medium.physics:
        case "acoustic":
            return 1
        case "variable-density":
            return 3 if follows else 1
        case "viscoacoustic":
            return 4 if follows else 2
    return 2 + (1 if follows or medium.shear is None else 0) + (2 if follows else 0)


def described(medium: Medium) -> str:
    """The propagator and what it is given, in words."""
    density = "density from the velocity by Gardner's relation" if medium.density is None else "density as given"
    match medium.physics:
        case "acoustic":
            return "deepwave.scalar, constant density"
        case "variable-density":
            return f"deepwave.acoustic, {density}"
        case "viscoacoustic":
            return f"deepwave.viscoacoustic, {density}, velocity and quality factor at {medium.reference_hz:.3g} Hz"
    shear = "shear as given" if medium.shear is not None else f"P velocity {medium.vp_vs_ratio:.4g} times the shear's"
    return f"deepwave.elastic, {density}, {shear}; records are minus the mean of the two normal stresses"


def _propagator(medium: Medium) -> Callable[..., Any]:
    import deepwave

    match medium.physics:
        case "acoustic":
            return deepwave.scalar
        case "variable-density":
            return deepwave.acoustic
        case "viscoacoustic":
            return deepwave.viscoacoustic
    return deepwave.elastic


class DeepwaveEngine:
    """deepwave for one grid, scheme and survey; nothing changes after construction.

    shape      rows and columns of the velocity
    sources, receivers  of the whole survey: a point between cells near an edge reaches over it, and the model is then
               continued by as many cells before the absorbing layer begins
    """

    def __init__(self, medium: Medium, scheme: Discretisation, shape: tuple[int, ...], *points: Taps) -> None:
        self.medium = medium
        self._scheme = scheme
        cells = np.concatenate([taps.cells[taps.weights != 0] for taps in points])
        low, high = np.minimum(cells.min(axis=0), 0), np.maximum(cells.max(axis=0) - np.array(shape) + 1, 0)
        self._beyond = (int(-low[0]), int(high[0]), int(-low[1]), int(high[1]))

    def predict(self, velocity: torch.Tensor, wavelet: torch.Tensor, sources: Taps, receivers: Taps) -> torch.Tensor:
        """Gathers [shot, receiver, time] in Pa, differentiable in the velocity.

        velocity  float32 or float64 [z, x], m/s
        wavelet   float64[shot, source, time], f of the module's equation in Pa/m²

        raises  NumericsError: a velocity that is not positive and finite or too high for the time step, shear waves as
                fast as P waves, records that are not finite
        """
        import deepwave

        scheme, medium = self._scheme, self.medium
        self._check(velocity)
        samples = wavelet.shape[-1]
        steps = samples * scheme.substeps
        places, amounts = self._placed(sources)
        amplitudes = torch.from_numpy(amounts).transpose(1, 2) @ _upsampled(wavelet, scheme.substeps)
        # deepwave.scalar has its source on the left-hand side; the others take the running sum.
        amplitudes = -amplitudes if medium.physics == "acoustic" else scheme.inner_dt_s * amplitudes.cumsum(-1)
        # deepwave samples whole intervals only; what comes after the last sample is cut off again.
        padded = -(-steps // scheme.store_every) * scheme.store_every
        amplitudes = torch.nn.functional.pad(amplitudes, (0, padded - steps)).to(velocity.dtype)
        spots, weights = self._placed(receivers)
        try:
            out = self._propagated(velocity, amplitudes, places, spots)
        except deepwave.DeepwaveError as error:
            raise NumericsError(f"deepwave cannot compute this: {' '.join(str(error).split())}") from error
        gathers = torch.from_numpy(weights).to(velocity.dtype) @ out[..., :steps]
        return _downsampled(gathers, scheme.substeps)

    def _propagated(
        self, velocity: torch.Tensor, amplitudes: torch.Tensor, places: torch.Tensor, spots: torch.Tensor
    ) -> torch.Tensor:
        """Pressure [shot, cell, time step] at `spots` from sources at `places`, both int64[shot, cell, 2]."""
        import deepwave

        scheme, medium = self._scheme, self.medium
        surface = scheme.free_surface
        top, bottom, left, right = scheme.absorbing
        dt_s = scheme.inner_dt_s
        fastest_mps = medium.fastest_mps(scheme.max_velocity_mps)
        courant = fastest_mps * dt_s * math.sqrt(sum(1 / step**2 for step in scheme.spacing_m))
        common: dict[str, Any] = {
            "grid_spacing": list(scheme.spacing_m),
            "dt": dt_s,
            "accuracy": scheme.order,
            "pml_width": [top, bottom, left, right],
            "boundary": ["free" if surface else "pml", "pml", "pml", "pml"],
            "pml_freq": scheme.pml_hz,
            "max_vel": fastest_mps,
            "courant_number": courant * (1 + 1e-9),
            "model_gradient_sampling_interval": scheme.store_every,
        }
        model = self._continued(velocity)
        if medium.physics == "acoustic":
            # The free surface of deepwave.scalar lies one cell above its first row, ours on the first row.
            shift = 1 if surface else 0
            return deepwave.scalar(
                model[shift:],
                **common,
                source_amplitudes=amplitudes,
                source_locations=_moved(places, -shift),
                receiver_locations=_moved(spots, -shift),
            ).receiver_amplitudes
        density = self._continued(medium.density_of(velocity).expand(velocity.shape))
        if medium.physics == "variable-density":
            return deepwave.acoustic(
                model,
                density,
                **common,
                source_amplitudes_volume_rate=amplitudes / _at(density, places),
                source_locations_volume_rate=places,
                receiver_locations_p=spots,
            ).receiver_amplitudes_p
        pressure_rate = amplitudes * _at(model, places) ** 2
        if medium.physics == "viscoacoustic":
            assert medium.quality is not None
            return deepwave.viscoacoustic(
                model * self._continued(medium.relaxed().to(model.dtype)),
                density,
                self._continued(medium.quality.to(model.dtype)),
                **common,
                q_freq=medium.reference_hz,
                source_amplitudes_pressure_rate=pressure_rate,
                source_locations_pressure_rate=places,
                receiver_locations_p=spots,
            ).receiver_amplitudes_p
        stiffness = density * self._continued(medium.shear_of(velocity)) ** 2
        models = [density * model**2 - 2 * stiffness, stiffness, 1 / density]
        above = 0
        if surface:
            # The stress-free surface of the parameter-modified method lies on the first row below a vacuum.
            above = scheme.order // 2
            models = [torch.nn.functional.pad(each, (0, 0, above, 0)) for each in models]
            common |= {"pml_width": [1, bottom, left, right], "boundary": None, "surface_method": "pm"}
        return deepwave.elastic(
            *models,
            **common,
            source_amplitudes_pressure_rate=pressure_rate,
            source_locations_pressure_rate=_moved(places, above),
            receiver_locations_p=_moved(spots, above),
        ).receiver_amplitudes_p

    def _check(self, velocity: torch.Tensor) -> None:
        with torch.no_grad():
            lowest, highest = (float(value) for value in velocity.aminmax())
            if not (lowest > 0 and math.isfinite(highest)):
                raise NumericsError(
                    f"The velocity reaches {lowest:g} to {highest:g} m/s: it must be positive and finite."
                )
            limit = self._scheme.max_velocity_mps
            if highest > limit * (1 + 1e-6):
                raise NumericsError(
                    f"The velocity reaches {highest:g} m/s, above the {limit:g} m/s that the time step is made for: "
                    "raise max_velocity_mps (model.bounds_mps), or limit the velocity."
                )
            if self.medium.physics == "elastic":
                ratio = float((velocity / self.medium.shear_of(velocity)).min())
                if ratio <= LEAST_VP_VS:
                    raise NumericsError(
                        f"The P velocity falls to {ratio:.3g} times the shear velocity, and a solid needs more than "
                        f"{LEAST_VP_VS:.4g}: raise the lower end of model.bounds_mps, or lower the shear velocity."
                    )

    def _continued(self, field: torch.Tensor) -> torch.Tensor:
        """The field [z, x] with its edge values repeated over the cells that points near an edge reach."""
        top, bottom, left, right = self._beyond
        if self._beyond == (0, 0, 0, 0):
            return field
        return torch.nn.functional.pad(field[None, None], (left, right, top, bottom), mode="replicate")[0, 0]

    def _placed(self, points: Taps) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Cells int64[shot, cell, 2] of the continued model, each once, and what every point has of each of them.

        The second array is float64[shot, point, cell]. Cells on a free surface are left out, as pressure is zero there.
        """
        import deepwave

        shots, per_shot = points.weights.shape[:2]
        chosen: list[tuple[NDArray, NDArray, NDArray, NDArray]] = []
        for cells, weights in zip(points.cells, points.weights, strict=True):
            used = weights != 0
            if self._scheme.free_surface:
                used &= cells[..., 0] > 0
            unique, inverse = np.unique(cells[used], axis=0, return_inverse=True)
            chosen.append((unique, inverse.reshape(-1), np.nonzero(used)[0], weights[used]))
        most = max(1, *(len(unique) for unique, *_ in chosen))
        places = np.full((shots, most, 2), deepwave.IGNORE_LOCATION, dtype=np.int64)
        amounts = np.zeros((shots, per_shot, most))
        offset = np.array([self._beyond[0], self._beyond[2]])
        for shot, (unique, inverse, point, weight) in enumerate(chosen):
            places[shot, : len(unique)] = unique + offset
            np.add.at(amounts[shot], (point, inverse), weight)
        return torch.from_numpy(places), amounts


def _moved(places: torch.Tensor, rows: int) -> torch.Tensor:
    """Cells [..., 2] moved down by some rows; those to be ignored stay as they are."""
    import deepwave

    return torch.where(places == deepwave.IGNORE_LOCATION, places, places + torch.tensor([rows, 0]))


def _at(field: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The field [z, x] at cells [shot, cell, 2], as [shot, cell, 1]; ignored cells take that of a corner."""
    import deepwave

    inside = torch.where(places == deepwave.IGNORE_LOCATION, torch.zeros_like(places), places)
    return field[inside[..., 0], inside[..., 1]][..., None]


def _upsampled(signal: torch.Tensor, substeps: int) -> torch.Tensor:
    """Band-limited interpolation of [..., time] to `substeps` times as many samples, without the Nyquist component."""
    if substeps == 1:
        return signal
    samples = signal.shape[-1]
    spectrum = torch.fft.rfft(signal)[..., : (samples + 1) // 2]
    return torch.fft.irfft(spectrum, samples * substeps) * substeps


def _downsampled(signal: torch.Tensor, substeps: int) -> torch.Tensor:
    """Every `substeps`-th sample of [..., time] after a low pass below the coarse Nyquist frequency; same dtype."""
    if substeps == 1:
        return signal
    samples = signal.shape[-1] // substeps
    spectrum = torch.fft.rfft(signal.double())[..., : (samples + 1) // 2]
    return (torch.fft.irfft(spectrum, samples) / substeps).to(signal.dtype)


def least_substeps(courant: float, limit: float) -> int:
    """Fewest time steps per sample that bring a Courant number below its limit.

    >>> least_substeps(1.0, 0.5), least_substeps(1.1, 0.5), least_substeps(0.2, 0.5)
    (2, 3, 1)
    """
    return max(1, math.ceil(courant / limit - 1e-9))
