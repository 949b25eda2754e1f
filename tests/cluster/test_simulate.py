"""Iterations in virtual time: against sums done by hand, and what deaths and limits cost.

`benchmarks/scaling.py` holds them against real workers, which takes a machine that nobody else uses.
"""

from __future__ import annotations

import math

import pytest

from hpfwi_cluster import ClusterSettings
from hpfwi_cluster.simulate import forecast
from hpfwi_cluster.virtual import Death, Machine, Work, run_iteration

FREE = Machine(
    handling_s=0.0, latency_s=0.0, asking_s=0.0, hop_s=0.0, bandwidth_mbs=1e12, local_mbs=1e12, detection_s=0.0
)


def even(items: int, **changes: object) -> Work:
    return Work.model_validate({"item_s": 1.0, "costs": (1.0,) * items, "spread": 0.0} | changes)


@pytest.mark.parametrize(
    ("costs", "workers", "threads", "seconds"),
    [
        ((1.0,) * 12, 1, 1, 12.0),
        ((1.0,) * 12, 4, 1, 3.0),
        ((1.0,) * 13, 4, 1, 4.0),
        ((1.0,) * 13, 2, 2, 4.0),
        # Dearest first: 3 | 2 + 1 | 2 + 1 + 1; in the order of their ids it would take 5.
        ((1.0, 1.0, 2.0, 1.0, 2.0, 3.0), 3, 1, 4.0),
    ],
)
def test_without_overhead_it_is_the_schedule_alone(
    costs: tuple[float, ...], workers: int, threads: int, seconds: float
) -> None:
    work = Work(item_s=1.0, costs=costs, spread=0.0, begin_s=0.25, finish_s=0.5, driver_s=0.125)
    found = run_iteration(work, FREE, workers, threads)
    assert found.seconds == pytest.approx(seconds + 0.875, rel=1e-9)
    assert found.busy_s == pytest.approx(sum(costs), rel=1e-12)


def test_every_cost_counts_once() -> None:
    """One worker, two items: begin, hand out, compute, report, reduce, finish; by hand."""
    machine = Machine(handling_s=0.2, latency_s=0.01, asking_s=0.003, hop_s=9.0, local_mbs=4.0, bandwidth_mbs=1.0)
    found = run_iteration(even(2, size=8_000_000), machine, 1)
    asked_s = 3 * (0.003 + 2 * 0.01)
    # With nothing prefetched near the end, an item costs: handing out, there, 1 s, back, taking in.
    assert found.seconds == pytest.approx(asked_s + 2 * (0.1 + 0.01 + 1.0 + 0.01 + 0.1) + 2.0, rel=1e-9)
    assert found.driver_s == pytest.approx(3 * 0.003 + 4 * 0.1, rel=1e-9)


def test_sums_go_round_a_ring_or_up_and_down_a_tree() -> None:
    machine = Machine(hop_s=1e-3, bandwidth_mbs=100.0, local_mbs=1e12, ring_only=True)
    assert machine.all_reduce_s(1, 10**6) == pytest.approx(0.0, abs=1e-6)
    assert machine.all_reduce_s(5, 10**6) == pytest.approx(8 * (1e-3 + 2e-3), rel=1e-6)
    either = machine.model_copy(update={"ring_only": False})
    assert either.all_reduce_s(1024, 1000) == pytest.approx(20 * (1e-3 + 1e-5), rel=1e-6)
    assert either.all_reduce_s(1024, 10**9) == machine.all_reduce_s(1024, 10**9)


def test_durations_have_the_mean_and_the_spread_that_were_asked_for() -> None:
    drawn = even(20_000, spread=0.3).durations_s(1)
    mean = sum(drawn) / len(drawn)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in drawn) / len(drawn))
    # Standard error of the mean 0.3 / sqrt(20000) = 0.0021; four of them.
    assert mean == pytest.approx(1.0, abs=0.0085)
    assert deviation == pytest.approx(0.3, rel=0.05)
    late = even(20_000, straggler_share=0.1, straggler_factor=5.0).durations_s(1)
    assert sum(one == 5.0 for one in late) == pytest.approx(2000, abs=4 * math.sqrt(20_000 * 0.1 * 0.9))


def test_a_death_costs_the_items_it_held() -> None:
    """Two workers, three items each; the one that dies after 2.5 s had two done and one begun."""
    work = even(6)
    found = run_iteration(work, FREE, 2, deaths=[Death(1, 2.5)])
    assert found.lost_s == pytest.approx(3.0)
    # The survivor ends its third item at 3 s, then does the three again.
    assert found.seconds == pytest.approx(6.0 + FREE.forming_s + FREE.forming_rank_s)
    noticed_late = FREE.model_copy(update={"detection_s": 10.0})
    alone = ClusterSettings(copy_after=None)
    late = run_iteration(work, noticed_late, 2, deaths=[Death(1, 2.5)], settings=alone)
    assert late.seconds == pytest.approx(12.5 + 3.0 + FREE.forming_s + FREE.forming_rank_s)
    # Overtaken while nobody knew: of the three, the one that was begun is done by then.
    late = run_iteration(work, noticed_late, 2, deaths=[Death(1, 2.5)])
    assert late.seconds == pytest.approx(12.5 + 2.0 + FREE.forming_s + FREE.forming_rank_s)
    # Its results were reported before it died, and are gone all the same.
    done = run_iteration(work, FREE, 2, deaths=[Death(1, 3.0)])
    assert done.seconds == pytest.approx(6.0 + FREE.forming_s + FREE.forming_rank_s)
    with pytest.raises(ValueError, match="needs a worker that survives it"):
        run_iteration(work, FREE, 2, deaths=[Death(0, 0.5), Death(1, 0.7)])


def test_stragglers_are_overtaken() -> None:
    """Items of 2 s, one of 60: whoever is free after 3 x 2 s computes it again, at the speed of the others."""

    class OneLate(Work):
        def durations_s(self, seed: int) -> list[float]:
            return [60.0, *super().durations_s(seed)[1:]]

    work = OneLate(item_s=2.0, costs=(1.0,) * 12, spread=0.0)
    # Eleven items keep two of three workers busy until 8 s and the third until 6 s, when the late one has had 3 x 2 s.
    assert run_iteration(work, FREE, 4).seconds == pytest.approx(6.0 + 2.0)
    assert run_iteration(work, FREE, 4, settings=ClusterSettings(copy_after=None)).seconds == pytest.approx(60.0)
    # Here it has long been late when at 10 s somebody is free.
    assert run_iteration(work, FREE, 3).seconds == pytest.approx(10.0 + 2.0)
    # Here nobody reports at 6 s, so that only a look at the clock finds it late.
    few = OneLate(item_s=2.0, costs=(1.0,) * 2, spread=0.0)
    assert run_iteration(few, FREE, 2).seconds == pytest.approx(6.0 + 2.0)


def test_more_failures_cost_more_and_too_many_never_end() -> None:
    work = even(64, iterations=1000, checkpoint_every=10, checkpoint_s=2.0)
    none = forecast(work, Machine(), 8)
    assert (none.failures, none.lost_hours) == (0.0, 0.0)
    assert none.hours == pytest.approx(1000 * (none.iteration_s + 0.2) / 3600, rel=1e-9)
    rare, often = (forecast(work, Machine(), 8, mtbf_hours=hours) for hours in (10_000.0, 10.0))
    assert rare.hours == none.hours
    assert 0.0 < rare.lost_hours < often.lost_hours < often.total_hours
    assert often.failures == pytest.approx(8 * often.total_hours / 10.0, rel=1e-9)
    assert math.isinf(forecast(work, Machine(), 8, mtbf_hours=0.01).total_hours)


def test_what_limits_a_run_is_named() -> None:
    assert forecast(even(64), Machine(), 8).limit == "nothing"
    assert forecast(even(9), Machine(), 8).limit == "items"
    assert forecast(even(64, finish_s=20.0), Machine(), 8).limit == "serial"
    assert forecast(even(64, size=10**11), Machine(), 8).limit == "sum"
    assert forecast(even(64, item_s=1e-3), Machine(handling_s=0.01), 8).limit == "driver"


def test_the_same_seed_gives_the_same_forecast() -> None:
    work = even(40, spread=0.4, straggler_share=0.1)
    one, again, other = (forecast(work, Machine(), 6, mtbf_hours=100.0, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
