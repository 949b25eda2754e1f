"""Workers that stand still, are cut off, are slow or too few: who is found, how soon, and who is left in peace."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpfwi_cluster import ClusterSettings, make_group
from hpfwi_cluster.errors import Abandoned, GroupLost, WorkersMissing
from hpfwi_cluster.watch import LOOK_EVERY_S, Place, Watch, process_state

ITEMS = list(range(6))
COSTS = [1.0] * len(ITEMS)
SETTINGS = ClusterSettings(workers=2, max_workers=3, heartbeat_limit_s=3.0, replica_check_every=None)

ray = pytest.mark.ray


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a file tells one worker what to do."""
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def factory(chaotic: Callable[[Path], Callable[[], Any]], orders: Path) -> Callable[[], Any]:
    return chaotic(orders)


@pytest.fixture(scope="module")
def start(toy_travels: None, factory: Callable[[], Any]) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a group of two workers with some settings changed, on one cluster for all."""
    from hpfwi_cluster.connection import connect
    from hpfwi_cluster.group import RayGroup

    started: list[Any] = []
    with connect(SETTINGS, cores=6) as connection:

        def start(workers: int, **changes: Any) -> Any:
            settings = SETTINGS.model_copy(update=changes)
            group = RayGroup(factory, workers=workers, threads_per_worker=1, settings=settings, connection=connection)
            started.append(group)
            return group

        yield start
        for group in started:
            group.close()


@pytest.fixture(scope="module")
def two(start: Callable[..., Any]) -> Any:
    return start(2, max_workers=None)


@pytest.fixture
def group(two: Any, factory: Callable[[], Any]) -> Any:
    """Return the group of two with both of them there, at the first state, which has seen an iteration."""
    two.load_state(factory().state())
    whole(two, 2)
    two.exponent = None
    two.run(99, ITEMS, COSTS)
    two.load_state(factory().state())
    return two


def whole(group: Any, workers: int) -> None:
    deadline_s = time.monotonic() + 60.0
    group._crew.lost = []
    while len(group._crew.members) < workers and time.monotonic() < deadline_s:
        group._crew.admit(group.state)
        time.sleep(0.05)
    assert len(group._crew.members) == workers


@pytest.fixture(scope="module")
def expected(factory: Callable[[], Any]) -> list[bytes]:
    """Return the totals of three iterations that nothing disturbed."""
    with make_group(factory, workers=0, threads_per_worker=1, settings=SETTINGS) as group:
        group.run(99, ITEMS, COSTS)
        group.load_state(factory().state())
        return [group.run(iteration, ITEMS, COSTS).total.tobytes() for iteration in range(3)]


def totals(group: Any, iterations: range) -> list[bytes]:
    return [group.run(iteration, ITEMS, COSTS).total.tobytes() for iteration in iterations]


@ray
@pytest.mark.slow
@pytest.mark.parametrize("doing", ["compute-1-3", "finish-1"])
def test_a_worker_that_stands_still_is_found_in_time(
    group: Any, orders: Path, expected: list[bytes], doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group._crew._watch, "_limit_s", 8.0)  # the default
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(group, "tell", lambda sentence: said.append((time.monotonic(), sentence)))
    stood = threading.Event()
    stopped_s: list[float] = []
    pids = [member.hello.pid for member in group._crew.members]

    def watch() -> None:
        while not stood.wait(0.02):
            if any(process_state(pid) == "T" for pid in pids):
                stopped_s.append(time.monotonic())
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    (orders / f"stop-{doing}").touch()
    assert totals(group, range(3)) == expected
    stood.set()
    watcher.join()
    ((told_s, sentence),) = said
    assert "(its process has stood still for 8 s)" in sentence
    assert told_s - stopped_s[0] <= 10.0


@ray
@pytest.mark.slow
def test_long_native_code_that_holds_the_interpreter_is_left_in_peace(
    group: Any, orders: Path, expected: list[bytes]
) -> None:
    """Six seconds without an answer, twice the limit of the watch: the process runs, so nothing is lost."""
    (orders / "hold-compute-1-3").touch()
    started_s = time.monotonic()
    first, second = group.run(0, ITEMS, COSTS), group.run(1, ITEMS, COSTS)
    assert time.monotonic() - started_s > 2 * SETTINGS.heartbeat_limit_s - 0.5
    assert [first.total.tobytes(), second.total.tobytes()] == expected[:2]
    assert second.lost == ()


@ray
@pytest.mark.slow
def test_workers_of_a_silent_node_are_lost(
    group: Any, orders: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is this one, taken for another: its watcher answers, and then no longer does."""
    watch = group._crew._watch
    monkeypatch.setattr(watch, "_here", "elsewhere")
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(group, "tell", lambda sentence: said.append((time.monotonic(), sentence)))
    monkeypatch.setattr(group._dispatch, "_settings", SETTINGS.model_copy(update={"copy_after": None}))
    (orders / "sleep-compute-0-3").touch()
    stopped_s: list[float] = []
    cut = threading.Thread(target=lambda: stopped_s.append(watchers_stop(watch)))
    cut.start()
    with pytest.raises(GroupLost):
        totals(group, range(3))
    cut.join()
    told_s, sentence = said[0]
    assert "no sign of life from its node for 3 s" in sentence
    assert 2.0 < told_s - stopped_s[0] < 5.0
    watch.close()


def watchers_stop(watch: Watch) -> float:
    """Stop the watchers as SIGSTOP does, once they have answered; return when."""
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s and not any(node.answered_s is not None for node in watch._nodes.values()):
        time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and b"ray::Watcher" in (entry / "cmdline").read_bytes():
            os.kill(int(entry.name), signal.SIGSTOP)
    return time.monotonic()


@ray
@pytest.mark.slow
def test_a_straggler_is_overtaken_and_counts_once(group: Any, orders: Path, expected: list[bytes]) -> None:
    """The slow worker goes on with a copy that nobody wants through the next iterations, and nobody waits for it."""
    (orders / "sleep-compute-0-3").touch()
    started_s = time.monotonic()
    assert totals(group, range(3)) == expected
    assert time.monotonic() - started_s < 10.0
    assert not (orders / "sleep-compute-0-3").exists()
    assert len(group._crew.members) == 2


@ray
@pytest.mark.slow
def test_an_item_far_too_late_costs_its_worker(start: Any, orders: Path, expected: list[bytes]) -> None:
    group = start(1, item_patience=5.0, item_patience_s=1.0, max_workers=None)
    group.run(99, ITEMS, COSTS)
    said: list[str] = []
    group.tell = said.append
    (orders / "sleep-compute-0-3").touch()
    started_s = time.monotonic()
    with pytest.raises(GroupLost):
        group.run(0, ITEMS, COSTS)
    assert time.monotonic() - started_s < 15.0
    assert "while computing item 3 (no result of item 3 in " in said[0]
    group.close()


@ray
@pytest.mark.slow
def test_a_worker_that_dies_while_the_group_starts_is_replaced(start: Any, orders: Path) -> None:
    (orders / "build").touch()
    group = start(1, max_workers=None)
    assert "died while it started (its process died); another one is started" in group._crew.lost[0]
    assert len(group._crew.members) == 1
    group.close()


@ray
@pytest.mark.slow
def test_stopping_gives_an_iteration_up_and_changes_nothing(group: Any, orders: Path, expected: list[bytes]) -> None:
    first = totals(group, range(1))
    before = group.state()["values"].tobytes()
    (orders / "doze-compute-1-3").touch()
    (orders / "doze-compute-1-4").touch()
    asked_s: list[float] = []
    threading.Timer(1.0, lambda: asked_s.append(time.monotonic())).start()
    group.stop = lambda: bool(asked_s)
    try:
        with pytest.raises(Abandoned, match="Asked to stop in iteration 1; nothing was applied in it"):
            group.run(1, ITEMS, COSTS)
        assert group.state()["values"].tobytes() == before
        assert time.monotonic() - asked_s[0] < 3.0  # the items under way take eight
    finally:
        group.stop = lambda: None
    assert first + totals(group, range(1, 3)) == expected


@ray
@pytest.mark.slow
def test_a_group_grows_where_there_is_room_and_waits_when_there_are_too_few(
    start: Any, factory: Callable[[], Any], expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpfwi_cluster.crew._GROW_EVERY_S", 0.0)
    group = start(1, min_workers=1, max_workers=2)
    group.run(99, ITEMS, COSTS)
    whole(group, 2)
    group.load_state(factory().state())
    said: list[str] = []
    group.tell = said.append
    monkeypatch.setattr(
        group._crew, "_settings", SETTINGS.model_copy(update={"min_workers": 2, "max_workers": 2, "wait_limit_s": 60.0})
    )
    os.kill(group._crew.members[1].hello.pid, signal.SIGKILL)
    assert totals(group, range(3)) == expected
    assert len(group._crew.members) == 2
    assert [sentence for sentence in said if "Waiting for workers before iteration" in sentence]

    impatient = group._crew._settings.model_copy(update={"wait_limit_s": 0.0, "restart_limit": 0})
    monkeypatch.setattr(group._crew, "_settings", impatient)
    os.kill(group._crew.members[1].hello.pid, signal.SIGKILL)
    group.run(3, ITEMS, COSTS)
    with pytest.raises(WorkersMissing, match="1 of at least 2 workers were left before iteration 4"):
        group.run(4, ITEMS, COSTS)
    assert group.state()
    group.close()


def test_inline_groups_give_way_between_items(factory: Callable[[], Any]) -> None:
    for threads in (1, 2):
        with make_group(factory, workers=0, threads_per_worker=threads, settings=SETTINGS) as group:
            asked: list[None] = []
            group.stop = lambda asked=asked: asked.append(None) or len(asked) > 3  # type: ignore[misc]
            before = group.state()["values"].tobytes()
            with pytest.raises(Abandoned, match="nothing was applied"):
                group.run(0, ITEMS, COSTS)
            assert len(asked) == 4
            assert group.state()["values"].tobytes() == before


# The watch alone


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def looks(self, watch: Watch, places: list[Place], seconds: float) -> dict[Place, str]:
        """Look every half second for so long; return what was found on the way."""
        found: dict[Place, str] = {}
        for _ in range(round(seconds / LOOK_EVERY_S)):
            self.now_s += LOOK_EVERY_S
            found |= watch.gone(places)
        return found


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Return what the watch takes for the states of processes."""
    states: dict[int, str] = {}
    monkeypatch.setattr("hpfwi_cluster.watch.process_state", lambda pid: states.get(pid, ""))
    return states


def test_only_a_process_that_stays_stopped_is_gone(states: dict[int, str]) -> None:
    clock = Clock()
    watch = Watch(8.0, "here", clock=clock)
    places = [Place("here", pid) for pid in (1, 2, 3)]
    states.update({1: "R", 2: "T", 3: "D"})
    assert clock.looks(watch, places, 7.0) == {}
    states[2] = "S"  # somebody looked at it with a debugger
    assert clock.looks(watch, places, 1.0) == {}
    states[2] = "t"
    assert clock.looks(watch, places, 7.5) == {}
    assert list(clock.looks(watch, places, 1.5)) == [places[1]]


def test_time_in_which_nobody_looked_does_not_count(states: dict[int, str]) -> None:
    """A driver that was stopped itself finds its workers as it left them."""
    clock = Clock()
    watch = Watch(8.0, "here", clock=clock)
    place = Place("here", 1)
    states[1] = "T"
    assert clock.looks(watch, [place], 2.0) == {}
    clock.now_s += 3600.0
    assert watch.gone([place]) == {}
    assert clock.looks(watch, [place], 4.0) == {}
    assert clock.looks(watch, [place], 4.0) != {}


def test_states_are_those_of_linux() -> None:
    assert process_state(os.getpid()) in {"R", "S"}
    assert process_state(2**30) == ""
