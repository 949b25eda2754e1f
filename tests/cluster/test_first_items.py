"""Before the first iteration is over: a group that is asked to stop while it starts, and a first item that hangs."""

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
from hpfwi_cluster.errors import Abandoned, ItemFailed, StartFailed
from hpfwi_cluster.pace import Pace

ITEMS, COSTS = list(range(4)), [1.0] * 4
SETTINGS = ClusterSettings(workers=1, replica_check_every=None)

ray = pytest.mark.ray


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """Return the folder in which a file tells one worker what to do."""
    return tmp_path


@pytest.fixture(scope="module")
def connection(toy_travels: None) -> Iterator[Any]:
    from hpfwi_cluster.connection import connect

    with connect(SETTINGS, cores=3) as connection:
        yield connection


@ray
def test_a_first_item_that_hangs_is_given_up(
    connection: Any, chaotic: Callable[[Path], Callable[[], Any]], orders: Path
) -> None:
    """There is no pace to tell that it is late, and no other worker that would show one."""
    from hpfwi_cluster.group import RayGroup

    assert Pace().usual_s(1.0) is None
    settings = SETTINGS.model_copy(update={"first_item_limit_s": 1.0, "item_deaths": 1})
    with RayGroup(chaotic(orders), workers=1, threads_per_worker=1, settings=settings, connection=connection) as group:
        said: list[str] = []
        group.tell = said.append
        (orders / "sleep-compute-0-0").touch()
        began_s = time.monotonic()
        with pytest.raises(ItemFailed, match=r"Item 0 was in work at 1 workers .* no result of item 0 in \d") as caught:
            group.run(0, ITEMS, COSTS)
        assert caught.value.item == 0
        assert "raise first_item_limit_s = 1 if items take so long" in said[0]
        assert time.monotonic() - began_s < 19.0  # the item sleeps 20 s; a fresh worker takes a few
        group.load_state(chaotic(orders)().state())
        group.exponent = None
        assert group.run(0, ITEMS, COSTS).lost == ()


@ray
def test_a_group_that_starts_is_asked_to_stop(
    connection: Any, chaotic: Callable[[Path], Callable[[], Any]], orders: Path
) -> None:
    from hpfwi_cluster.group import RayGroup

    (orders / "sleep-build").touch()
    asked_s: list[float] = []
    threading.Timer(2.0, lambda: asked_s.append(time.monotonic())).start()
    with pytest.raises(Abandoned, match="Asked to stop while the workers started; nothing was begun"):
        RayGroup(
            chaotic(orders),
            workers=1,
            threads_per_worker=1,
            settings=SETTINGS,
            connection=connection,
            stop=lambda: asked_s,
        )
    assert time.monotonic() - asked_s[0] < 3.0  # building the task takes twenty


@pytest.mark.parametrize("threads", [1, 2])
def test_a_group_in_this_process_is_asked_before_its_first_items(
    threads: int, chaotic: Callable[[Path], Callable[[], Any]], orders: Path
) -> None:
    with make_group(
        chaotic(orders), workers=0, threads_per_worker=threads, settings=SETTINGS, stop=lambda: True
    ) as group:
        group.exponent = 0
        for item in ITEMS:
            (orders / f"sleep-compute-0-{item}").touch()
        with pytest.raises(Abandoned, match="Asked to stop in iteration 0"):
            group.run(0, ITEMS, COSTS)
        assert len(list(orders.iterdir())) == len(ITEMS)  # no item was begun


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that connects, cut off from Ray."""
    from hpfwi_cluster import connection

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(connection, "_mute_death_notices", lambda: None)
    monkeypatch.setattr(connection, "_POLL_S", 0.0)
    return connection


def test_a_program_keeps_its_handler_while_ray_starts(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would exit at once, without a checkpoint."""
    tools = library.ray._private.utils
    theirs, heard = tools.set_sigterm_handler, []

    def init(**options: object) -> None:
        tools.set_sigterm_handler(lambda number, frame: pytest.fail("Ray's handler was called"))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(library.ray, "init", init)
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        library.connect(ClusterSettings(workers=1, address="10.0.0.1:1", start_timeout_s=1e-9), 1)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 2
    assert tools.set_sigterm_handler is theirs


def test_a_machine_is_not_asked_for_far_more_than_it_has(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand workers took all of its memory before anything was said."""
    asked: list[object] = []

    def init(**options: object) -> None:
        asked.append(options["num_cpus"])
        raise ZeroDivisionError

    monkeypatch.setattr(library, "usable_cores", lambda: 2)
    monkeypatch.setattr(library.ray, "init", init)
    with pytest.raises(StartFailed, match="want 33 cores, and this machine has 2: more than 32 are taken for a slip"):
        library.connect(ClusterSettings(workers=33), 33)
    with pytest.raises(ZeroDivisionError):
        library.connect(ClusterSettings(workers=32), 32)
    assert asked == [32]


def test_nodes_are_awaited_with_their_gpus_unless_asked_to_stop(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = iter([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}])
    monkeypatch.setattr(library.ray, "init", lambda **options: None)
    monkeypatch.setattr(library.ray, "cluster_resources", lambda: next(there))
    settings = ClusterSettings(workers=2, address="10.0.0.1:1", device="cuda")
    library.connect(settings, 2, 2)
    assert next(there, None) is None
    with pytest.raises(Abandoned, match="Asked to stop while the nodes of the cluster were awaited"):
        library.connect(settings, 2, 2, lambda: True)
