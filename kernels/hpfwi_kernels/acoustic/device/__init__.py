"""Acoustic propagation in the memory of a GPU, around the kernels of the folder above."""
