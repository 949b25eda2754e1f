"""One rank's account of its own sum: nothing twice, nothing from another sum, nothing over the edge."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hpfwi_cluster import ItemResult, State
from hpfwi_cluster.errors import ClusterError
from hpfwi_cluster.replica import Replica, one_torch_thread


class Counting:
    """Item i is the array [i, 2i]; counts how often it was computed."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.meet: threading.Barrier | None = None
        self.held: State = {"one": np.ones(2), "two": np.ones(2, np.float32)}

    def begin(self, iteration: int) -> None: ...

    def compute(self, item: int) -> ItemResult:
        self.computed.append(item)
        if self.meet is not None:
            self.meet.wait(10.0)
        return ItemResult(np.array([item, 2 * item], np.float32), {})

    def finish(self, iteration: int, total: np.ndarray | None) -> None: ...

    def state(self) -> State:
        return self.held

    def load_state(self, state: State) -> None: ...


def begun() -> tuple[Replica, Counting]:
    task = Counting()
    replica = Replica(task)
    replica.begin(0, 1)
    return replica, task


def test_asking_twice_computes_once_and_adds_once() -> None:
    replica, task = begun()
    first = replica.compute(3, 1, 10, 0)
    assert replica.compute(3, 1, 10, 0) == first
    assert task.computed == [3]
    replica.accept(1, [3])
    replica.accept(1, [3])
    assert replica.local_sum(1, (2,), [3]).tolist() == [3, 6]


def test_asking_twice_at_the_same_time_adds_once() -> None:
    replica, task = begun()
    task.meet = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: replica.compute(3, 1, 10, 0), range(2)))
    assert task.computed == [3, 3]
    assert replica.local_sum(1, (2,), [3]).tolist() == [3, 6]


def test_what_another_rank_holds_is_not_added() -> None:
    replica, _ = begun()
    replica.compute(3, 1, 10, 0)
    replica.compute(4, 1, 10, 0)
    assert replica.local_sum(1, (2,), [4]).tolist() == [4, 8]
    assert replica.local_sum(1, (2,), [4, 3]).tolist() == [7, 14]  # the other rank died, and this one has it already


def test_a_sum_of_other_items_than_it_should_be_is_refused() -> None:
    replica, _ = begun()
    replica.compute(3, 1, 10, 0)
    with pytest.raises(ClusterError, match=r"holds items \[\] and should hold \[5\]"):
        replica.local_sum(1, (2,), [5])
    replica.accept(1, [3])
    with pytest.raises(ClusterError, match=r"holds items \[3\] and should hold \[\]"):
        replica.local_sum(1, (2,), [])


def test_a_probe_is_not_added_and_not_computed_again() -> None:
    replica, task = begun()
    probe = replica.compute(3, 1, None, 0)
    assert probe.largest == 3
    assert replica.local_sum(1, (2,), []).tolist() == [0, 0]
    # Who learns from it how long items take must not take this one for a short one.
    assert replica.compute(3, 2, 10, 0).seconds == probe.seconds > 0.0
    assert task.computed == [3]
    assert replica.local_sum(2, (2,), [3]).tolist() == [3, 6]


def test_a_new_sum_starts_from_zero_and_an_old_one_is_gone() -> None:
    replica, task = begun()
    replica.compute(3, 1, 10, 0)
    replica.accept(1, [3])
    replica.compute(4, 2, 10, 0)
    replica.accept(1, [3])  # word of the old sum that comes late
    late = replica.compute(5, 1, 10, 0)
    assert (late.failure, task.computed) == ("it belongs to a sum that is over", [3, 4])
    assert replica.local_sum(2, (2,), [4]).tolist() == [4, 8]


def test_a_result_that_comes_after_its_sum_is_dropped() -> None:
    replica, task = begun()
    task.meet = threading.Barrier(2)
    slow = threading.Thread(target=replica.compute, args=(3, 1, 10, 0))
    slow.start()
    while not task.computed:
        time.sleep(0.001)
    replica.begin(1, 2)
    task.meet.wait(10.0)
    slow.join()
    with pytest.raises(ClusterError, match=r"should hold \[3\]"):
        replica.local_sum(2, (2,), [3])


def test_a_sum_handed_out_is_a_copy() -> None:
    replica, _ = begun()
    replica.compute(3, 1, 10, 0)
    replica.local_sum(1, (2,), [3])[:] = -1
    assert replica.local_sum(1, (2,), [3]).tolist() == [3, 6]


def test_an_item_beyond_the_scale_is_reported_and_not_added() -> None:
    replica, _ = begun()
    assert replica.compute(3, 1, 2, 0).largest == 3
    replica.accept(1, [3])
    assert replica.local_sum(1, (2,), []).tolist() == [0, 0]


def test_digest_sees_names_types_and_values() -> None:
    replica, task = begun()
    digests = {replica.digest()}
    for state in ({"one": np.ones(2)}, {"uno": np.ones(2)}, {"one": np.ones((2, 1))}, {"one": np.array([1.0, 2.0])}):
        task.held = state
        digests.add(replica.digest())
    assert len(digests) == 5


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_task_that_is_not_exact_is_added_in_float32() -> None:
    task = Counting()
    task.exact = False  # type: ignore[attr-defined]
    replica = Replica(task)
    replica.begin(0, 1)
    for item in (3, 4):
        assert replica.compute(item, 1, 0, 0).largest is None  # far above 2^0: there is no scale to exceed
    total = replica.local_sum(1, (2,), [3, 4])
    assert total.dtype == np.float32
    assert total.tolist() == [7, 14]
    assert replica.value_of(total, -60) is total
    replica.begin(1, 2)
    assert replica.local_sum(2, (2,), []).dtype == np.float32
    exact, _ = begun()
    assert exact.value_of(np.array([1 << 40], np.int64), -40).tolist() == [1.0]
