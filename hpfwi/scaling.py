"""What a run would gain from more workers: what it asks of them, measured here or read from a run, and forecasts."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import ConfigError
from hpfwi.parallel import Forecast, Machine, Work, groups_of_shots, local_threads, one_torch_thread, run_iteration
from hpfwi.progress import clock
from hpfwi.run_folder import read_events

if TYPE_CHECKING:
    from rich.table import Table

    from hpfwi.config import RunConfig
    from hpfwi.training.settings import TrainConfig

ROUNDS = 3
"""How often something is timed; the least time counts, because others only ever add to it."""

CHECKPOINT_S, CHECKPOINT_BYTES_PER_S = 0.05, 500e6
"""A checkpoint's time: its files and flushes, and its bytes. Measured on a local disk: 200 MB in 0.35 s."""

_FREE = Machine(handling_s=0, latency_s=0, asking_s=0, hop_s=0, bandwidth_mbs=1e9, local_mbs=1e9)
"""A group in one process costs nothing beside its items."""


def work_of_inversion(config: RunConfig) -> Work:
    """What an iteration of an inversion asks of its workers, from a shortened shot and one step of the optimiser."""
    import torch

    from hpfwi.experiment import build_experiment
    from hpfwi.inversion.optimise import build_adam
    from hpfwi.inversion.parameterisation import build_parameterisation
    from hpfwi.plan import estimated_time

    experiment = build_experiment(config)
    settings, initial = config.inversion, experiment.models.initial
    parameterisation = build_parameterisation(
        settings.parameterisation, initial, config.model.bounds_mps, experiment.models.water_mask, settings.seed
    )
    optimiser = build_adam(parameterisation.parameter_groups(), settings.optimiser)

    def finish() -> None:
        optimiser.zero_grad()
        parameterisation().backward(total)
        optimiser.step()

    with one_torch_thread():
        begin_s, model = _least_s(parameterisation)
        total = torch.zeros_like(model)
        finish_s = max(0.0, _least_s(finish)[0] - begin_s)
    shot_s = float(next(row.value for row in estimated_time(experiment) if row.name == "seconds_per_shot"))
    shots = settings.shots_per_iteration or experiment.survey.shots
    sizes = [len(group) for group in groups_of_shots(range(shots), settings.shots_per_item)]
    mean = statistics.fmean(sizes)
    parameters = sum(value.numel() for value in parameterisation.parameters())
    # Weights and Adam's moments; or trial and accepted point, gradient, direction and the pairs.
    vectors = 3 if settings.optimiser.kind == "adam" else 4 + 2 * settings.optimiser.memory
    return Work(
        item_s=shot_s * mean,
        costs=tuple(size / mean for size in sizes),
        size=8 * initial.velocity.size,
        begin_s=begin_s,
        finish_s=finish_s,
        checkpoint_s=_checkpoint_s(vectors * 4 * parameters),
        checkpoint_every=settings.checkpoint_every,
        iterations=settings.iterations,
    )


def work_of_training(config: TrainConfig) -> Work:
    """What a step of a training run asks of its workers, from one slice and one step of the optimiser."""
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.training.settings import require_pairs, resolved
    from hpfwi.training.task import TrainingTask, slice_sizes
    from hpfwi.training.train import cluster_of

    require_pairs(config)
    store = open_pairs(config.data.pairs)
    config = resolved(config, store)
    task = TrainingTask(config, store, device=cluster_of(config).device)
    sizes = slice_sizes(config)
    mean = statistics.fmean(sizes)
    with contextlib.closing(task.batches), one_torch_thread():
        task.begin(0)
        slot_s, (vector, _) = _least_s(lambda: task.gradient(0))
        finish_s, _ = _least_s(lambda: task.advance(0, np.asarray(vector, np.float64)), rounds=1)
    parameters = sum(value.numel() for value in task.network.parameters())
    return Work(
        item_s=slot_s * mean / sizes[0],
        costs=tuple(size / mean for size in sizes),
        size=8 * vector.size,
        finish_s=finish_s,
        checkpoint_s=_checkpoint_s(3 * 4 * parameters),
        checkpoint_every=config.training.checkpoint_every,
        iterations=task.steps,
    )


def work_of_run(run: Path, machine: Machine, work: Work) -> Work:
    """The work of a configuration, with the times that a run of it took.

    Items take what the workers of the run were busy with; what is left of an iteration then, beside what the machine
    costs, is what every worker repeats.

    raises  ConfigError: the run has too few iterations to tell
    """
    events = read_events(run)
    steps = [event for event in events if event["kind"] in ("iteration", "step")][1:]  # the first one compiles
    starts = [event for event in events if event["kind"] in ("start", "resume")]
    if len(steps) < ROUNDS or len(starts) != 1:
        raise ConfigError(
            f"{run} has {len(steps)} iterations after its first, and was started {len(starts)} times; the times of at "
            f"least {ROUNDS} iterations of one start are needed."
        )
    workers, threads = starts[0]["workers"], _threads(run, starts[0]["workers"])
    ranks = max(workers, 1)
    seconds = statistics.median(event["seconds"] for event in steps)
    busy_s = statistics.median(event["seconds"] * (1 - event["wait_share"]) for event in steps) * ranks
    lanes = min(threads, max(1, len(work.costs) // ranks))
    timed = work.model_copy(update={"item_s": busy_s * lanes / sum(work.costs), "begin_s": 0.0, "finish_s": 0.0})
    items_s = run_iteration(timed, machine if workers else _FREE, ranks, threads).seconds
    return timed.model_copy(update={"finish_s": max(0.0, seconds - items_s)})


def as_table(work: Work, forecasts: Sequence[Forecast], mtbf_hours: float | None) -> Table:
    """The forecasts as a table for the terminal."""
    from rich.table import Table

    title = (
        f"{len(work.costs)} items of {work.item_s:.3g} s, sum of {work.size / 1e6:.3g} MB, {work.iterations} iterations"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = ["workers", "iteration", "efficiency", "limited by", "run"]
    for name in names + (["deaths", "one costs", "lost", "with losses"] if mtbf_hours else []):
        table.add_column(name, justify="right", no_wrap=True)
    for one in forecasts:
        cells = [f"{one.workers:,}", f"{one.iteration_s:.3g} s", f"{100 * one.efficiency:.1f} %", LIMITS[one.limit]]
        cells.append(clock(3600 * one.hours))
        if mtbf_hours:
            lost = one.lost_hours / one.total_hours if one.total_hours < float("inf") else 1.0
            cells += [f"{one.failures:.2g}", f"{one.failure_cost_s:.3g} s", f"{100 * lost:.2g} %"]
            cells.append(clock(3600 * one.total_hours) if lost < 1 else "never ends")
        table.add_row(*cells)
    return table


LIMITS = {
    "nothing": "",
    "items": "too few items",
    "driver": "the driver",
    "sum": "the all-reduce",
    "serial": "the optimiser's step",
}
"""What holds a run back, in words."""


def draw(path: Path, title: str, forecasts: Sequence[Forecast], mtbf_hours: float | None) -> None:
    """Write a PNG: where an iteration's time goes, and the run's time, against the number of workers."""
    from hpfwi.figures import style

    workers = [one.workers for one in forecasts]
    parts: dict[str, tuple[NDArray[Any], str]] = {
        "items": (np.array([one.efficiency for one in forecasts]), style.BLUE),
        "waiting for the last items": (np.array([one.item_wait for one in forecasts]), style.GREY),
        "the driver": (np.array([one.driver_share for one in forecasts]), style.VERMILION),
        "all-reduce": (np.array([one.sum_share for one in forecasts]), style.ORANGE),
        "the optimiser's step": (np.array([one.serial_share for one in forecasts]), style.PURPLE),
    }
    # Much of the driver's work is hidden behind the items; what is drawn adds up to the iteration.
    rest = np.clip(1 - parts["items"][0], 0, 1)
    others = sum(values for name, (values, _) in parts.items() if name != "items")
    scale = rest / np.maximum(others, 1e-12)
    with style.look():
        figure = style.new_figure(3.6)
        left, right = figure.subplots(1, 2)
        places, bottom = np.arange(len(workers)), np.zeros(len(workers))
        for name, (values, colour) in parts.items():
            heights = 100 * (values if name == "items" else values * scale)
            left.bar(places, heights, 0.7, bottom=bottom, color=colour, label=name)
            bottom += heights
        left.set_xticks(places, [f"{count:,}" for count in workers])
        left.set_ylim(0, 100)
        style.line_axes(left, f"{style.letter(0)} where the workers' time goes", "workers", "share of an iteration, %")
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        hours = [one.hours for one in forecasts]
        ideal = [hours[0] * forecasts[0].efficiency * workers[0] / count for count in workers]
        right.loglog(workers, ideal, label="perfect", color=style.GREY, linestyle=(0, (4, 1.5)))
        right.loglog(workers, hours, label="nothing fails", color=style.BLUE, marker="o")
        if mtbf_hours:
            total = [one.total_hours if one.total_hours < float("inf") else np.nan for one in forecasts]
            label = f"a worker fails every {mtbf_hours:g} h"
            right.loglog(workers, total, label=label, color=style.VERMILION, marker="s", linestyle=(0, (1, 1)))
        right.set_xticks(workers, [f"{count:,}" for count in workers])
        right.minorticks_off()
        style.line_axes(right, f"{style.letter(1)} time of the run", "workers", "hours")
        right.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        style.save_png(figure, path)


def _threads(run: Path, workers: int) -> int:
    """Items that a rank of the run computed at the same time."""
    from hpfwi.config import load_config
    from hpfwi.training.settings import is_training, load_train_config

    load: Any = load_train_config if is_training(run) else load_config
    config = load(run / "config.toml", [])[0]
    if workers:
        return int(config.cluster.threads_per_worker)
    try:
        cores = json.loads((run / "env.json").read_text())["cores_usable"]
    except (OSError, ValueError, KeyError):
        cores = local_threads(config.cluster)
    return max(int(config.cluster.threads_per_worker), int(cores))


def _least_s(call: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """The least time of a few calls, s, and what the last one returned."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
    return min(times), result


def _checkpoint_s(size: int) -> float:
    return CHECKPOINT_S + size / CHECKPOINT_BYTES_PER_S
