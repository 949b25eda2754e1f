"""Coarser and finer maps: see README.md for equations and limits."""

from hpfwi_kernels.resample.op import average_pool, bilinear, half_maximum

__all__ = ["average_pool", "bilinear", "half_maximum"]
