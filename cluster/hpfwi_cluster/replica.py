"""One rank's task together with its local sum: the same code inline and in a worker process."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from hpfwi_cluster import fixed_point
from hpfwi_cluster.errors import ClusterError
from hpfwi_cluster.ledger import ItemReport
from hpfwi_cluster.tasks import ItemResult, State, Task


def sentence_of(error: BaseException) -> str:
    """Return an exception as one clause, its type and its text, without a closing full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Replica:
    """A task and the sum of those of its items that count: in fixed point, or in float32 (see `Task.exact`).

    Computing and adding are two things: an item's result is kept until the ledger says that this rank holds the item,
    because another rank may have computed it too and been faster.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.exact: bool = getattr(task, "exact", True)
        self._lock = threading.Lock()
        self._sum_id = 0
        self._sum: np.ndarray | None = None
        self._reports: dict[int, ItemReport] = {}
        self._kept: dict[int, tuple[np.ndarray, int]] = {}
        self._added: set[int] = set()
        self._probe: tuple[int, ItemResult, float] | None = None
        """Item, result and seconds of what was computed to learn its magnitude."""
        self._busy = _BusyClock()

    def begin(self, iteration: int, sum_id: int) -> None:
        """Start an iteration and its sum `sum_id`, above all earlier ones; whatever the last one left is dropped."""
        with self._lock:
            self._probe = None
            self._open(sum_id)
        self._busy.reset()
        self.task.begin(iteration)

    def compute(self, item: int, sum_id: int, exponent: int | None, quantum: int) -> ItemReport:
        """Compute an item and keep it for the sum `sum_id`, starting that sum if it is new.

        With exponent None it is not kept for a sum, only its magnitude is learnt. An item larger than the exponent
        allows is reported and never added. Asking twice computes once. A failing task is reported, never raised.
        """
        with self._lock:
            if sum_id < self._sum_id:
                return ItemReport(item, None, (), {}, failure="it belongs to a sum that is over")
            self._open(sum_id)
            if item in self._reports:
                return self._reports[item]
            known = None
            if self._probe is not None and self._probe[0] == item:
                known, self._probe = self._probe, None
        started_s = time.perf_counter()
        try:
            with self._busy:
                result = known[1] if known is not None else self.task.compute(item)
            # What was computed before took its time before: reported as none, it would make all others late.
            spent_s = known[2] if known is not None else time.perf_counter() - started_s
            report = replace(_inspect(item, result), seconds=spent_s)
            if not self.exact:
                report = replace(report, largest=None)  # float32 needs no common scale
        except Exception as error:  # whatever the task raises is the driver's to decide about
            return ItemReport(item, None, (), {}, failure=sentence_of(error))
        if report.failure is not None:
            return report
        with self._lock:
            if exponent is None:
                self._probe = (item, result, report.seconds)
            elif self._sum_id == sum_id and item not in self._reports:
                self._reports[item] = report
                if report.largest is None or report.largest <= exponent:
                    self._kept[item] = (result.array, quantum)
        return report

    def accept(self, sum_id: int, items: Iterable[int]) -> None:
        """Add items computed before, which this rank holds; each is added once however often it is named."""
        with self._lock:
            if sum_id == self._sum_id:
                self._add(items)

    def local_sum(self, sum_id: int, shape: tuple[int, ...], held: Iterable[int]) -> np.ndarray:
        """Return a copy of this rank's sum, int64 or float32, of exactly the items that it holds.

        raises  ClusterError: an item among them was not computed here, or one was added that is not among them
        """
        with self._lock:
            if sum_id != self._sum_id:
                self._open(sum_id)
            wanted = set(held)
            self._add(wanted)
            if self._added != wanted:
                raise ClusterError(
                    f"A local sum holds items {sorted(self._added)} and should hold {sorted(wanted)}; this is a defect "
                    "of the group, nothing was applied."
                )
            return np.zeros(shape, self._dtype) if self._sum is None else self._sum.copy()

    def value_of(self, total: np.ndarray, quantum: int) -> np.ndarray:
        """Return what a sum of `local_sum`s means: float64 of an exact one, a float32 one as it is."""
        return fixed_point.as_float(total, quantum) if self.exact else total

    def finish(self, iteration: int, total: np.ndarray) -> float:
        """Advance the task by the total; return the seconds in which this rank computed an item."""
        self.task.finish(iteration, total)
        with self._lock:
            self._sum = None
            self._kept.clear()
        return self._busy.seconds()

    def state(self) -> State:
        """Return copies of the task's state."""
        return {name: np.array(value, copy=True) for name, value in self.task.state().items()}

    def load_state(self, state: State) -> None:
        """Hand writable copies of a state to the task."""
        self.task.load_state({name: np.array(value, copy=True) for name, value in state.items()})

    def digest(self) -> str:
        """Return a hash over names, types, shapes and bytes of the state."""
        total = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.task.state().items()):
            array = np.ascontiguousarray(value)
            total.update(f"{name} {array.dtype.str} {array.shape}".encode())
            total.update(array.tobytes())
        return total.hexdigest()

    def _open(self, sum_id: int) -> None:
        if self._sum_id != sum_id:
            self._sum_id, self._sum = sum_id, None
            self._reports.clear()
            self._kept.clear()
            self._added.clear()

    def _add(self, items: Iterable[int]) -> None:
        for item in items:
            if item in self._kept:
                array, quantum = self._kept.pop(item)
                if self._sum is None:
                    self._sum = np.zeros(array.shape, self._dtype)
                if self.exact:
                    fixed_point.add(self._sum, array, quantum)
                else:
                    self._sum += array.astype(np.float32, copy=False)
                self._added.add(item)

    @property
    def _dtype(self) -> type[np.int64] | type[np.float32]:
        return np.int64 if self.exact else np.float32


def _inspect(item: int, result: ItemResult) -> ItemReport:
    array = result.array
    if array.dtype not in (np.float32, np.float64):
        why = f"its array is {array.dtype}, sums take float32 or float64"
        return ItemReport(item, None, array.shape, {}, failure=why, final=True)
    bad = [f"{name}={value!r}" for name, value in result.scalars.items() if not math.isfinite(value)]
    if bad:
        return ItemReport(item, None, array.shape, {}, failure=f"non-finite scalar {', '.join(bad)}", final=True)
    try:
        largest = fixed_point.largest_exponent(array)
    except ValueError as error:
        return ItemReport(item, None, array.shape, {}, failure=f"non-finite array, {error}", final=True)
    if largest is not None and largest > fixed_point.LARGEST_EXPONENT:
        why = f"magnitude near 2^{largest} exceeds the limit 2^{fixed_point.LARGEST_EXPONENT}; scale the items down"
        return ItemReport(item, None, array.shape, {}, failure=why, final=True)
    return ItemReport(item, largest, array.shape, {name: float(value) for name, value in result.scalars.items()})


class _BusyClock:
    """Seconds during which at least one thread was inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._since_s = 0.0
        self._total_s = 0.0

    def reset(self) -> None:
        with self._lock:
            self._total_s, self._since_s = 0.0, time.perf_counter()

    def seconds(self) -> float:
        with self._lock:
            return self._total_s

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._since_s = time.perf_counter()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._total_s += time.perf_counter() - self._since_s


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch on one thread inside: the number of threads may change the last bits of a result."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
