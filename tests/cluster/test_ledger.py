"""The account of an iteration, the order of work and the decisions about failures: values in, values out."""

from __future__ import annotations

import pytest

from hpfwi_cluster.errors import ClusterError, ItemFailed
from hpfwi_cluster.failure import Decision, after_exception, after_item_death, after_loss, loss_sentence
from hpfwi_cluster.ledger import ItemReport, Ledger
from hpfwi_cluster.shares import dearest_first, in_flight_limit, wait_share


def report(item: int, largest: int | None = 0, failure: str | None = None, final: bool = False) -> ItemReport:
    return ItemReport(item, largest, (4,), {"item": float(item)}, failure, final)


def test_items_are_handed_out_dearest_first_and_once() -> None:
    ledger = Ledger(0, [3, 1, 2], [1.0, 5.0, 1.0], item_tries=2)
    assert [ledger.take(worker) for worker in (0, 1, 0, 1)] == [1, 2, 3, None]
    assert (ledger.in_flight(0), ledger.in_flight(1), ledger.waiting) == (2, 1, 0)


def test_complete_when_every_item_is_held_by_somebody_alive() -> None:
    ledger = Ledger(0, [0, 1], [1.0, 1.0], item_tries=2)
    for worker in (0, 1):
        item = ledger.take(worker)
        assert item is not None
        ledger.report(worker, report(item, largest=worker + 3))
    assert ledger.complete
    assert ledger.largest == 4
    assert ledger.lose(1) == ([1], [])
    assert not ledger.complete
    assert ledger.take(0) == 1


def test_a_lost_worker_gives_back_what_it_held_and_what_it_computed() -> None:
    ledger = Ledger(0, [0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0], item_tries=2)
    for _ in range(3):
        ledger.take(7)
    ledger.report(7, report(1))
    assert ledger.lose(7) == ([0, 1, 2], [0, 2])
    assert [ledger.take(8) for _ in range(4)] == [0, 1, 2, 3]


def test_a_report_nobody_waits_for_is_refused() -> None:
    ledger = Ledger(4, [0, 1], [1.0, 1.0], item_tries=2)
    ledger.take(0)
    with pytest.raises(ClusterError, match="Worker 1 reported item 0 of iteration 4 without holding it"):
        ledger.report(1, report(0))
    ledger.report(0, report(0))
    with pytest.raises(ClusterError, match="without holding it"):
        ledger.report(0, report(0))


def test_of_two_copies_the_first_counts_and_the_other_is_nothing() -> None:
    ledger = Ledger(0, [0, 1], [2.0, 1.0], item_tries=1)
    ledger.take(7)
    assert [ledger.may_copy(worker, 0) for worker in (7, 8)] == [False, True]
    ledger.copy(8, 0)
    assert not ledger.may_copy(9, 0)  # two are enough
    assert ledger.report(8, report(0)) is True
    assert not ledger.may_copy(9, 0)
    assert ledger.report(7, report(0, failure="ValueError: too late to matter")) is False
    assert (ledger.held(8), ledger.held(7), ledger.waiting) == ((0,), (), 1)
    with pytest.raises(ClusterError, match="cannot be handed to worker 9"):
        ledger.copy(9, 0)


def test_a_copy_goes_on_when_the_other_fails_or_is_lost() -> None:
    ledger = Ledger(0, [0], [1.0], item_tries=3)
    ledger.take(7)
    ledger.copy(8, 0)
    assert ledger.report(7, report(0, failure="ValueError: no")) is False
    assert ledger.waiting == 0  # worker 8 has it
    ledger.copy(9, 0)
    assert ledger.lose(8) == ([], [0])
    assert ledger.report(9, report(0)) is True
    assert ledger.complete


def test_a_holder_that_dies_leaves_its_item_to_the_copy_under_way() -> None:
    ledger = Ledger(0, [0], [1.0], item_tries=1)
    ledger.take(7)
    ledger.copy(8, 0)
    ledger.report(8, report(0))
    assert ledger.lose(8) == ([], [])
    assert not ledger.complete
    assert ledger.report(7, report(0)) is True
    assert ledger.complete


def test_an_item_gets_its_tries_then_fails_by_name() -> None:
    ledger = Ledger(2, [6], [1.0], item_tries=2)
    ledger.take(0)
    ledger.report(0, report(6, failure="ValueError: no"))
    assert ledger.take(0) == 6
    with pytest.raises(ItemFailed, match="Item 6 failed in iteration 2 on 2 of 2 tries: ValueError: no"):
        ledger.report(0, report(6, failure="ValueError: no"))


def test_what_cannot_help_is_not_tried_again() -> None:
    ledger = Ledger(2, [6], [1.0], item_tries=2)
    ledger.take(0)
    with pytest.raises(ItemFailed, match="non-finite"):
        ledger.report(0, report(6, failure="non-finite array", final=True))


def test_probe_is_the_lowest_item_and_stays_in_the_queue() -> None:
    ledger = Ledger(0, [5, 2, 9], [9.0, 1.0, 2.0], item_tries=2)
    assert ledger.take_probe(0) == 2
    assert ledger.report_probe(0, report(2, largest=3)) == 13
    assert [ledger.take(0) for _ in range(4)] == [2, 5, 9, None]


@pytest.mark.parametrize(
    ("items", "costs", "match"),
    [
        ([], [], "without items"),
        ([1, 2], [1.0], "2 items came with 1 costs"),
        ([1, 1], [1.0, 1.0], "1 of 2 item ids repeat"),
        ([1], [-1.0], "Item 1 has cost -1.0"),
        ([1], [float("nan")], "Item 1 has cost nan"),
    ],
)
def test_orders_that_make_no_sense(items: list[int], costs: list[float], match: str) -> None:
    with pytest.raises(ClusterError, match=match):
        dearest_first(items, costs)


def test_a_store_of_items_while_many_wait_only() -> None:
    assert [in_flight_limit(2, waiting, 2) for waiting in (100, 9, 8, 0)] == [3, 3, 2, 2]


def test_wait_share() -> None:
    assert wait_share([1.0, 3.0], 4.0) == 0.5
    assert wait_share([5.0], 4.0) == 0.0
    assert wait_share([], 4.0) == 0.0


def test_decisions() -> None:
    assert after_exception(1, 2, final=False) is Decision.RETRY
    assert after_exception(2, 2, final=False) is Decision.GIVE_UP
    assert after_exception(1, 2, final=True) is Decision.GIVE_UP
    assert after_item_death(2, 3) is Decision.RETRY
    assert after_item_death(3, 3) is Decision.GIVE_UP
    assert after_loss(survivors=2, replaced=0, limit=1) is Decision.REPLACE
    assert after_loss(survivors=2, replaced=1, limit=1) is Decision.GO_ON
    assert after_loss(survivors=0, replaced=0, limit=1) is Decision.REBUILD
    assert after_loss(survivors=0, replaced=1, limit=1) is Decision.GIVE_UP


def test_the_sentence_about_a_loss_is_one_line_with_what_and_what_now() -> None:
    line = loss_sentence(
        "Worker 3 (pid 7 on node-a)", "its process died", "computing item 5", 12, list(range(10)), Decision.REPLACE
    )
    assert "\n" not in line
    assert line.startswith(
        "Worker 3 (pid 7 on node-a) was lost in iteration 12 while computing item 5 (its process died)"
    )
    assert "items 0, 1, 2, 3, 4, 5, 6, 7, … back in the queue" in line
    assert "a replacement joins" in line
