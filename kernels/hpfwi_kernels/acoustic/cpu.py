"""The Numba implementation, float32 or float64: shots in parallel on threads, each time loop compiled as a whole."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.absorbing import Profiles
from hpfwi_kernels.acoustic import blocks, loops
from hpfwi_kernels.acoustic.bands import Band, joined, row_blocks, split_rows
from hpfwi_kernels.acoustic.call import call_of
from hpfwi_kernels.acoustic.layout import Layout, aligned
from hpfwi_kernels.acoustic.memory import STATE_FIELDS, STORE, Memory
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import Setup, Taps, fold_edges
from hpfwi_kernels.acoustic.transposing import transpose
from hpfwi_kernels.stencils import first_derivative, rounded_laplacian, rounded_second_derivative
from hpfwi_kernels.team import new_barrier


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

    velocity   float32 or float64 [z, x] or [shot, z, x], m/s          wavelet   [shot, source, time], Pa/m²
    store      also keep what `gradient` needs, in the way that `memory` says
    threads    shots run at the same time                              pool      lends large buffers; None: fresh ones
    returns    [shot, receiver, time] in Pa, and [shot, ...] (this module's own layout) or None
    raises     ModelError, GeometryError, StabilityError before any work
    """
    call = call_of(velocity, wavelet, sources, receivers, scheme, memory, threads)
    setup, dtype, drive, kept, shots, steps = call.setup, call.dtype, call.drive, call.kept, call.shots, call.steps
    constants = _constants(setup, scheme, dtype)
    layout = constants.layout
    records = buffers.empty((shots, receivers.per_shot, steps), dtype)
    stored = kept.room(pool) if store else None
    split = _bands(constants, scheme, memory, shots, threads, reach=1)
    row_blocks = _row_blocks(constants, scheme, memory, reach=1, sharing=len(split))
    keeps = store and memory.mode == "store"

    def run(shot: int, workspace: list[NDArray], bands: list[Band], team: ThreadPoolExecutor | None) -> None:
        u, v, psi_x, zeta_x, psi_z, psi_z_next, zeta_z = workspace
        mine = None if stored is None else stored[shot]
        brackets, (ring, ends) = kept.brackets(mine), kept.ring(mine)
        factor, damping = constants.factor_of(setup, shot), constants.damping[scheme.sponge_mps(shot)]
        source_taps, receiver_taps = constants.taps(setup.sources[shot]), constants.taps(setup.receivers[shot])
        recorded = aligned(records[shot].size, dtype, pool=pool).reshape(steps, -1)
        for number, (begin, end) in enumerate(kept.segments):
            if mine is not None and memory.mode == "checkpoint":
                np.concatenate((u, v, psi_x, zeta_x, psi_z, zeta_z), out=mine[number])

            def march(part: _Part, begin: int = begin, end: int = end) -> None:
                band = part.band
                loops.march(
                    u, v, factor, damping, psi_x, zeta_x, psi_z, psi_z_next, zeta_z,
                    *constants.profiles, band.inside, band.strips_x, band.strips_z, part.spans,
                    *constants.stencil, scheme.boundary == "sponge", scheme.free_surface,
                    *source_taps, drive[shot], *receiver_taps, recorded[begin:end],
                    begin, begin + part.first, begin + part.last, brackets, keeps, scheme.store_every,
                    np.uint64(layout.width), ring, ends is not None, kept.core, part.leads, part.barrier, part.team,
                )  # fmt: skip

            _through_time(march, end - begin, bands, row_blocks, team, threads)
        transpose(recorded, records[shot])
        if ends is not None:
            ends[0], ends[1] = (u, v) if steps % 2 == 0 else (v, u)

    _each_shot(run, shots, threads, split, lambda: _fields([layout.size] * 7, dtype, pool))
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
    layout = constants.layout
    drive_gradient = buffers.empty(drive.shape, dtype)
    per_shot = buffers.empty((shots, *setup.shape), np.float64)
    split = _bands(constants, scheme, memory, shots, threads, reach=2)
    row_blocks = _row_blocks(constants, scheme, memory, reach=2, sharing=len(split))
    (whole,) = _bands(constants, scheme, memory, shots, 1, reach=1)
    again_blocks = _row_blocks(constants, scheme, memory, reach=1, sharing=1)
    again = memory.mode == "checkpoint"

    def workspace() -> list[NDArray]:
        return _fields([layout.size] * (17 if again else 12 if memory.mode == "boundary" else 10), dtype, pool)

    def run(shot: int, workspace: list[NDArray], bands: list[Band], team: ThreadPoolExecutor | None) -> None:
        mu, v, p_x, z_x, p_z, z_z, t, flow, lift, total, *rest = workspace
        unused_records = buffers.empty((kept.segments[0][1] if again else 1, receivers.per_shot), dtype)
        source, mine = constants.by_row(setup.sources[shot]), stored[shot]
        brackets, (ring, ends) = kept.segment_room(pool) if again else kept.brackets(mine), kept.ring(mine)
        source_taps, receiver_taps = constants.taps(source), constants.taps(setup.receivers[shot])
        factor, damping = constants.factor_of(setup, shot), constants.damping[scheme.sponge_mps(shot)]
        product = buffers.empty((source.weight.size, steps), dtype)
        heard = aligned(residual[shot].size, dtype, pool=pool).reshape(steps, -1)
        transpose(residual[shot], heard)
        field, field_next = t, flow  # never read unless the field is run backwards
        if ends is not None:
            field, field_next = rest
            field_next[:], field[:] = ends
        for number, (begin, end) in reversed(list(enumerate(kept.segments))):
            if again:
                u, u_next, psi_x, zeta_x, psi_z, psi_z_next, zeta_z = rest
                states = mine[number].reshape(STATE_FIELDS, -1)
                for saved, state in zip(states, (u, u_next, psi_x, zeta_x, psi_z, zeta_z), strict=True):
                    state[:] = saved
                loops.march(
                    u, u_next, factor, damping, psi_x, zeta_x, psi_z, psi_z_next, zeta_z,
                    *constants.profiles, whole.inside, whole.strips_x, whole.strips_z,
                    whole.spans if again_blocks is None else again_blocks.spans,
                    *constants.stencil, scheme.boundary == "sponge", scheme.free_surface,
                    *source_taps, drive[shot], *receiver_taps, unused_records,
                    begin, begin, end, brackets, True, scheme.store_every, np.uint64(layout.width),
                    ring, False, kept.core, True, new_barrier(), 1,
                )  # fmt: skip

            def march_back(part: _Part, begin: int = begin, end: int = end, mu: NDArray = mu, v: NDArray = v) -> None:
                band = part.band
                loops.march_back(
                    mu, v, factor, damping, p_x, z_x, p_z, z_z, *constants.profiles, t, flow, lift,
                    band.inside, band.strips_x, band.strips_z, part.spans,
                    *constants.stencil, scheme.boundary == "sponge", scheme.free_surface,
                    *source_taps, product, drive[shot], drive_gradient[shot],
                    *receiver_taps, heard, begin, end - part.last, end - part.first,
                    brackets, scheme.store_every, np.uint64(layout.width), total,
                    ring, ends is not None, kept.core, field, field_next, part.leads, part.barrier, part.team,
                )  # fmt: skip

            _through_time(march_back, end - begin, bands, row_blocks, team, threads)
            if (end - begin) % 2 == 1:
                mu, v = v, mu
        per_shot[shot] = layout.inner(total).astype(np.float64) * scheme.store_every
        # The wavelet acts inside the bracket that c multiplies, at every step whatever store_every is.
        own = (product.astype(np.float64) * drive[shot][source.point]).sum(axis=1)
        np.add.at(per_shot[shot], (source.row, source.column), own)

    _each_shot(run, shots, threads, split, workspace)
    per_model = per_shot if velocity.ndim == 3 else _sum_in_order(per_shot)
    scale = np.divide(2.0, setup.velocity, out=np.zeros_like(setup.velocity), where=setup.velocity != 0)
    velocity_gradient = fold_edges(per_model * scale, scheme).reshape(velocity.shape)
    return velocity_gradient.astype(dtype), call.wavelet_gradient(drive_gradient)


@dataclass(frozen=True, eq=False)
class _Constants:
    """What every shot's loop bands, in the field's dtype and layout."""

    layout: Layout
    dtype: np.dtype
    damping: dict[float | None, NDArray]
    """By what a sponge is made for; None: without one, what loops take and never read."""
    profiles: tuple[NDArray, ...]
    stencil: tuple[object, ...]

    def factor_of(self, setup: Setup, shot: int) -> NDArray:
        return self.layout.field_of(setup.factor[shot if setup.factor.shape[0] > 1 else 0], self.dtype)

    def by_row(self, taps: Taps) -> Taps:
        """The taps in the order of rows, in which blocks take them."""
        order = np.argsort(taps.row, kind="stable")
        return Taps(taps.point[order], tuple(cells[order] for cells in taps.cell), taps.weight[order])

    def taps(self, taps: Taps) -> tuple[NDArray[np.uint64], NDArray, NDArray, NDArray[np.int64]]:
        """Cell, point and weight of every tap by rows, and the first tap of every row of a field."""
        taps, radius = self.by_row(taps), self.layout.radius
        start = np.searchsorted(taps.row + radius, np.arange(self.layout.rows + 2 * radius + 1)).astype(np.int64)
        # One memory layout for every call: another one would compile the loops once more.
        return (
            self.layout.cells(taps.row, taps.column),
            np.ascontiguousarray(taps.point),
            taps.weight.astype(self.dtype),
            start,
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
    damping = {made_for: layout.field_of(cells, dtype) for made_for, cells in setup.damping.items()}
    # The loops take weights for the longest reach; `reach` tells the compiler how many of them count.
    second = [rounded_second_derivative(scheme.order, h, dtype) for h in scheme.spacing_m]
    weights = [(*values, *(dtype.type(0),) * (5 - len(values))) for values in second]
    first = [[dtype.type(weight / h) for weight in first_derivative(scheme.order)] for h in scheme.spacing_m]
    slopes = [(*values, *(dtype.type(0),) * (4 - len(values))) for values in first]
    reach = (1,) * scheme.radius
    laplacian = rounded_laplacian(scheme.order, scheme.spacing_m, dtype)
    stencil = (layout.box, np.uint64(layout.stride), laplacian, *weights, *slopes, reach)
    return _Constants(layout, dtype, damping or {None: buffers.zeros(1, dtype)}, profiles, stencil)


def _fields(sizes: list[int], dtype: np.dtype, pool: buffers.Pool | None) -> list[NDArray]:
    """One thread's buffers. They start a few cache lines apart, or equal offsets in them would share cache sets."""
    return [aligned(size, dtype, skip_lines=4 * k, pool=pool) for k, size in enumerate(sizes)]


def _sum_in_order(per_shot: NDArray[np.float64]) -> NDArray[np.float64]:
    total = per_shot[0].copy()
    for shot in per_shot[1:]:
        total += shot
    return total


def _bands(
    constants: _Constants, scheme: Scheme, memory: Memory, shots: int, threads: int, *, reach: int
) -> list[Band]:
    """The bands in which threads share a shot: one, unless shots are left when every thread has had as many."""
    shared = memory.mode == "store" and shots % threads > 0
    strips_x, strips_z = constants.strips(scheme, reach=reach)
    return split_rows(constants.layout, strips_x, strips_z, threads if shared else 1, layered=scheme.boundary == "cpml")


def _row_blocks(
    constants: "_Constants", scheme: Scheme, memory: Memory, *, reach: int, sharing: int
) -> blocks.Plan | None:
    """The blocks of rows in which a shot goes through time; None where a step needs all rows at once, or is small."""
    _, strips_z = constants.strips(scheme, reach=reach)
    periodic = scheme.boundary == "sponge" and not scheme.free_surface
    together = periodic or memory.mode == "boundary"
    return row_blocks(constants.layout, strips_z, constants.dtype.itemsize, together=together, sharing=sharing)


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows and steps that one compiled call takes a shot through."""

    band: Band
    spans: NDArray[np.uint64]
    first: int
    """First and last+1 step, counted from where the march begins."""
    last: int
    leads: bool
    barrier: NDArray[np.int64]
    team: int


def _through_time(
    march: Callable[[_Part], None],
    steps: int,
    bands: list[Band],
    plan: blocks.Plan | None,
    pool: ThreadPoolExecutor | None,
    threads: int,
) -> None:
    """Take a shot through its steps: in blocks of rows, else in bands whose threads meet after every step."""
    barrier = new_barrier()
    if plan is None:
        _at_once(lambda band: march(_Part(band, band.spans, 0, steps, band.leads, barrier, len(bands))), bands, pool)
        return
    whole = joined(bands)
    if len(bands) == 1:
        march(_Part(whole, plan.spans, 0, steps, True, barrier, 1))
        return

    def block(first_tile: int, last_tile: int, first: int, levels: int) -> None:
        spans = np.ascontiguousarray(plan.spans[first_tile:last_tile])
        march(_Part(whole, spans, first, first + levels, first_tile == 0, barrier, 1))

    # A few calls for each thread and each turn through the rows: fewer would leave threads waiting for each other.
    blocks.run(block, plan, steps, threads, tiles_at_a_time=max(1, plan.tiles // (4 * threads)))


def _at_once(call: Callable[[Band], None], bands: list[Band], pool: ThreadPoolExecutor | None) -> None:
    """Make the call for every band, all at the same time: they wait for each other."""
    if len(bands) == 1:
        call(bands[0])
        return
    assert pool is not None
    for _ in pool.map(call, bands):
        pass


def _each_shot(
    run: Callable[[int, list[NDArray], list[Band], ThreadPoolExecutor | None], None],
    shots: int,
    threads: int,
    split: list[Band],
    workspace: Callable[[], list[NDArray]],
) -> None:
    """Run every shot on up to `threads` threads, each with buffers of its own, zeroed before each shot.

    Where shots can be split, those that are left after every thread has had as many are run by all threads together.
    """
    together = shots % threads if len(split) > 1 else 0
    alone = shots - together
    workers = max(1, min(threads, alone))
    free: SimpleQueue[list[NDArray]] = SimpleQueue()
    for _ in range(workers):
        free.put(workspace())
    whole = split if len(split) == 1 else [joined(split)]

    def one(shot: int, bands: list[Band] = whole, pool: ThreadPoolExecutor | None = None) -> None:
        buffers_of_thread = free.get()
        try:
            for field in buffers_of_thread:
                field[:] = 0
            run(shot, buffers_of_thread, bands, pool)
        finally:
            free.put(buffers_of_thread)

    if workers == 1 and not together:
        for shot in range(shots):
            one(shot)
        return
    with ThreadPoolExecutor(max(workers, len(split) if together else 1)) as pool:
        for _ in pool.map(one, range(alone)):
            pass
        for shot in range(alone, shots):
            one(shot, split, pool)
