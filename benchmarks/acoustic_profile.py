"""Where a forward run's time goes on one thread, and which limit it meets: `python benchmarks/acoustic_profile.py`.

For each size, order 4 and a C-PML of 20 cells: what a call costs before its first step, what a cell and step cost, and
what they cost without layers on as many cells (the interior's loop alone). Beside the interior's vector arithmetic per
second stands what this processor gives a loop that computes in registers and does nothing else, in the same run, and
beside its memory traffic what the same thread moves when it adds two arrays of those sizes in place.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import lanes, load, put

if TYPE_CHECKING:
    from benchmarks import acoustic, peers
else:
    import acoustic  # run as a script, this folder is where Python looks first
    import peers

SIZES = ((70, 70), (94, 288), (301, 921), (1000, 2000))
LAYER = 20
ORDER = 4
# Cell updates of a timed run: long enough for its call not to matter.
UPDATES = 2e8
# Of a vector of cells in the interior: sums of neighbours, products (multiply-adds count once), shuffles, the leap.
INSTRUCTIONS = 2 * (ORDER // 2) + (2 * (ORDER // 2) + 1) + 2 * (ORDER // 2) + 3
# Read u, v and c, write v.
BYTES = 16


@hot
def _arithmetic(room, turns):
    """Six multiply-adds and six additions in each turn, none of which waits for another of its turn."""
    width = lanes(room)
    x, y = load(room, np.uint64(0)), load(room, width)
    a, b, c, d, e, f = x, x, x, x, x, x
    g, h, i, j, k, m = y, y, y, y, y, y
    for _ in range(turns):
        a, b, c, d, e, f = a * x + y, b * x + y, c * x + y, d * x + y, e * x + y, f * x + y
        g, h, i, j, k, m = g + x, h + x, i + x, j + x, k + x, m + x
    put(room, np.uint64(0), a + b + c + d + e + f + g + h + i + j + k + m)


@hot
def _add(u, v, c, turns):
    """v += u + c, again and again: the interior's traffic without its arithmetic."""
    width = lanes(u)
    for _ in range(turns):
        for i in range(np.uint64(0), np.uint64(u.size), width):
            put(v, i, load(v, i) + (load(u, i) + load(c, i)))


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run after one that is not timed: others on the machine only ever add."""
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def peak_instructions(repeats: int) -> float:
    """Vector instructions per second of arithmetic in registers."""
    room, turns = np.full(64, 1e-3, np.float32), 2_000_000
    return 12 * turns / fastest(lambda: _arithmetic(room, turns), repeats)


def peak_bytes_per_s(cells: int, repeats: int) -> float:
    """Bytes per second that three arrays of so many cells are read and one of them is written at."""
    u, v, c = (aligned_zeros(cells) for _ in range(3))
    turns = max(1, int(UPDATES / 4 / cells))
    return BYTES * cells * turns / fastest(lambda: _add(u, v, c, turns), repeats)


def aligned_zeros(cells: int) -> NDArray[np.float32]:
    """Float32 zeros from a cache line on, a whole number of vectors."""
    room = np.zeros(cells + 32, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + cells // 16 * 16]


def forward_s(shape: tuple[int, ...], layer: int, samples: int, repeats: int) -> float:
    """Seconds of one shot's forward run, from torch tensors to records."""
    case = replace(acoustic.CASES["301x921x2000x1"], shape=shape, samples=samples)
    work = acoustic.problem(case, ORDER, layer, None)
    return fastest(lambda: peers.hpfwi(work, torch.float32, False, 1), repeats)


def profile(shape: tuple[int, ...], repeats: int, instructions_per_s: float) -> dict[str, object]:
    """One line of the table."""
    padded = tuple(size + 2 * LAYER for size in shape)
    cells = int(np.prod(padded))
    samples = max(20, int(UPDATES / cells))
    call = forward_s(shape, LAYER, 1, repeats)
    whole = (forward_s(shape, LAYER, samples, repeats) - call) / (samples - 1) / cells
    bare = forward_s(padded, 0, 1, repeats)
    interior = (forward_s(padded, 0, samples, repeats) - bare) / (samples - 1) / cells
    return {
        "cells": "x".join(map(str, shape)),
        "call_ms": call * 1e3,
        "ns_per_cell": whole * 1e9,
        "interior_ns_per_cell": interior * 1e9,
        "layers_share": 1 - interior / whole,
        "interior_share_of_arithmetic": INSTRUCTIONS / 16 / interior / instructions_per_s,
        "interior_share_of_memory": BYTES / interior / peak_bytes_per_s(cells, repeats),
    }


def main() -> None:
    """Read the options, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, of which the fastest counts (7)")
    parser.add_argument(
        "--json", type=Path, help="where to write the result (benchmarks/results/acoustic_profile_<hardware>_<date>)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    conditions = peers.conditions(1)
    print("  ".join(f"{key}: {value}" for key, value in conditions.items()))
    path = options.json or peers.result_path("acoustic_profile", conditions)
    instructions_per_s = peak_instructions(options.repeats)
    print(f"arithmetic in registers: {instructions_per_s / 1e9:.2f} billion vector instructions a second")
    results = [profile(shape, options.repeats, instructions_per_s) for shape in SIZES]
    widths = {key: max(len(key), 10) for key in results[0]}
    print("  ".join(f"{key:>{width}}" for key, width in widths.items()))
    for row in results:
        shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        print("  ".join(f"{value:>{width}}" for value, width in zip(shown, widths.values(), strict=True)))
    written = {"conditions": conditions, "instructions_per_s": instructions_per_s, "results": results}
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
