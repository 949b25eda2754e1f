"""The on-chip kernels compiled for GPUs: registers, spills and shared memory, and which kernels a model gets.

A few instances are compiled always; `HPFWI_COMPILE_ALL=1 pytest tests/kernels/test_acoustic_cuda_compiled.py` compiles
every one of about two thousand, for some hours of processor time.
"""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Scheme, cuda, cuda_on_chip, off_grid
from hpfwi_kernels.acoustic.cuda_call import Problem, describe

ARCHITECTURES = ("sm_80", "sm_89", "sm_90")
# What a GPU of each has: shared memory of a block, multiprocessors (A100, L4, H100).
GPUS = {
    "sm_80": cuda.Limits("A100", 108, 163 * 1024, clusters=False),
    "sm_89": cuda.Limits("L4", 58, 99 * 1024, clusters=False),
    "sm_90": cuda.Limits("H100", 132, 227 * 1024, clusters=True),
}
Instance = tuple[str, int, int, int, str, str, bool]  # architecture, order, rows, threads, team, run, layers
# Class S of a 70 x 70 model, forward and adjoint; a cluster; a grid without layers.
ALWAYS: tuple[Instance, ...] = (
    ("sm_90", 4, 7, 512, "BLOCK", "ADJOINT", True),
    ("sm_90", 4, 2, 256, "CLUSTER", "ADJOINT", True),
    ("sm_80", 2, 4, 512, "GRID", "FORWARD", False),
)
EVERY = tuple(
    one
    for one in itertools.product(
        ARCHITECTURES,
        (2, 4, 6, 8),
        cuda_on_chip.TILE_ROWS,
        cuda_on_chip.THREAD_BOUNDS,
        ("BLOCK", "CLUSTER", "GRID"),
        ("FORWARD", "UNWIND", "ADJOINT"),
        (True, False),
    )
    if (one[4] != "CLUSTER" or one[0] == "sm_90") and (one[5] != "UNWIND" or not one[6])
)


SLACK_BYTES = 16
"""Four registers, by which architectures and ways to share a shot differ."""


@pytest.mark.parametrize("instance", EVERY if os.environ.get("HPFWI_COMPILE_ALL") else ALWAYS, ids=str)
def test_kernels_compile_within_their_registers(instance: Instance, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    architecture, order, rows, threads, team, run, layers = instance
    name = f"on_chip<{order}, {rows}, {threads}, {team}, {run}, {str(layers).lower()}>"
    text = f"{cuda_on_chip.source()}\ntemplate __global__ void {name}(const Call);\n"
    (tmp_path / "one.cu").write_text(text)
    cluster = ["-DCLUSTER_BLOCKS=8"] if team == "CLUSTER" else []
    command = [compiler, "-cubin", f"-arch={architecture}", "-std=c++17", *cluster, "-Xptxas", "-v", "one.cu"]
    done = subprocess.run([*command, "-o", "one.cubin"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (registers,) = map(int, re.findall(r"Used (\d+) registers", done.stderr))
    (spilled,) = map(int, re.findall(r"(\d+) bytes spill stores", done.stderr))
    # Warps of a block are spread over four schedulers, each with a quarter of the 65536 registers.
    assert registers <= min(255, 65536 // threads)
    assert spilled <= cuda_on_chip.SPILLED_BYTES.get((order, threads), {}).get(rows, 0) + SLACK_BYTES


def problem(shape: tuple[int, int], shots: int, width: int = 20, **changes: Any) -> Problem:
    settings: dict[str, Any] = {
        "spacing_m": (10.0, 10.0), "dt_s": 1e-3, "order": 4, "absorbing": (width,) * 4, "boundary": "cpml",
        "free_surface": False, "pml_hz": 20.0, "max_velocity_mps": 4500.0, "min_velocity_mps": 1500.0,
    }  # fmt: skip
    scheme = Scheme(**(settings | changes))
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
