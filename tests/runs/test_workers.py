"""The inverted model does not depend on who computed it: workers, their number, their deaths."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpfwi import parallel
from tests.runs.kinds_of_runs import BANDS, BLOCK, SHAPED

pytestmark = pytest.mark.ray

OTHERS = {"bands": BANDS, "a line search with all that shapes a step": SHAPED, "three dimensions": BLOCK}
THREADS = {1: 2, 2: 1, 3: 1}
"""Threads per worker in the group of so many workers."""


class Mortal:
    """The product's replica, which dies as by kill -9 where a file tells one worker to, and goes from run to run."""

    def __init__(self, build: Callable[[str], Any], run: str, orders: Path) -> None:
        self._build, self._run, self._orders = build, run, orders
        self._task = build(run)
        self._iteration = 0

    def begin(self, iteration: int) -> None:
        self._iteration = iteration
        self._task.begin(iteration)

    def compute(self, item: int) -> Any:
        self._obey(f"compute-{self._iteration}-{item}")
        return self._task.compute(item)

    def finish(self, iteration: int, total: Any) -> None:
        self._obey(f"finish-{iteration}")
        self._task.finish(iteration, total)
        self._obey(f"after-{iteration}")

    def state(self) -> Any:
        self._obey(f"state-{self._iteration}")
        return self._task.state()

    def load_state(self, state: Any) -> None:
        self._iteration = -1  # what the run before on this worker came to is no order of this one
        run = whose(self._orders).read_text()
        if run != self._run:
            self._run, self._task = run, self._build(run)
        self._task.load_state(state)

    def _obey(self, order: str) -> None:
        try:
            (self._orders / order).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class Factory:
    """Build a mortal replica for a run folder; travels to the workers by value."""

    def __init__(self, build: Callable[..., Any], orders: Path) -> None:
        self._build, self._orders = build, orders

    def __call__(self, run: str, *settings: Any) -> Mortal:
        return Mortal(lambda run: self._build(run, *settings), run, self._orders)


def whose(orders: Path) -> Path:
    """Return the file that names the run which every replica is to belong to."""
    return orders.with_name("run")


class Lent:
    """A group that outlives the run which borrows it."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_group":
            super().__setattr__(name, value)
        else:
            setattr(self._group, name, value)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a file tells one worker to die; see also `whose`."""
    folder = tmp_path_factory.mktemp("workers") / "orders"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def groups(reference: Any, orders: Path) -> Iterator[Callable[[int], Any]]:
    """Return a function that gives the full group of so many workers on the reference run, started once per file."""
    from hpfwi_cluster import ClusterSettings
    from hpfwi_cluster.connection import connect
    from hpfwi_cluster.ray_library import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    started: dict[int, Any] = {}

    def group(workers: int) -> Any:
        if workers not in started:
            # Comparing replicas asks for their state as well; where "state" is an order, one replica has no other.
            settings = ClusterSettings(
                workers=workers, threads_per_worker=THREADS[workers], replica_check_every=1 if workers > 1 else None
            )
            whose(orders).write_text(str(reference.path))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parallel, "_build", Factory(parallel._build, orders))
                started[workers] = parallel.start_group(reference.path, settings)
        full(started[workers], workers)
        return started[workers]

    with connect(ClusterSettings(workers=0), cores=10):
        yield group
        for each in started.values():
            each.close()


def full(group: Any, workers: int) -> None:
    """Wait until replacements of killed workers have joined."""
    deadline_s = time.monotonic() + 120.0
    while len(group._crew.members) < workers and time.monotonic() < deadline_s:
        group._crew.admit(group.state)
        time.sleep(0.05)
    assert len(group._crew.members) == workers


@pytest.fixture
def on(groups: Callable[[int], Any], orders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Return a function that lets the test's runs compute on the group of so many workers."""

    def on(workers: int) -> int:
        group = groups(workers)

        def lend(path: Path, settings: Any, stop: Any) -> Lent:
            whose(orders).write_text(str(path))
            return Lent(group)

        monkeypatch.setattr("hpfwi.inversion.invert.start_group", lend)
        return workers

    return on


def kill(orders: Path, *when: str) -> None:
    for order in when:
        (orders / order).touch()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(workers: int, on: Any, run: Any, reference: Any, tmp_path: Path) -> None:
    ended = run(tmp_path, cluster__workers=on(workers))
    assert ended.bits == reference.bits
    assert ended.of_kind("worker_lost") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "deaths"),
    [(2, ["compute-4-2"]), (3, ["compute-0-0", "after-4"])],
)
def test_deaths_in_mid_iteration(
    workers: int, deaths: list[str], on: Any, run: Any, orders: Path, reference: Any, tmp_path: Path
) -> None:
    workers = on(workers)
    kill(orders, *deaths)
    ended = run(tmp_path, cluster__workers=workers)
    assert list(orders.iterdir()) == []
    assert ended.bits == reference.bits
    assert [event["iteration"] for event in ended.of_kind("worker_lost")] == [int(d.split("-")[1]) for d in deaths]
    assert ended.of_kind("rewind") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "back_to"),
    [("compute-5-3", 3), ("state-7", 6)],
    ids=["the only worker, in mid-iteration", "the only worker, handing over the last checkpoint"],
)
def test_a_lost_group_goes_back_to_the_checkpoint(
    death: str, back_to: int, on: Any, run: Any, orders: Path, reference: Any, tmp_path: Path
) -> None:
    workers = on(1)
    kill(orders, death)
    ended = run(tmp_path, cluster__workers=workers)
    assert list(orders.iterdir()) == []
    assert ended.bits == reference.bits
    assert [event["iteration"] for event in ended.of_kind("rewind")] == [back_to]


@pytest.mark.slow
def test_stopped_and_resumed_on_other_numbers_of_workers(
    on: Any, run: Any, resume: Any, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run(tmp_path, stop_after=2, cluster__workers=on(2))
    resume(stopped, stop_after=4, cluster__workers=on(3))
    monkeypatch.undo()
    resume(stopped, stop_after=5, cluster__workers=0)
    ended = resume(stopped, cluster__workers=on(1))
    assert ended.bits == reference.bits
    assert [event["workers"] for event in ended.of_kind("start") + ended.of_kind("resume")] == [2, 3, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_runs(kind: str, on: Any, run: Any, resume: Any, tmp_path: Path) -> None:
    straight = run(tmp_path / "straight", **OTHERS[kind])
    stopped = run(tmp_path / "stopped", stop_after=3, cluster__workers=on(2), **OTHERS[kind])
    assert resume(stopped, cluster__workers=on(2)).bits == straight.bits
