"""Many equal tasks on a few threads, with the same bits for any number of them."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Space = TypeVar("Space")

# Pieces per thread: enough that a thread the system held up does not keep the others waiting for long.
PIECES = 4


def share(run: Callable[[Space, int, int], None], tasks: int, threads: int, workspace: Callable[[], Space]) -> None:
    """Call run(space, first, end) for ranges that cover 0 to tasks once, on up to `threads` threads.

    run         works on tasks first to end - 1 and releases the GIL; no two ranges may write to the same memory
    workspace   makes what one thread keeps for itself; called once per thread

    >>> done = [0] * 10
    >>> def mark(space: None, first: int, end: int) -> None:
    ...     done[first:end] = [1] * (end - first)
    >>> share(mark, 10, 3, lambda: None)
    >>> sum(done)
    10
    """
    workers = max(1, min(threads, tasks))
    if workers == 1:
        run(workspace(), 0, tasks)
        return
    pieces = min(tasks, PIECES * workers)
    turn = itertools.count()

    def work() -> None:
        space = workspace()
        while (piece := next(turn)) < pieces:
            run(space, tasks * piece // pieces, tasks * (piece + 1) // pieces)

    others = [_pool(workers - 1).submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        for other in others:
            other.exception()
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that outlive a call: starting them costs as much as a small layer's work."""
    return ThreadPoolExecutor(threads, thread_name_prefix="hpfwi-kernel")


# A forked process inherits the executor but not its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
