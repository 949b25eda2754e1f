"""What a group of workers costs beside the items: `python benchmarks/cluster.py`.

overhead     items that sleep a second on two workers: time of an iteration beyond theirs, as a share of it; and items
             that take no time, on one worker: time for each
all-reduce   of the group against torch.distributed alone, in the same two processes, the same bytes, taking turns
workers      items that compute, on two workers against one, one thread each, and on bare processes in turns with them:
             the cores of a virtual machine may be one core's halves, and then two of anything gain little
loss         a worker of two killed in the middle of an iteration: what that costs beyond the lost items
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi_cluster import ClusterSettings, ItemResult, State

CELLS = 94 * 288
"""Numbers in an item's array: a small Marmousi model."""


class Items:
    """Items that sleep `seconds`, or compute for some 250 ms as a small model's shot does, and add `numbers` zeros."""

    def __init__(self, seconds: float, numbers: int, busy: bool) -> None:
        self._seconds, self._busy = seconds, busy
        self._zeros = np.zeros(numbers, np.float32)
        self._values = np.linspace(0.0, 1.0, 20_000)

    def begin(self, iteration: int) -> None: ...

    def compute(self, item: int) -> ItemResult:
        if self._busy:
            for _ in range(5600):
                np.tanh(self._values)
        else:
            time.sleep(self._seconds)
        return ItemResult(self._zeros, {})

    def finish(self, iteration: int, total: np.ndarray | None) -> None: ...

    def state(self) -> State:
        return {"nothing": np.zeros(1)}

    def load_state(self, state: State) -> None: ...


def group_of(workers: int, seconds: float, *, busy: bool = False) -> Any:
    from hpfwi_cluster.group import RayGroup

    settings = ClusterSettings(workers=workers, replica_check_every=None, copy_after=None)
    group = RayGroup(partial(Items, seconds, CELLS, busy), workers=workers, threads_per_worker=1, settings=settings)
    group.exponent = 0
    group.run(0, range(4), [1.0] * 4)
    return group


def iterations_s(group: Any, items: int, repeats: int) -> list[float]:
    return [group.run(1 + turn, range(items), [1.0] * items).seconds for turn in range(repeats)]


def overhead(repeats: int) -> dict[str, float]:
    with group_of(2, 1.0) as group:
        shared_s = statistics.median(iterations_s(group, 8, min(repeats, 5)))
    with group_of(1, 0.0) as group:
        few_s = statistics.median(iterations_s(group, 1, repeats))
        before_s = time.process_time()
        many_s = statistics.median(iterations_s(group, 201, repeats))
        driver_s = (time.process_time() - before_s) / repeats
    return {
        "iteration of 8 items of 1 s on 2 workers, s": shared_s,
        "overhead of an iteration, %": 100.0 * (shared_s - 4.0) / shared_s,
        "overhead of an item, ms": 1e3 * (many_s - few_s) / 200,
        "processor time of the driver for an item, ms": 1e3 * driver_s / 201,
    }


def _rank(rank: int, port: int, numbers: int, repeats: int, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    from hpfwi_cluster.reduce import Collective, Formation

    torch.set_num_threads(1)
    ours = Collective()
    ours.form(Formation("127.0.0.1", port, "127.0.0.1", 1, rank, 2, 60.0, "gloo"))
    bare_store = dist.TCPStore("127.0.0.1", port, None, False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=dist.PrefixStore("bare", bare_store), rank=rank, world_size=2)
    array = np.ones(numbers, np.int64)
    tensor = torch.ones(numbers, dtype=torch.int64)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):
        for which, call in enumerate((lambda: ours.all_reduce(array), lambda: dist.all_reduce(tensor))):
            dist.barrier()
            begin = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - begin)
    if rank == 0:
        answers.put([statistics.median(part[2:]) for part in times])
    dist.barrier()
    dist.destroy_process_group()


def all_reduce(numbers: int, repeats: int) -> dict[str, float]:
    from hpfwi_cluster.reduce import Meeting

    meeting = Meeting("127.0.0.1", 60.0)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    ranks = [spawn.Process(target=_rank, args=(rank, meeting.port, numbers, repeats, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    ours_s, bare_s = answers.get(timeout=300)
    for process in ranks:
        process.join(60)
    size = f"{8 * numbers / 1e6:g} MB"
    return {
        f"all-reduce of {size}, ms": 1e3 * ours_s,
        f"torch.distributed, {size}, ms": 1e3 * bare_s,
        f"ratio, {size}": ours_s / bare_s,
    }


def _bare(orders: Any, answers: Any) -> None:
    items = Items(0.0, 1, True)
    while (count := orders.get()) > 0:
        for item in range(count):
            items.compute(item)
        answers.put(count)


@contextmanager
def bare_processes(count: int) -> Iterator[Callable[[int], float]]:
    """A function that has so many items computed by bare processes, without any of ours; it returns seconds."""
    spawn = multiprocessing.get_context("spawn")
    orders, answers = spawn.Queue(), spawn.Queue()
    processes = [spawn.Process(target=_bare, args=(orders, answers)) for _ in range(count)]
    for process in processes:
        process.start()

    def run(items: int) -> float:
        begin = time.perf_counter()
        for _ in processes:
            orders.put(items // count)
        for _ in processes:
            answers.get(timeout=300)
        return time.perf_counter() - begin

    try:
        run(count)
        yield run
    finally:
        for _ in processes:
            orders.put(0)
        for process in processes:
            process.join(60)


def workers(repeats: int) -> dict[str, float]:
    items = 12
    ours: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    # Twice each: what two cores give is not the same from one minute to the next where others share the machine.
    for count in (1, 2, 2, 1):
        with group_of(count, 0.0, busy=True) as group, bare_processes(count) as run:
            for turn in range(repeats):
                ours[count].append(group.run(1 + turn, range(items), [1.0] * items).seconds)
                bare[count].append(run(items))
    one_s, two_s = (statistics.median(ours[count]) for count in (1, 2))
    bare_one_s, bare_two_s = (statistics.median(bare[count]) for count in (1, 2))
    return {
        "one worker, s": one_s,
        "two workers, s": two_s,
        "two workers against one": one_s / two_s,
        "two bare processes against one": bare_one_s / bare_two_s,
        "two workers against two bare processes": bare_two_s / two_s,
    }


def loss() -> dict[str, float]:
    items, item_s = 20, 0.5
    with group_of(2, item_s) as group:
        calm_s = statistics.median(iterations_s(group, items, 3))
        victim = group._crew.members[1]
        threading.Timer(calm_s / 2, os.kill, (victim.hello.pid, signal.SIGKILL)).start()
        struck = group.run(9, range(items), [1.0] * items)
    assert len(struck.lost) == 1
    # From the middle on one worker does what two did, and the items of the dead one again.
    share = items // 2
    return {
        "undisturbed iteration, s": calm_s,
        "iteration with a worker killed in its middle, s": struck.seconds,
        "beyond the work of one worker less, s": struck.seconds - (calm_s / 2 + (items - share // 2) * item_s),
    }


def main() -> None:
    """Read the options, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["overhead", "all-reduce", "workers", "loss"]
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, help="the others keep their rows in the JSON"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "cluster.json")
    options = parser.parse_args()
    found: dict[str, float] = {}
    for name in options.only:
        if name == "overhead":
            found |= overhead(options.repeats)
        elif name == "all-reduce":
            for numbers in (CELLS, 1 << 20):
                found |= all_reduce(numbers, 5 * options.repeats)
        elif name == "workers":
            found |= workers(min(options.repeats, 3))
        else:
            found |= loss()
        print("\n".join(f"{value:10.3f}  {label}" for label, value in found.items()), flush=True)
    about = {"cores": len(os.sched_getaffinity(0)), "load_at_the_end": os.getloadavg()[0]}
    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    options.json.write_text(json.dumps(kept | about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
