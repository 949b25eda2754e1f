"""The on-chip kernels compiled for GPUs: registers, spills and shared memory, and which kernels a model gets.

A few instances are compiled always; `make cuda` compiles every one that a model can get, on all cores.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Scheme, cuda, cuda_on_chip, off_grid
from hpfwi_kernels.acoustic.cuda_call import Problem, describe, outlined
from tests.kernels.gpu_compiler import Resources, require_nvcc, resources

ARCHITECTURES = ("sm_80", "sm_89", "sm_90")
# What a GPU of each has: shared memory of a block, multiprocessors (A100, L4, H100).
GPUS = {
    "sm_80": cuda.Limits("A100", 108, 163 * 1024, clusters=False),
    "sm_89": cuda.Limits("L4", 58, 99 * 1024, clusters=False),
    "sm_90": cuda.Limits("H100", 132, 227 * 1024, clusters=True),
}
RUNS = ("FORWARD, true", "FORWARD, false", "UNWIND, false", "ADJOINT, true", "ADJOINT, false")
SLACK_BYTES = {"BLOCK": 32, "CLUSTER": 32, "CHAIN": 96, "GRID": 96}
"""By which instances of an architecture and a way to share a shot differ."""
SLACK_BYTES_OF_GRIDS = {8: 176}
"""The same for grids, by order."""


@dataclass(frozen=True)
class Unit:
    """Instances of one size of tile and block, compiled together."""

    architectures: tuple[str, ...]
    order: int
    rows: int
    threads: int
    teams: tuple[str, ...]
    runs: tuple[str, ...] = RUNS

    @property
    def instances(self) -> list[str]:
        sizes = f"{self.order}, {self.rows}, {self.threads}"
        return [f"on_chip<{sizes}, {team}, {run}>" for team in self.teams for run in self.runs]


def chosen(order: int) -> list[tuple[int, int]]:
    """Rows of tiles and bounds of threads that some model or band of it gets: least spilled first, then small tiles."""
    found = set()
    for across in range(1, 513):
        for rows in range(1, 512 * 8 // across + 1):
            options = []
            for place, tile in enumerate(cuda_on_chip.TILE_ROWS):
                threads = -(-(-(-rows // tile) * across) // 32) * 32
                bound = next((most for most in cuda_on_chip.THREAD_BOUNDS if threads <= most), None)
                if bound is not None:
                    spilled = cuda_on_chip.SPILLED_BYTES.get((order, bound), {}).get(tile, 0)
                    options.append((spilled, place, tile, bound))
            if options:
                found.add(min(options)[2:])
    return sorted(found)


def every() -> list[Unit]:
    """All that is chosen, for every architecture and way to share a shot."""
    shared, clusters = ("BLOCK", "GRID"), ("CLUSTER", "CHAIN")
    return [
        Unit(architectures, order, rows, threads, teams)
        for order in (2, 4, 6, 8)
        for rows, threads in chosen(order)
        for architectures, teams in (
            (("sm_80", "sm_89"), shared),
            (("sm_90",), shared),
            (("sm_90",), clusters if rows <= cuda_on_chip.MOST_CHAINED_ROWS else clusters[:1]),
        )
    ]


# Class S of a 70 x 70 model, forward and adjoint; a cluster; a grid without layers.
ALWAYS = [
    Unit(("sm_90",), 4, 7, 512, ("BLOCK",), ("ADJOINT, true",)),
    Unit(("sm_90",), 4, 2, 256, ("CLUSTER", "CHAIN"), ("ADJOINT, true",)),
    Unit(("sm_80",), 2, 4, 512, ("GRID",), ("FORWARD, false",)),
]
UNITS = every() if os.environ.get("HPFWI_COMPILE_ALL") else ALWAYS
Found = dict[tuple[str, str], Resources]


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Unit, Future[Found]]]:
    """Every unit on its way through the compiler, as many at the same time as there are cores."""
    compiler = require_nvcc()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def compiled(unit: Unit) -> Found:
            folder = tmp_path_factory.mktemp("unit")
            options = [] if "BLOCK" in unit.teams or "GRID" in unit.teams else ["-DCLUSTER_BLOCKS=8"]
            source = cuda_on_chip.source()
            return resources(compiler, source, unit.instances, "const Call", unit.architectures, folder, options)

        yield {unit: pool.submit(compiled, unit) for unit in UNITS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(0)  # waits for those before it
@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_kernels_compile_within_their_registers(unit: Unit, compiling: dict[Unit, Future[Found]]) -> None:
    # Warps of a block are spread over four schedulers, each with a quarter of the 65536 registers.
    most = min(255, 65536 // unit.threads)
    table = cuda_on_chip.SPILLED_BYTES.get((unit.order, unit.threads), {}).get(unit.rows, 0)
    slack = SLACK_BYTES | {"GRID": SLACK_BYTES_OF_GRIDS.get(unit.order, SLACK_BYTES["GRID"])}
    found = compiling[unit].result()
    assert len(found) == len(unit.instances) * len(unit.architectures)
    wrong = {}
    for (architecture, instance), one in found.items():
        spilled = table + next(more for team, more in slack.items() if team in instance)
        if one.registers > most or one.spilled > spilled:
            wrong[architecture, instance] = one
    assert wrong == {}


def test_what_is_compiled_is_what_models_get() -> None:
    """The plans of models of many sizes, whole or in bands, are among the instances that `make cuda` compiles."""
    rng = np.random.default_rng(6)
    for order in (2, 4, 6, 8):
        known, got = set(chosen(order)), set()
        for rows, columns in np.exp(rng.uniform(np.log(6), np.log(1500), (60, 2))).astype(int).tolist():
            for blocks in (1, 2, 8, 33):
                outline = outlined(scheme_of(2, order=order), (rows, columns), shots=1, models=1, steps=9)
                plan = cuda_on_chip.plan_of(outline, "grid", blocks)
                if plan is not None:
                    got.add((plan.rows, plan.bound))
        assert got <= known
        assert len(got) > len(known) // 2


def scheme_of(width: int, **changes: Any) -> Scheme:
    settings: dict[str, Any] = {
        "spacing_m": (10.0, 10.0), "dt_s": 1e-3, "order": 4, "absorbing": (width,) * 4, "boundary": "cpml",
        "free_surface": False, "pml_hz": 20.0, "max_velocity_mps": 4500.0, "min_velocity_mps": 1500.0,
    }  # fmt: skip
    return Scheme(**(settings | changes))


def problem(shape: tuple[int, int], shots: int, width: int = 20, **changes: Any) -> Problem:
    scheme = scheme_of(width, **changes)
    sources = off_grid(np.full((shots, 1, 2), 5.0), shape, free_surface=False)
    receivers = off_grid(np.tile(np.arange(70.0)[None, :, None], (shots, 1, 2)), shape, free_surface=False)
    placed: list[NDArray] = []

    def place(block: NDArray[np.uint8]) -> int:
        placed.append(block)
        return 1 << 20

    return describe(scheme, sources, receivers, models=1, steps=1000, factor=1, drive=1, place=place)


@pytest.mark.parametrize(
    ("shape", "shots", "width", "kernels", "blocks"),
    [
        ((70, 70), 5, 20, "S", 8),
        ((70, 70), 132, 20, "S", 1),
        ((70, 70), 320, 20, "S", 1),
        ((94, 288), 13, 20, "M", 8),
        ((151, 461), 16, 20, "M", 8),
        ((1000, 2000), 1, 20, "X", 0),
    ],
)
def test_what_a_model_gets_on_an_h100(
    shape: tuple[int, int], shots: int, width: int, kernels: str, blocks: int
) -> None:
    work = problem(shape, shots, width)
    choice = cuda.choose(work, GPUS["sm_90"], gradient=True)
    assert choice.kernels == kernels
    assert (choice.plan.blocks if choice.plan else 0) == blocks
    assert cuda.explain(work, choice).startswith(f"class {kernels}, ")


def test_registers_that_spill_are_avoided_and_told() -> None:
    """Tiles grow where the smaller ones' registers spill, and only there; where all would, the line says so."""
    for width in range(2, 34):
        for order in (2, 4, 6, 8):
            work = problem((70, 70), 1, width, order=order)
            plan = cuda_on_chip.plan_of(work, "block", 1)
            tiles = [(0, work.shape[0]), work.shape[1]]
            every = [cuda_on_chip.Plan("block", rows, *tiles) for rows in cuda_on_chip.TILE_ROWS]  # type: ignore[arg-type]
            possible = [one for one in every if one.bound is not None]
            least = min((one.spilled_bytes(order) for one in possible), default=None)
            assert (None if plan is None else plan.spilled_bytes(order)) == least
            if least == 0:
                assert plan == next(one for one in possible if one.spilled_bytes(order) == 0)
    large = problem((70, 70), 200, order=8)
    choice = cuda.choose(large, GPUS["sm_90"], gradient=False)
    assert choice.plan is not None
    spilled = choice.plan.spilled_bytes(8)
    assert spilled > 0
    assert cuda.explain(large, choice).endswith(f"; up to {spilled} bytes of a thread's registers spill")
    small = problem((70, 70), 200, 4)
    assert "spill" not in cuda.explain(small, cuda.choose(small, GPUS["sm_90"], gradient=False))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("shape", "shots"), [((70, 70), 5), ((70, 70), 320), ((151, 461), 16), ((301, 921), 32)])
def test_what_is_chosen_fits(shape: tuple[int, int], shots: int, gradient: bool, architecture: str) -> None:
    """Shared memory, threads and, where blocks wait for each other, a multiprocessor for each."""
    limits = GPUS[architecture]
    for changes in ({}, {"boundary": "sponge"}, {"order": 8, "free_surface": True, "absorbing": (0, 20, 20, 20)}):
        work = problem(shape, shots, **changes)
        choice = cuda.choose(work, limits, gradient=gradient)
        if choice.plan is None:
            assert "is more than the shared memory and registers" in choice.reason
            continue
        plan = choice.plan
        assert plan.bound is not None
        assert plan.bands[0] == 0
        assert plan.bands[-1] == work.shape[0]
        assert min(np.diff(plan.bands)) > work.radius
        for run in ("forward", "adjoint") if gradient else ("forward",):
            assert cuda_on_chip.shared_bytes(work, plan, run) <= limits.shared_bytes
        if plan.team == "grid":
            assert choice.teams * plan.blocks <= limits.multiprocessors
            assert choice.teams <= shots
        assert plan.team != "cluster" or limits.clusters
