"""3x3 convolutions between small groups of channels: see README.md for equations and limits."""

from hpfwi_kernels.grouped.op import grouped_convolution

__all__ = ["grouped_convolution"]
