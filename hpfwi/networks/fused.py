"""The fused layers of `hpfwi_kernels`: the only file of the science layer that imports them, and only when they run."""

from __future__ import annotations

from typing import Literal

import torch

Kernels = Literal["eager", "fused"]
"""Who computes the wavelet convolution and the multi-frequency pooling: torch operator by operator, or our kernels."""
