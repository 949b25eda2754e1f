"""Whether files that are read again and again will stay in memory."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.5
"""Part of the memory that files may take and still be expected to stay: the rest is the program's and its workers'."""


def memory_bytes() -> int:
    """Memory of this machine, or of this process's control group where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(memory, int(limit)) if limit.isdigit() else memory


def stays_in_memory(size: int) -> bool:
    """Whether files of so many bytes are expected to stay in the page cache once they were read."""
    return size <= SHARE * memory_bytes()
