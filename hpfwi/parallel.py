"""The seam between seismics and workers, and the only importer of the cluster layer.

    here                              there
    group of shots                    item
    cells x time steps                cost
    gradient dJ/dm of a group         an item's array; their exact sum reaches every rank
    parameterisation and optimiser    a task's state, replicated on every rank

    slice of a batch                  item
    samples                           cost
    gradient of the network           an item's array
    network and optimiser             a task's state

Groups of shots and slices of batches are fixed by the configuration, never by the number of workers, so the sum has the
same bits whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpfwi.errors import ConfigError
from hpfwi_cluster import ClusterSettings, Group, ItemResult, IterationResult, State, Task, make_group
from hpfwi_cluster.errors import Abandoned, ClusterError, GroupLost, ItemFailed, StartFailed
from hpfwi_cluster.replica import one_torch_thread
from hpfwi_cluster.simulate import Forecast, forecast
from hpfwi_cluster.slurm import SlurmJob
from hpfwi_cluster.slurm import script as job_script
from hpfwi_cluster.slurm import submit as submit_job
from hpfwi_cluster.tasks import nobody_asks
from hpfwi_cluster.virtual import Machine, Work, run_iteration

if TYPE_CHECKING:
    from hpfwi.inversion.task import InversionTask
    from hpfwi.physics.device import Device
    from hpfwi.training.task import TrainingTask

__all__ = [
    "Abandoned",
    "ClusterError",
    "ClusterSettings",
    "Forecast",
    "Group",
    "GroupLost",
    "ItemFailed",
    "ItemResult",
    "IterationResult",
    "Machine",
    "SlurmJob",
    "State",
    "Work",
    "device_here",
    "forecast",
    "groups_of_shots",
    "job_script",
    "measured_machine",
    "one_torch_thread",
    "placed",
    "run_iteration",
    "start_generation",
    "start_group",
    "start_training",
    "submit_job",
    "validation_iteration",
]


def groups_of_shots(shots: Sequence[int], per_group: int) -> tuple[tuple[int, ...], ...]:
    """Shots cut into groups of `per_group` neighbours, the last one smaller where it does not divide.

    >>> groups_of_shots(range(5), 2)
    ((0, 1), (2, 3), (4,))
    """
    return tuple(tuple(shots[first : first + per_group]) for first in range(0, len(shots), per_group))


def placed(settings: ClusterSettings, gpus: int, busy: int | None = None) -> ClusterSettings:
    """The settings without "auto", for a machine with so many GPUs and work for so many workers.

    See `ClusterSettings.placed`.

    raises  ConfigError: device="cuda" asks for more
    """
    try:
        return settings.placed(gpus, busy)
    except StartFailed as error:
        raise ConfigError(f"cluster.{error}") from error


def device_here(settings: ClusterSettings) -> Device:
    """What this process is to compute on itself. The driver of a cluster elsewhere may do without the workers' GPU."""
    return "auto" if settings.device == "cuda" and settings.joins else settings.device


def start_group(run: Path, settings: ClusterSettings, stop: Callable[[], object] = nobody_asks) -> Group:
    """Start the workers of the run in folder `run`, each with a replica of its inversion; `workers = 0` starts none.

    settings    `placed`
    stop        as `Group.stop`; asked while the workers start too

    raises      ClusterError: the workers cannot be had, or a replica cannot be built from the folder; Abandoned
    """
    workers = settings.worker_count()
    threads = settings.threads_per_worker if workers else local_threads(settings)
    factory = partial(_build, str(run), settings.device, workers, threads)
    return make_group(factory, workers=workers, threads_per_worker=threads, settings=settings, stop=stop)


def start_training(run: Path, settings: ClusterSettings, stop: Callable[[], object] = nobody_asks) -> Group:
    """Start the workers of the training run in folder `run`, each with a replica of it; `workers = 0` starts none.

    Iterations from 0 are steps, whose items are slices; those below 0 (see `validation_iteration`) validate and change
    nothing, and their items are slices of the validation.

    settings    `placed`
    stop        as `Group.stop`; asked while the workers start too

    raises      ClusterError: the workers cannot be had, or a replica cannot be built from the folder; Abandoned
    """
    workers = settings.worker_count()
    threads = settings.threads_per_worker if workers else local_threads(settings)
    factory = partial(_build_training, str(run), threads, "cuda" if settings.device == "cuda" else "cpu")
    return make_group(factory, workers=workers, threads_per_worker=threads, settings=settings, stop=stop)


def measured_machine(say: Callable[[str], None]) -> Machine:
    """The overheads of this machine, measured with workers that do nothing; takes about half a minute."""
    from hpfwi_cluster.calibrate import measure

    return measure(say)


def validation_iteration(epoch: int) -> int:
    """The number that a group knows the validation after this epoch by.

    >>> validation_iteration(0), validation_iteration(9)
    (-1, -10)
    """
    return -1 - epoch


def start_generation(factory: Callable[[], Task], settings: ClusterSettings) -> Group:
    """Start the workers that write the shards of a generated data set, one item each; `workers = 0` starts none.

    factory     builds a rank's task, whose items do their work by writing and contribute zeros to the sum; picklable
    settings    `placed`

    raises      ClusterError: the workers cannot be had, or a task cannot be built
    """
    workers = settings.worker_count()
    threads = settings.threads_per_worker if workers else local_threads(settings)
    group = make_group(factory, workers=workers, threads_per_worker=threads, settings=settings)
    group.exponent = 0  # zeros fit every scale; without one, the first item would be computed alone to learn it
    return group


def local_threads(settings: ClusterSettings) -> int:
    """Items that this process computes at the same time under `workers = 0`: one for each usable core.

    On a GPU as many as a worker would: more would only wait for each other, and take memory meanwhile.
    """
    if settings.device == "cuda":
        return settings.threads_per_worker
    every_core = ClusterSettings.model_validate({"workers": "auto", "threads_per_worker": 1}).worker_count()
    return max(settings.threads_per_worker, every_core)


def _build(run: str, device: Device, workers: int, threads: int) -> _ItemsOfShots:
    # Imported by each rank: the driver of a large run has no need of the propagator.
    from hpfwi.inversion.task import open_task

    task = open_task(Path(run), device=device)
    return _ItemsOfShots(task, threads_of_an_item(task.items_per_iteration, workers, threads))


def threads_of_an_item(items: int, workers: int, threads: int) -> int:
    """Threads that share an item, where a rank has more of them than items of an iteration.

    >>> [threads_of_an_item(items, workers=2, threads=8) for items in (1, 4, 13, 100)]
    [8, 4, 1, 1]
    """
    return max(1, threads // -(-items // max(1, workers)))


class _ItemsOfShots:
    """An inversion as the cluster layer sees it: numbered items, arrays to add, a state to replicate."""

    def __init__(self, task: InversionTask, threads: int = 1) -> None:
        self._task = task
        self._threads = threads
        self._groups: Sequence[tuple[int, ...]] = task.groups

    def begin(self, iteration: int) -> None:
        self._task.begin(iteration)

    def compute(self, item: int) -> ItemResult:
        array, scalars = self._task.contribution(self._groups[item], threads=self._threads)
        return ItemResult(array, scalars)

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        assert total is not None  # this task always contributes an array
        self._task.advance(iteration, total)

    def state(self) -> State:
        return self._task.state()

    def load_state(self, state: State) -> None:
        self._task.load_state(state)


def _build_training(run: str, ahead: int, device: str) -> _ItemsOfSlices:
    from hpfwi.training.task import open_task

    return _ItemsOfSlices(open_task(Path(run), ahead=ahead, device=device))


class _ItemsOfSlices:
    """A training run as the cluster layer sees it."""

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self.exact = task.settings.exact
        self._validates = False

    def begin(self, iteration: int) -> None:
        self._validates = iteration < 0
        self._task.begin(None if self._validates else iteration)

    def compute(self, item: int) -> ItemResult:
        if self._validates:
            return ItemResult(np.zeros(1), self._task.judge(item))
        gradient, numbers = self._task.gradient(item)
        return ItemResult(gradient, numbers)

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        assert total is not None  # this task always contributes an array
        if not self._validates:
            self._task.advance(iteration, total)

    def state(self) -> State:
        return self._task.state()

    def load_state(self, state: State) -> None:
        self._task.load_state(state)
