"""How much memory a computation may take, and how wavefields reach their gradient within it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import torch

from hpfwi.errors import ConfigError
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi_kernels.acoustic import Choice, Memory, Scheme, choose, peak_bytes

GPU_SHARE = 0.8
"""Share of a GPU's free memory that wavefields may take; the rest is for what the estimate leaves out."""

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


def budget_bytes(device: torch.device) -> int:
    """Memory for wavefields where nobody has set it: a fair share of this machine's, or most of what a GPU has left."""
    if device.type == "cpu":
        return fair_share_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for itself of earlier work is free for the next.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(GPU_SHARE * (free + kept))


def held(
    settings: ModellingSettings,
    device: torch.device,
    shape: tuple[int, ...],
    shots: int,
    samples: int,
    receivers: int,
    scheme: Scheme,
    *,
    threads: int,
) -> Choice:
    """How the wavefields of so many shots, computed together by hpfwi's own kernels, reach their gradient, and why.

    shape       cells of the model        receivers   of each shot

    raises  hpfwi_kernels.errors.ModelError: nothing that `settings.memory` allows fits the budget
    """
    if device.type == "cuda":
        threads = shots  # all at the same time
    work = (shape, shots, samples, receivers, scheme)
    if settings.memory == "auto":
        given_gb = settings.memory_budget_gb
        budget = budget_bytes(device) if given_gb is None else int(given_gb * 1e9)
        return choose(*work, threads=threads, budget_bytes=budget, exact=True)
    memory = Memory(mode=settings.memory)
    return Choice(memory, peak_bytes(*work, memory, threads=threads), "as set")


def forward_bytes(shape: tuple[int, ...], shots: int, samples: int, receivers: int, scheme: Scheme) -> int:
    """Bytes that computing so many shots at the same time takes at most, where no gradient is wanted.

    It counts each shot's model too, in float64 while its coefficients are made, because shots may have models of their
    own.
    """
    # A gradient that keeps one snapshot of each shot is the next larger thing whose need is known.
    alone = replace(scheme, store_every=samples * scheme.substeps)
    own = 4 * 8 * shots * math.prod(scheme.padded(shape))
    return own + peak_bytes(shape, shots, samples, receivers, alone, Memory(), threads=shots)


def held_by_deepwave(settings: ModellingSettings, shots: int, bytes_per_shot: int) -> Choice:
    """The same for deepwave, which keeps everything; raises ConfigError where that is more than memory_budget_gb."""
    needed, budget_gb = shots * bytes_per_shot, settings.memory_budget_gb
    if budget_gb is not None and needed > budget_gb * 1e9:
        raise ConfigError(
            f"The wavefields of {shots} shots take {needed / 1e6:.3g} MB in deepwave, more than memory_budget_gb="
            f"{budget_gb:g}: lower inversion.shots_per_item, raise store_every or raise the budget."
        )
    return Choice(Memory(), needed, f"deepwave keeps its wavefields, {needed / 1e6:.3g} MB")
