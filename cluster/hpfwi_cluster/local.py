"""The group of one rank in this process: no Ray, the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

from hpfwi_cluster import fixed_point
from hpfwi_cluster.errors import Abandoned, ClusterError, StartFailed, TaskFailed
from hpfwi_cluster.ledger import ItemReport, Ledger
from hpfwi_cluster.replica import Replica, one_torch_thread, sentence_of
from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.shares import wait_share
from hpfwi_cluster.tasks import IterationResult, State, Task, nobody_asks, nobody_listens

_RANK = 0
_SLICE_S = 0.25
"""Longest wait before this thread looks whether it was asked to stop."""
_T = TypeVar("_T")


class LocalGroup:
    """Compute all items in this process, `threads` at a time; one thread means the calling thread."""

    def __init__(
        self,
        task_factory: Callable[[], Task],
        *,
        threads: int,
        settings: ClusterSettings,
        stop: Callable[[], object] = nobody_asks,
    ) -> None:
        self.exponent: int | None = None
        self.tell: Callable[[str], None] = nobody_listens
        self.stop = stop
        self._settings = settings
        self._threads = threads
        self._sum_id = 0
        self._suspect = False
        self._pool = ThreadPoolExecutor(threads, "item", initializer=_one_thread) if threads > 1 else None
        with one_torch_thread():
            try:
                self._replica = Replica(task_factory())
            except Exception as error:
                raise StartFailed(f"The task could not be built: {sentence_of(error)}.") from error

    def run(self, iteration: int, items: Sequence[int], costs: Sequence[float]) -> IterationResult:
        """Run one iteration; see `Group.run`."""
        started_s = time.perf_counter()
        if self._suspect:
            raise ClusterError("The task failed while its state changed: call load_state with a checkpoint first.")
        ledger = Ledger(iteration, items, costs, self._settings.item_tries)
        with one_torch_thread():
            self._sum_id += 1
            self._task("begin", iteration, lambda: self._replica.begin(iteration, self._sum_id))
            exponent = self.exponent if self.exponent is not None else self._probe(ledger)
            self._collect(ledger, exponent)
            again = fixed_point.corrected_exponent(exponent, ledger.largest)
            if again is not None:
                exponent = again
                ledger.start_again()
                self._collect(ledger, exponent)
            assert ledger.shape is not None
            found = self._replica.local_sum(self._sum_id, ledger.shape, ledger.held(_RANK))
            total = self._replica.value_of(found, ledger.quantum(exponent))
            self._suspect = True
            busy_s = self._task("finish", iteration, lambda: self._replica.finish(iteration, total.copy()))
        self._suspect = False
        self.exponent = fixed_point.next_exponent(self.exponent, ledger.largest)
        seconds = time.perf_counter() - started_s
        return IterationResult(total, ledger.scalars, seconds, wait_share([busy_s], seconds), ())

    def state(self) -> State:
        """Return copies of the task's state."""
        return self._task("state", None, self._replica.state)

    def load_state(self, state: State) -> None:
        """Put the task into this state."""
        with one_torch_thread():
            self._suspect = True
            self._task("load_state", None, lambda: self._replica.load_state(state))
            self._suspect = False

    def close(self) -> None:
        """End the threads; items that have not started are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _probe(self, ledger: Ledger) -> int:
        """Compute the item of lowest id without adding it; return the exponent its magnitude suggests."""
        exponent = None
        while exponent is None:
            self._give_way(ledger)
            item = ledger.take_probe(_RANK)
            exponent = ledger.report_probe(_RANK, self._replica.compute(item, self._sum_id, None, 0))
        return exponent

    def _collect(self, ledger: Ledger, exponent: int) -> None:
        self._sum_id += 1
        quantum = ledger.quantum(exponent)
        if self._pool is None:
            while not ledger.complete:
                self._give_way(ledger)
                item = ledger.take(_RANK)
                assert item is not None
                self._book(ledger, self._replica.compute(item, self._sum_id, exponent, quantum))
            return
        flying: set[Future[ItemReport]] = set()
        self._give_way(ledger)
        try:
            while not ledger.complete:
                while len(flying) < self._threads and (item := ledger.take(_RANK)) is not None:
                    flying.add(self._pool.submit(self._replica.compute, item, self._sum_id, exponent, quantum))
                done, flying = wait(flying, timeout=_SLICE_S, return_when=FIRST_COMPLETED)
                for future in done:
                    self._book(ledger, future.result())
                self._give_way(ledger)
        finally:
            wait(flying)

    def _book(self, ledger: Ledger, report: ItemReport) -> None:
        if ledger.report(_RANK, report):
            self._replica.accept(self._sum_id, [report.item])

    def _give_way(self, ledger: Ledger) -> None:
        if not ledger.complete and self.stop():
            raise Abandoned(f"Asked to stop in iteration {ledger.iteration}; nothing was applied in it.")

    def _task(self, name: str, iteration: int | None, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except ClusterError:
            raise
        except Exception as error:
            when = "" if iteration is None else f" of iteration {iteration}"
            raise TaskFailed(f"The task failed in {name}{when}: {sentence_of(error)}.") from error


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
