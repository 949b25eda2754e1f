"""Which processor waves are computed on, and the GPUs that this process can use for it."""

from __future__ import annotations

from typing import Literal

import torch

from hpfwi.errors import ConfigError
from hpfwi_kernels.acoustic import gpus_usable

Device = Literal["auto", "cpu", "cuda"]
"""What a user asks for: "auto" is a GPU where this process has one that the kernels can use."""


def usable_gpus() -> int:
    """How many GPUs this process sees that the propagator's kernels can use; starts no context on any."""
    return torch.cuda.device_count() if gpus_usable() else 0


def compute_devices(asked: Device, gpus: int | None = None) -> list[torch.device]:
    """Where this process computes what it computes alone: all its GPUs, or the CPU once.

    gpus    that can be used; None counts them

    raises  ConfigError: "cuda" without one
    """
    if asked == "cpu":
        return [torch.device("cpu")]
    found = usable_gpus() if gpus is None else gpus
    if asked == "cuda" and not found:
        raise ConfigError(
            'cluster.device = "cuda" needs a GPU, and this process has none that torch and CuPy can use: install '
            'hpfwi[cuda12] or hpfwi[cuda13] on a machine with an NVIDIA GPU, or set it to "cpu".'
        )
    return [torch.device("cuda", number) for number in range(found)] or [torch.device("cpu")]
