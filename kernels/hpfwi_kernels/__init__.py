"""Kernels of hpfwi: stencils, time loops and their adjoints, with NumPy, Numba and torch alone."""
