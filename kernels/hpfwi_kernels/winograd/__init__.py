"""3x3 convolutions with fewer products: see README.md for equations and limits."""

from hpfwi_kernels.winograd.op import convolution

__all__ = ["convolution"]
