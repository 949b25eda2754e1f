"""Two codes take turns at the same work: seconds by the clock and by the processor, and their ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hpfwi.networks.fused import Kernels

CODES: tuple[Kernels, ...] = ("fused", "eager")
# OpenMP threads of the run before go on spinning for a moment; the next run must not pay for them.
SETTLE_S = 0.2

Parts = dict[str, Callable[[], None]]
Seconds = dict[str, dict[Kernels, list[float]]]


def timed(runs: Mapping[Kernels, Parts], repeats: int) -> dict[str, Seconds]:
    """Seconds by the clock and of the processor from the start of each run to the end of each of its parts.

    runs   for each code its parts in order, by name; the first run of each, which compiles and touches memory, is left
           out
    """
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, Seconds] = {clock: {part: {} for part in next(iter(runs.values()))} for clock in clocks}
    for repeat in range(repeats + 1):
        for code in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            if torch.get_num_threads() > 1:
                time.sleep(SETTLE_S)
            begin = {name: clock() for name, clock in clocks.items()}
            for part, work in runs[code].items():
                work()
                for name, clock in clocks.items():
                    if repeat > 0:
                        seconds[name][part].setdefault(code, []).append(clock() - begin[name])
    return seconds


def summary(seconds: dict[str, Seconds]) -> dict[str, Any]:
    """Medians, fastest runs and their ratios, eager over fused."""
    result: dict[str, Any] = {}
    for clock, parts in seconds.items():
        for part, codes in parts.items():
            middle = {code: statistics.median(values) for code, values in codes.items()}
            result[f"{clock}_{part}"] = {
                "median_s": middle,
                "fastest_s": {code: min(values) for code, values in codes.items()},
                "spread_s": {code: max(values) - min(values) for code, values in codes.items()},
                "ratio_of_medians": middle["eager"] / middle["fused"],
                "ratio_of_fastest": min(codes["eager"]) / min(codes["fused"]),
            }
    return result
