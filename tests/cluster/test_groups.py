"""LocalGroup and RayGroup keep the same promises, and the same bits, whoever computes and whoever dies."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi_cluster import ClusterSettings, Group, make_group
from hpfwi_cluster.errors import ClusterError, GroupLost, ItemFailed, ReplicasDiverged, StartFailed, TaskFailed
from hpfwi_cluster.fixed_point import GROWTH_BITS

ITEMS = list(range(11))
COSTS = [1.0 + item % 3 for item in ITEMS]
SETTINGS = ClusterSettings(workers=0, replica_check_every=1)
NAN_ARRAY, NAN_SCALAR, ALWAYS_RAISES, ODD_SHAPE, ZEROS, UNEVEN, BAD_FINISH, DIVERGES = range(1000, 1008)

THREADS = {1: 1, 2: 1, 3: 2}
"""Threads per worker in the group of so many workers."""

ray = pytest.mark.ray


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a file tells one worker to die."""
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def factory(chaotic: Callable[[Path], Callable[[], Any]], orders: Path) -> Callable[[], Any]:
    return chaotic(orders)


@pytest.fixture(scope="module")
def connection(toy_travels: None) -> Iterator[Any]:
    from hpfwi_cluster.connection import connect

    with connect(SETTINGS, cores=10) as connection:
        yield connection


@pytest.fixture(scope="module")
def ray_group(connection: Any, factory: Callable[[], Any]) -> Iterator[Callable[[int], Any]]:
    """Return a function that gives the group of so many workers, started once per file."""
    from hpfwi_cluster.group import RayGroup

    groups: dict[int, RayGroup] = {}

    def group(workers: int) -> RayGroup:
        if workers not in groups:
            groups[workers] = RayGroup(
                factory, workers=workers, threads_per_worker=THREADS[workers], settings=SETTINGS, connection=connection
            )
        return groups[workers]

    yield group
    for started in groups.values():
        started.close()


@pytest.fixture(params=["inline", "two threads", pytest.param("two workers", marks=ray)])
def group(request: pytest.FixtureRequest, factory: Callable[[], Any]) -> Iterator[Group]:
    if request.param == "two workers":
        shared = request.getfixturevalue("ray_group")(2)
        rewind(shared, factory)
        yield shared
    else:
        threads = 2 if request.param == "two threads" else 1
        with make_group(factory, workers=0, threads_per_worker=threads, settings=SETTINGS) as own:
            yield own


def rewind(group: Group, factory: Callable[[], Any]) -> None:
    group.exponent = None
    group.load_state(factory().state())


def iterate(group: Group, iterations: range) -> tuple[bytes, list[str]]:
    """Run iterations; return every total and the last state as bytes, and what was lost on the way."""
    totals: list[bytes] = []
    lost: list[str] = []
    for iteration in iterations:
        result = group.run(iteration, ITEMS, COSTS)
        totals.append(result.total.tobytes())
        lost += result.lost
    return b"".join(totals) + group.state()["values"].tobytes(), lost


def wait_for_replacement(group: Any, workers: int, first: int = 0) -> int:
    """Run until replacements have joined, which need seconds to start, and once more; return the iterations run."""
    deadline_s = time.monotonic() + 60.0
    iterations = 0
    while len(group._crew.members) < workers and time.monotonic() < deadline_s:
        time.sleep(0.2)
        group.run(first + iterations, ITEMS, COSTS)
        iterations += 1
    assert len(group._crew.members) == workers
    group.run(first + iterations, ITEMS, COSTS)
    return iterations + 1


@pytest.fixture(scope="module")
def expected(factory: Callable[[], Any]) -> bytes:
    with make_group(factory, workers=0, threads_per_worker=1, settings=SETTINGS) as group:
        return iterate(group, range(5))[0]


# Both groups


def test_same_bits_inline_in_threads_and_in_workers(group: Group, expected: bytes) -> None:
    assert iterate(group, range(5)) == (expected, [])


def test_result_of_an_iteration(group: Group, factory: Callable[[], Any]) -> None:
    task = factory()
    task.begin(0)
    exact = sum(task.compute(item).array.astype(np.float64) for item in ITEMS)
    result = group.run(0, ITEMS, COSTS)
    assert result.total.dtype == np.float64
    np.testing.assert_allclose(result.total, exact, rtol=0, atol=2.0**-40)
    assert set(result.scalars) == set(ITEMS)
    assert result.scalars[3] == task.compute(3).scalars
    assert result.seconds > 0
    assert 0 <= result.wait_share <= 1


def test_order_and_costs_do_not_matter_but_the_set_does(group: Group, factory: Callable[[], Any]) -> None:
    first = group.run(0, ITEMS, COSTS).total
    rewind(group, factory)
    assert group.run(0, ITEMS[::-1], [1.0] * len(ITEMS)).total.tobytes() == first.tobytes()
    rewind(group, factory)
    assert group.run(0, ITEMS[:-1], COSTS[:-1]).total.tobytes() != first.tobytes()


@pytest.mark.parametrize(
    ("iteration", "match"),
    [
        (NAN_ARRAY, "Item 5 failed in iteration 1000: non-finite array, 1 of 300"),
        (NAN_SCALAR, "Item 5 failed in iteration 1001: non-finite scalar first=inf"),
        (ALWAYS_RAISES, "Item 5 failed in iteration 1002 on 2 of 2 tries: ValueError: no luck with this item"),
        (ODD_SHAPE, r"shape \(299,\)|shape \(300,\)"),
    ],
)
def test_a_bad_item_stops_before_harm(group: Group, expected: bytes, iteration: int, match: str) -> None:
    before = group.state()["values"].tobytes()
    with pytest.raises(ItemFailed, match=match):
        group.run(iteration, ITEMS, COSTS)
    assert group.state()["values"].tobytes() == before
    assert iterate(group, range(5)) == (expected, [])


def test_an_item_that_raises_once_is_tried_again(group: Group, factory: Callable[[], Any], orders: Path) -> None:
    clean = group.run(0, ITEMS, COSTS).total
    rewind(group, factory)
    (orders / "raise").touch()
    assert group.run(0, ITEMS, COSTS).total.tobytes() == clean.tobytes()


def test_zeros_add_up_and_leave_the_scale_alone(group: Group) -> None:
    assert not group.run(ZEROS, ITEMS, COSTS).total.any()
    assert group.exponent is None
    group.run(1, ITEMS, COSTS)
    before = group.exponent
    group.run(ZEROS, ITEMS, COSTS)
    assert group.exponent == before


def test_a_sum_started_again_equals_one_on_the_right_scale_from_the_start(
    group: Group, factory: Callable[[], Any]
) -> None:
    restarted = group.run(UNEVEN, ITEMS, COSTS).total
    right = group.exponent
    assert right is not None
    for scale in (right, right - 30, right + 60, -800):
        group.load_state(factory().state())
        group.exponent = scale
        assert group.run(UNEVEN, ITEMS, COSTS).total.tobytes() == restarted.tobytes()
        assert group.exponent == right
    task = factory()
    task.begin(UNEVEN)
    assert 2.0 ** (right - GROWTH_BITS - 1) <= np.abs(task.compute(7).array).max() < 2.0 ** (right - GROWTH_BITS)


def test_resumed_equals_uninterrupted(group: Group, factory: Callable[[], Any], expected: bytes) -> None:
    first = [group.run(iteration, ITEMS, COSTS).total.tobytes() for iteration in range(2)]
    state, exponent = group.state(), group.exponent
    iterate(group, range(7, 9))
    group.load_state(state)
    group.exponent = exponent
    rest, _ = iterate(group, range(2, 5))
    assert b"".join(first) + rest == expected


def test_a_task_that_cannot_finish_asks_for_its_state(group: Group, factory: Callable[[], Any]) -> None:
    with pytest.raises(TaskFailed, match=r"The task failed in finish.*: ValueError: cannot finish"):
        group.run(BAD_FINISH, ITEMS, COSTS)
    with pytest.raises(ClusterError, match="load_state"):
        group.run(0, ITEMS, COSTS)
    rewind(group, factory)
    group.run(0, ITEMS, COSTS)


def test_a_state_handed_out_stays_as_it_was(group: Group) -> None:
    state = group.state()
    before = state["values"].tobytes()
    group.run(0, ITEMS, COSTS)
    assert state["values"].tobytes() == before


# What the identity is worth


def test_float32_sums_would_depend_on_the_number_of_workers(factory: Callable[[], Any]) -> None:
    task = factory()
    task.begin(0)
    arrays = [task.compute(item).array for item in ITEMS]

    def plain(workers: int) -> bytes:
        parts = [sum(arrays[rank::workers], np.float32(0)) for rank in range(workers)]
        return np.asarray(sum(parts, np.float32(0))).tobytes()

    assert len({plain(workers) for workers in (1, 2, 3)}) == 3


# Workers


@ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_same_bits_for_any_number_of_workers(
    ray_group: Callable[[int], Any], factory: Callable[[], Any], expected: bytes, workers: int
) -> None:
    group = ray_group(workers)
    rewind(group, factory)
    assert iterate(group, range(5)) == (expected, [])


@ray
@pytest.mark.slow
@pytest.mark.parametrize("order", ["compute-2-4", "finish-1"])
def test_a_killed_worker_changes_nothing(
    ray_group: Callable[[int], Any], factory: Callable[[], Any], orders: Path, expected: bytes, order: str
) -> None:
    group = ray_group(3)
    rewind(group, factory)
    (orders / order).touch()
    got, lost = iterate(group, range(5))
    assert not (orders / order).exists()
    assert got == expected
    assert len(lost) == 1
    assert "was lost in iteration" in lost[0]
    with make_group(factory, workers=0, threads_per_worker=1, settings=SETTINGS) as inline:
        iterate(inline, range(5 + wait_for_replacement(group, 3, first=5)))
    assert group.state()["values"].tobytes() == inline.state()["values"].tobytes()


@ray
@pytest.mark.slow
def test_the_last_worker_takes_the_state_along(
    ray_group: Callable[[int], Any], factory: Callable[[], Any], orders: Path, expected: bytes
) -> None:
    group = ray_group(1)
    rewind(group, factory)
    totals = [group.run(iteration, ITEMS, COSTS).total.tobytes() for iteration in range(2)]
    state, exponent = group.state(), group.exponent
    (orders / "compute-3-8").touch()
    group.run(2, ITEMS, COSTS)
    said: list[str] = []
    group.tell = said.append
    with pytest.raises(GroupLost, match="Every worker was lost; fresh ones are ready"):
        group.run(3, ITEMS, COSTS)
    assert re.match(r"Worker 0 \(pid \d+ on .*\) was lost in iteration 3 while computing item", said[0])
    assert len(said) == 1
    with pytest.raises(ClusterError, match="load_state"):
        group.run(3, ITEMS, COSTS)
    group.load_state(state)
    group.exponent = exponent
    rest, lost = iterate(group, range(2, 5))
    assert b"".join(totals) + rest == expected
    assert lost == []


@ray
@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_given_up(
    ray_group: Callable[[int], Any], factory: Callable[[], Any], orders: Path
) -> None:
    group = ray_group(2)
    rewind(group, factory)
    (orders / "always-compute-0-6").touch()
    with pytest.raises(GroupLost):
        group.run(0, [6], [1.0])
    rewind(group, factory)
    with pytest.raises(ItemFailed, match="Item 6 was in work at 3 workers of iteration 0 when they died") as failed:
        group.run(0, [6], [1.0])
    assert failed.value.item == 6
    (orders / "always-compute-0-6").unlink()
    rewind(group, factory)
    assert group.run(0, [6], [1.0]).total.any()


@ray
@pytest.mark.slow
def test_a_silent_worker_is_left_behind(
    ray_group: Callable[[int], Any], factory: Callable[[], Any], orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = ray_group(2)
    wait_for_replacement(group, 2)
    rewind(group, factory)
    clean = group.run(0, [0, 5], [2.0, 1.0]).total.tobytes()
    rewind(group, factory)
    patience = SETTINGS.model_copy(update={"collective_timeout_s": 2.0, "answer_timeout_s": 1.0})
    monkeypatch.setattr(group, "_settings", patience)
    (orders / "nap-compute-0-0").touch()
    (orders / "freeze-compute-0-5").touch()
    pids = {member.hello.pid for member in group._crew.members}
    group.exponent = 12
    result = group.run(0, [0, 5], [2.0, 1.0])
    assert result.total.tobytes() == clean
    assert "(no answer in time): item 5 back in the queue" in result.lost[0]
    (frozen,) = pids - {member.hello.pid for member in group._crew.members}
    deadline_s = time.monotonic() + 20.0
    while Path(f"/proc/{frozen}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not Path(f"/proc/{frozen}").exists()


@ray
def test_workers_leave_ctrl_c_to_the_driver(ray_group: Callable[[int], Any], factory: Callable[[], Any]) -> None:
    group = ray_group(2)
    rewind(group, factory)
    for member in group._crew.members:
        os.kill(member.hello.pid, signal.SIGINT)
    time.sleep(0.2)
    assert group.run(0, ITEMS, COSTS).lost == ()


@ray
def test_replicas_that_drift_apart_are_found(ray_group: Callable[[int], Any], factory: Callable[[], Any]) -> None:
    group = ray_group(2)
    wait_for_replacement(group, 2)
    rewind(group, factory)
    with pytest.raises(ReplicasDiverged, match=r"differs after iteration 1007 \(worker"):
        group.run(DIVERGES, ITEMS, COSTS)
    rewind(group, factory)
    group.run(0, ITEMS, COSTS)


@ray
def test_too_many_workers_for_the_cluster(connection: Any, factory: Callable[[], Any]) -> None:
    from hpfwi_cluster.group import RayGroup

    with pytest.raises(StartFailed, match=r"20 workers of 1 threads ask for 20 CPUs, the Ray cluster has 10 \("):
        RayGroup(factory, workers=20, threads_per_worker=1, settings=SETTINGS, connection=connection)


@ray
@pytest.mark.slow
def test_a_factory_that_raises(connection: Any, unbuildable: Callable[[], Any]) -> None:
    from hpfwi_cluster.group import RayGroup

    with pytest.raises(StartFailed, match=r"could not be built: FileNotFoundError: data.zarr is not there"):
        RayGroup(unbuildable, workers=1, threads_per_worker=1, settings=SETTINGS, connection=connection)


def test_a_factory_that_raises_inline(unbuildable: Callable[[], Any]) -> None:
    with pytest.raises(StartFailed, match=r"could not be built: FileNotFoundError: data.zarr is not there"):
        make_group(unbuildable, workers=0, threads_per_worker=1, settings=SETTINGS)
