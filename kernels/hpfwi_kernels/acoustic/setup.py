"""What both implementations need before the first time step: checks, coefficients, profiles, taps, resampling."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.absorbing import Profiles, cpml_profiles, largest_sponge_damping, sponge_damping
from hpfwi_kernels.acoustic.points import AXES, Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.errors import GeometryError, ModelError
from hpfwi_kernels.stability import require_stable, require_stable_sponge


@dataclass(frozen=True, eq=False)
class Taps:
    """The used taps of one shot's points in padded cells.

    point   int64[tap]     index of the point
    cell    int64[tap] for each axis: the cell of the padded model, as NumPy takes it for an index
    weight  float64[tap]
    """

    point: NDArray[np.int64]
    cell: tuple[NDArray[np.int64], ...]
    weight: NDArray[np.float64]

    @property
    def row(self) -> NDArray[np.int64]:
        """Index along the first axis, z."""
        return self.cell[0]

    @property
    def column(self) -> NDArray[np.int64]:
        """Index along the last axis, x."""
        return self.cell[-1]


@dataclass(frozen=True, eq=False)
class Setup:
    """One call's constants, in float64.

    velocity  float64[model, z, x] or [model, z, y, x]   padded, one model for all shots or one per shot
    factor    the same                                   c = v² dt², zero on the free surface
    profiles  C-PML profiles of every padded axis, None under a sponge
    damping   float64[z, x] or [z, y, x]                 of a sponge, by the velocity in m/s that it is made for
    """

    shape: tuple[int, ...]
    velocity: NDArray[np.float64]
    factor: NDArray[np.float64]
    profiles: tuple[Profiles, ...] | None
    damping: dict[float | None, NDArray[np.float64]]
    sources: list[Taps]
    receivers: list[Taps]

    @property
    def vertical(self) -> Profiles | None:
        """C-PML profiles along z, None under a sponge."""
        return self.profiles[0] if self.profiles else None

    @property
    def horizontal(self) -> Profiles | None:
        """C-PML profiles along x, None under a sponge."""
        return self.profiles[-1] if self.profiles else None


def prepare(velocity: NDArray, wavelet: NDArray, sources: Points, receivers: Points, scheme: Scheme) -> Setup:
    """Check the input and build what the time loop needs.

    velocity  [z, x] or [shot, z, x], in 3-D [z, y, x] or [shot, z, y, x], m/s     wavelet  [shot, source, time]
    raises    ModelError: NaN or wrong shapes; GeometryError: a shot without sources or receivers; StabilityError
    """
    require_shapes(velocity.shape, wavelet.shape, sources, receivers, scheme)
    _require_finite(velocity, wavelet)
    models = velocity.reshape(-1, *velocity.shape[-scheme.dimensions :])
    require_stable_steps(max(float(models.max()), -float(models.min())), scheme)
    # In place where it can be: touching fresh memory costs more than the arithmetic.
    padded = np.pad(models, ((0, 0), *scheme.widths), mode="edge").astype(np.float64, copy=False)
    factor = np.square(padded)
    factor *= scheme.inner_dt_s**2
    if scheme.free_surface:
        factor[:, 0] = 0.0
    shape = padded.shape[1:]
    shots = wavelet.shape[0]
    return Setup(
        shape=shape,
        velocity=padded,
        factor=factor,
        profiles=cpml_layers(scheme, shape),
        damping={made_for: sponge_layers(scheme, shape, made_for) for made_for in set(scheme.sponges_mps)},
        sources=[_taps(sources, shot, scheme, shape) for shot in range(shots)],
        receivers=[_taps(receivers, shot, scheme, shape) for shot in range(shots)],
    )


def require_stable_steps(max_velocity_mps: float, scheme: Scheme) -> None:
    """Raise StabilityError where the time step is too long for the interior, or for the sponge."""
    require_stable(max_velocity_mps, scheme.dt_s, scheme.spacing_m, scheme.order, scheme.substeps)
    if scheme.boundary == "sponge":
        damping = largest_sponge_damping(
            scheme.absorbing,
            spacing_m=scheme.spacing_m,
            dt_s=scheme.inner_dt_s,
            min_velocity_mps=max(scheme.sponges_mps),
        )
        require_stable_sponge(damping, scheme.inner_dt_s)


def cpml_layers(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Profiles, ...] | None:
    """The C-PML's profiles of every axis of a padded shape, None under a sponge."""
    if scheme.boundary == "sponge":
        return None
    return tuple(_cpml(scheme, axis, cells) for axis, cells in enumerate(shape))


def sponge_layers(scheme: Scheme, shape: tuple[int, ...], min_velocity_mps: float) -> NDArray[np.float64]:
    """The damping of the cells of a padded shape by a sponge that is made for that velocity."""
    return sponge_damping(
        shape,
        scheme.absorbing,
        spacing_m=scheme.spacing_m,
        dt_s=scheme.inner_dt_s,
        min_velocity_mps=min_velocity_mps,
    )


def require_fitting(
    record_gradient: NDArray, wavelet: NDArray, receivers: Points, stored: NDArray, scheme: Scheme
) -> None:
    """Raise ModelError unless a gradient of the records and the kept wavefields belong to this call."""
    shots, _, samples = wavelet.shape
    require_records(record_gradient, (shots, receivers.per_shot, samples))
    kept = (shots, scheme.stored_steps(samples))
    if stored.shape[:2] != kept:
        raise ModelError(
            f"The stored wavefields are of (shots, steps) = {stored.shape[:2]} and this scheme keeps {kept}; pass what "
            "forward returned for the same scheme."
        )


def require_records(record_gradient: NDArray, expected: tuple[int, int, int]) -> None:
    """Raise ModelError unless a gradient of the records has their shape."""
    if record_gradient.shape != expected:
        raise ModelError(f"record_gradient of shape {record_gradient.shape} must be {expected}, as the records are.")


def fold_edges(gradient: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """Transpose of padding by edge replication: float64[model, padded cells] to float64[model, the model's cells]."""
    for axis, (low, high) in enumerate(scheme.widths, start=1):
        lines = np.moveaxis(gradient, axis, 0)
        inside = lines[low : len(lines) - high].copy(order="K")
        inside[0] += lines[:low].sum(axis=0)
        inside[-1] += lines[len(lines) - high :].sum(axis=0)
        gradient = np.moveaxis(inside, 0, axis)
    return gradient


def upsample(signal: NDArray, substeps: int) -> NDArray:
    """Band-limited interpolation of [..., time] to `substeps` times as many samples, without the Nyquist component.

    In float64; with one substep the signal itself, in its own dtype.
    """
    if substeps == 1:
        return signal
    signal = np.asarray(signal, np.float64)
    samples = signal.shape[-1]
    spectrum = np.fft.rfft(signal)
    if samples % 2 == 0:
        spectrum[..., -1] = 0.0
    return np.fft.irfft(spectrum, samples * substeps) * substeps


def downsample(signal: NDArray, substeps: int) -> NDArray:
    """Low-pass [..., time] below the coarse Nyquist frequency and keep every `substeps`-th sample.

    In float64; with one substep the signal itself, in its own dtype.

    With upsample: ``downsample(upsample(x)) == x`` without its Nyquist component, and the transpose of one is the
    other times `substeps`.
    """
    if substeps == 1:
        return signal
    signal = np.asarray(signal, np.float64)
    samples = signal.shape[-1] // substeps
    spectrum = np.fft.rfft(signal)[..., : samples // 2 + 1]
    if samples % 2 == 0:
        spectrum[..., -1] = 0.0
    return np.fft.irfft(spectrum, samples) / substeps


def require_shapes(
    velocity: tuple[int, ...], wavelet: tuple[int, ...], sources: Points, receivers: Points, scheme: Scheme
) -> None:
    """Raise ModelError or GeometryError unless velocity and wavelet of these shapes fit each other and the points."""
    dimensions = scheme.dimensions
    axes = ", ".join(AXES[dimensions])
    if len(velocity) not in (dimensions, dimensions + 1):
        raise ModelError(f"velocity of shape {velocity} must be [{axes}] or [shot, {axes}].")
    if len(wavelet) != 3:
        raise ModelError(f"wavelet of shape {wavelet} must be [shot, source, time].")
    shots, per_shot, samples = wavelet
    if min(shots, per_shot, samples) < 1:
        raise ModelError(f"wavelet of shape {wavelet} holds nothing: it needs a shot, a source and a sample.")
    if len(velocity) > dimensions and velocity[0] != shots:
        raise ModelError(f"velocity holds {velocity[0]} models for {shots} shots; give one model, or one per shot.")
    if isinstance(scheme.min_velocity_mps, tuple) and scheme.boundary == "sponge":
        sponges, models = len(scheme.min_velocity_mps), velocity[0] if len(velocity) > dimensions else 0
        if sponges != models:
            raise ModelError(
                f"min_velocity_mps holds {sponges} values for a velocity of shape {velocity}; give one number, or one "
                f"for each model of [shot, {axes}]."
            )
    shape = velocity[-dimensions:]
    if min(shape) < 1:
        raise ModelError(f"velocity of shape {velocity} has no cells.")
    if scheme.free_surface and shape[0] < scheme.order:
        raise ModelError(
            f"A model of {shape[0]} rows is too thin for a free surface with order {scheme.order}; "
            f"give it at least {scheme.order} rows."
        )
    if sources.shots != shots or sources.per_shot != per_shot:
        raise GeometryError(
            f"The wavelet is for {shots} shots of {per_shot} sources, the geometry has {sources.shots} shots of "
            f"{sources.per_shot}."
        )
    if receivers.shots != shots:
        raise GeometryError(f"Receivers are given for {receivers.shots} shots, sources for {shots}.")
    for points, name in ((sources, "source"), (receivers, "receiver")):
        if points.shape != shape:
            raise GeometryError(
                f"The {name}s were placed in a model of {' x '.join(map(str, points.shape))} cells and velocity has "
                f"{' x '.join(map(str, shape))}; place them in the model that is used."
            )
        used = (points.weights != 0).any(axis=(1, 2))
        if not used.all():
            raise GeometryError(f"Shot {int(np.argmin(used))} has no {name}; drop the shot or give it one.")


def _require_finite(velocity: NDArray, wavelet: NDArray) -> None:
    if not np.isfinite(velocity).all():
        cell = np.argwhere(~np.isfinite(velocity))[0]
        raise ModelError(
            f"velocity is {velocity[tuple(cell)]} at cell {tuple(map(int, cell))}; it must be finite everywhere."
        )
    if not np.isfinite(wavelet).all():
        where = np.argwhere(~np.isfinite(wavelet))[0]
        raise ModelError(f"wavelet is {wavelet[tuple(where)]} at [shot, source, time] = {tuple(map(int, where))}.")


def _cpml(scheme: Scheme, axis: int, cells: int) -> Profiles:
    return cpml_profiles(
        cells,
        *scheme.widths[axis],
        spacing_m=scheme.spacing_m[axis],
        dt_s=scheme.inner_dt_s,
        order=scheme.order,
        max_velocity_mps=scheme.max_velocity_mps,
        pml_hz=scheme.pml_hz,
    )


def _taps(points: Points, shot: int, scheme: Scheme, shape: tuple[int, ...]) -> Taps:
    cells = points.cells[shot] + np.array(scheme.absorbing[::2])
    inside = ((cells >= 0) & (cells < np.array(shape))).all(axis=-1)
    used = (points.weights[shot] != 0) & inside
    point, tap = np.nonzero(used)
    return Taps(point, tuple(cells[point, tap].T), points.weights[shot][point, tap])
