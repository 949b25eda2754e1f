"""All-reduce between ranks, here threads of one process: sums, a peer that never comes, and the next generation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from hpfwi_cluster.errors import CollectiveBroken
from hpfwi_cluster.reduce import Collective, Formation, Meeting

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def meeting() -> Meeting:
    return Meeting(HOST, 20.0)


def together(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive()


def formed(meeting: Meeting, generation: int, ranks: list[Collective]) -> None:
    def enter(rank: int) -> Callable[[], None]:
        formation = Formation(meeting.host, meeting.port, HOST, generation, rank, len(ranks), 20.0, "gloo")
        return lambda: ranks[rank].form(formation)

    together(*[enter(rank) for rank in range(len(ranks))])


def test_sums_keep_all_63_bits(meeting: Meeting) -> None:
    ranks = [Collective(), Collective(), Collective()]
    formed(meeting, 1, ranks)
    sums: dict[int, np.ndarray] = {}

    def add(rank: int) -> Callable[[], None]:
        own = np.array([2**60 + rank, -(2**60) - rank, rank], np.int64)
        return lambda: sums.__setitem__(rank, ranks[rank].all_reduce(own))

    together(*[add(rank) for rank in range(3)])
    for rank in range(3):
        assert sums[rank].tolist() == [3 * 2**60 + 3, -3 * 2**60 - 3, 3]


def test_float32_sums_have_the_same_bits_on_every_rank(meeting: Meeting) -> None:
    ranks = [Collective(), Collective(), Collective()]
    formed(meeting, 2, ranks)
    own = [np.random.default_rng(rank).normal(size=10_001).astype(np.float32) for rank in range(3)]
    sums: dict[int, np.ndarray] = {}

    def add(rank: int) -> Callable[[], None]:
        return lambda: sums.__setitem__(rank, ranks[rank].all_reduce(own[rank].copy()))

    together(*[add(rank) for rank in range(3)])
    assert sums[0].dtype == np.float32
    assert sums[0].tobytes() == sums[1].tobytes() == sums[2].tobytes()
    # Two additions of float32, each off by half a unit of the last place of a sum below 16 at most.
    np.testing.assert_allclose(sums[0], np.sum(own, axis=0, dtype=np.float64), rtol=0, atol=2 * 16 * 2.0**-24)


def test_a_peer_that_never_comes_is_left_behind(meeting: Meeting) -> None:
    ranks = [Collective(), Collective()]
    formed(meeting, 11, ranks)
    mine = np.ones(4, np.int64)
    broken: list[Exception] = []

    def wait_for_nobody() -> None:
        try:
            ranks[0].all_reduce(mine.copy())
        except CollectiveBroken as error:
            broken.append(error)

    thread = threading.Thread(target=wait_for_nobody)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    started_s = time.perf_counter()
    ranks[0].stop(11)
    thread.join(10.0)
    assert time.perf_counter() - started_s < 2.0
    assert "abandoned" in str(broken[0])
    again = [ranks[0], Collective()]
    formed(meeting, 12, again)
    sums: list[np.ndarray] = []
    together(*[lambda rank=rank: sums.append(rank.all_reduce(mine.copy())) for rank in again])
    assert [total.tolist() for total in sums] == [[2] * 4] * 2
    # The abandoned operation ends with its peer; left pending it would hold the test process until its time limit.
    ranks[1].all_reduce(mine.copy())


def test_forming_is_given_up_when_stopped(meeting: Meeting) -> None:
    alone = Collective()
    threading.Timer(0.2, alone.stop, (21,)).start()
    with pytest.raises(CollectiveBroken, match="Generation 21 was abandoned"):
        alone.form(Formation(meeting.host, meeting.port, HOST, 21, 0, 2, 2.0, "gloo"))


def test_no_generation_no_sum() -> None:
    with pytest.raises(CollectiveBroken, match="no generation"):
        Collective().all_reduce(np.ones(1, np.int64))
