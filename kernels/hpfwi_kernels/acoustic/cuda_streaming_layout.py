"""Where a streaming call's fields lie in its work space, and what its kernels are told: plain numbers.

Fields are pitched and framed by zeros or images; memories of the absorbing layers are packed, face by face, for the
cells that a layer acts on: its own and those R away, in the adjoint 2 R away.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.acoustic.cuda_call import AdjointCall, Problem, TapArrays
from hpfwi_kernels.errors import ModelError

THREADS = 256
LANES = 4
ORIGIN = 32
ALIGNMENT_BYTES = 256
# Which arguments after Params are addresses or strides, by kernel.
WIDE_ARGUMENTS = {
    **dict.fromkeys(("to_field", "from_field", "to_packed", "from_packed"), (0, 1, 2, 3)),
    **dict.fromkeys(("begin_call", "tile_fill", "first_ring"), (0,)),
}
TILE_2D = (32, 1, 128)
"""Cells (z, y, x) that a block updates in 2-D."""
TILE_3D = (16, 64)
"""Cells (y, x) that a block updates in each plane of its run in 3-D."""
RESIDENT_BLOCKS = 264
"""Blocks that 132 multiprocessors run at a time, two each; a launch takes as long as so many times of them."""
SHORTEST_RUN = 32
"""Planes: the first 2 R of a run are read twice, by the block above as well."""
STEPS_IN_GRAPH = 16
"""At least; a period holds a whole number of store_every, and an even number of steps."""
EXTRA_BLOCKS = 1024
MOST_SHOTS = 65535
"""CUDA's limit for the second size of a launch's blocks."""

_POINTERS = (
    ("field", 2), ("psi", 2), ("zeta", 2), ("past", 2), ("factor", 1), ("damping", 1), ("sponges", 1), ("profile", 1),
    ("clock", 1), ("point_starts", 1), ("tap_cells", 1), ("tap_points", 1), ("tap_weights", 1), ("samples", 1),
    ("product", 1), ("shot_groups", 1), ("group_cells", 1), ("group_starts", 1), ("group_taps", 1), ("added_points", 1),
    ("added_weights", 1), ("signal", 1), ("tile_starts", 1), ("tile_groups", 1), ("brackets", 1), ("total", 1),
    ("ring", 1), ("profiles", (3, 4)),
)  # fmt: skip
_LONGS = (
    "field_stride", "factor_stride", "packed_stride", "plane", "cells", "ring_cells", "sample_shot", "sample_step",
    "sample_point", "signal_shot", "signal_step", "signal_point",
)  # fmt: skip
_INTS = (
    ("n", 3), ("pitch", 1), ("columns", 1), ("wide", 1), ("tiles", 3), ("tile", 3), ("extra", 1), ("low", 3),
    ("high", 3), ("inner_low", 3), ("inner_high", 3), ("core_low", 3), ("core_high", 3), ("points", 1),
    ("steps", 1), ("begin", 1), ("every", 1), ("slots", 1), ("shots", 1), ("models", 1), ("radius", 1),
    ("profile_stride", 1), ("flat", 1), ("free_surface", 1), ("periodic", 1), ("saves_ring", 1), ("aligned", 1),
)  # fmt: skip
PARAMS = np.dtype(
    [
        *((name, np.uint64, size) if size != 1 else (name, np.uint64) for name, size in _POINTERS),
        *((name, np.int64) for name in _LONGS),
        ("packed", np.int64, (3, 2)),
        *((name, np.int32, size) if size != 1 else (name, np.int32) for name, size in _INTS),
        ("second", np.float32, (3, 5)),
        ("first", np.float32, (3, 4)),
    ],
    align=True,
)
"""The kernels' struct Params."""


@dataclass(frozen=True)
class Zero:
    """Set bytes to zero."""

    address: int
    count: int


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel, its blocks, the description it gets by value, its other arguments, and its shared memory."""

    kernel: str
    blocks: tuple[int, int]
    params: NDArray
    arguments: tuple[int, ...]
    shared_bytes: int = 0

    def typed(self) -> tuple[np.integer, ...]:
        """The other arguments in the types of the kernels' signatures: addresses and strides are 64 bits wide."""
        wide = WIDE_ARGUMENTS.get(self.kernel.split("<")[0], ())
        return tuple(np.uint64(n) if k in wide else np.int32(n) for k, n in enumerate(self.arguments))


@dataclass(frozen=True)
class Repeat:
    """Launches in order, again and again."""

    launches: tuple[Launch, ...]
    times: int


Operation = Zero | Launch | Repeat
Direction = Literal["forward", "adjoint"]


def up(count: int, unit: int) -> int:
    """The next multiple of unit.

    >>> up(110, 8)
    112
    """
    return -(-count // unit) * unit


class Layout:
    """The numbers of one problem and direction; every size is in float32 unless it says bytes."""

    def __init__(self, problem: Problem, direction: Direction, *, rewinds: bool) -> None:
        if problem.shots > MOST_SHOTS:
            raise ModelError(
                f"{problem.shots} shots are streamed through memory in one call, more than the {MOST_SHOTS} that a "
                "launch has room for; propagate fewer at a time."
            )
        self.problem, self.direction, self.rewinds = problem, direction, rewinds
        flat = problem.dimensions == 2
        self.n = (problem.shape[0], 1, problem.shape[1]) if flat else problem.shape
        radius = problem.radius
        self.pitch, self.columns = up(self.n[2] + 2 * LANES, 8), up(self.n[2], LANES)
        self.plane = self.n[1] * self.pitch
        self.field = up(ORIGIN + (self.n[0] + 2 * radius) * self.plane + ORIGIN, 64)
        # Two dimensions count a field's floats, frame included, in 32 bits; three count its cells.
        numbered = self.field if flat else problem.cells
        if numbered >= 2**31:
            raise ModelError(
                f"A padded model of {' x '.join(map(str, problem.shape))} cells takes {numbered} numbers, more than "
                f"the {2**31 - 1} that there are; cut the model, or take a larger spacing."
            )
        self.cell = ORIGIN + radius * self.plane  # the first one's place in a field
        self.profile_stride = up(max(self.n), LANES) + 2 * LANES
        # Axes of the problem among z, y and x.
        self.axes = (0, 2) if flat else (0, 1, 2)
        self.low, self.high = self._layers(radius if direction == "forward" else 2 * radius)
        self.packed, self.packed_stride = self._faces()
        planes = self._planes()
        self.tile = TILE_2D if flat else (planes, *TILE_3D)
        self.tiles = tuple(-(-cells // size) for cells, size in zip(self.n, self.tile, strict=True))
        self.places, self.bytes = self._places()

    def _layers(self, reach: int) -> tuple[list[int], list[int]]:
        """A layer with memory acts below and from these cells of every axis; along x they are whole vectors."""
        low, high = [0, 0, 0], list(self.n)
        if self.problem.boundary == "cpml":
            for axis, (before, after) in zip(self.axes, self.problem.widths, strict=True):
                unit = LANES if axis == 2 else 1
                low[axis] = up(before + reach, unit) if before else 0
                high[axis] = (self.n[axis] - after - reach) // unit * unit if after else self.n[axis]
                if low[axis] > high[axis]:  # they meet: the lower one takes all
                    low[axis] = high[axis] = up(self.n[axis], unit)
        return low, high

    def _faces(self) -> tuple[list[list[int]], int]:
        """Where the memory of each axis' two faces begins, and the size of all."""
        begins, at, around = [], 0, 2 * self.problem.radius
        z, y, _ = self.n
        for axis in range(3):
            begins.append([0, 0])
            for side, width in enumerate((self.low[axis], max(0, self.n[axis] - self.high[axis]))):
                begins[axis][side] = at
                if width:
                    sizes = (
                        (width + around) * y * self.columns,
                        z * (width + around) * self.columns,
                        z * y * (up(width, LANES) + 2 * LANES),
                    )
                    at += sizes[axis]
        return begins, up(at, 64)

    def _planes(self) -> int:
        """Planes of a 3-D block's run: as many as have the multiprocessors done soonest, few idle at the end."""
        if self.problem.dimensions == 2:
            return 0
        columns = -(-self.n[1] // TILE_3D[0]) * -(-self.n[2] // TILE_3D[1]) * self.problem.shots

        def length(runs: int) -> int:
            return -(-columns * runs // RESIDENT_BLOCKS) * (-(-self.n[0] // runs) + self.problem.radius)

        runs = min(range(1, max(1, self.n[0] // SHORTEST_RUN) + 1), key=length)
        return -(-self.n[0] // runs)

    def _places(self) -> tuple[dict[str, int], int]:
        problem, sets = self.problem, 2 if self.rewinds else 1
        tiles = math.prod(self.tiles) * problem.shots
        sizes = {
            "field": 2 * problem.shots * self.field,
            "factor": problem.models * self.field,
            "damping": self.field if problem.damping else 0,
            "psi": 2 * problem.shots * self.packed_stride,
            "zeta": (1 if self.direction == "forward" else 2) * problem.shots * self.packed_stride,
            "past": 2 * problem.shots * self.field if self.rewinds else 0,
            "profile": 12 * self.profile_stride,
            "clock": 2,
        }
        added = problem.sources if self.direction == "forward" else problem.receivers
        for number, taps in enumerate((added, problem.sources)[:sets]):
            sizes |= {f"starts{number}": tiles + 1, f"cursor{number}": tiles, f"groups{number}": taps.taps}
        places, at = {}, 0
        for name, size in sizes.items():
            places[name] = at
            at += up(4 * size, ALIGNMENT_BYTES)
        return places, at

    def params(self, workspace: int, begin: int, end: int) -> NDArray:
        """The description that every kernel of a call gets, but for what it gathers, adds and keeps."""
        problem, at = self.problem, {name: workspace + place for name, place in self.places.items()}
        params = np.zeros(1, PARAMS)
        one = params[0]
        shots = problem.shots
        for name, size in (("field", self.field), ("psi", self.packed_stride), ("zeta", self.packed_stride)):
            first = at[name] + (4 * self.cell if name == "field" else 0)
            other = 0 if name == "zeta" and self.direction == "forward" else first + 4 * shots * size
            one[name][:] = first, other
        one["factor"] = at["factor"] + 4 * self.cell
        one["damping"] = at["damping"] + 4 * self.cell if problem.damping else 0
        one["sponges"] = problem.sponges
        for name in ("profile", "clock"):
            one[name] = at[name]
        one["tile_starts"], one["tile_groups"] = at["starts0"], at["groups0"]
        for axis, profile in zip(self.axes, problem.profiles, strict=False):
            one["profiles"][axis] = profile.decay, profile.gain_plus_one, profile.gain, profile.slope
        one["field_stride"] = self.field
        one["factor_stride"] = self.field if problem.models > 1 else 0
        one["packed_stride"], one["packed"] = self.packed_stride, self.packed
        one["plane"], one["pitch"], one["columns"] = self.plane, self.pitch, self.columns
        one["wide"] = problem.bracket_columns
        one["cells"], one["ring_cells"] = problem.cells, problem.ring_cells if _has_core(problem) else 0
        one["n"], one["tiles"], one["tile"] = self.n, self.tiles, self.tile
        one["low"], one["high"] = self.low, self.high
        one["inner_low"], one["inner_high"] = self._inner()
        one["core_high"] = self.n
        for axis, (first, last) in zip(self.axes, problem.core, strict=True):
            one["core_low"][axis], one["core_high"][axis] = first, last
        one["steps"], one["begin"], one["every"] = problem.steps, begin, problem.store_every
        one["slots"], one["shots"], one["models"] = problem.slots(begin, end), shots, problem.models
        one["radius"], one["profile_stride"] = problem.radius, self.profile_stride
        one["flat"], one["free_surface"] = problem.dimensions == 2, problem.free_surface
        one["periodic"] = problem.periodic
        for axis, second, first_weights in zip(self.axes, problem.second, problem.first, strict=True):
            one["second"][axis, : len(second)], one["first"][axis, : len(first_weights)] = second, first_weights
        return params

    def _inner(self) -> tuple[list[int], list[int]]:
        """Cells that no layer, image or missing guard touches."""
        problem, radius = self.problem, self.problem.radius
        low, high = list(self.low), list(self.high)
        if problem.boundary == "sponge":
            for axis, (before, after) in zip(self.axes, problem.widths, strict=True):
                low[axis], high[axis] = before, self.n[axis] - after
        if problem.free_surface:
            low[0] = max(low[0], radius + 1)
        # Fields have guard rows along y in no case; along the others, where they are images, edge cells fill them.
        for axis in (0, 2) if problem.periodic else (1,) if problem.dimensions == 3 else ():
            low[axis], high[axis] = max(low[axis], radius), min(high[axis], self.n[axis] - radius)
        return low, high

    def rewind(self, params: NDArray, workspace: int) -> None:
        """Tell the kernels about the field that is run backwards."""
        first = workspace + self.places["past"] + 4 * self.cell
        params["past"] = first, first + 4 * self.problem.shots * self.field
        params["tile_starts"] = workspace + self.places["starts1"]
        params["tile_groups"] = workspace + self.places["groups1"]

    def launch(self, kernel: str, params: NDArray, arguments: tuple[int, ...]) -> Launch:
        """One step of every shot. In 3-D a block holds two planes of its tile with their halo in shared memory."""
        blocks = int(params["extra"][0]) + math.prod(self.tiles)
        rows, columns = TILE_3D
        plane = (rows + 2 * self.problem.radius) * (columns + 2 * LANES)
        shared = 8 * plane if self.problem.dimensions == 3 else 0
        return Launch(kernel, (blocks, self.problem.shots), params, arguments, shared)

    def begin(self, params: NDArray, workspace: int, step: int, state: int, added: TapArrays) -> list[Operation]:
        """Clear the work space, bring constants and state into it, and sort what is added by tiles."""
        problem = self.problem
        sponge = [self._to_field(params, problem.damping, int(params["damping"][0]), 1, 0)]
        return [
            Zero(workspace, self.bytes),
            Launch("begin_call", (-(-self.profile_stride // THREADS), 12), params, (int(params["profile"][0]), step)),
            *self.sort(params, workspace, 0, added),
            self._to_field(params, problem.factor, int(params["factor"][0]), problem.models, problem.cells),
            *(sponge if problem.damping else []),
            *(self._state(params, state, 0, inward=True) if state else []),
        ]

    def sort(self, params: NDArray, workspace: int, number: int, added: TapArrays) -> list[Launch]:
        """Sort the cells that a signal is added to by tiles."""
        many = max(1, min(1024, -(-added.taps // (THREADS * self.problem.shots)))), self.problem.shots
        cursor = workspace + self.places[f"cursor{number}"]
        return [
            Launch("tile_count", many, params, ()),
            Launch("tile_scan", (1, 1), params, (self.problem.shots,), 4 * THREADS),
            Launch("tile_fill", many, params, (cursor,)),
        ]

    def end(self, params: NDArray, steps: int, state: int) -> list[Operation]:
        """Bring the state out after so many steps."""
        return list(self._state(params, state, steps, inward=False)) if state else []

    def _state(self, params: NDArray, state: int, steps: int, *, inward: bool) -> list[Launch]:
        problem, one = self.problem, params[0]
        whole, parity = problem.state_fields * problem.cells, steps % 2
        slot = iter(range(state, state + 4 * whole, 4 * problem.cells))
        fields = [int(one["field"][parity]), int(one["field"][1 - parity])]
        move = self._to_field if inward else self._from_field
        launches = [move(params, next(slot), field, problem.shots, whole, repeats=1) for field in fields]
        if problem.boundary == "sponge":
            return launches
        zeta = int(one["zeta"][parity if self.direction == "adjoint" else 0])
        name = f"{'to' if inward else 'from'}_packed<{problem.radius}>"
        for memory in (int(one["psi"][parity]), zeta):
            for axis in self.axes:
                dense = next(slot)
                arguments = (dense, whole, memory, 0, axis) if inward else (memory, 0, dense, whole, axis)
                launches.append(Launch(name, self._many(problem.shots), params, arguments))
        return launches

    def fields_of_rewind(self, params: NDArray, call: AdjointCall) -> tuple[list[Operation], list[Operation]]:
        """Bring the last two fields and their ring into the work space, and the first two out of it."""
        problem, whole = self.problem, 2 * self.problem.cells
        fields = [int(field) for field in params[0]["past"]]
        last = (call.end - call.begin) % 2
        into, out = [], []
        for slot in range(2):  # u at `end` stands where u at `end` - 2 will
            dense = call.field + 4 * slot * problem.cells
            into.append(self._to_field(params, dense, fields[1 - slot], problem.shots, whole, repeats=1))
            out.append(self._from_field(params, dense, fields[1 - slot if last == 0 else slot], problem.shots, whole))
        ring = Launch(
            f"first_ring<{problem.radius}>", (int(params["extra"][0]), problem.shots), params, (fields[0], call.end - 1)
        )
        return [*self.sort(params, call.workspace, 1, problem.sources), *into, ring], [*out]

    def _many(self, items: int) -> tuple[int, int]:
        return min(4096, -(-self.problem.cells // THREADS)), items

    def _to_field(
        self, params: NDArray, dense: int, field: int, items: int, stride: int, *, repeats: int = 0
    ) -> Launch:
        return Launch("to_field", self._many(items), params, (dense, stride, field, self.field, repeats))

    def _from_field(
        self, params: NDArray, dense: int, field: int, items: int, stride: int, *, repeats: int = 0
    ) -> Launch:
        return Launch("from_field", self._many(items), params, (field, self.field, dense, stride, 0))


def _has_core(problem: Problem) -> bool:
    return all(first < last for first, last in problem.core)
