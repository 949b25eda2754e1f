"""The Numba implementation, float32 or float64: shots in parallel on threads, each time loop compiled as a whole."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.absorbing import Profiles
from hpfwi_kernels.acoustic import loops
from hpfwi_kernels.acoustic.layout import Layout, aligned
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import Setup, Taps, downsample, fold_edges, prepare, require_fitting, upsample
from hpfwi_kernels.errors import ModelError
from hpfwi_kernels.stencils import first_derivative, rounded_second_derivative


def forward(
    velocity: NDArray,
    wavelet: NDArray,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    *,
    store: bool,
    threads: int = 1,
    pool: buffers.Pool | None = None,
) -> tuple[NDArray, NDArray | None]:
    """Record pressure at the receivers of every shot, in the dtype of velocity.

    velocity   float32 or float64 [z, x] or [shot, z, x], m/s          wavelet   [shot, source, time], Pa/m²
    store      also keep what `gradient` needs                         threads   shots run at the same time
    pool       lends the large buffers; None takes fresh memory
    returns    [shot, receiver, time] in Pa, and [shot, step, cell] (this module's own layout) or None
    raises     ModelError, GeometryError, StabilityError before any work
    """
    setup = prepare(velocity, wavelet, sources, receivers, scheme)
    constants = _constants(setup, scheme, _field_dtype(velocity))
    layout, dtype = constants.layout, constants.dtype
    drive = upsample(wavelet, scheme.substeps).astype(dtype)
    shots, _, steps = drive.shape
    records = buffers.empty((shots, steps, receivers.per_shot), dtype)
    slots = -(-steps // scheme.store_every)
    kept = (shots, slots, layout.rows * layout.width) if store else (1, 1, 1)
    stored = aligned(math.prod(kept), dtype, pool=pool).reshape(kept)
    strips = constants.strips(scheme, reach=1)

    def run(shot: int, workspace: list[NDArray]) -> None:
        u, v, *memory = workspace
        loops.march(
            u, v, constants.factor_of(setup, shot), constants.damping, *memory, *constants.profiles, *strips,
            *constants.stencil, setup.damping is not None, scheme.free_surface,
            *constants.taps(setup.sources[shot]), drive[shot], *constants.taps(setup.receivers[shot]), records[shot],
            stored[shot if store else 0], store, scheme.store_every, np.uint64(layout.width),
        )  # fmt: skip

    _each_shot(run, shots, threads, lambda: _fields([layout.size] * 8, dtype, pool))
    records = np.ascontiguousarray(downsample(records.transpose(0, 2, 1), scheme.substeps), dtype)
    return records, stored if store else None


def gradient(
    velocity: NDArray,
    wavelet: NDArray,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    stored: NDArray,
    record_gradient: NDArray,
    *,
    threads: int = 1,
    pool: buffers.Pool | None = None,
) -> tuple[NDArray, NDArray]:
    """Apply the transpose of forward's derivative to a gradient with respect to the records.

    stored    what forward kept                record_gradient   [shot, receiver, time]
    returns   gradients with respect to velocity and wavelet, in their shapes and velocity's dtype

    Each shot is summed on its own and shots are added in order in float64: the bits do not depend on `threads`.
    """
    setup = prepare(velocity, wavelet, sources, receivers, scheme)
    require_fitting(record_gradient, wavelet, receivers, stored, scheme)
    constants = _constants(setup, scheme, _field_dtype(velocity))
    layout, dtype = constants.layout, constants.dtype
    drive = upsample(wavelet, scheme.substeps).astype(dtype)
    residual = upsample(record_gradient, scheme.substeps) / scheme.substeps
    residual = np.ascontiguousarray(residual.transpose(0, 2, 1), dtype)
    shots = drive.shape[0]
    drive_gradient = buffers.empty(drive.shape, dtype)
    per_shot = buffers.empty((shots, *setup.shape), np.float64)
    strips = constants.strips(scheme, reach=2)

    def run(shot: int, workspace: list[NDArray]) -> None:
        mu, v, p_x, z_x, p_z, z_z, *scratch, total = workspace
        source = setup.sources[shot]
        product = buffers.empty((source.weight.size, drive.shape[2]), dtype)
        loops.march_back(
            mu, v, constants.factor_of(setup, shot), constants.damping, p_x, z_x, p_z, z_z, *constants.profiles,
            *scratch, *strips, *constants.stencil, setup.damping is not None, scheme.free_surface,
            *constants.taps(source), product, drive_gradient[shot],
            *constants.taps(setup.receivers[shot]), residual[shot],
            stored[shot], scheme.store_every, np.uint64(layout.width), total,
        )  # fmt: skip
        per_shot[shot] = layout.inner(total).astype(np.float64) * scheme.store_every
        # The wavelet acts inside the bracket that c multiplies, at every step whatever store_every is.
        own = (product.astype(np.float64) * drive[shot][source.point]).sum(axis=1)
        np.add.at(per_shot[shot], (source.row, source.column), own)

    _each_shot(run, shots, threads, lambda: _fields([layout.size] * 10, dtype, pool))
    per_model = per_shot if velocity.ndim == 3 else _sum_in_order(per_shot)
    scale = np.divide(2.0, setup.velocity, out=np.zeros_like(setup.velocity), where=setup.velocity != 0)
    velocity_gradient = fold_edges(per_model * scale, scheme).reshape(velocity.shape)
    wavelet_gradient = downsample(drive_gradient, scheme.substeps) * scheme.substeps
    return velocity_gradient.astype(dtype), wavelet_gradient.astype(dtype)


@dataclass(frozen=True, eq=False)
class _Constants:
    """What every shot's loop shares, in the field's dtype and layout."""

    layout: Layout
    dtype: np.dtype
    damping: NDArray
    profiles: tuple[NDArray, ...]
    stencil: tuple[object, ...]

    def factor_of(self, setup: Setup, shot: int) -> NDArray:
        return self.layout.field_of(setup.factor[shot if setup.factor.shape[0] > 1 else 0], self.dtype)

    def taps(self, taps: Taps) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray]:
        # One memory layout for every call: another one would compile the loops once more.
        return (
            self.layout.cells(taps.row, taps.column),
            np.ascontiguousarray(taps.point),
            taps.weight.astype(self.dtype),
        )

    def strips(self, scheme: Scheme, *, reach: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        top, bottom, left, right = scheme.absorbing if scheme.boundary == "cpml" else (0, 0, 0, 0)
        cells = reach * scheme.radius
        return self.layout.column_strips(left, right, cells), self.layout.row_strips(top, bottom, cells)


def _constants(setup: Setup, scheme: Scheme, dtype: np.dtype) -> _Constants:
    layout = Layout(rows=setup.shape[0], columns=setup.shape[1], radius=scheme.radius)
    vertical, horizontal = setup.vertical, setup.horizontal
    if vertical is None or horizontal is None:  # a sponge has no strips: the loops never read these
        vertical, horizontal = Profiles(*(np.zeros(layout.rows),) * 3), Profiles(*(np.zeros(layout.columns),) * 3)
    profiles = tuple(
        layout.column_profile(values, dtype) for values in (horizontal.decay, horizontal.gain, horizontal.slope)
    ) + tuple(layout.row_profile(values, dtype) for values in (vertical.decay, vertical.gain, vertical.slope))
    damping = layout.field_of(setup.damping, dtype) if setup.damping is not None else buffers.zeros(1, dtype)
    # The loops take weights for the longest reach; `reach` tells the compiler how many of them count.
    second = [rounded_second_derivative(scheme.order, h, dtype) for h in scheme.spacing_m]
    weights = [(*values, *(dtype.type(0),) * (5 - len(values))) for values in second]
    first = [[dtype.type(weight / h) for weight in first_derivative(scheme.order)] for h in scheme.spacing_m]
    slopes = [(*values, *(dtype.type(0),) * (4 - len(values))) for values in first]
    reach = (1,) * scheme.radius
    stencil = (layout.box, np.uint64(layout.stride), *weights, *slopes, reach)
    return _Constants(layout, dtype, damping, profiles, stencil)


def _field_dtype(velocity: NDArray) -> np.dtype:
    if velocity.dtype not in (np.float32, np.float64):
        raise ModelError(f"velocity has dtype {velocity.dtype}; give float32 or float64.")
    return velocity.dtype


def _fields(sizes: list[int], dtype: np.dtype, pool: buffers.Pool | None) -> list[NDArray]:
    """One thread's buffers. They start a few cache lines apart, or equal offsets in them would share cache sets."""
    return [aligned(size, dtype, skip_lines=4 * k, pool=pool) for k, size in enumerate(sizes)]


def _sum_in_order(per_shot: NDArray[np.float64]) -> NDArray[np.float64]:
    total = per_shot[0].copy()
    for shot in per_shot[1:]:
        total += shot
    return total


def _each_shot(
    run: Callable[[int, list[NDArray]], None], shots: int, threads: int, workspace: Callable[[], list[NDArray]]
) -> None:
    """Run every shot on up to `threads` threads, each with buffers of its own, zeroed before each shot."""
    workers = max(1, min(threads, shots))
    free: SimpleQueue[list[NDArray]] = SimpleQueue()
    for _ in range(workers):
        free.put(workspace())

    def one(shot: int) -> None:
        buffers_of_thread = free.get()
        try:
            for field in buffers_of_thread:
                field[:] = 0
            run(shot, buffers_of_thread)
        finally:
            free.put(buffers_of_thread)

    if workers == 1:
        for shot in range(shots):
            one(shot)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, range(shots)):
            pass
