"""Time hpfwi's acoustic kernels against deepwave on the same work and cores: `python benchmarks/acoustic.py`.

Both codes start from torch tensors and end with records, or with records and the velocity gradient, at the same time
step, one inner step per sample, the same order and C-PML, and the same steps entering the gradient: every one, or every
K-th with `--store-every K`. `--store-every auto` compares what both do unless told otherwise: deepwave takes every
step, hpfwi as few as the wavelet's frequencies allow. No ratio is printed before hpfwi agrees to 1e-5 with deepwave in
float64, which takes the steps that deepwave takes; where hpfwi's gradient takes fewer, that one to 1e-4.
Runs alternate, so a disturbance of the machine meets both; compilation and memory are measured in processes of their
own. hpfwi's buffers come from one pool, as in an inversion's loop: the first call, which is not timed, touches them;
deepwave has no such choice and takes fresh memory in every call.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.physics.modelling import snapshot_interval
from hpfwi.physics.source import highest_frequency_hz
from hpfwi_kernels.acoustic import Scheme

if TYPE_CHECKING:
    from benchmarks import peers
else:
    import peers  # run as a script, this folder is where Python looks first

AGREEMENT = 1e-5
"""Most relative L2 distance of hpfwi's float32 to deepwave's float64 where both take the same steps."""
SAMPLED = 1e-4
"""The same for a gradient of every K-th step against one of every step."""
# OpenMP threads of the run before go on spinning for a moment; the next run must not pay for them.
SETTLE_S = 0.4
# Runnable processes per machine beyond which somebody else is computing too.
BUSY = 0.5


@dataclass(frozen=True)
class Case:
    """Size of a problem: cells without the absorbing layers, time steps, shots."""

    shape: tuple[int, ...]
    samples: int
    shots: int
    spacing_m: float
    dt_s: float
    peak_hz: float
    models: int = 1
    """Velocity models, each with its share of the shots."""
    checked: int | None = None
    """Shots that are compared with deepwave in float64 before anything is timed; None: all."""


CASES = {
    "70x70x1000x5": Case((70, 70), 1000, 5, 10.0, 0.9e-3, 15.0),
    "94x288x1000x13": Case((94, 288), 1000, 13, 30.0, 2.5e-3, 5.0),
    "301x921x1000x2": Case((301, 921), 1000, 2, 10.0, 0.9e-3, 15.0),
    "301x921x2000x1": Case((301, 921), 2000, 1, 10.0, 0.9e-3, 15.0),
    "301x921x2000x32": Case((301, 921), 2000, 32, 10.0, 0.9e-3, 15.0, checked=2),
    "1000x2000x200x2": Case((1000, 2000), 200, 2, 10.0, 0.9e-3, 15.0),
    "70x70x1000x26x5": Case((70, 70), 1000, 130, 10.0, 0.9e-3, 15.0, models=26),
    "128x128x128x100x1": Case((128, 128, 128), 100, 1, 10.0, 0.7e-3, 25.0),
    "20x30x50x2": Case((20, 30), 50, 2, 10.0, 0.9e-3, 15.0),
    "12x14x16x20x1": Case((12, 14, 16), 20, 1, 10.0, 0.7e-3, 25.0),
}
# What is compiled and loaded before memory is measured, by dimensions.
SMALL = {2: "20x30x50x2", 3: "12x14x16x20x1"}
DEFAULT_CASES = ("70x70x1000x5", "94x288x1000x13", "301x921x1000x2")


def layered(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Folded layers from 1500 to 4500 m/s: reflections everywhere, so no field stays zero for long."""
    rng = np.random.default_rng(2024)
    depth, *across, distance = np.meshgrid(*(np.linspace(0, 1, cells) for cells in shape), indexing="ij")
    folded = np.clip(depth + 0.06 * np.sin(2 * np.pi * (1.5 * distance + 0.3 + sum(across))), 0, 0.999)
    layers = np.linspace(1500.0, 4200.0, 12) + rng.uniform(0.0, 300.0, 12)
    return layers[(folded * 12).astype(int)]


def problem(case: Case, order: int, absorbing: int, store_every: int | None) -> peers.Problem:
    """Shots spread along row 1, a receiver in every column of row 1, one Ricker wavelet; models differ by 0 to 10 %.

    In 3-D that row is the one of plane 1 in the middle of y. Without `store_every` the wavelet decides.
    """
    dimensions = len(case.shape)

    def along(columns: NDArray[np.int64]) -> NDArray[np.int64]:
        place = [1, case.shape[1] // 2][: dimensions - 1]
        return np.stack([*(np.full_like(columns, cell) for cell in place), columns], axis=-1)

    columns = np.tile(np.linspace(1, case.shape[-1] - 2, case.shots // case.models).astype(np.int64), case.models)
    sources = along(columns)[:, None, :]
    line = along(np.arange(case.shape[-1]))
    phase = (np.pi * case.peak_hz * (np.arange(case.samples) * case.dt_s - 1.5 / case.peak_hz)) ** 2
    wavelet = np.tile((1 - 2 * phase) * np.exp(-phase), (case.shots, 1, 1))
    scheme = Scheme(
        free_surface=False,
        spacing_m=(case.spacing_m,) * dimensions,
        dt_s=case.dt_s,
        order=order,
        absorbing=(absorbing,) * (2 * dimensions),
        boundary="cpml",
        pml_hz=case.peak_hz,
        max_velocity_mps=4500.0,
        store_every=store_every or snapshot_interval(highest_frequency_hz(wavelet, case.dt_s), case.dt_s),
    )
    velocity = layered(case.shape)
    if case.models > 1:
        factors = np.repeat(np.linspace(0.9, 1.0, case.models), case.shots // case.models)
        velocity = factors.reshape(-1, *[1] * dimensions) * velocity
    return peers.Problem(velocity, wavelet, sources, np.tile(line, (case.shots, 1, 1)), scheme)


CODES: dict[str, peers.Run] = {"hpfwi": peers.hpfwi, "deepwave": peers.deepwave}
ALONE = "hpfwi on one thread"
COPIES = "hpfwi once on every thread"


def store_every_of(code: str, asked: str) -> int | None:
    """Time steps between those that enter a code's gradient, None where the wavelet decides."""
    if asked == "auto":
        return None if code == "hpfwi" else 1
    return int(asked)


def works(name: str, order: int, options: argparse.Namespace) -> dict[str, peers.Problem]:
    """The problem as each code is given it."""
    case, absorbing = CASES[name], options.absorbing
    return {code: problem(case, order, absorbing, store_every_of(code, options.store_every)) for code in CODES}


# Seconds of every run, by kind of work and code.
Seconds = dict[str, dict[str, list[float]]]


def timed(work: dict[str, peers.Problem], repeats: int, threads: int, gains: bool) -> tuple[Seconds, Seconds]:
    """Wall-clock and processor seconds of every run; codes alternate, and so does who goes first.

    With one thread, processor seconds say what a run costs even where other programs want the same cores.
    gains   hpfwi runs on one thread as well, and once on every thread at the same time: a virtual machine's cores, and
            the memory behind any cores, may give two independent runs less than twice what they give one
    """
    turns: dict[str, tuple[peers.Run, str, int]] = {code: (run, code, threads) for code, run in CODES.items()}
    # Touches the buffers of the pool: a check of fewer shots has not.
    peers.hpfwi(work["hpfwi"], torch.float32, True, threads)
    if gains:
        turns[ALONE] = (peers.hpfwi, "hpfwi", 1)
        turns[COPIES] = (peers.hpfwi_in_copies, "hpfwi", threads)
        for gradient in (False, True):  # touches the copies' buffers
            peers.hpfwi_in_copies(work["hpfwi"], torch.float32, gradient, threads)
    wall: Seconds = {kind: {turn: [] for turn in turns} for kind in ("forward", "gradient")}
    processor: Seconds = {kind: {turn: [] for turn in turns} for kind in wall}
    for repeat in range(repeats):
        for kind in wall:
            for turn in list(turns) if repeat % 2 == 0 else list(turns)[::-1]:
                run, code, on_threads = turns[turn]
                time.sleep(SETTLE_S)
                begin, begin_processor = time.perf_counter(), time.process_time()
                run(work[code], torch.float32, kind == "gradient", on_threads)
                wall[kind][turn].append(time.perf_counter() - begin)
                processor[kind][turn].append(time.process_time() - begin_processor)
    return wall, processor


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many other processes compute meanwhile, each enough for one core."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def child(code: str, name: str, options: argparse.Namespace, order: int, cache: str | None = None) -> dict[str, float]:
    """First-call seconds and peak memory above the imports' of one gradient, in a process of its own."""
    command = [sys.executable, __file__, "--child", code, "--cases", name, "--order", str(order)]
    command += ["--absorbing", str(options.absorbing), "--threads", str(options.threads)]
    command += ["--store-every", options.store_every]
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure_child(code: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """What `child` prints: a tiny gradient first (compilation, loading), then the case's own."""
    order, threads = options.order[0], options.threads
    # At every step: K need not divide the steps of the small case, as deepwave demands.
    small = problem(CASES[SMALL[len(CASES[name].shape)]], order, options.absorbing, 1)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        CODES[code](small, torch.float32, True, threads)
        CODES[code](small, torch.float32, False, threads)
        seconds.append(time.perf_counter() - begin)
    work = works(name, order, options)[code]
    # The kernel's own peak counter, reset first: a new process inherits its parent's peak in getrusage.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    CODES[code](work, torch.float32, True, threads)
    return {"first_call_s": seconds[0] - seconds[1], "memory_mb": resident_mb("VmHWM") - before}


def resident_mb(field: str) -> float:
    """Memory of this process from /proc: VmRSS is what it holds now, VmHWM the most it held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


def bench(name: str, order: int, options: argparse.Namespace) -> dict:
    """Check one case, then time it. Raises RuntimeError when hpfwi is too far from float64 deepwave."""
    absorbing, threads = options.absorbing, options.threads
    # First, while this process holds nothing: a large case fits into the machine's memory only once.
    with tempfile.TemporaryDirectory() as cold:
        compile_s = child("hpfwi", SMALL[len(CASES[name].shape)], options, order, cache=cold)["first_call_s"]
    memory = {code: child(code, name, options, order)["memory_mb"] for code in CODES}
    work = works(name, order, options)
    checked = {code: one.shots(CASES[name].checked) for code, one in work.items()}
    expected = peers.truth(checked["deepwave"], threads)
    gaps = {code: peers.gap(run(checked[code], torch.float32, True, threads), expected) for code, run in CODES.items()}
    records, gradient = gaps["hpfwi"]
    same_steps = len({one.scheme.store_every for one in work.values()}) == 1
    if records > AGREEMENT or gradient > (AGREEMENT if same_steps else SAMPLED):
        raise RuntimeError(
            f"hpfwi differs from float64 deepwave on {name} by {records:.1e} in records and {gradient:.1e} in the "
            f"gradient, more than {AGREEMENT:g} (a gradient of fewer steps: {SAMPLED:g}): no ratio is worth printing."
        )
    with others(options.beside):
        wall, processor = timed(work, options.repeats, threads, options.gains)
    updates = np.prod([size + 2 * absorbing for size in CASES[name].shape]) * CASES[name].samples * CASES[name].shots
    rows = {}
    for kind, runs in wall.items():
        middle = {code: statistics.median(values) for code, values in runs.items()}
        rows[kind] = {
            "seconds": runs,
            "processor_s": processor[kind],
            "median_s": middle,
            "fastest_s": {code: min(values) for code, values in runs.items()},
            "spread_s": {code: max(values) - min(values) for code, values in runs.items()},
            "ratio_of_medians": middle["deepwave"] / middle["hpfwi"],
            "ratio_of_fastest": min(runs["deepwave"]) / min(runs["hpfwi"]),
            "ratio_of_processor_medians": statistics.median(processor[kind]["deepwave"])
            / statistics.median(processor[kind]["hpfwi"]),
            "gain_of_threads": middle[ALONE] / middle["hpfwi"] if options.gains else None,
            "gain_of_copies": threads * middle[ALONE] / middle[COPIES] if options.gains else None,
            "billion_updates_per_s": updates / middle["hpfwi"] / 1e9,
        }
    return {
        "case": name,
        "load": os.getloadavg()[0],
        "order": order,
        "absorbing_cells": absorbing,
        "inner_steps": work["hpfwi"].scheme.substeps,
        "store_every": {code: one.scheme.store_every for code, one in work.items()},
        "shots_checked": CASES[name].checked or CASES[name].shots,
        "gap_records": {code: pair[0] for code, pair in gaps.items()},
        "gap_gradient": {code: pair[1] for code, pair in gaps.items()},
        "compile_s": compile_s,
        "memory_mb": memory,
        **rows,
    }


COLUMNS = {
    "case (cells,t,shots)": 20,
    "order": 5,
    "kind": 8,
    "K": 3,
    "hpfwi s": 8,
    "±": 7,
    "deepwave s": 10,
    "± ": 7,
    "ratio": 5,
    "fastest": 7,
    "cpu": 5,
    "threads": 7,
    "copies": 6,
    "Gcell/s": 7,
    "gap": 7,
    "peer gap": 8,
    "MB": 6,
    "peer MB": 7,
    "compile s": 9,
}


def line(cells: Sequence[str]) -> str:
    """One line of the printed table."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def cells(result: dict, kind: str) -> list[str]:
    """The table's cells for one case; memory is that of the gradient, which is where it goes."""
    row = result[kind]
    middle, spread = row["median_s"], row["spread_s"]
    gaps = result["gap_records" if kind == "forward" else "gap_gradient"]
    memory = result["memory_mb"] if kind == "gradient" else None
    return [
        result["case"],
        str(result["order"]),
        kind,
        str(result["store_every"]["hpfwi"]) if kind == "gradient" else "",
        f"{middle['hpfwi']:.4f}",
        f"{spread['hpfwi'] / 2:.4f}",
        f"{middle['deepwave']:.4f}",
        f"{spread['deepwave'] / 2:.4f}",
        f"{row['ratio_of_medians']:.2f}",
        f"{row['ratio_of_fastest']:.2f}",
        f"{row['ratio_of_processor_medians']:.2f}",
        f"{row['gain_of_threads']:.2f}" if row["gain_of_threads"] else "",
        f"{row['gain_of_copies']:.2f}" if row["gain_of_copies"] else "",
        f"{row['billion_updates_per_s']:.2f}",
        f"{gaps['hpfwi']:.1e}",
        f"{gaps['deepwave']:.1e}",
        f"{memory['hpfwi']:.0f}" if memory else "",
        f"{memory['deepwave']:.0f}" if memory else "",
        f"{result['compile_s']:.1f}",
    ]


def main() -> None:
    """Read the options, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(DEFAULT_CASES), choices=list(CASES))
    parser.add_argument("--order", nargs="+", type=int, default=[4], help="spatial orders (4)")
    parser.add_argument("--absorbing", type=int, default=20, help="cells of C-PML on every side (20)")
    parser.add_argument(
        "--store-every",
        default="1",
        metavar="K",
        help='time steps between those that enter the gradient, in both codes; "auto": 1 in deepwave, in hpfwi what '
        "the wavelet allows, as in an inversion (1)",
    )
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both codes (2)")
    parser.add_argument(
        "--gains",
        action="store_true",
        help="also time hpfwi on one thread, and one run on every thread at once that share nothing",
    )
    parser.add_argument(
        "--beside",
        type=int,
        default=0,
        metavar="N",
        help="other processes that compute without end while the codes are timed, as on a shared machine (0)",
    )
    parser.add_argument(
        "--json", type=Path, help="where to write the result (benchmarks/results/acoustic_<hardware>_<date>)"
    )
    parser.add_argument("--child", choices=list(CODES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure_child(options.child, options.cases[0], options)))
        return
    conditions = peers.conditions(options.threads) | {"processes beside": str(options.beside)}
    print("  ".join(f"{key}: {value}" for key, value in conditions.items()))
    if float(conditions["load before"]) > BUSY:
        print(
            "The machine is busy: threads that wait for each other at every time step, as deepwave's do, suffer most."
        )
    path = options.json or peers.result_path("acoustic", conditions)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(line(list(COLUMNS)))
    results = []
    for name in options.cases:
        for order in options.order:
            result = bench(name, order, options)
            print(line(cells(result, "forward")), line(cells(result, "gradient")), sep="\n", flush=True)
            results.append(result)
            path.write_text(json.dumps({"conditions": conditions, "results": results}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
