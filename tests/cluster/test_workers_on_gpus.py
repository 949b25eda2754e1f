"""A GPU for each worker and a worker for each GPU, on GPUs that exist for Ray's book-keeping alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hpfwi_cluster import ClusterSettings, ItemResult
from hpfwi_cluster.errors import StartFailed
from hpfwi_cluster.settings import usable_cores

GPUS = 2
ON_GPUS = ClusterSettings(workers=GPUS, device="cuda", replica_check_every=None)


class Tells:
    """Items that tell which process computed them and how many and which GPUs it sees."""

    def begin(self, iteration: int) -> None: ...

    def compute(self, item: int) -> ItemResult:
        time.sleep(0.1)  # long enough that nobody computes all of them
        seen = [float(number) for number in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if number]
        return ItemResult(np.ones(3), {"pid": float(os.getpid()), "gpus": float(len(seen)), "gpu": sum(seen)})

    def finish(self, iteration: int, total: np.ndarray | None) -> None: ...

    def state(self) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(1)}

    def load_state(self, state: dict[str, np.ndarray]) -> None: ...


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """Return a connection to a Ray that takes this machine to have two GPUs."""
    from hpfwi_cluster.connection import connect
    from hpfwi_cluster.ray_library import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=6, num_gpus=GPUS, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        yield connect(ON_GPUS, cores=GPUS, gpus=GPUS)
    finally:
        ray.shutdown()


def group(connection: Any, settings: ClusterSettings) -> Any:
    from hpfwi_cluster.group import RayGroup

    workers = settings.worker_count()
    return RayGroup(Tells, workers=workers, threads_per_worker=1, settings=settings, connection=connection)


def seen(group: Any, iteration: int) -> dict[int, tuple[int, int]]:
    """How many and which GPUs each process of a group sees."""
    result = group.run(iteration, range(8), [1.0] * 8)
    assert result.total.tolist() == [8.0] * 3
    return {int(told["pid"]): (int(told["gpus"]), int(told["gpu"])) for told in result.scalars.values()}


@pytest.mark.ray
def test_every_worker_sees_a_gpu_of_its_own(connection: Any) -> None:
    """So does the one that comes in place of a lost one."""
    with group(connection, ON_GPUS) as pair:
        before = seen(pair, 0)
        assert sorted(before.values()) == [(1, 0), (1, 1)]
        os.kill(next(iter(before)), signal.SIGKILL)
        deadline_s, iteration = time.monotonic() + 60.0, 1
        while len(after := seen(pair, iteration)) < GPUS or set(after) == set(before):
            assert time.monotonic() < deadline_s
            iteration += 1
        assert sorted(after.values()) == [(1, 0), (1, 1)]
        assert len(set(after) & set(before)) == 1


@pytest.mark.ray
def test_workers_of_the_processor_see_no_gpu(connection: Any) -> None:
    with group(connection, ON_GPUS.model_copy(update={"device": "cpu"})) as pair:
        assert set(seen(pair, 0).values()) == {(0, 0)}


@pytest.mark.ray
def test_more_workers_than_gpus_are_refused(connection: Any) -> None:
    with pytest.raises(StartFailed, match=r"3 workers of 1 threads ask for 3 GPUs, the Ray cluster has 2 .* fewer"):
        group(connection, ON_GPUS.model_copy(update={"workers": 3}))


def test_where_workers_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def placed(gpus: int, busy: int | None = None, **asked: Any) -> tuple[str, int]:
        found = ClusterSettings(**asked).placed(gpus, busy)
        assert isinstance(found.workers, int)
        return found.device, found.workers

    assert placed(0) == ("cpu", usable_cores())
    assert placed(0, workers=3) == ("cpu", 3)
    assert placed(1) == ("cuda", 1)
    assert placed(8) == ("cuda", 8)
    assert placed(8, workers=3) == ("cuda", 3)
    assert placed(8, workers=0) == ("cuda", 0)
    assert placed(8, workers=9) == ("cpu", 9)
    assert placed(8, device="cpu") == ("cpu", usable_cores())
    assert placed(8, device="cuda") == ("cuda", 8)
    assert placed(8, device="cuda", workers=8) == ("cuda", 8)
    # Nobody is started for nothing, unless somebody asks for it.
    assert placed(0, busy=1) == ("cpu", 1)
    assert placed(8, busy=3) == ("cuda", 3)
    assert placed(8, busy=100) == ("cuda", 8)
    assert placed(8, busy=3, min_workers=6) == ("cuda", 6)
    assert placed(4, busy=3, min_workers=6) == ("cuda", 4)
    assert placed(8, busy=3, workers=7) == ("cuda", 7)
    for gpus, asked in ((0, "auto"), (0, 0), (8, 9)):
        with pytest.raises(StartFailed, match=r"device = 'cuda' needs \d GPUs? for .* has (none|8) that can be used"):
            placed(gpus, device="cuda", workers=asked)
    with pytest.raises(ValueError, match="adds on GPUs and device = 'cpu' computes without"):
        ClusterSettings(device="cpu", collective="nccl")
