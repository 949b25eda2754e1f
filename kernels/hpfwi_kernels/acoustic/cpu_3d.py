"""The Numba implementation in three dimensions: shots in parallel, and the planes of a shot where threads are left."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.absorbing import Profiles
from hpfwi_kernels.acoustic import blocks, loops_3d
from hpfwi_kernels.acoustic.call import call_of
from hpfwi_kernels.acoustic.layout import aligned
from hpfwi_kernels.acoustic.layout_3d import (
    STATE,
    Layers,
    Stack,
    across_profile,
    adjoint_layers,
    adjoint_sizes,
    adjoint_weights,
    along_profile,
    forward_layers,
    forward_sizes,
)
from hpfwi_kernels.acoustic.memory import STORE, Memory
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import Setup, Taps, fold_edges
from hpfwi_kernels.acoustic.transposing import transpose
from hpfwi_kernels.stencils import first_derivative, rounded_second_derivative

# Fields that a plane touches in a step: u at two times and c, and what its share of layers comes to.
_FIELDS = 5


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
    memory: Memory = STORE,
) -> tuple[NDArray, NDArray | None]:
    """Record pressure at the receivers of every shot, in the dtype of velocity.

    velocity   float32 or float64 [z, y, x] or [shot, z, y, x], m/s    wavelet   [shot, source, time], Pa/m²
    store      also keep what `gradient` needs, in the way that `memory` says
    threads    shots at a time; what is left over shares out the planes of a shot
    pool       lends the large buffers; None takes fresh memory
    returns    [shot, receiver, time] in Pa, and [shot, ...] (this module's own layout) or None
    raises     ModelError, GeometryError, StabilityError before any work
    """
    call = call_of(velocity, wavelet, sources, receivers, scheme, memory, threads)
    setup, dtype, drive, kept, shots, steps = call.setup, call.dtype, call.drive, call.kept, call.shots, call.steps
    constants = _constants(setup, scheme, dtype)
    stored = kept.room(pool) if store else None
    records = buffers.empty((shots, receivers.per_shot, steps), dtype)
    keeps = store and memory.mode == "store"

    def run(shot: int, workers: int) -> None:
        fields = constants.fields(forward_sizes(constants.stack, constants.near), pool)
        one = constants.shot(setup, scheme, shot, drive[shot], pool)
        mine = None if stored is None else stored[shot]
        brackets, (ring, ends) = kept.brackets(mine), kept.ring(mine)
        recorded = buffers.zeros((steps, receivers.per_shot), dtype)
        for number, part in enumerate(kept.segments):
            if mine is not None and memory.mode == "checkpoint":
                np.concatenate([fields[k] for k in STATE], out=mine[number])
            _march(
                constants, scheme, one, fields, one.receiver, recorded, part,
                brackets, keeps, ring, ends is not None, kept.core, workers,
            )  # fmt: skip
        transpose(recorded, records[shot])
        if ends is not None:
            ends[:] = fields[:2]

    for _ in _each_shot(run, shots, threads):
        pass
    return call.records(records), stored


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
    memory: Memory = STORE,
) -> tuple[NDArray, NDArray]:
    """Apply the transpose of forward's derivative to a gradient with respect to the records.

    stored    what forward kept, with the same `memory` and `threads`          record_gradient   [shot, receiver, time]
    returns   gradients with respect to velocity and wavelet, in their shapes and velocity's dtype

    Each shot is summed on its own and shots are added in order in float64: the bits do not depend on `threads`.
    """
    call = call_of(velocity, wavelet, sources, receivers, scheme, memory, threads)
    setup, dtype, drive, kept, shots, steps = call.setup, call.dtype, call.drive, call.kept, call.shots, call.steps
    residual = call.residual(record_gradient, receivers, stored)
    constants = _constants(setup, scheme, dtype)
    stack = constants.stack
    drive_gradient = buffers.zeros(drive.shape, dtype)
    again = memory.mode == "checkpoint"

    def run(shot: int, workers: int) -> NDArray[np.float64]:
        (total,) = constants.fields((stack.kept,), pool)
        fields = constants.fields(adjoint_sizes(stack, constants.far), pool)
        forward_fields = constants.fields(forward_sizes(stack, constants.near), pool) if again else []
        mine = stored[shot]
        brackets, (ring, ends) = kept.segment_room(pool) if again else kept.brackets(mine), kept.ring(mine)
        field = constants.fields((1 if ends is None else stack.size,) * 2, pool)
        if ends is not None:
            field[0][:], field[1][:] = ends
        one = constants.shot(setup, scheme, shot, drive[shot], pool)
        product = buffers.empty((len(one.source[0]), steps), dtype)
        nowhere = np.zeros((1, 1), dtype)
        heard = buffers.empty((steps, receivers.per_shot), dtype)
        transpose(residual[shot], heard)
        for number, part in reversed(list(enumerate(kept.segments))):
            if again:
                cuts = np.cumsum([len(forward_fields[k]) for k in STATE])
                for k, saved in zip(STATE, np.split(mine[number], cuts[:-1]), strict=True):
                    forward_fields[k][:] = saved
                _march(
                    constants, scheme, one, forward_fields, constants.no_taps, nowhere, part,
                    brackets, True, ring, False, kept.core, workers,
                )  # fmt: skip
            _march_back(
                constants, scheme, one, fields, product, drive_gradient[shot], heard, part,
                brackets, total, ring, ends is not None, kept.core, field, workers,
            )  # fmt: skip
        result = fold_edges(stack.inner_of_kept(total)[None].astype(np.float64), scheme)[0] * scheme.store_every
        # The wavelet acts inside the bracket that c multiplies, at every step whatever store_every is. A tap inside a
        # layer counts for the edge cell whose velocity the layer repeats.
        own = (product.astype(np.float64) * drive[shot][one.source[1]]).sum(axis=1)
        taps = constants.by_plane(setup.sources[shot])
        edge = (
            np.clip(cells - low, 0, size - 1)
            for cells, (low, _), size in zip(taps.cell, scheme.widths, result.shape, strict=True)
        )
        np.add.at(result, tuple(edge), own)
        return result

    model = np.asarray(velocity, np.float64).reshape(-1, *velocity.shape[-3:])
    total_of_model = np.zeros_like(model)
    for shot, result in enumerate(_each_shot(run, shots, threads)):
        total_of_model[shot if velocity.ndim == 4 else 0] += result
    scale = np.divide(2.0, model, out=np.zeros_like(model), where=model != 0)
    velocity_gradient = (total_of_model * scale).reshape(velocity.shape)
    return velocity_gradient.astype(dtype), call.wavelet_gradient(drive_gradient)


_Taps = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class _Shot:
    """What the loops of one shot read."""

    factor: NDArray
    damping: NDArray
    source: _Taps
    receiver: _Taps
    drive: NDArray


def _march(
    constants: "_Constants",
    scheme: Scheme,
    shot: _Shot,
    fields: list[NDArray],
    receiver: _Taps,
    records: NDArray,
    part: tuple[int, int],
    brackets: NDArray,
    keeps: bool,
    ring: NDArray,
    save_ring: bool,
    core: tuple[np.uint64, ...],
    workers: int,
) -> None:
    """Run the steps of a part forward."""
    begin, end = part
    where, numbers = constants.places(constants.near)

    def block(first_tile: int, last_tile: int, first: int, levels: int) -> None:
        u, v, *memory = fields
        loops_3d.march(
            u, v, shot.factor, shot.damping, constants.scratch(constants.near), *memory, *constants.profiles,
            *where, numbers, *constants.second, *constants.first, constants.reach,
            scheme.boundary == "sponge", scheme.free_surface,
            *shot.source, shot.drive, *receiver, records,
            brackets, keeps, scheme.store_every, begin, ring, save_ring, core,
            constants.plan.spans, first_tile, last_tile, begin + first, levels,
        )  # fmt: skip

    blocks.run(block, constants.plan, end - begin, workers)


def _march_back(
    constants: "_Constants",
    scheme: Scheme,
    shot: _Shot,
    fields: list[NDArray],
    product: NDArray,
    drive_gradient: NDArray,
    residual: NDArray,
    part: tuple[int, int],
    brackets: NDArray,
    total: NDArray,
    ring: NDArray,
    rebuild: bool,
    core: tuple[np.uint64, ...],
    field: list[NDArray],
    workers: int,
) -> None:
    """Run the adjoint over the steps of a part, last step first."""
    after = len(residual) - part[1]
    where, numbers = constants.places(constants.far)
    profiles = constants.profiles[0], constants.profiles[3], *constants.profiles[6:]

    def block(first_tile: int, last_tile: int, first: int, levels: int) -> None:
        mu, v, *memory = fields
        loops_3d.march_back(
            mu, v, shot.factor, shot.damping, constants.scratch(constants.far), *memory, *profiles,
            *constants.adjoint, *where, numbers, *constants.second, constants.first[2], constants.reach,
            scheme.boundary == "sponge", scheme.free_surface,
            *shot.source, product, shot.drive, drive_gradient, *shot.receiver, residual,
            brackets, scheme.store_every, part[0], total, ring, rebuild, core, *field,
            constants.plan.spans, first_tile, last_tile, after + first, levels,
        )  # fmt: skip

    blocks.run(block, constants.plan, part[1] - part[0], workers)


@dataclass(frozen=True, eq=False)
class _Constants:
    """What every shot's loops share, in the field's dtype and layout."""

    stack: Stack
    near: Layers
    """Where the forward layers act: on cells within R of their own."""
    far: Layers
    """Where the transposed layers act: on cells within 2 R of their own."""
    plan: blocks.Plan
    dtype: np.dtype
    damping: dict[float | None, NDArray]
    """By what a sponge is made for; None: without one, what loops take and never read."""
    profiles: tuple[NDArray, ...]
    adjoint: tuple[NDArray, NDArray]
    second: tuple[tuple[np.floating, ...], ...]
    first: tuple[tuple[np.floating, ...], ...]
    reach: tuple[int, ...]

    def places(self, layers: Layers) -> tuple[tuple[NDArray[np.uint64], ...], tuple[np.uint64, ...]]:
        stack = self.stack
        numbers = stack.hop, stack.plane.stride, stack.width, stack.rows, layers.packed_rows, layers.packed_row
        where = layers.packed_z, layers.packed_y, layers.strips_x, layers.tiles_y
        return where, tuple(np.uint64(number) for number in numbers)

    def scratch(self, layers: Layers) -> NDArray:
        """One thread's Laplacian of the rows that are updated at a time."""
        return aligned(layers.most_rows * self.stack.width, self.dtype)

    def fields(self, sizes: tuple[int, ...], pool: buffers.Pool | None) -> list[NDArray]:
        """Buffers of zeros. They start a few cache lines apart, or equal offsets in them would share cache sets."""
        made = [aligned(size, self.dtype, skip_lines=4 * k, pool=pool) for k, size in enumerate(sizes)]
        for field in made:
            field[:] = 0
        return made

    def shot(self, setup: Setup, scheme: Scheme, shot: int, drive: NDArray, pool: buffers.Pool | None) -> _Shot:
        factor = self.stack.field_of(setup.factor[shot if setup.factor.shape[0] > 1 else 0], self.dtype, pool)
        source, receiver = self.taps(setup.sources[shot]), self.taps(setup.receivers[shot])
        return _Shot(factor, self.damping[scheme.sponge_mps(shot)], source, receiver, drive)

    def by_plane(self, taps: Taps) -> Taps:
        """The taps in the order of planes, in which blocks take them."""
        order = np.argsort(taps.cell[0], kind="stable")
        return Taps(taps.point[order], tuple(cells[order] for cells in taps.cell), taps.weight[order])

    def taps(self, taps: Taps) -> _Taps:
        """Cell, point and weight of every tap, and the first tap of every guarded plane."""
        taps, stack = self.by_plane(taps), self.stack
        start = np.searchsorted(taps.cell[0] + stack.radius, np.arange(stack.planes + 2 * stack.radius + 1))
        weight = taps.weight.astype(self.dtype)
        return stack.cells(taps.cell), np.ascontiguousarray(taps.point), weight, start.astype(np.int64)

    @property
    def no_taps(self) -> _Taps:
        nothing = np.zeros(0, np.int64)
        return self.taps(Taps(nothing, (nothing,) * 3, np.zeros(0)))


def _constants(setup: Setup, scheme: Scheme, dtype: np.dtype) -> _Constants:
    planes, rows, columns = setup.shape
    stack = Stack(planes=planes, rows=rows, columns=columns, radius=scheme.radius)
    z, y, x = setup.profiles or [Profiles(*(np.zeros(cells),) * 3) for cells in setup.shape]
    across = [
        across_profile(values, scheme.radius, dtype) for one in (z, y) for values in (one.decay, one.gain, one.slope)
    ]
    along = [along_profile(values, stack.width, dtype) for values in (x.decay, x.gain, x.slope)]
    # The loops take weights for the longest reach; `reach` tells the compiler how many of them count.
    zero = dtype.type(0)
    damping = {made_for: stack.field_of(cells, dtype, None) for made_for, cells in setup.damping.items()}
    levels = blocks.levels_that_fit(_FIELDS * stack.rows * stack.width * dtype.itemsize, scheme.radius)
    second = [rounded_second_derivative(scheme.order, h, dtype) for h in scheme.spacing_m]
    first = [tuple(dtype.type(weight / h) for weight in first_derivative(scheme.order)) for h in scheme.spacing_m]
    return _Constants(
        stack=stack,
        near=forward_layers(stack, scheme),
        far=adjoint_layers(stack, scheme),
        plan=blocks.plan(stack.planes, scheme.radius, levels=levels),
        dtype=dtype,
        damping=damping or {None: buffers.zeros(1, dtype)},
        profiles=(*across, *along),
        adjoint=(
            adjoint_weights(z, scheme.order, scheme.spacing_m[0], dtype),
            adjoint_weights(y, scheme.order, scheme.spacing_m[1], dtype),
        ),
        second=tuple((*weights, *(zero,) * (5 - len(weights))) for weights in second),
        first=tuple((*weights, *(zero,) * (4 - len(weights))) for weights in first),
        reach=(1,) * scheme.radius,
    )


def _each_shot(run: Callable[[int, int], NDArray | None], shots: int, threads: int) -> Iterator[NDArray | None]:
    """Results of run(shot, threads of its own) in the order of shots, as many shots at a time as there are threads."""
    at_a_time = max(1, min(threads, shots))
    workers = max(1, threads // at_a_time)
    if at_a_time == 1:
        for shot in range(shots):
            yield run(shot, workers)
        return
    with ThreadPoolExecutor(at_a_time) as pool:
        yield from pool.map(lambda shot: run(shot, workers), range(shots))
