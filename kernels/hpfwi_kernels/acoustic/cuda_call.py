"""What a CUDA kernel is told about one propagation: plain numbers and addresses, in two or three dimensions.

Every address is that of an array in C order on one GPU, 0 where there is none; int32 and float32 unless said otherwise.
Fields are float32 [cells] in the order of the padded model, without guard cells: u is zero outside, odd about the first
row under a free surface, periodic under a 2-D sponge without one. Kernels take the same description on the processor.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import cpml_layers, sponge_layers
from hpfwi_kernels.stencils import first_derivative, rounded_second_derivative

_ALIGNMENT_BYTES = 256
_TAPS_OF_PART = 8

BracketType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Addresses of one axis' C-PML profiles, float32[cells along the axis] each; zero (1+b: one) outside its layers."""

    decay: int
    """a"""
    gain_plus_one: int
    """1 + b, rounded once"""
    gain: int
    """b"""
    slope: int
    """b' = D1 b, 1/m"""


@dataclass(frozen=True, kw_only=True)
class TapArrays:
    """Addresses of the taps of every shot, in two orders: by point to gather from cells, by cell to add to cells.

    The taps of point p of shot s are point_starts[s points + p] up to the next entry; those of a shot lie together.
    The cells that shot s adds to are groups shot_groups[s] up to the next entry, each cell in one group of its shot, so
    that one thread per group adds without atomics; group g takes the taps group_taps[group_starts[g] ...] in order.
    """

    points: int
    """Points of each shot, absent ones included (a number, not an address)."""
    taps: int
    """Taps of all shots (a number)."""
    point_starts: int
    """[shots * points + 1]"""
    cells: int
    """[tap] cell of the padded model"""
    tap_points: int
    """[tap] its point"""
    weights: int
    """float32[tap]"""
    shot_groups: int
    """[shots + 1]"""
    group_cells: int
    """[group] cell of the padded model"""
    group_starts: int
    """[group + 1]"""
    group_taps: int
    """[tap] index into cells, tap_points and weights"""
    most_groups: int
    """Groups of the shot that has most (a number)."""
    parts: int
    """A part is a run of at most 8 taps of one point in one row (3-D: plane) z; this is their number in all shots."""
    several: bool
    """Whether some point has not exactly one part."""
    point_parts: int
    """[shots * points + 1] first part of each point"""
    part_taps: int
    """[part + 1] first tap of each part"""
    part_rows: int
    """[part] its z"""
    part_points: int
    """[part] its point where that has no other part, else -1"""


_NO_TAPS = TapArrays(
    points=0, taps=0, point_starts=0, cells=0, tap_points=0, weights=0, shot_groups=0, group_cells=0, group_starts=0,
    group_taps=0, most_groups=0, parts=0, several=False, point_parts=0, part_taps=0, part_rows=0, part_points=0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What forward and adjoint run have in common."""

    shape: tuple[int, ...]
    """Padded cells along (z, x) or (z, y, x)."""
    order: int
    """2, 4, 6 or 8; the stencil reaches order / 2 cells."""
    boundary: Literal["cpml", "sponge"]
    free_surface: bool
    widths: tuple[tuple[int, int], ...]
    """Absorbing cells at the low and the high end of every axis."""
    shots: int
    models: int
    """1 for all shots, or one per shot."""
    steps: int
    """Inner time steps of the whole run: the length of drive, records, residual and product in time."""
    store_every: int
    """Every how many steps, counted from a call's first one, a bracket is kept or counted."""
    second: tuple[tuple[float, ...], ...]
    """Per axis, weights of D2 divided by the spacing squared, float32 values: centre, then each pair's."""
    first: tuple[tuple[float, ...], ...]
    """Per axis, weights of D1 divided by the spacing, float32 values: each pair's, of a[i+m] - a[i-m]."""
    factor: int
    """float32[models, cells] c = v² dt²; zero on a free surface."""
    profiles: tuple[Profile, ...]
    """One per axis; empty under a sponge."""
    damping: int
    """float32[cells] s/m, what a sponge made for 1 m/s damps by; 0 without one."""
    sponges: int
    """float32[shot] m/s, what the sponge of each shot is made for: its damping is the product; 0 without one."""
    sources: TapArrays
    receivers: TapArrays
    drive: int
    """float32[shot, source, step]"""

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def radius(self) -> int:
        """Reach of the stencil in cells."""
        return self.order // 2

    @property
    def cells(self) -> int:
        """Cells of a field."""
        return math.prod(self.shape)

    @property
    def periodic(self) -> bool:
        """Whether what leaves one side of the padded model enters at the opposite one."""
        return self.boundary == "sponge" and not self.free_surface and self.dimensions == 2

    @property
    def state_fields(self) -> int:
        """Fields of a state: u now and one step before, and, in C-PML, psi of every axis, then zeta of every axis.

        The adjoint's are mu now and one step after, P of every axis, Z of every axis.
        """
        return 2 + 2 * self.dimensions * (self.boundary == "cpml")

    @property
    def bracket_columns(self) -> int:
        """Cells of a row of a bracket: rows are padded to whole vectors of both bracket types."""
        return -(-self.shape[-1] // 8) * 8

    @property
    def bracket_cells(self) -> int:
        """Cells of one bracket."""
        return math.prod(self.shape[:-1]) * self.bracket_columns

    @property
    def core(self) -> tuple[tuple[int, int], ...]:
        """First and last+1 cell, per axis, of the box whose update no layer touches; may be empty (first >= last).

        What cannot be undone is the C-PML's memory, and the sponge's damping. On a periodic grid the box also keeps
        clear of the edges, so that the cells around it lie inside.
        """
        radius, layered = self.radius, self.boundary == "cpml"

        def edge(width: int) -> int:
            return max(width, radius) if self.periodic else width + radius * (layered and width > 0)

        return tuple(
            (edge(low), cells - edge(high)) for cells, (low, high) in zip(self.shape, self.widths, strict=True)
        )

    @property
    def ring_cells(self) -> int:
        """Cells around the core that a step backwards reads: radius cells beyond each of its faces, no corners."""
        sizes = [last - first for first, last in self.core]
        return 2 * self.radius * sum(math.prod(sizes) // size for size in sizes)

    def slots(self, begin: int, end: int) -> int:
        """Brackets of steps begin to end - 1."""
        return -(-(end - begin) // self.store_every)


@dataclass(frozen=True, kw_only=True)
class ForwardCall:
    """Steps begin to end - 1 of every shot."""

    problem: Problem
    begin: int
    end: int
    state_in: int = 0
    """float32[shot, state field, cells] at `begin`; 0 starts from rest."""
    state_out: int = 0
    """The same at `end`, written; may be state_in."""
    records: int = 0
    """float32[shot, step of the whole run, receiver], written at these steps: u before the step; 0: nobody asks."""
    brackets: int = 0
    """[shot, slot, bracket cells], w of steps begin, begin + store_every, ..., written, and what pads their
    rows undefined; 0: not kept."""
    bracket_type: BracketType = "float32"
    ring: int = 0
    """float32[shot, step of the whole run, ring cells], written: u before the step around the core, the low and the
    high face of each axis in turn, each in C order, what lies outside the padded model left out but for its place; 0:
    not kept."""
    workspace: int = 0
    """As many bytes as the kernels' own `forward_workspace_bytes` asks for, of any content."""
    device: int = 0
    stream: int = 0
    """The CUDA stream's handle."""


@dataclass(frozen=True, kw_only=True)
class AdjointCall:
    """Steps end - 1 down to begin of every shot; equations in README.md."""

    problem: Problem
    begin: int
    end: int
    state_in: int = 0
    """float32[shot, state field, cells] of the adjoint at `end`; 0 starts from rest."""
    state_out: int = 0
    """The same at `begin`, written; may be state_in."""
    residual: int
    """float32[shot, step of the whole run, receiver]: dL/dr"""
    drive_gradient: int
    """float32[shot, source, step of the whole run], written at these steps: sum over taps of weight times mu."""
    product: int
    """float32[source tap, step of the whole run], written at these steps: weight times mu at the tap."""
    total: int
    """float32[shot, cells]: mu w of the steps that count is added, once each (not times store_every)."""
    brackets: int = 0
    """[shot, slot, bracket cells] as the forward call of the same begin and end left them; 0: the field is run
    backwards."""
    bracket_type: BracketType = "float32"
    ring: int = 0
    """As the forward call left it, where the field is run backwards."""
    field: int = 0
    """float32[shot, 2, cells]: u at `end` and one step before, and left so at `begin`; used in the core alone."""
    workspace: int = 0
    """As many bytes as the kernels' own `adjoint_workspace_bytes` asks for, of any content."""
    device: int = 0
    stream: int = 0


def describe(
    scheme: Scheme,
    sources: Points,
    receivers: Points,
    *,
    models: int,
    steps: int,
    factor: int,
    drive: int,
    place: Callable[[NDArray[np.uint8]], int],
) -> Problem:
    """Build the description of a propagation whose shapes have been checked.

    models, steps   how many of each; factor, drive   addresses, as in Problem
    place           puts bytes where the kernels run, at an address that is a multiple of 16, and returns it; called
                    once, and what it placed must outlive the calls
    """
    shape = scheme.padded(sources.shape)
    profiles = cpml_layers(scheme, shape)
    layers = [
        part.astype(np.float32)
        for profile in profiles or ()
        for part in (profile.decay, 1 + profile.gain, profile.gain, profile.slope)
    ]
    sponge = []
    if profiles is None:  # one velocity counts for all shots
        made_for = np.resize(np.array(scheme.sponges_mps, np.float32), sources.shots)
        sponge = [sponge_layers(scheme, shape, 1.0).astype(np.float32), made_for]
    taps = [tap_arrays(points, scheme) for points in (sources, receivers)]
    parts = [*layers, *sponge, *(array for one in taps for array in one.values())]
    offsets = _offsets(parts)
    block = np.zeros(offsets[-1], np.uint8)
    for part, offset in zip(parts, offsets, strict=False):
        block[offset : offset + part.nbytes] = part.ravel().view(np.uint8)
    base = place(block)
    at = iter([base + offset for offset in offsets])
    outline = outlined(scheme, shape, shots=sources.shots, models=models, steps=steps)
    return replace(
        outline,
        factor=factor,
        drive=drive,
        profiles=tuple(
            Profile(decay=next(at), gain_plus_one=next(at), gain=next(at), slope=next(at)) for _ in profiles or ()
        ),
        damping=next(at) if sponge else 0,
        sponges=next(at) if sponge else 0,
        sources=_described(sources, taps[0], at),
        receivers=_described(receivers, taps[1], at),
    )


def outlined(scheme: Scheme, shape: tuple[int, ...], *, shots: int, models: int, steps: int) -> Problem:
    """The description of a propagation on a padded shape, without its arrays: for the sizes of what a call needs."""
    return Problem(
        shape=shape,
        order=scheme.order,
        boundary=scheme.boundary,
        free_surface=scheme.free_surface,
        widths=scheme.widths,
        shots=shots,
        models=models,
        steps=steps,
        store_every=scheme.store_every,
        second=tuple(
            tuple(map(float, rounded_second_derivative(scheme.order, spacing, np.dtype(np.float32))))
            for spacing in scheme.spacing_m
        ),
        first=tuple(
            tuple(float(np.float32(weight / spacing)) for weight in first_derivative(scheme.order))
            for spacing in scheme.spacing_m
        ),
        factor=0,
        drive=0,
        profiles=(),
        damping=0,
        sponges=0,
        sources=_NO_TAPS,
        receivers=_NO_TAPS,
    )


def tap_arrays(points: Points, scheme: Scheme) -> dict[str, NDArray]:
    """The arrays of TapArrays by name: int32, and float32 weights."""
    shape = scheme.padded(points.shape)
    padded = points.cells + np.array(scheme.absorbing[::2])
    used = (points.weights != 0) & ((padded >= 0) & (padded < np.array(shape))).all(axis=-1)
    shot, point, _ = np.nonzero(used)
    number, cells = shot * points.per_shot + point, np.ravel_multi_index(tuple(padded[used].T), shape)
    every = points.shots * points.per_shot
    order = np.lexsort((cells, shot))  # stable: taps of one cell stay in the order of their points
    opens = _changes(shot[order], cells[order])
    groups = np.bincount(shot[order][opens], minlength=points.shots)
    rows = cells // math.prod(shape[1:])
    runs = np.nonzero(_changes(number, rows))[0]
    lengths = np.diff(np.append(runs, len(cells)))
    begins = np.nonzero((np.arange(len(cells)) - np.repeat(runs, lengths)) % _TAPS_OF_PART == 0)[0]
    parts = np.bincount(number[begins], minlength=every)
    arrays: dict[str, NDArray] = {
        "point_starts": _starts(np.bincount(number, minlength=every)),
        "cells": cells,
        "tap_points": point,
        "weights": points.weights[used].astype(np.float32),
        "shot_groups": _starts(groups),
        "group_cells": cells[order][opens],
        "group_starts": np.append(np.nonzero(opens)[0], len(order)),
        "group_taps": order,
        "point_parts": _starts(parts),
        "part_taps": np.append(begins, len(cells)),
        "part_rows": rows[begins],
        "part_points": np.where(parts[number[begins]] == 1, point[begins], -1),
    }
    return {name: part if part.dtype == np.float32 else part.astype(np.int32) for name, part in arrays.items()}


def _described(points: Points, arrays: dict[str, NDArray], at: Iterator[int]) -> TapArrays:
    return TapArrays(
        points=points.per_shot,
        taps=len(arrays["cells"]),
        most_groups=int(np.diff(arrays["shot_groups"]).max()),
        parts=len(arrays["part_rows"]),
        several=bool((np.diff(arrays["point_parts"]) != 1).any()),
        **{name: next(at) for name in arrays},
    )


def _changes(*keys: NDArray) -> NDArray[np.bool_]:
    """Where a run of equal keys begins."""
    differs = [key[1:] != key[:-1] for key in keys]
    return np.append(len(keys[0]) > 0, np.logical_or.reduce(differs))[: len(keys[0])]


def _starts(counts: NDArray) -> NDArray:
    return np.concatenate([[0], np.cumsum(counts)])


def _offsets(parts: list[NDArray]) -> list[int]:
    """Where each part begins in one aligned block, and the block's size."""
    sizes = [-(-part.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for part in parts]
    return [0, *np.cumsum(sizes).tolist()]
