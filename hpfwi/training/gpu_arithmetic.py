"""How torch computes on a GPU in a training run."""

from __future__ import annotations

import os

import torch

from hpfwi.training.settings import TrainingSettings

CUBLAS_WORKSPACE = ":4096:8"
"""Buffers of cuBLAS with which a product has the same bits in every run, a value that NVIDIA's documentation gives."""


def set_arithmetic(settings: TrainingSettings) -> None:
    """Make this process compute on its GPUs as the settings say; comes before the first product on one.

    With `exact`, torch takes operators that add in a fixed order: a slice has the same bits in every process. It names
    one that has no such form in a warning, since a network that cannot be trained at all would help nobody.
    """
    exact = settings.exact
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(exact, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
