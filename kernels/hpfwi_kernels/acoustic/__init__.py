"""The 2-D and 3-D scalar acoustic propagator: see README.md for equations, discretisation and adjoint."""

from hpfwi_kernels.acoustic.memory import Choice, Memory, choose, peak_bytes
from hpfwi_kernels.acoustic.op import gpus_usable, propagate
from hpfwi_kernels.acoustic.points import Points, off_grid, on_grid
from hpfwi_kernels.acoustic.scheme import Scheme

__all__ = [
    "Choice",
    "Memory",
    "Points",
    "Scheme",
    "choose",
    "gpus_usable",
    "off_grid",
    "on_grid",
    "peak_bytes",
    "propagate",
]
