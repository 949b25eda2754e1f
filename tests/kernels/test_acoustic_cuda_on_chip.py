"""The on-chip kernels: their source and their plans run on the processor against the reference."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Memory, Points, Scheme, cuda, cuda_on_chip, off_grid
from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem
from hpfwi_kernels.acoustic.cuda_on_chip import Plan, Run
from hpfwi_kernels.acoustic.device import described
from hpfwi_kernels.acoustic.device import op as device_op
from hpfwi_kernels.acoustic.device.op import Work
from hpfwi_kernels.errors import KernelError
from tests.kernels.cuda_on_cpu import Processor, Survey, distance, filled, right_answers
from tests.kernels.cupy_on_cpu import SHARED_UNASKED, device_on, operation_on

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
        case(free_surface=True, absorbing=(0, 6, 7, 4), store_every=3), "block", 1, 7,
    ),
    "order 8, cluster": (case(order=8), "cluster", 2, 1),
    "order 8, cluster, free surface": (case(order=8, free_surface=True, absorbing=(0, 6, 7, 4)), "cluster", 3, 2),
    "order 6, grid": (case(order=6), "grid", 3, 4),
    "order 2, no layer on two sides": (case(order=2, absorbing=(0, 3, 0, 9)), "block", 1, 8),
    "periodic sponge": (case("sponge", order=8), "cluster", 3, 4),
    "periodic sponge, one block": (case("sponge", store_every=2), "block", 1, 6),
    "a sponge for each model": (case("sponge", min_velocity_mps=(1500.0, 800.0)), "block", 1, 6),
    "a sponge for each under a free surface": (
        case("sponge", free_surface=True, absorbing=(0, 6, 7, 4), min_velocity_mps=(800.0, 1500.0)), "grid", 2, 2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(tmp_path_factory.mktemp("kernels"))


def survey(scheme: Scheme, *, shape: tuple[int, int] = (15, 18), models: int = 1, on_cells: bool = False) -> Survey:
    rng, models = np.random.default_rng(3), max(models, len(scheme.sponges_mps))
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
    processor: Processor, work: Survey, problem: Problem, plan: Plan, *, order: int = 0, half: bool = False
) -> tuple[NDArray, NDArray]:
    """Records [shot, receiver, step] and brackets [shot, slot, z, x]."""
    teams = 1 if plan.team == "grid" else problem.shots
    records_at, records = work.shared(filled((SHOTS, STEPS, problem.receivers.points)))
    slots = problem.slots(0, STEPS)
    kept = (SHOTS, slots, problem.shape[0], problem.bracket_columns)
    brackets_at, brackets = work.shared(filled(kept, np.uint16 if half else np.float32))
    call = ForwardCall(
        problem=problem,
        begin=0,
        end=STEPS,
        records=records_at,
        brackets=brackets_at,
        bracket_type="bfloat16" if half else "float32",
        workspace=work.space(4 * floats_of(problem, plan, "forward", teams)),
    )
    assert processor.run_on_chip(cuda_on_chip.forward_launch(call, plan, teams), order)
    return records.transpose(0, 2, 1), brackets


def run_adjoint(
    processor: Processor,
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
    total_at, total = work.shared(np.zeros((SHOTS, *problem.shape), np.float32))
    drive_at, drive = work.shared(filled((SHOTS, problem.sources.points, STEPS)))
    product_at, product = work.shared(filled((problem.sources.taps, STEPS)))
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
        workspace=work.space(4 * floats_of(problem, plan, "adjoint", teams)),
    )
    assert processor.run_on_chip(cuda_on_chip.adjoint_launch(call, plan, teams), order)
    return total, drive, product


@pytest.mark.parametrize("name", CASES)
def test_forward_on_the_processor(processor: Processor, name: str) -> None:
    scheme, team, blocks, rows = CASES[name]
    work = survey(scheme)
    problem = work.problem
    plan = planned(problem, team, blocks, rows)
    records, brackets = run_forward(processor, work, problem, plan)
    right, *_, stored = right_answers(work)
    assert distance(records, right) < 3e-6
    assert distance(brackets[..., : problem.shape[1]], stored) < 3e-6
    for order in (1, 7):
        again = run_forward(processor, work, problem, plan, order=order)
        assert np.array_equal(again[0], records)
        assert np.array_equal(again[1][..., : problem.shape[1]], brackets[..., : problem.shape[1]])


@pytest.mark.parametrize("name", CASES)
def test_adjoint_on_the_processor(processor: Processor, name: str) -> None:
    scheme, team, blocks, rows = CASES[name]
    work = survey(scheme, models=SHOTS if blocks == 2 else 1)
    problem = work.problem
    plan = planned(problem, team, blocks, rows)
    _, brackets = run_forward(processor, work, problem, plan)
    residual = np.random.default_rng(5).standard_normal((SHOTS, problem.receivers.points, STEPS))
    found = run_adjoint(processor, work, problem, plan, brackets, residual)
    _, velocity, wavelet, _ = right_answers(work, residual)
    total, drive, product = found
    assert distance(drive, wavelet) < 3e-6
    assert distance(work.velocity_gradient(total, product), velocity) < 5e-6
    again = run_adjoint(processor, work, problem, plan, brackets, residual, order=7)
    assert all(np.array_equal(one, other) for one, other in zip(again, found, strict=True))


def test_every_barrier_is_needed(tmp_path: Path) -> None:
    """Without any one barrier of a step, the order of threads shows in the result, or blocks wait unequally."""
    scheme, team, blocks, rows = CASES["order 6, grid"]
    work = survey(scheme)
    problem = work.problem
    plan = planned(problem, team, blocks, rows)
    right = right_answers(work)[0]
    text = cuda_on_chip.source()
    steps = text.index("for (int count = 0")
    barriers = [found.start() for found in re.finditer(r"(block|team)_sync\(.*?\);", text) if found.start() > steps]
    names = [text[at : text.index(";", at) + 1] for at in barriers]
    assert names == ["block_sync();", "block_sync();", "team_sync(count + 1);", "team_sync(many);"]
    for at, name in list(zip(barriers, names, strict=True))[1:3]:
        folder = tmp_path / str(at)
        folder.mkdir()
        without = text[:at] + text[at + len(name) :]
        broken = Processor(folder, edit={text: without}.__getitem__, adjoint=False)
        caught = False
        for order in (0, 1, 5):
            try:
                records, _ = run_forward(broken, work, problem, plan, order=order)
            except AssertionError:
                caught = True
            else:
                caught = caught or not distance(records, right) < 1e-4
        assert caught, name


def test_threads_that_miss_a_barrier_are_seen(tmp_path: Path) -> None:
    work = survey(case())
    problem = work.problem
    launch = cuda_on_chip.forward_launch(
        ForwardCall(problem=problem, begin=0, end=2, workspace=work.space(16384)),
        planned(problem, "block", 1, 2),
        problem.shots,
    )
    step = "            block_sync();\n\n            // 2. It becomes"

    def some_leave(text: str) -> str:
        assert step in text
        return text.replace(step, "            if (thread != 3) " + step.lstrip())

    assert not Processor(tmp_path, edit=some_leave, adjoint=False).run_on_chip(launch)


def on_a_device(processor: Processor, work: Survey, memory: Memory, blocks: int) -> tuple[NDArray, ...]:
    """The operation where so many blocks take a shot."""
    enough = cuda_on_chip.shared_bytes(work.problem, planned(work.problem, "block", 1, 2), "adjoint")
    limits = cuda.Limits("a test", 2, enough if blocks == 1 else enough - 1, clusters=True)
    chosen = cuda.choose(work.problem, limits, gradient=True).plan
    assert chosen is not None
    assert chosen.blocks == blocks
    return operation_on(processor, work, memory, limits)


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [
        (case(), 1),
        (case(order=8, free_surface=True, absorbing=(0, 6, 7, 4), store_every=3, substeps=2, dt_s=2e-3), 2),
        (case("sponge", min_velocity_mps=(1500.0, 800.0)), 1),
    ],
    ids=["block", "cluster, substeps", "a sponge for each model"],
)
def test_the_operation_on_a_device(processor: Processor, scheme: Scheme, blocks: int) -> None:
    """Records and gradients of the reference; checkpoints give the bits of store; brackets in 16 bits their digits."""
    work = survey(scheme)
    found = on_a_device(processor, work, Memory(), blocks)
    for one, other in zip(found, right_answers(work), strict=False):
        assert distance(one, other) < 5e-6
    again = on_a_device(processor, work, Memory(mode="checkpoint", segment_steps=12), blocks)
    assert all(np.array_equal(one, other) for one, other in zip(again, found, strict=True))
    rough = on_a_device(processor, work, Memory(half=True), blocks)
    assert 1e-4 < distance(rough[1], found[1]) < 2**-7
    assert np.array_equal(rough[2], found[2])


def test_a_sponge_for_each_model_is_what_each_has_alone(processor: Processor) -> None:
    """Teams take one shot after another: what the first left must be gone."""
    scheme, team, blocks, rows = CASES["a sponge for each under a free surface"]
    work = survey(scheme)
    together = run_forward(processor, work, work.problem, planned(work.problem, team, blocks, rows))
    for shot, made_for in enumerate(scheme.sponges_mps):
        same = survey(replace(scheme, min_velocity_mps=made_for), models=SHOTS)
        alone = run_forward(processor, same, same.problem, planned(same.problem, team, blocks, rows))
        assert np.array_equal(alone[0][shot], together[0][shot])
        assert not np.array_equal(alone[0][1 - shot], together[0][1 - shot])


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [
        (case(order=8), 2),
        (case(free_surface=True, absorbing=(0, 6, 7, 4), store_every=3), 1),
        (case("sponge"), 1),
    ],
    ids=["cpml", "free surface", "periodic sponge"],
)
def test_a_field_run_backwards_on_a_device(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, scheme: Scheme, blocks: int
) -> None:
    """Its gradient is that of store in the core; in the layers' reach only the wavelet's own part is left."""
    monkeypatch.setattr(cuda, "REWOUND_STEPS", 16)
    work = survey(scheme, on_cells=True)
    records, velocity, wavelet = on_a_device(processor, work, Memory(mode="boundary"), blocks)
    right = on_a_device(processor, work, Memory(), blocks)
    assert np.array_equal(records, right[0])
    assert np.array_equal(wavelet, right[2])
    edge = scheme.radius + 1
    inside = (slice(1 if scheme.free_surface else edge, -edge), slice(edge, -edge))
    assert 0 < distance(velocity[inside], right[1][inside]) < 1e-5


def test_a_smaller_model_in_between_leaves_a_larger_one_its_memory(processor: Processor) -> None:
    """The same instance is launched with more shared memory, with less, and with as much again."""
    limits = cuda.Limits("a test", 2, 99 * 1024, clusters=False)
    asked = []
    with device_on(processor, limits, 0) as gpus:
        for shape in ((68, 64), (60, 58), (68, 64)):
            work = survey(case(), shape=shape)
            chosen = cuda.choose(work.problem, limits, gradient=False).plan
            assert chosen is not None
            asked.append(cuda_on_chip.shared_bytes(work.problem, chosen, "forward"))
            velocity = torch.tensor(work.velocity, dtype=torch.float32)
            wavelet = torch.zeros(work.wavelet.shape)[..., :1]
            device_op.forward_on_device(
                velocity, wavelet, Work(work.scheme, Memory(), work.sources, work.receivers), store=False
            )
    large, small, again = asked
    assert SHARED_UNASKED < small < large == again
    assert len({what for *_, what in gpus.done}) == 1


def test_blocks_of_a_grid_share_a_shot_on_a_device(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cooperative launch, refused in a sentence where its blocks would not all run at the same time."""
    work = survey(case())
    too_much = cuda_on_chip.shared_bytes(work.problem, planned(work.problem, "block", 1, 2), "adjoint") - 1
    limits = cuda.Limits("a test", 5, too_much, clusters=False)
    chosen = cuda.choose(work.problem, limits, gradient=True)
    assert (chosen.kernels, chosen.plan and chosen.plan.team) == ("L", "grid")
    for one, other in zip(operation_on(processor, work, Memory(), limits), right_answers(work), strict=False):
        assert distance(one, other) < 5e-6
    monkeypatch.setattr(cuda, "choose", lambda *_, **__: chosen)
    crowded = replace(limits, multiprocessors=1)
    with pytest.raises(KernelError, match=r"^A launch of \d+ blocks .* does not fit: a test runs 1 of them at a time"):
        operation_on(processor, work, Memory(), crowded)


@pytest.mark.parametrize("boundary", ["cpml", "sponge"])
def test_a_chains_blocks_wait_for_their_neighbours_alone(boundary: str, processor: Processor) -> None:
    """Where no point lies in several bands; every byte that is waited for is sent, whatever the order of threads."""
    work = survey(case(boundary, order=6), on_cells=True)
    here = np.nan_to_num(work.receivers.weights).any(axis=-1).all(axis=0)
    work = replace(work, receivers=Points(work.receivers.cells[:, here], work.receivers.weights[:, here], (15, 18)))
    plan = planned(work.problem, "cluster", 3, 2)
    assert len(set(np.diff(plan.bands))) > 1
    results = []
    for order in (0, 1, 5):
        records, brackets = run_forward(processor, work, work.problem, plan, order=order)
        results.append((records, *run_adjoint(processor, work, work.problem, plan, brackets, records, order=order)))
    assert sum("CHAIN, FORWARD" in name or "CHAIN, ADJOINT" in name for name in processor.libraries) >= 2
    right = right_answers(work)
    assert distance(results[0][0], right[0]) < 5e-6
    assert distance(work.velocity_gradient(results[0][1], results[0][3]), right[1]) < 1e-5
    for other in results[1:]:
        assert all(np.array_equal(one, same) for one, same in zip(results[0], other, strict=True))


def test_the_same_points_are_described_once(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all runs and gradients between them, with any model; other points are others."""
    described._described.cache_clear()
    times = []
    build = described.describe

    def counted(*given: Any, **named: Any) -> Problem:
        times.append(1)
        return build(*given, **named)

    monkeypatch.setattr(described, "describe", counted)
    work = survey(case())
    first = on_a_device(processor, work, Memory(), 1)
    faster = replace(work, velocity=1.01 * work.velocity, held=[])
    for model in (work, faster):
        records, velocity, _ = on_a_device(processor, model, Memory(), 1)
        assert len(times) == 1
        assert np.array_equal(records, first[0]) == np.array_equal(velocity, first[1]) == (model is work)
    weights = work.receivers.weights.copy()
    weights[0, 0] *= 2.0
    louder = replace(work, receivers=replace(work.receivers, weights=weights), held=[])
    records, *_ = on_a_device(processor, louder, Memory(), 1)
    assert len(times) == 2
    np.testing.assert_allclose(records[0, 0], 2.0 * first[0][0, 0], rtol=1e-5, atol=1e-12)
