"""The 2-D Haar transform and the wavelet convolution of AMFMS: see README.md for equations and limits."""

from hpfwi_kernels.haar.op import eager_wavelet_convolution, inverse, transform, wavelet_convolution

__all__ = ["eager_wavelet_convolution", "inverse", "transform", "wavelet_convolution"]
