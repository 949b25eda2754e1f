"""How a shot is laid out on chip: which blocks take which rows, what their memory holds, and what a launch is told.

Pure arithmetic on descriptions (cuda_call.py): nothing here needs a GPU. cuda.py launches, cuda_on_chip.cu computes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem, TapArrays

HERE = Path(__file__).parent
MOST_BLOCKS = 256
MOST_TEAMS = 65535
"""CUDA's limit for the second size of a launch's blocks; a team takes one shot after another."""
TILE_ROWS = (1, 2, 4, 6, 7, 8)
"""Rows of a thread's tile; it has 4 columns."""
THREAD_BOUNDS = (256, 384, 512)
"""Threads of a block that instances are compiled for: fewer threads have more registers each. 512 of them have 128,
which hold two numbers for each of a tile's 28 cells and what a step needs; with more threads, registers would spill."""
SPILLED_BYTES = {
    (2, 512): {7: 32, 8: 64},
    (4, 512): {6: 32, 7: 32, 8: 64},
    (6, 384): {4: 32, 6: 32, 7: 32, 8: 32},
    (6, 512): {4: 64, 6: 48, 7: 80, 8: 168},
    (8, 384): {7: 32, 8: 64},
    (8, 512): {4: 32, 6: 136, 7: 176, 8: 248},
}
"""By order and bound, at most how many bytes of a thread's registers go to local memory for tiles of so many rows; none
where nothing is said. A grid's instances, and a chain's, take up to 96 more; a grid's of order 8 up to 176.
tests/kernels/test_acoustic_cuda_compiled.py holds compiled instances to it."""
CLUSTER_SIZES = (2, 4, 8)
"""Blocks of a cluster that every GPU with clusters can run."""
MOST_CHAINED_ROWS = 4
"""Rows of a tile up to which a cluster's blocks wait for what their neighbours send alone: counting it takes registers,
which would spill with more rows."""
LAYER_ROW_COST = 1.8
"""Work on a row inside a top or bottom layer, in rows outside."""

Team = Literal["block", "cluster", "grid"]
Run = Literal["forward", "unwind", "adjoint"]
_TEAMS = {"block": "BLOCK", "cluster": "CLUSTER", "grid": "GRID"}

_GATHER = np.dtype(
    [(name, np.uint64) for name in ("point_parts", "part_taps", "part_rows", "part_points", "cells", "weights")]
    + [(name, np.uint64) for name in ("out", "product", "sums")]
    + [(name, np.int32) for name in ("points", "point_stride", "step_stride", "several", "parts")],
    align=True,
)
_SCATTER = np.dtype(
    [(name, np.uint64) for name in ("shot_groups", "group_cells", "group_starts", "group_taps", "tap_points")]
    + [(name, np.uint64) for name in ("weights", "values")]
    + [(name, np.int32) for name in ("points", "point_stride", "step_stride", "most_groups")],
    align=True,
)
_SHAPE = np.dtype(
    [("rows", np.int32), ("columns", np.int32), ("low", np.int32, 2), ("high", np.int32, 2)]
    + [(name, np.int32) for name in ("free_surface", "periodic")]
    + [(name, np.int32) for name in ("blocks", "tile_rows")],
    align=True,
)
CALL = np.dtype(
    [("factor", np.uint64), ("damping", np.uint64), ("sponges", np.uint64), ("profile", np.uint64, (2, 4))]
    + [("gather", _GATHER), ("scatter", _SCATTER)]
    + [(name, np.uint64) for name in ("state_in", "state_out", "total", "sum", "ring", "field", "exchange")]
    + [(name, np.uint64) for name in ("brackets", "counters")]
    + [("second", np.float32, (2, 5)), ("first", np.float32, (2, 4)), ("shape", _SHAPE), ("core", np.int32, (2, 2))]
    + [(name, np.int32) for name in ("shots", "models", "steps", "begin", "end", "store_every", "slots", "half")]
    + [("bands", np.int32, MOST_BLOCKS + 1)],
    align=True,
)
"""The kernel's only argument, field by field as in cuda_on_chip.cu."""


@dataclass(frozen=True)
class Plan:
    """Who works on a shot: `blocks` blocks as a `team`, in bands of rows, with tiles of `rows` x 4 cells."""

    team: Team
    rows: int
    bands: tuple[int, ...]
    """First row of every band, and the number of rows."""
    columns: int

    @property
    def blocks(self) -> int:
        """Blocks of a team."""
        return len(self.bands) - 1

    @property
    def most_rows(self) -> int:
        """Rows of the widest band."""
        return int(np.diff(self.bands).max())

    @property
    def tile_rows(self) -> int:
        """Tiles below each other in the widest band."""
        return -(-self.most_rows // self.rows)

    @property
    def threads(self) -> int:
        """Threads of a block, whole warps: one per tile."""
        return -(-self.tile_rows * -(-self.columns // 4) // 32) * 32

    @property
    def bound(self) -> int | None:
        """Threads that the kernel's instance is compiled for, None where these are too many."""
        return next((most for most in THREAD_BOUNDS if self.threads <= most), None)

    def spilled_bytes(self, order: int) -> int:
        """At most so many bytes of a thread's registers go to local memory."""
        return SPILLED_BYTES.get((order, self.bound or 0), {}).get(self.rows, 0)


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    kernel: str
    """Template instance."""
    team: Team
    call: NDArray
    """Its argument, a 0-d array of CALL, passed by value."""
    grid: tuple[int, int]
    """Blocks of a team, and teams; a shot's block each where they work alone."""
    threads: int
    shared_bytes: int
    cluster: int
    """Blocks of a cluster, 1 without."""
    zero: tuple[int, int] = (0, 0)
    """Address and number of bytes to set to zero before."""


def source() -> str:
    """The whole CUDA source."""
    return "".join((HERE / name).read_text("utf-8") for name in ("cuda_device.cuh", "cuda_on_chip.cu"))


def instance(problem: Problem, plan: Plan, run: Run, *, chain: bool) -> str:
    """The template instance that a run needs; `chain` where a cluster's blocks wait for their neighbours alone."""
    layered = problem.boundary == "cpml" and run != "unwind"
    sizes = f"{problem.order}, {plan.rows}, {plan.bound}"
    team = "CHAIN" if chain else _TEAMS[plan.team]
    return f"on_chip<{sizes}, {team}, {run.upper()}, {str(layered).lower()}>"


def plan_of(problem: Problem, team: Team, blocks: int) -> Plan | None:
    """The plan for so many blocks per shot, or None where bands get too thin or a band has too many cells.

    Tiles are as small as the number of threads allows: small tiles hide more latency, large ones load less. Larger ones
    are taken where the small ones' registers would spill; where all spill, the smallest.
    """
    bands = _bands(problem, blocks)
    if bands is None:
        return None
    plans = [Plan(team, rows, bands, problem.shape[1]) for rows in TILE_ROWS]
    possible = [plan for plan in plans if plan.bound is not None]
    return min(possible, key=lambda plan: plan.spilled_bytes(problem.order), default=None)


def shared_bytes(problem: Problem, plan: Plan, run: Run) -> int:
    """Shared memory of the block that needs most; the layout is in the kernel."""
    radius, pitch = problem.radius, _pitch(problem)
    stride, halo = pitch + 8, radius * (1 if plan.team == "block" else 2)
    layered = problem.boundary == "cpml" and run != "unwind"
    (_, columns), (low, high) = problem.shape, problem.widths[1]
    left = -(-low // 4)
    right = max(left, (columns - high) // 4) if high else pitch // 4
    most, counters = 0, 8 * (plan.team == "cluster")  # of what a chain's neighbours send
    for block, rows in enumerate(np.diff(plan.bands).tolist()):
        floats = (2 * halo + rows) * stride
        if layered:
            layers = rows * 4 * (left + pitch // 4 - right) + _layer_rows(problem, plan, block) * pitch
            floats += layers * (4 if run == "adjoint" else 3)
            floats += 4 * stride + 4 * (-(-(rows + 2 * radius) // 4) * 4) + 8 * (plan.team == "cluster")
        elif problem.damping and run != "unwind":
            floats += rows * pitch
        most = max(most, floats)
    return 4 * (most + 2 * _added(problem, run).most_groups + counters)


def workspace_floats(problem: Problem, plan: Plan, run: Run, teams: int) -> dict[str, int]:
    """Float32 numbers in device memory, by use, that a launch of so many teams works in."""
    kinds = 1 + (2 if run == "adjoint" else 1) * (problem.boundary == "cpml" and run != "unwind")
    grid = plan.team == "grid"
    exchange = teams * plan.blocks * 4 * kinds * problem.radius * _pitch(problem)
    return {
        "counters": _rounded(teams) if grid else 0,
        "exchange": exchange if grid else 0,
        "sums": _rounded(2 * (problem.receivers if run == "forward" else problem.sources).parts),
        "sum": problem.shots * problem.bracket_cells if run == "adjoint" else 0,
    }


def forward_launch(call: ForwardCall, plan: Plan, teams: int) -> Launch:
    """The launch that runs a forward call; its workspace begins with `workspace_floats`."""
    problem = call.problem
    params, places = _common(problem, plan, "forward", call.workspace, teams, call.begin, call.end)
    params["state_in"], params["state_out"] = call.state_in, call.state_out
    params["brackets"], params["half"] = call.brackets, call.bracket_type == "bfloat16"
    params["ring"] = call.ring
    if call.records:
        _gather(params, problem.receivers, call.records, places["sums"], point=1, step=problem.receivers.points)
    _scatter(params, problem.sources, problem.drive, point=problem.steps, step=1)
    return _launch(problem, plan, "forward", params, places, teams)


def adjoint_launch(call: AdjointCall, plan: Plan, teams: int) -> Launch:
    """The launch that runs an adjoint call with brackets; its workspace begins with `workspace_floats`."""
    problem = call.problem
    params, places = _common(problem, plan, "adjoint", call.workspace, teams, call.begin, call.end)
    params["state_in"], params["state_out"] = call.state_in, call.state_out
    params["brackets"], params["half"] = call.brackets, call.bracket_type == "bfloat16"
    params["total"], params["sum"] = call.total, places["sum"]
    _gather(params, problem.sources, call.drive_gradient, places["sums"], point=problem.steps, step=1)
    params["gather"]["product"] = call.product
    _scatter(params, problem.receivers, call.residual, point=1, step=problem.receivers.points)
    return _launch(problem, plan, "adjoint", params, places, teams)


def unwind_launch(call: AdjointCall, plan: Plan, teams: int, brackets: int) -> Launch:
    """The launch that runs a call's field backwards and writes float32 brackets, zero outside the core."""
    problem = call.problem
    params, places = _common(problem, plan, "unwind", call.workspace, teams, call.begin, call.end)
    params["damping"] = 0
    params["brackets"], params["ring"], params["field"] = brackets, call.ring, call.field
    _scatter(params, problem.sources, problem.drive, point=problem.steps, step=1)
    return _launch(problem, plan, "unwind", params, places, teams)


def _common(
    problem: Problem, plan: Plan, run: Run, workspace: int, teams: int, begin: int, end: int
) -> tuple[NDArray, dict[str, int]]:
    params = np.zeros((), CALL)
    params["factor"], params["damping"], params["sponges"] = problem.factor, problem.damping, problem.sponges
    for axis, profile in enumerate(problem.profiles):
        params["profile"][axis] = (profile.decay, profile.gain_plus_one, profile.gain, profile.slope)
    for axis in range(2):
        params["second"][axis, : problem.radius + 1] = problem.second[axis]
        params["first"][axis, : problem.radius] = problem.first[axis]
    shape = params["shape"]
    shape["rows"], shape["columns"] = problem.shape
    layered = problem.boundary == "cpml" and run != "unwind"
    shape["low"], shape["high"] = ([width[side] if layered else 0 for width in problem.widths] for side in (0, 1))
    shape["free_surface"], shape["periodic"] = problem.free_surface, problem.periodic
    shape["blocks"], shape["tile_rows"] = plan.blocks, plan.tile_rows
    params["core"] = problem.core
    params["shots"], params["models"], params["steps"] = problem.shots, problem.models, problem.steps
    params["begin"], params["end"], params["store_every"] = begin, end, problem.store_every
    params["slots"] = problem.slots(begin, end)
    params["bands"][: len(plan.bands)] = plan.bands
    places, at = {}, workspace
    for name, floats in workspace_floats(problem, plan, run, teams).items():
        places[name] = at
        at += 4 * floats
    params["exchange"], params["counters"] = places["exchange"], places["counters"]
    return params, places


def _launch(problem: Problem, plan: Plan, run: Run, params: NDArray, places: dict[str, int], teams: int) -> Launch:
    # A point's sum of several bands comes through memory that only a barrier of all blocks makes seen; chains are not
    # made for another shot after the first.
    small = plan.rows <= MOST_CHAINED_ROWS and problem.shots <= MOST_TEAMS
    chain = plan.team == "cluster" and small and not params["gather"]["several"]
    return Launch(
        kernel=instance(problem, plan, run, chain=chain),
        team=plan.team,
        call=params,
        grid=(problem.shots, 1) if plan.team == "block" else (plan.blocks, min(teams, MOST_TEAMS)),
        threads=plan.threads,
        shared_bytes=shared_bytes(problem, plan, run),
        cluster=plan.blocks if plan.team == "cluster" else 1,
        zero=(places["counters"], 4 * teams) if plan.team == "grid" else (0, 0),
    )


def _gather(params: NDArray, taps: TapArrays, out: int, sums: int, *, point: int, step: int) -> None:
    """Samples of `out` lie [shot, ...] with these strides of points and steps."""
    gather = params["gather"]
    for name in ("point_parts", "part_taps", "part_rows", "part_points", "cells", "weights", "points", "parts"):
        gather[name] = getattr(taps, name)
    gather["out"], gather["sums"], gather["several"] = out, sums, taps.several
    gather["point_stride"], gather["step_stride"] = point, step


def _scatter(params: NDArray, taps: TapArrays, values: int, *, point: int, step: int) -> None:
    scatter = params["scatter"]
    for name in ("shot_groups", "group_cells", "group_starts", "group_taps", "tap_points", "weights"):
        scatter[name] = getattr(taps, name)
    scatter["values"], scatter["points"], scatter["most_groups"] = values, taps.points, taps.most_groups
    scatter["point_stride"], scatter["step_stride"] = point, step


def _added(problem: Problem, run: Run) -> TapArrays:
    return problem.receivers if run == "adjoint" else problem.sources


def _bands(problem: Problem, blocks: int) -> tuple[int, ...] | None:
    """Rows of about equal work; more rows than the radius, which neighbours and the free surface need."""
    rows = problem.shape[0]
    least = problem.radius + 1
    if blocks > min(MOST_BLOCKS, rows // least):
        return None
    cost = np.ones(rows)
    if problem.boundary == "cpml":
        low, high = problem.widths[0]
        cost[:low] = cost[rows - high :] = LAYER_ROW_COST
    work = np.concatenate([[0.0], np.cumsum(cost)])
    cuts = np.rint(np.interp(np.linspace(0, work[-1], blocks + 1), work, np.arange(rows + 1))).astype(int)
    for block in range(1, blocks):  # thin bands take rows from what is left
        cuts[block] = min(max(cuts[block], cuts[block - 1] + least), rows - (blocks - block) * least)
    return tuple(cuts.tolist())


def _layer_rows(problem: Problem, plan: Plan, block: int) -> int:
    """Rows inside layers that a block holds: of its band and of the rows around it that it receives."""
    rows, radius, (low, high) = problem.shape[0], problem.radius, problem.widths[0]
    begin, end = max(plan.bands[block] - radius, 0), min(plan.bands[block + 1] + radius, rows)
    return max(min(low, end) - begin, 0) + max(end - max(rows - high, begin), 0)


def _pitch(problem: Problem) -> int:
    return -(-problem.shape[1] // 4) * 4


def _rounded(floats: int) -> int:
    return math.ceil(floats / 64) * 64
