"""The definition of the op: plain NumPy in float64, one statement per equation of the README, no attempt at speed."""

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import Setup, Taps, downsample, fold_edges, prepare, require_fitting, upsample
from hpfwi_kernels.stencils import first_derivative, second_derivative


def forward(
    velocity: NDArray,
    wavelet: NDArray,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    *,
    store: bool,
    threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Record pressure at the receivers of every shot.

    velocity   [z, x] or [shot, z, x], in 3-D [z, y, x] or [shot, z, y, x], m/s
    wavelet    [shot, source, time], Pa/m²
    store      also keep what `gradient` needs      threads   accepted for the common signature; one is used
    returns    float64[shot, receiver, time] in Pa, and float64[shot, step, padded cells] or None
    raises     ModelError, GeometryError, StabilityError before any work
    """
    setup = prepare(velocity, wavelet, sources, receivers, scheme)
    drive = upsample(wavelet, scheme.substeps)
    shots, _, steps = drive.shape
    records = buffers.empty((shots, receivers.per_shot, steps), np.float64)
    stored = buffers.empty((shots, -(-steps // scheme.store_every), *setup.shape), np.float64) if store else None
    for shot in range(shots):
        _march(setup, scheme, shot, drive[shot], records[shot], None if stored is None else stored[shot])
    return downsample(records, scheme.substeps), stored


def gradient(
    velocity: NDArray,
    wavelet: NDArray,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    stored: NDArray[np.float64],
    record_gradient: NDArray,
    *,
    threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Apply the transpose of forward's derivative to a gradient with respect to the records.

    stored           what forward kept           record_gradient   [shot, receiver, time]
    returns          gradients with respect to velocity and wavelet, in their shapes, float64
    """
    setup = prepare(velocity, wavelet, sources, receivers, scheme)
    require_fitting(record_gradient, wavelet, receivers, stored, scheme)
    drive = upsample(wavelet, scheme.substeps)
    residual = upsample(record_gradient, scheme.substeps) / scheme.substeps
    shots, _, steps = drive.shape
    per_model = np.zeros_like(setup.factor)
    drive_gradient = buffers.empty(drive.shape, np.float64)
    for shot in range(shots):
        model = shot if setup.factor.shape[0] > 1 else 0
        per_model[model] += _march_back(
            setup, scheme, shot, drive[shot], residual[shot], stored[shot], drive_gradient[shot], steps
        )
    scale = np.divide(2.0, setup.velocity, out=np.zeros_like(setup.velocity), where=setup.velocity != 0)
    velocity_gradient = fold_edges(per_model * scale, scheme).reshape(velocity.shape)
    return velocity_gradient, downsample(drive_gradient, scheme.substeps) * scheme.substeps


class _Differences:
    """D1 and D2 of arrays with a guard of R cells on every side; results cover the cells inside the guard."""

    def __init__(self, scheme: Scheme) -> None:
        self.radius = scheme.radius
        self.spacing = scheme.spacing_m
        self.first_weights = first_derivative(scheme.order)
        self.second_weights = second_derivative(scheme.order)

    def _shift(self, field: NDArray[np.float64], axis: int, distance: int) -> NDArray[np.float64]:
        guard = self.radius
        window = [slice(guard, size - guard) for size in field.shape]
        window[axis] = slice(guard + distance, field.shape[axis] - guard + distance)
        return field[tuple(window)]

    def first(self, field: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        total = sum(
            weight * (self._shift(field, axis, m) - self._shift(field, axis, -m))
            for m, weight in enumerate(self.first_weights, start=1)
        )
        return np.asarray(total) / self.spacing[axis]

    def second(self, field: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        total = self.second_weights[0] * self._shift(field, axis, 0) + sum(
            weight * (self._shift(field, axis, m) + self._shift(field, axis, -m))
            for m, weight in enumerate(self.second_weights[1:], start=1)
        )
        return np.asarray(total) / self.spacing[axis] ** 2

    def laplacian(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sum(self.second(field, axis) for axis in range(field.ndim)))


def _guarded(inner: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """The array inside a guard of R zero cells; above a free surface the guard is the odd image. A 2-D sponge
    without a free surface is periodic."""
    guard = scheme.radius
    # OpenFWI's code is two-dimensional, and its records are why the sponge exists.
    if scheme.boundary == "sponge" and not scheme.free_surface and inner.ndim == 2:
        return np.pad(inner, guard, mode="wrap")
    field = np.pad(inner, guard)
    if scheme.free_surface:
        field[:guard] = -field[2 * guard : guard : -1]
    return field


def _axes(setup: Setup) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Axis, a, b and b' of every axis with a C-PML, the profiles shaped to broadcast over the padded cells."""
    axes = []
    for axis, profiles in enumerate(setup.profiles or ()):
        shape = [-1 if other == axis else 1 for other in range(len(setup.shape))]
        a, b, slope = (part.reshape(shape) for part in (profiles.decay, profiles.gain, profiles.slope))
        axes.append((axis, a, b, slope))
    return axes


def _sample(field: NDArray[np.float64], taps: Taps, out: NDArray[np.float64]) -> None:
    out[:] = 0.0
    np.add.at(out, taps.point, taps.weight * field[taps.cell])


def _march(
    setup: Setup,
    scheme: Scheme,
    shot: int,
    drive: NDArray[np.float64],
    records: NDArray[np.float64],
    stored: NDArray[np.float64] | None,
) -> None:
    differences = _Differences(scheme)
    factor = setup.factor[shot if setup.factor.shape[0] > 1 else 0]
    source, receiver = setup.sources[shot], setup.receivers[shot]
    damping = setup.damping.get(scheme.sponge_mps(shot))
    axes = _axes(setup)
    now = np.zeros(setup.shape)
    before = np.zeros(setup.shape)
    psi = [np.zeros(setup.shape) for _ in axes]
    zeta = [np.zeros(setup.shape) for _ in axes]
    for step in range(drive.shape[1]):
        _sample(now, receiver, records[:, step])
        field = _guarded(now, scheme)
        bracket = np.zeros(setup.shape) if damping is None else differences.laplacian(field)
        for k, (axis, a, b, slope) in enumerate(axes):
            q = differences.first(field, axis)
            t = (1 + b) * differences.second(field, axis) + slope * q
            t += differences.first(np.pad(a * psi[k], scheme.radius), axis)
            bracket += (1 + b) * t + a * zeta[k]
            psi[k] = b * q + a * psi[k]
            zeta[k] = b * t + a * zeta[k]
        if stored is not None and step % scheme.store_every == 0:
            stored[step // scheme.store_every] = bracket
        np.add.at(bracket, source.cell, source.weight * drive[source.point, step])
        after = factor * bracket + (2 * now - before)
        if damping is not None:
            after -= damping * (now - before)
        now, before = after, now


def _march_back(
    setup: Setup,
    scheme: Scheme,
    shot: int,
    drive: NDArray[np.float64],
    residual: NDArray[np.float64],
    stored: NDArray[np.float64],
    drive_gradient: NDArray[np.float64],
    steps: int,
) -> NDArray[np.float64]:
    """Sum over time of mu w on the padded cells; dL/dv is 2/v times that. Fills the gradient of the inner wavelet."""
    differences = _Differences(scheme)
    factor = setup.factor[shot if setup.factor.shape[0] > 1 else 0]
    source, receiver = setup.sources[shot], setup.receivers[shot]
    damping = setup.damping.get(scheme.sponge_mps(shot))
    axes = _axes(setup)
    mu = np.zeros(setup.shape)
    after = np.zeros(setup.shape)
    p = [np.zeros(setup.shape) for _ in axes]
    z = [np.zeros(setup.shape) for _ in axes]
    total = np.zeros(setup.shape)
    for step in reversed(range(steps)):
        _sample(mu, source, drive_gradient[:, step])
        np.add.at(total, source.cell, source.weight * mu[source.cell] * drive[source.point, step])
        if step % scheme.store_every == 0:
            total += scheme.store_every * mu * stored[step // scheme.store_every]
        field = _guarded(mu, scheme)
        bracket = np.zeros(setup.shape) if damping is None else differences.laplacian(field)
        for k, (axis, a, b, slope) in enumerate(axes):
            t = (1 + b) * mu + b * z[k]
            bracket += differences.second(_guarded((1 + b) * t, scheme), axis)
            bracket -= differences.first(np.pad(slope * t + b * p[k], scheme.radius), axis)
            p[k] = a * (p[k] - differences.first(_guarded(t, scheme), axis))
            z[k] = a * (mu + z[k])
        before = factor * bracket + (2 * mu - after)
        if damping is not None:
            before -= damping * (mu - after)
        at = receiver.cell
        np.add.at(before, at, factor[at] * receiver.weight * residual[receiver.point, step])
        mu, after = before, mu
    return total
