"""Acoustic propagation on a GPU for fields that do not fit on chip: every time step streams through memory once.

A call becomes a list of moves, launches and one repeated period of steps (`forward_program`, `adjoint_program`: plain
numbers, which the tests run on the processor); on a GPU the period is captured once as a CUDA graph and replayed.
Memory is the caller's. A step reads and writes 16 bytes per cell, and in the absorbing layers 16 more per axis.
"""

import functools
import math
import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem, TapArrays
from hpfwi_kernels.acoustic.cuda_streaming_layout import (
    ALIGNMENT_BYTES,
    EXTRA_BLOCKS,
    LANES,
    THREADS,
    Launch,
    Layout,
    Operation,
    Repeat,
    Zero,
)
from hpfwi_kernels.errors import ModelError
from hpfwi_kernels.gpu import compiled, launching_on

HERE = Path(__file__).parent
PARTS = ("cuda_streaming.cuh", "cuda_streaming_layers.cuh", "cuda_streaming_moves.cu")
STEPS_IN_GRAPH = 16
"""At least; a period holds a whole number of store_every, and an even number of steps."""


def forward_workspace_bytes(problem: Problem) -> int:
    """Bytes of work space that a forward call needs."""
    return Layout(problem, "forward", rewinds=False).bytes


def adjoint_workspace_bytes(problem: Problem, *, rewinds: bool = False) -> int:
    """Bytes of work space that an adjoint call needs; `rewinds` where the field is run backwards from a ring."""
    return Layout(problem, "adjoint", rewinds=rewinds).bytes


def forward(call: ForwardCall) -> None:
    """Run the steps of a call on its GPU, in its stream. Returns when everything is enqueued."""
    _run(forward_program(call), call.device, call.stream)


def adjoint(call: AdjointCall) -> None:
    """Run the adjoint of the steps of a call on its GPU, in its stream. Returns when everything is enqueued."""
    _run(adjoint_program(call), call.device, call.stream)


def forward_program(call: ForwardCall) -> list[Operation]:
    """What a forward call does, in order."""
    problem = call.problem
    layout = Layout(problem, "forward", rewinds=False)
    _require_workspace(call.workspace, layout.bytes)
    params = layout.params(call.workspace, call.begin, call.end)
    _gather(params, problem, problem.receivers, call.records, step=problem.receivers.points, point=1)
    _add(params, problem, problem.sources, problem.drive, step=1, point=problem.steps)
    params["brackets"], params["ring"], params["saves_ring"] = call.brackets, call.ring, call.ring != 0
    params["extra"] = _extra_blocks(
        problem.receivers.points if call.records else 0, problem.ring_cells if call.ring else 0
    )
    variant = f"{problem.radius}, {problem.boundary.upper()}"
    keep = _keep(call.bracket_type) if call.brackets else "NOTHING"
    steps = [
        [layout.launch(f"forward_{problem.dimensions}d<{variant}, {keep if kept else 'NOTHING'}>", params, (parity,))]
        for kept, parity in _pattern(problem, call.end - call.begin, 0)
    ]
    return [
        *layout.begin(params, call.workspace, call.begin, call.state_in, problem.sources),
        *_repeated(steps, call.end - call.begin),
        *layout.end(params, call.end - call.begin, call.state_out),
    ]


def adjoint_program(call: AdjointCall) -> list[Operation]:
    """What an adjoint call does, in order."""
    problem, count = call.problem, call.end - call.begin
    rewinds = not call.brackets
    if rewinds and not (call.ring and call.field):
        raise ModelError(
            "An adjoint run needs its forward run's brackets, or the ring and the last two fields; pass one of the two."
        )
    layout = Layout(problem, "adjoint", rewinds=rewinds)
    _require_workspace(call.workspace, layout.bytes)
    params = layout.params(call.workspace, call.begin, call.end)
    _gather(params, problem, problem.sources, call.drive_gradient, step=1, point=problem.steps)
    _add(params, problem, problem.receivers, call.residual, step=problem.receivers.points, point=1)
    params["product"], params["brackets"], params["total"] = call.product, call.brackets, call.total
    params["aligned"] = call.total % 16 == 0 and problem.shape[-1] % LANES == 0
    params["extra"] = _extra_blocks(problem.sources.points, 0)
    variant = f"{problem.radius}, {problem.boundary.upper()}"
    keep = "NOTHING" if rewinds else _keep(call.bracket_type)
    back = params.copy()
    if rewinds:
        layout.rewind(back, call.workspace)
        _add(back, problem, problem.sources, problem.drive, step=1, point=problem.steps)
        back["ring"], back["extra"] = call.ring, _extra_blocks(0, problem.ring_cells)
    steps = []
    for counted, parity in _pattern(problem, count, (count - 1) % problem.store_every):
        kind = f"back_{problem.dimensions}d<{variant}, {keep if counted else 'NOTHING'}>"
        steps.append([layout.launch(kind, params, (parity,))])
        if rewinds:
            kind = f"rewind_{problem.dimensions}d<{problem.radius}, {str(counted).lower()}>"
            steps[-1].append(layout.launch(kind, back, (parity,)))
    before: list[Operation] = []
    after: list[Operation] = []
    if rewinds:
        before, after = layout.fields_of_rewind(back, call)
    return [
        *layout.begin(params, call.workspace, call.end - 1, call.state_in, problem.receivers),
        *before,
        *_repeated(steps, count),
        *after,
        *layout.end(params, count, call.state_out),
    ]


def _keep(bracket_type: str) -> str:
    return {"float32": "FULL", "bfloat16": "HALF"}[bracket_type]


def _pattern(problem: Problem, steps: int, first: int) -> list[tuple[bool, int]]:
    """Whether a bracket counts, and the parity, of the first steps: one period, of an even number of steps.

    first   how many steps come before the first one that counts
    """
    unit = math.lcm(2, problem.store_every)
    period = min(-(-STEPS_IN_GRAPH // unit) * unit, -(-steps // unit) * unit)
    return [((n - first) % problem.store_every == 0, n % 2) for n in range(period)]


def _repeated(period: list[list[Launch]], steps: int) -> list[Operation]:
    whole, rest = divmod(steps, len(period))
    repeats: list[Operation] = [Repeat(tuple(launch for step in period for launch in step), whole)] if whole else []
    return [*repeats, *(launch for step in period[:rest] for launch in step)]


def _extra_blocks(points: int, ring_cells: int) -> int:
    """Blocks that gather at points, a thread each, and save or bring the ring, four cells a thread."""
    return min(EXTRA_BLOCKS, max(-(-points // THREADS), -(-ring_cells // (4 * THREADS))))


def _gather(params: NDArray, problem: Problem, taps: TapArrays, samples: int, *, step: int, point: int) -> None:
    params["point_starts"], params["tap_cells"], params["tap_weights"] = taps.point_starts, taps.cells, taps.weights
    params["tap_points"], params["points"], params["samples"] = taps.tap_points, taps.points, samples
    params["sample_shot"], params["sample_step"], params["sample_point"] = taps.points * problem.steps, step, point


def _add(params: NDArray, problem: Problem, taps: TapArrays, signal: int, *, step: int, point: int) -> None:
    params["shot_groups"], params["group_cells"] = taps.shot_groups, taps.group_cells
    params["group_starts"], params["group_taps"] = taps.group_starts, taps.group_taps
    params["added_points"], params["added_weights"], params["signal"] = taps.tap_points, taps.weights, signal
    params["signal_shot"], params["signal_step"], params["signal_point"] = taps.points * problem.steps, step, point


def _require_workspace(address: int, count: int) -> None:
    if address == 0 or address % ALIGNMENT_BYTES:
        raise ModelError(f"The work space lies at {address:#x}; give {count} bytes at a multiple of {ALIGNMENT_BYTES}.")


def source(dimensions: int) -> str:
    """The CUDA C++ of a number of dimensions in one text, for a compiler that is given no files; 0: no steps."""
    steps = (f"cuda_streaming_{dimensions}d.cu",) if dimensions else ()
    texts = [(HERE / name).read_text("utf-8") for name in (*PARTS, *steps)]
    return "\n".join(re.sub(r'#include "cuda_streaming.*"|#pragma once', "", text) for text in texts)


def _run(program: list[Operation], device: int, stream: int) -> None:
    import cupy

    with launching_on(device, stream) as queue:
        for operation in program:
            if isinstance(operation, Zero):
                cupy.cuda.runtime.memsetAsync(operation.address, 0, operation.count, queue.ptr)
                continue
            # The first period of many runs launch by launch: what is captured must have been loaded.
            for launch in launches_of(operation):
                _enqueue(device, launch)
            if isinstance(operation, Repeat) and operation.times > 1:
                graph = _graph(device, _Period(operation.launches))
                for _ in range(operation.times - 1):
                    graph.launch(stream=queue)


def launches_of(operation: Operation) -> tuple[Launch, ...]:
    """The launches of an operation, a repeated period's once."""
    return (
        operation.launches if isinstance(operation, Repeat) else (operation,) if isinstance(operation, Launch) else ()
    )


def _enqueue(device: int, launch: Launch) -> None:
    # Addresses and strides are 64 bits wide in the kernels, everything else is an int: their signatures say which.
    function = _function(device, launch.kernel, 2 if launch.params["flat"][0] else 3, int(launch.params["radius"][0]))
    function(launch.blocks, (THREADS,), (launch.params, *launch.typed()), shared_mem=launch.shared_bytes)


class _Period:
    """Launches as the key of a cache: equal where every byte that the kernels get is equal."""

    def __init__(self, launches: tuple[Launch, ...]) -> None:
        self.launches = launches
        self.key = tuple((one.kernel, one.blocks, one.params.tobytes(), one.arguments) for one in launches)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Period) and self.key == other.key


@functools.lru_cache(maxsize=64)
def _graph(device: int, period: _Period) -> Any:
    """The period as a CUDA graph. Calls with the same addresses, as torch's allocator gives them, share one."""
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as side:
        side.begin_capture()
        for launch in period.launches:
            _enqueue(device, launch)
        return side.end_capture()


@functools.cache
def _function(device: int, name: str, dimensions: int, radius: int) -> Any:
    """A kernel, compiled once per GPU: a step alone, which takes a second, and what runs once per call together."""
    if name in once_per_call(radius):
        return _once_per_call(device, radius)[name]
    return compiled(source(dimensions), (name,))[name]


@functools.cache
def _once_per_call(device: int, radius: int) -> dict[str, Any]:
    return compiled(source(0), once_per_call(radius))


def once_per_call(radius: int) -> tuple[str, ...]:
    """The kernels that prepare a call and bring its state in and out."""
    moves = ("to_field", "from_field", "begin_call", "tile_count", "tile_scan", "tile_fill")
    return (*moves, *(f"{name}<{radius}>" for name in ("to_packed", "from_packed", "first_ring")))
