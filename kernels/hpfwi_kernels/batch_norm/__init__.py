"""Batch norm and its activation in one pass: see README.md for equations and limits."""

from hpfwi_kernels.batch_norm.op import normalised_activation

__all__ = ["normalised_activation"]
