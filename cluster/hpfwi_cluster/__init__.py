"""Groups of workers that compute items, add them exactly and advance together.

Importing this package starts nothing and imports neither Ray nor torch; `make_group` does when it has to.
"""

from __future__ import annotations

from collections.abc import Callable

from hpfwi_cluster.settings import ClusterSettings
from hpfwi_cluster.tasks import Group, ItemResult, IterationResult, State, Task, nobody_asks

__all__ = ["ClusterSettings", "Group", "ItemResult", "IterationResult", "State", "Task", "make_group"]


def make_group(
    task_factory: Callable[[], Task],
    *,
    workers: int,
    threads_per_worker: int,
    settings: ClusterSettings,
    stop: Callable[[], object] = nobody_asks,
) -> Group:
    """Build a group of ranks, each with the task the factory returns.

    task_factory    called once by every rank; picklable, and importable in the workers if there are any
    workers         worker processes; 0 computes in this process and does not touch Ray
    stop            becomes `Group.stop`, and is asked while the workers start
    raises          StartFailed: the workers cannot be had, or the factory raised; Abandoned: asked to stop
    """
    if workers == 0:
        from hpfwi_cluster.local import LocalGroup

        return LocalGroup(task_factory, threads=threads_per_worker, settings=settings, stop=stop)
    from hpfwi_cluster.group import RayGroup

    return RayGroup(task_factory, workers=workers, threads_per_worker=threads_per_worker, settings=settings, stop=stop)
