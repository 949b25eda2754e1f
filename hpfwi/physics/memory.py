"""How much memory a computation may take when nobody has said so."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def fair_share_bytes() -> int:
    """Half of the memory that is free now, divided by the cores this process may use.

    Every core can be computing an item of its own, in this process or in a worker's.
    """
    return free_bytes() // 2 // len(os.sched_getaffinity(0))


def free_bytes() -> int:
    """Bytes this process could take without swapping: what the kernel calls available, cut by the control group."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        words = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(words["MemAvailable"].split()[0]) * 1024
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free
