"""Workers that a training run has nothing to do for."""

from __future__ import annotations

from hpfwi.parallel import ClusterSettings
from hpfwi.training.settings import TrainConfig


def idle_workers(config: TrainConfig, cluster: ClusterSettings, room: int = 0) -> str:
    """A sentence where a batch is cut into fewer slices than there are threads of workers; empty where it is not.

    cluster     without "auto"
    room        workers that there is room for, which "auto" did not start because of the slices

    >>> idle_workers(TrainConfig(), ClusterSettings(workers=4))
    ''
    >>> idle_workers(TrainConfig(), ClusterSettings(workers=6))
    '6 workers share the 4 slices of a batch, so 2 or more of them always wait: take 4 workers, or training.slices = 6.'
    >>> idle_workers(TrainConfig(), ClusterSettings(workers=4), room=8)
    'The 4 slices of a batch keep 4 of 8 possible workers busy: for all take training.slices = 8.'
    """
    workers, slices = cluster.worker_count(), config.training.slices
    busy = -(-slices // cluster.threads_per_worker)
    if max(workers, room) <= busy:
        return ""
    many = "slices" if slices > 1 else "slice"
    wanted, batch = max(workers, room) * cluster.threads_per_worker, config.training.batch
    more = f"training.slices = {min(wanted, batch)}" + (f" of a batch of {wanted}" if wanted > batch else "")
    if workers <= busy:
        return f"The {slices} {many} of a batch keep {workers} of {room} possible workers busy: for all take {more}."
    return (
        f"{workers} workers share the {slices} {many} of a batch, so {workers - busy} or more of them always wait: "
        f"take {busy} worker{'s' * (busy > 1)}, or {more}."
    )
