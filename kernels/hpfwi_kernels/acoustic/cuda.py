"""The CUDA implementation: which kernels run a propagation on a GPU, and launching them through CuPy.

Memory is the caller's, addresses come in descriptions (cuda_call.py), and everything runs in the caller's stream. Where
the state of a shot fits on chip, all its steps run in one launch (cuda_on_chip.py); where not, every step streams
through memory (cuda_streaming.py). `explain` says which and why.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from hpfwi_kernels.acoustic import cuda_on_chip, cuda_streaming
from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem
from hpfwi_kernels.acoustic.cuda_on_chip import CLUSTER_SIZES, Launch, Plan, Run
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.gpu import available, compiled, launching_on

LEAST_ROWS = 8
"""Rows of a band below which more blocks per shot gain nothing: a step then waits for its barrier."""
REWOUND_STEPS = 64
"""Steps that a field is run backwards at a time, about."""


@dataclass(frozen=True)
class Limits:
    """What a GPU offers a kernel."""

    name: str
    multiprocessors: int
    shared_bytes: int
    """Of shared memory that one block can have."""
    clusters: bool
    """Whether blocks can be launched in clusters that see each other's shared memory."""


@dataclass(frozen=True)
class Choice:
    """Which kernels run a propagation, and why."""

    kernels: str
    """S: a block holds a shot, M: a cluster does, L: it takes a grid of resident blocks; X: streaming."""
    plan: Plan | None
    """None for X."""
    teams: int
    """Shots at a time in a launch of L; all of them otherwise."""
    reason: str


@functools.cache
def limits_of(device: int) -> Limits:
    """What a GPU offers; raises KernelError where CuPy is missing."""
    if not available():
        raise KernelError(
            "The acoustic propagator needs CuPy to run on a GPU and finds none; install hpfwi[cuda12] or hpfwi[cuda13] "
            "to go with torch's CUDA version, or move the tensors with .cpu()."
        )
    import cupy

    with cupy.cuda.Device(device) as gpu:
        found = gpu.attributes
        name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        return Limits(
            name=name,
            multiprocessors=int(found["MultiProcessorCount"]),
            shared_bytes=int(found["MaxSharedMemoryPerBlockOptin"]),
            clusters=int(gpu.compute_capability) >= 90,
        )


def choose(problem: Problem, limits: Limits, *, gradient: bool) -> Choice:
    """The kernels for a propagation whose forward run, and with `gradient` its adjoint too, must fit.

    On chip, a shot gets as few blocks as hold it, and more while there are multiprocessors without a shot.
    """
    return _chosen(replace(problem, factor=0, drive=0), limits, gradient)


@functools.lru_cache(maxsize=64)
def _chosen(problem: Problem, limits: Limits, gradient: bool) -> Choice:
    if problem.dimensions != 2:
        return Choice("X", None, 0, "three dimensions stream through memory")
    runs: tuple[Run, ...] = ("forward", "adjoint") if gradient else ("forward",)

    def fits(plan: Plan | None) -> bool:
        return plan is not None and all(
            cuda_on_chip.shared_bytes(problem, plan, run) <= limits.shared_bytes for run in runs
        )

    def plan(blocks: int) -> Plan | None:
        team = "block" if blocks == 1 else "cluster" if limits.clusters and blocks in CLUSTER_SIZES else "grid"
        return cuda_on_chip.plan_of(problem, team, blocks)  # type: ignore[arg-type]

    together = (1, *CLUSTER_SIZES) if limits.clusters else (1,)
    least = next((blocks for blocks in together if fits(plan(blocks))), None)
    share = limits.multiprocessors // problem.shots
    if least is not None:
        enough = problem.shape[0] // LEAST_ROWS
        wanted = max(blocks for blocks in together if blocks == least or least < blocks <= min(share, enough))
        chosen = plan(wanted)
        if not fits(chosen):
            wanted, chosen = least, plan(least)
        assert chosen is not None
        need = max(cuda_on_chip.shared_bytes(problem, chosen, run) for run in runs)
        return Choice(
            "S" if least == 1 else "M",
            chosen,
            problem.shots,
            f"a shot's state takes {_blocks(wanted)} with {_kib(need)} of shared memory each, of the "
            f"{_kib(limits.shared_bytes)} that {limits.name} has",
        )
    # A grid's blocks must all be resident, one on each multiprocessor.
    least = next((blocks for blocks in range(2, limits.multiprocessors + 1) if fits(plan_grid(problem, blocks))), None)
    if least is None:
        return Choice(
            "X",
            None,
            0,
            f"a shot of {problem.shape[0]} x {problem.shape[1]} cells, layers included, is more than the shared memory "
            f"and registers of the {limits.multiprocessors} multiprocessors of {limits.name} hold",
        )
    rounds = -(-problem.shots // (limits.multiprocessors // least))
    teams = -(-problem.shots // rounds)
    most = min(limits.multiprocessors // teams, max(least, problem.shape[0] // LEAST_ROWS))
    blocks = next(blocks for blocks in range(most, least - 1, -1) if fits(plan_grid(problem, blocks)))
    return Choice(
        "L",
        plan_grid(problem, blocks),
        teams,
        f"a shot's state takes {least} blocks or more, beyond a {'cluster' if limits.clusters else 'block'} of "
        f"{limits.name}; {blocks} share it, for {teams} of the {problem.shots} shots at a time",
    )


def plan_grid(problem: Problem, blocks: int) -> Plan | None:
    """The plan for so many blocks of a cooperative launch."""
    return cuda_on_chip.plan_of(problem, "grid", blocks)


def explain(problem: Problem, choice: Choice) -> str:
    """One line: what runs, and why."""
    if choice.plan is None:
        return f"class X, one step per launch: {choice.reason}"
    plan = choice.plan
    spilled = plan.spilled_bytes(problem.order)
    return (
        f"class {choice.kernels}, all {problem.steps} steps in one launch, {plan.blocks} x {plan.threads} threads per "
        f"shot with tiles of {plan.rows} x 4 cells: {choice.reason}"
        + (f"; up to {spilled} bytes of a thread's registers spill" if spilled else "")
    )


def forward_workspace_bytes(problem: Problem, choice: Choice) -> int:
    """Bytes of work space that a forward call needs."""
    if choice.plan is None:
        return cuda_streaming.forward_workspace_bytes(problem)
    return _workspace(problem, choice, "forward")


def adjoint_workspace_bytes(problem: Problem, choice: Choice, *, rewinds: bool = False) -> int:
    """Bytes of work space that an adjoint call needs; `rewinds` where the field is run backwards from a ring."""
    if choice.plan is None:
        return cuda_streaming.adjoint_workspace_bytes(problem, rewinds=rewinds)
    own = _workspace(problem, choice, "adjoint")
    if not rewinds:
        return own
    return max(own, _workspace(problem, choice, "unwind")) + _rewound_bytes(problem)


def forward(call: ForwardCall, choice: Choice) -> None:
    """Run the steps of a call on its GPU, in its stream. Returns when everything is enqueued."""
    if choice.plan is None:
        cuda_streaming.forward(call)
    else:
        _run(cuda_on_chip.forward_launch(call, choice.plan, choice.teams), call.device, call.stream)


def adjoint(call: AdjointCall, choice: Choice) -> None:
    """Run the adjoint of the steps of a call on its GPU, in its stream. Returns when everything is enqueued."""
    if choice.plan is None:
        cuda_streaming.adjoint(call)
        return
    for launch in adjoint_launches(call, choice):
        _run(launch, call.device, call.stream)


def adjoint_launches(call: AdjointCall, choice: Choice) -> list[Launch]:
    """What an adjoint call on chip comes to: without brackets, the field is run backwards segment by segment."""
    problem, plan, teams = call.problem, choice.plan, choice.teams
    assert plan is not None
    if call.brackets:
        return [cuda_on_chip.adjoint_launch(call, plan, teams)]
    # A segment's brackets, then the state between two segments, then what the launches work in.
    brackets, state_bytes = call.workspace, _state_bytes(problem)
    passed_on = call.state_out or brackets + _rewound_bytes(problem) - state_bytes
    launches = []
    state, length = call.state_in, _rewound_steps(problem)
    for begin in reversed(range(call.begin, call.end, length)):
        part = replace(
            call,
            begin=begin,
            end=min(begin + length, call.end),
            state_in=state,
            state_out=passed_on,
            workspace=brackets + _rewound_bytes(problem),
        )
        launches.append(cuda_on_chip.unwind_launch(part, plan, teams, brackets))
        launches.append(cuda_on_chip.adjoint_launch(replace(part, brackets=brackets), plan, teams))
        state = passed_on
    return launches


def _rewound_steps(problem: Problem) -> int:
    """Steps that a field is run backwards before the adjoint takes them: few launches, and brackets that stay small."""
    unit = math.lcm(2, problem.store_every)
    return -(-REWOUND_STEPS // unit) * unit


def _rewound_bytes(problem: Problem) -> int:
    cells = problem.slots(0, _rewound_steps(problem)) * problem.bracket_cells
    return 4 * -(-problem.shots * cells // 64) * 64 + _state_bytes(problem)


def _state_bytes(problem: Problem) -> int:
    return 4 * -(-problem.shots * problem.state_fields * problem.cells // 64) * 64


def _workspace(problem: Problem, choice: Choice, run: Run) -> int:
    assert choice.plan is not None
    return 4 * sum(cuda_on_chip.workspace_floats(problem, choice.plan, run, choice.teams).values())


def _blocks(count: int) -> str:
    return "one block" if count == 1 else f"a cluster of {count} blocks"


def _kib(count: int) -> str:
    return f"{count / 1024:.0f} KiB"


def _run(launch: Launch, device: int, stream: int) -> None:
    import cupy

    with launching_on(device, stream) as queue:
        kernel = _kernel(device, launch.kernel, launch.cluster)
        address, count = launch.zero
        if count:
            cupy.cuda.runtime.memsetAsync(address, 0, count, queue.ptr)
        cooperative = launch.team == "grid"
        if cooperative:
            _require_resident(kernel, launch, device)
        kernel.kernel(launch.grid, (launch.threads,), (launch.call,), launch.shared_bytes, None, cooperative)


@functools.cache
def _kernel(device: int, name: str, cluster: int) -> Any:
    """An instance, compiled once per GPU."""
    options = (f"-DCLUSTER_BLOCKS={cluster}",) if cluster > 1 else ()
    return compiled(cuda_on_chip.source(), (name,), options)[name]


def _require_resident(kernel: Any, launch: Launch, device: int) -> None:
    """Blocks that wait for each other must all run at once: the driver would refuse, and CuPy would cut the grid."""
    import cupy

    each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
        kernel.kernel.ptr, launch.threads, launch.shared_bytes
    )
    room = each * limits_of(device).multiprocessors
    blocks = math.prod(launch.grid)
    if blocks > room:
        raise KernelError(
            f"A launch of {blocks} blocks that wait for each other does not fit: {limits_of(device).name} runs "
            f"{room} of them at a time; is another program using this GPU's multiprocessors (MPS)?"
        )
