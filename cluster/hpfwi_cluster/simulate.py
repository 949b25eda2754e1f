"""What a run would take on so many workers, failures included: virtual iterations, and the odds of what goes wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.virtual import USUAL, Death, Iteration, Machine, Work, run_iteration

Limit = Literal["nothing", "items", "driver", "sum", "serial"]


@dataclass(frozen=True)
class Forecast:
    """A run on so many workers.

    iteration_s     of an undisturbed iteration
    efficiency      time of the items alone, shared by all workers' threads, over the iteration's: 1 is perfect
    item_wait       share of the iteration in which a thread has no item because the last ones are not done
    driver_share, sum_share, serial_share
                    shares of the iteration: driver at work, all-reduce, and what every worker repeats
    limit           the largest of these where efficiency is below 0.9
    hours           of the whole run without failures, checkpoints included
    failures        expected deaths of workers during the run
    failure_cost_s  what one death costs
    lost_hours      expected loss to failures of workers and of the driver's node; infinite where the run would
                    lose time faster than it gains it
    """

    workers: int
    threads: int
    iteration_s: float
    efficiency: float
    item_wait: float
    driver_share: float
    sum_share: float
    serial_share: float
    limit: Limit
    hours: float
    failures: float
    failure_cost_s: float
    lost_hours: float

    @property
    def total_hours(self) -> float:
        """Time of the run with the expected losses."""
        return self.hours + self.lost_hours


def forecast(
    work: Work,
    machine: Machine,
    workers: int,
    threads: int = 1,
    *,
    mtbf_hours: float | None = None,
    samples: int = 5,
    seed: int = 0,
    settings: ClusterSettings = USUAL,
) -> Forecast:
    """Forecast a run on so many workers of so many threads.

    mtbf_hours  mean time between failures of one worker, h; the node of the driver fails as often. None: nothing fails
    samples     iterations, and deaths, that are simulated
    settings    of the group
    """

    def run(ranks: int, seed: int, deaths: Sequence[Death] = ()) -> Iteration:
        return run_iteration(work, machine, ranks, threads, seed=seed, deaths=deaths, settings=settings)

    quiet = [run(workers, seed + number) for number in range(samples)]
    iteration_s = statistics.fmean(one.seconds for one in quiet)
    lanes = workers * threads
    sum_s = machine.all_reduce_s(workers, work.size)
    serial_s = work.begin_s + work.finish_s
    parts = {
        "driver": statistics.fmean(one.driver_s for one in quiet) / iteration_s,
        "sum": sum_s / iteration_s,
        "serial": serial_s / iteration_s,
    }
    busy_s = statistics.fmean(one.busy_s for one in quiet)
    efficiency = busy_s / lanes / iteration_s
    waits = max(0.0, 1.0 - efficiency - sum(parts.values()))
    shares: dict[Limit, float] = {
        "items": waits,
        "driver": parts["driver"],
        "sum": parts["sum"],
        "serial": parts["serial"],
    }
    every_s = iteration_s + work.checkpoint_s / work.checkpoint_every
    seconds = every_s * work.iterations
    cost_s, failures, lost_s = 0.0, 0.0, 0.0
    if mtbf_hours is not None:
        cost_s = _cost_of_a_death(work, machine, workers, quiet, seed, run)
        driver_cost_s = machine.restart_s + work.checkpoint_every / 2 * every_s
        # Losses take time, in which more is lost: total = quiet + total * share.
        share = (workers * cost_s + driver_cost_s) / (mtbf_hours * 3600)
        total_s = seconds / (1 - share) if share < 1 else math.inf
        failures = workers * total_s / (mtbf_hours * 3600)
        lost_s = total_s - seconds
    return Forecast(
        workers=workers,
        threads=threads,
        iteration_s=iteration_s,
        efficiency=efficiency,
        item_wait=waits,
        driver_share=parts["driver"],
        sum_share=parts["sum"],
        serial_share=parts["serial"],
        limit="nothing" if efficiency >= 0.9 else max(shares, key=shares.__getitem__),
        hours=seconds / 3600,
        failures=failures,
        failure_cost_s=cost_s,
        lost_hours=lost_s / 3600,
    )


def _cost_of_a_death(
    work: Work, machine: Machine, workers: int, quiet: list[Iteration], seed: int, run: Callable[..., Iteration]
) -> float:
    """Mean time that the death of a worker costs a run, s: its items again, and what follows without it."""
    usual_s = statistics.fmean(one.seconds for one in quiet)
    if workers == 1:
        # Nobody holds the state: a fresh worker starts from the last checkpoint.
        return machine.detection_s + machine.start_s + work.checkpoint_every / 2 * usual_s
    random = np.random.default_rng(seed)
    extra_s = []
    for number, undisturbed in enumerate(quiet):
        death = Death(int(random.integers(workers)), float(random.uniform(0, undisturbed.seconds)))
        disturbed = run(workers, seed + number, [death])
        extra_s.append(disturbed.seconds - undisturbed.seconds)
    fewer_s = run(workers - 1, seed).seconds
    slower = max(0.0, fewer_s / quiet[0].seconds - 1)
    return max(0.0, statistics.fmean(extra_s)) + slower * machine.start_s
