"""The multi-frequency pooling of AMFMS: see README.md for equations and limits."""

from hpfwi_kernels.dct_pool.op import eager_multi_frequency_pool, multi_frequency_pool
from hpfwi_kernels.dct_pool.tables import TOP_16, published_frequencies

__all__ = ["TOP_16", "eager_multi_frequency_pool", "multi_frequency_pool", "published_frequencies"]
