"""The on-chip kernels: their source and their plans run on the processor against the reference."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.acoustic import Memory, Points, Scheme, cuda, cuda_call, cuda_on_chip, off_grid, reference
from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem
from hpfwi_kernels.acoustic.cuda_on_chip import CALL, Launch, Plan, Run
from hpfwi_kernels.acoustic.device.op import Work, forward_on_device, gradient_on_device
from hpfwi_kernels.acoustic.setup import Setup, fold_edges, prepare

HERE = Path(__file__).parent
HARNESS = """
#include <map>
#include <string>
#include "cuda_on_cpu.h"
#include "source.cu"

static const std::map<std::string, void (*)(Call)> kernels = {
%s
};

extern "C" long size_of_call() { return sizeof(Call); }

extern "C" int run(const char* name, const Call* call, unsigned grid, unsigned threads, unsigned together, int order) {
    void (*kernel)(Call) = kernels.at(name);
    return fibers::launch(grid, threads, order, [&] { kernel(*call); }, together);
}
"""
STEPS = 30
SHOTS = 2


def case(boundary: str = "cpml", order: int = 4, **changes: Any) -> Scheme:
    settings: dict[str, Any] = {
        "spacing_m": (10.0, 12.0),
        "dt_s": 1.4e-3,
        "order": order,
        "absorbing": (5, 6, 7, 4),
        "boundary": boundary,
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
        "min_velocity_mps": 1500.0,
    }
    return Scheme(**(settings | changes))


# Every order, team, boundary and size of tile at least once; each instance takes a second to compile.
CASES: dict[str, tuple[Scheme, str, int, int]] = {  # scheme, team, blocks, rows of a tile
    "cpml": (case(), "block", 1, 2),
    "free surface, every third kept": (
        case(free_surface=True, absorbing=(0, 6, 7, 4), store_every=3), "block", 1, 2,
    ),
    "order 8, cluster": (case(order=8), "cluster", 2, 2),
    "order 8, cluster, free surface": (case(order=8, free_surface=True, absorbing=(0, 6, 7, 4)), "cluster", 3, 2),
    "order 6, grid": (case(order=6), "grid", 3, 4),
    "order 2, no layer on two sides": (case(order=2, absorbing=(0, 3, 0, 9)), "block", 1, 8),
    "periodic sponge": (case("sponge", order=8), "cluster", 3, 4),
    "periodic sponge, one block": (case("sponge", store_every=2), "block", 1, 2),
    "sponge under a free surface": (case("sponge", free_surface=True, absorbing=(0, 6, 7, 4)), "grid", 2, 2),
}  # fmt: skip


@dataclass
class Machine:
    """Runs launches on the processor; compiles an instance the first time that it is used."""

    folder: Path
    edit: Callable[[str], str] = str
    adjoint: bool = True
    libraries: dict[str, ctypes.CDLL] = field(default_factory=dict)

    def library(self, kernel: str) -> ctypes.CDLL:
        """What holds the instance; forward and adjoint of one kind are compiled together."""
        kind = kernel.replace("ADJOINT", "FORWARD")
        if kind not in self.libraries:
            compiler = shutil.which("g++")
            if compiler is None:
                pytest.skip("needs g++")
            place = self.folder / str(len(self.libraries))
            place.mkdir()
            (place / "source.cu").write_text(self.edit(cuda_on_chip.source()))
            both = dict.fromkeys((kind, kind.replace("FORWARD", "ADJOINT") if self.adjoint else kind))
            (place / "harness.cpp").write_text(HARNESS % "\n".join(f'{{"{name}", {name}}},' for name in both))
            command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", f"-I{HERE}"]
            subprocess.run([*command, "harness.cpp", "-o", "harness.so"], cwd=place, check=True)
            self.libraries[kind] = ctypes.CDLL(str(place / "harness.so"))
            assert self.libraries[kind].size_of_call() == CALL.itemsize
        return self.libraries[kind]

    def run(self, launch: Launch, blocks: int, order: int = 0) -> bool:
        """Whether all threads came to the same barriers."""
        address, count = launch.zero
        ctypes.memset(address, 0, count)
        assert launch.shared_bytes <= 4 * (1 << 16)
        together = 1 if launch.team == "block" else blocks if launch.team == "cluster" else launch.grid
        call = ctypes.c_void_p(launch.call.ctypes.data)
        library = self.library(launch.kernel)
        return bool(library.run(launch.kernel.encode(), call, launch.grid, launch.threads, together, order))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("kernels"))


def filled(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray:
    """Memory that shows a cell that no kernel wrote."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max, dtype)


@dataclass
class Survey:
    """A problem in memory of the processor, described as for a GPU."""

    scheme: Scheme
    velocity: NDArray
    wavelet: NDArray
    sources: Points
    receivers: Points
    held: list[NDArray] = field(default_factory=list)

    def hold(self, array: NDArray) -> int:
        """The array's address, a multiple of 256 as CUDA's allocations have; it lives as long as this."""
        block = np.zeros(array.nbytes + 256, np.uint8)
        start = -block.ctypes.data % 256
        copy = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self.held.append(copy)
        return copy.ctypes.data

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[int, NDArray]:
        address = self.hold(filled(shape, dtype))
        return address, self.held[-1]

    @property
    def setup(self) -> Setup:
        return prepare(self.velocity, self.wavelet, self.sources, self.receivers, self.scheme)

    def problem(self) -> Problem:
        setup = self.setup
        return cuda_call.describe(
            self.scheme,
            self.sources,
            self.receivers,
            models=setup.factor.shape[0],
            steps=self.wavelet.shape[-1],
            factor=self.hold(setup.factor.astype(np.float32)),
            drive=self.hold(self.wavelet.astype(np.float32)),
            place=self.hold,
        )


def survey(scheme: Scheme, *, shape: tuple[int, int] = (15, 18), models: int = 1, on_cells: bool = False) -> Survey:
    rng = np.random.default_rng(3)
    velocity = rng.uniform(1500.0, 2500.0, (models, *shape) if models > 1 else shape)
    places = []
    for count in (2, 5):
        place = rng.uniform(1.0, [shape[0] - 1, shape[1] - 1], (SHOTS, count, 2))
        place[:, 1:] = np.round(place[:, 1:]) if not on_cells else place[:, 1:]
        places.append(np.round(place) if on_cells else place)
    places[1][0, 4] = np.nan  # an absent receiver
    places[0][1, 1] = places[0][1, 0]  # two sources of one shot on the same cells
    points = [off_grid(place, shape, free_surface=scheme.free_surface) for place in places]
    wavelet = rng.standard_normal((SHOTS, 2, STEPS))
    return Survey(scheme, velocity, wavelet, points[0], points[1])


def planned(problem: Problem, team: Any, blocks: int, rows: int) -> Plan:
    found = cuda_on_chip.plan_of(problem, team, blocks)
    assert found is not None
    return Plan(team, rows, found.bands, found.columns)


def floats_of(problem: Problem, plan: Plan, run: Run, teams: int) -> int:
    return sum(cuda_on_chip.workspace_floats(problem, plan, run, teams).values())


def run_forward(
    machine: Machine, work: Survey, problem: Problem, plan: Plan, *, order: int = 0, half: bool = False
) -> tuple[NDArray, NDArray]:
    """Records [shot, receiver, step] and brackets [shot, slot, z, x]."""
    teams = 1 if plan.team == "grid" else problem.shots
    records_at, records = work.array((SHOTS, STEPS, problem.receivers.points))
    slots = problem.slots(0, STEPS)
    kept = (SHOTS, slots, problem.shape[0], cuda_on_chip.bracket_cells(problem) // problem.shape[0])
    brackets_at, brackets = work.array(kept, np.uint16 if half else np.float32)
    call = ForwardCall(
        problem=problem,
        begin=0,
        end=STEPS,
        records=records_at,
        brackets=brackets_at,
        bracket_type="bfloat16" if half else "float32",
        workspace=work.array((floats_of(problem, plan, "forward", teams),))[0],
    )
    assert machine.run(cuda_on_chip.forward_launch(call, plan, teams), plan.blocks, order)
    return records.transpose(0, 2, 1), brackets


def run_adjoint(
    machine: Machine,
    work: Survey,
    problem: Problem,
    plan: Plan,
    brackets: NDArray,
    residual: NDArray,
    *,
    order: int = 0,
) -> tuple[NDArray, NDArray, NDArray]:
    """The total [shot, z, x], the drive's gradient [shot, source, step] and the product [tap, step]."""
    teams = 1 if plan.team == "grid" else problem.shots
    total_at, total = work.array((SHOTS, *problem.shape))
    total[:] = 0.0
    drive_at, drive = work.array((SHOTS, problem.sources.points, STEPS))
    product_at, product = work.array((problem.sources.taps, STEPS))
    call = AdjointCall(
        problem=problem,
        begin=0,
        end=STEPS,
        residual=work.hold(np.ascontiguousarray(residual.transpose(0, 2, 1), np.float32)),
        drive_gradient=drive_at,
        product=product_at,
        total=total_at,
        brackets=brackets.ctypes.data,
        bracket_type="bfloat16" if brackets.dtype == np.uint16 else "float32",
        workspace=work.array((floats_of(problem, plan, "adjoint", teams),))[0],
    )
    assert machine.run(cuda_on_chip.adjoint_launch(call, plan, teams), plan.blocks, order)
    return total, drive, product


def velocity_gradient(work: Survey, problem: Problem, total: NDArray, product: NDArray) -> NDArray:
    """Every shot's total and product as the gradient of the velocity."""
    setup, scheme = work.setup, work.scheme
    per_shot = total.astype(np.float64) * scheme.store_every
    first = 0
    for shot, taps in enumerate(setup.sources):
        own = product[first : first + taps.weight.size].astype(np.float64) * work.wavelet[shot][taps.point]
        np.add.at(per_shot[shot], taps.cell, own.sum(axis=1))
        first += taps.weight.size
    models = setup.velocity.shape[0]
    per_model = per_shot if models > 1 else per_shot.sum(axis=0, keepdims=True)
    return fold_edges(per_model * 2.0 / setup.velocity, scheme).reshape(work.velocity.shape)


@pytest.mark.parametrize("name", CASES)
def test_forward_on_the_processor(machine: Machine, name: str) -> None:
    scheme, team, blocks, rows = CASES[name]
    work = survey(scheme)
    problem = work.problem()
    plan = planned(problem, team, blocks, rows)
    records, brackets = run_forward(machine, work, problem, plan)
    right, stored = reference.forward(work.velocity, work.wavelet, work.sources, work.receivers, scheme, store=True)
    assert stored is not None
    assert np.linalg.norm(records - right) < 3e-6 * np.linalg.norm(right)
    assert np.linalg.norm(brackets[..., : problem.shape[1]] - stored) < 3e-6 * np.linalg.norm(stored)
    for order in (1, 7):
        again = run_forward(machine, work, problem, plan, order=order)
        assert np.array_equal(again[0], records)
        assert np.array_equal(again[1][..., : problem.shape[1]], brackets[..., : problem.shape[1]])


@pytest.mark.parametrize("name", CASES)
def test_adjoint_on_the_processor(machine: Machine, name: str) -> None:
    scheme, team, blocks, rows = CASES[name]
    work = survey(scheme, models=SHOTS if blocks == 2 else 1)
    problem = work.problem()
    plan = planned(problem, team, blocks, rows)
    _, brackets = run_forward(machine, work, problem, plan)
    residual = np.random.default_rng(5).standard_normal((SHOTS, problem.receivers.points, STEPS))
    found = run_adjoint(machine, work, problem, plan, brackets, residual)
    arguments = (work.velocity, work.wavelet, work.sources, work.receivers, scheme)
    _, stored = reference.forward(*arguments, store=True)
    assert stored is not None
    velocity, wavelet = reference.gradient(*arguments, stored, residual)
    total, drive, product = found
    gradient = velocity_gradient(work, problem, total, product)
    assert np.linalg.norm(drive - wavelet) < 3e-6 * np.linalg.norm(wavelet)
    assert np.linalg.norm(gradient - velocity) < 5e-6 * np.linalg.norm(velocity)
    again = run_adjoint(machine, work, problem, plan, brackets, residual, order=7)
    assert all(np.array_equal(one, other) for one, other in zip(again, found, strict=True))


def test_every_barrier_is_needed(tmp_path: Path) -> None:
    """Without any one barrier of a step, the order of threads shows in the result, or blocks wait unequally."""
    scheme, team, blocks, rows = CASES["order 6, grid"]
    work = survey(scheme)
    problem = work.problem()
    plan = planned(problem, team, blocks, rows)
    right, _ = reference.forward(work.velocity, work.wavelet, work.sources, work.receivers, scheme, store=False)
    text = cuda_on_chip.source()
    steps = text.index("for (int count = 0")
    barriers = [found.start() for found in re.finditer(r"(block|team)_sync\(.*?\);", text) if found.start() > steps]
    names = [text[at : text.index(";", at) + 1] for at in barriers]
    assert names == ["block_sync();", "block_sync();", "team_sync(turn ^ 1);", "team_sync(turn);"]
    for at, name in list(zip(barriers, names, strict=True))[1:3]:
        folder = tmp_path / str(at)
        folder.mkdir()
        without = text[:at] + text[at + len(name) :]
        broken = Machine(folder, edit={text: without}.__getitem__, adjoint=False)
        caught = False
        for order in (0, 1, 5):
            try:
                records, _ = run_forward(broken, work, problem, plan, order=order)
            except AssertionError:
                caught = True
            else:
                caught = caught or not np.linalg.norm(records - right) < 1e-4 * np.linalg.norm(right)
        assert caught, name


def test_threads_that_miss_a_barrier_are_seen(tmp_path: Path) -> None:
    work = survey(case())
    problem = work.problem()
    launch = cuda_on_chip.forward_launch(
        ForwardCall(problem=problem, begin=0, end=2, workspace=work.array((4096,))[0]),
        planned(problem, "block", 1, 2),
        problem.shots,
    )
    step = "            block_sync();\n\n            // 2. It becomes"

    def some_leave(text: str) -> str:
        assert step in text
        return text.replace(step, "            if (thread != 3) " + step.lstrip())

    assert not Machine(tmp_path, edit=some_leave, adjoint=False).run(launch, 1)


@pytest.fixture
def device(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, ...]]:
    """Records, and the gradients of half their energy, as the operation computes them on a GPU, on the processor."""

    teams_of: list[int] = []

    def run(launch: Launch) -> None:
        assert machine.run(launch, launch.cluster if launch.team == "cluster" else 1, order=3)

    def forward(call: ForwardCall, choice: cuda.Choice) -> None:
        assert choice.plan is not None
        teams_of.append(choice.plan.blocks)
        run(cuda_on_chip.forward_launch(call, choice.plan, choice.teams))

    def adjoint(call: AdjointCall, choice: cuda.Choice) -> None:
        for launch in cuda.adjoint_launches(call, choice):
            run(launch)

    monkeypatch.setattr(cuda, "forward", forward)
    monkeypatch.setattr(cuda, "adjoint", adjoint)
    monkeypatch.setattr(cuda, "REWOUND_STEPS", 16)

    def gradients(work: Survey, memory: Memory, blocks: int = 1) -> tuple[Tensor, ...]:
        problem = work.problem()
        enough = cuda_on_chip.shared_bytes(problem, planned(problem, "block", 1, 2), "adjoint")
        limits = cuda.Limits("a test", 2, enough if blocks == 1 else enough - 1, clusters=True)
        monkeypatch.setattr(cuda, "limits_of", lambda _: limits)
        velocity, wavelet = (torch.tensor(one, dtype=torch.float32) for one in (work.velocity, work.wavelet))
        whole = Work(work.scheme, memory, work.sources, work.receivers)
        records, kept = forward_on_device(velocity, wavelet, whole, store=True)
        assert set(teams_of) == {blocks}
        return records, *gradient_on_device(kept, records, velocity, wavelet, whole)

    return gradients


def distance(found: Tensor, right: Tensor | NDArray) -> float:
    return float(torch.linalg.norm(found - torch.as_tensor(right)) / torch.linalg.norm(torch.as_tensor(right)))


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [(case(), 1), (case(order=8, free_surface=True, absorbing=(0, 6, 7, 4), store_every=3, substeps=2, dt_s=2e-3), 2)],
    ids=["block", "cluster, substeps"],
)
def test_the_operation_on_a_device(device: Any, scheme: Scheme, blocks: int) -> None:
    """Records and gradients of the reference; checkpoints give the bits of store; brackets in 16 bits their digits."""
    work = survey(scheme)
    found = device(work, Memory(), blocks)
    arguments = (work.velocity.astype(np.float32), work.wavelet, work.sources, work.receivers, scheme)
    records, stored = reference.forward(*arguments, store=True)
    assert stored is not None
    right = (records, *reference.gradient(*arguments, stored, records))
    for one, other in zip(found, right, strict=True):
        assert distance(one, other) < 5e-6
    again = device(work, Memory(mode="checkpoint", segment_steps=12), blocks)
    assert all(torch.equal(one, other) for one, other in zip(again, found, strict=True))
    rough = device(work, Memory(half=True), blocks)
    assert 1e-4 < distance(rough[1], found[1]) < 2**-7
    assert torch.equal(rough[2], found[2])


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [
        (case(order=8), 2),
        (case(free_surface=True, absorbing=(0, 6, 7, 4), store_every=3), 1),
        (case("sponge"), 1),
    ],
    ids=["cpml", "free surface", "periodic sponge"],
)
def test_a_field_run_backwards_on_a_device(device: Any, scheme: Scheme, blocks: int) -> None:
    """Its gradient is that of store in the core; in the layers' reach only the wavelet's own part is left."""
    work = survey(scheme, on_cells=True)
    records, velocity, wavelet = device(work, Memory(mode="boundary"), blocks)
    right = device(work, Memory(), blocks)
    assert torch.equal(records, right[0])
    assert torch.equal(wavelet, right[2])
    edge = scheme.radius + 1
    inside = (slice(1 if scheme.free_surface else edge, -edge), slice(edge, -edge))
    assert 0 < distance(velocity[inside], right[1][inside]) < 1e-5
