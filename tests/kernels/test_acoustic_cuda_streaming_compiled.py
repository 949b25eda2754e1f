"""The streaming kernels compiled for GPUs: registers and spills.

A few instances are compiled always; `make cuda` compiles every one for every architecture.
"""

import itertools
import os
from pathlib import Path

import pytest

from hpfwi_kernels.acoustic import cuda_streaming
from tests.kernels.gpu_compiler import require_nvcc, resources

Unit = tuple[tuple[str, ...], int, tuple[str, ...]]  # architectures, dimensions, kernels
ALWAYS: tuple[Unit, ...] = (
    (("sm_90",), 2, ("forward_2d<2, CPML, FULL>",)),
    (("sm_80",), 3, ("back_3d<2, CPML, FULL>",)),
)


def steps(dimensions: int, radius: int) -> tuple[str, ...]:
    kinds = itertools.product(("forward", "back"), ("CPML", "SPONGE"), ("NOTHING", "FULL", "HALF"))
    return (
        *(f"{way}_{dimensions}d<{radius}, {boundary}, {keep}>" for way, boundary, keep in kinds),
        *(f"rewind_{dimensions}d<{radius}, {counts}>" for counts in ("true", "false")),
    )


EVERY: tuple[Unit, ...] = tuple(
    (architectures, dimensions, steps(dimensions, radius))
    for architectures, dimensions, radius in itertools.product((("sm_80", "sm_89"), ("sm_90",)), (2, 3), (1, 2, 3, 4))
)
MOST_REGISTERS = 128
"""So that a multiprocessor's 65536 hold two blocks of 256 threads, and memory is waited for by both."""
MOST_SPILLED_BYTES = {"forward": 112, "rewind": 64, "back": 256}
"""In the paths of layers alone: in the adjoint two memories and their profiles stand beside the field. Of forward runs
those for sm_80, orders 6 and 8 in 2-D, spill more than 64."""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("unit", EVERY if os.environ.get("HPFWI_COMPILE_ALL") else ALWAYS, ids=str)
def test_kernels_compile_within_their_registers(unit: Unit, tmp_path: Path) -> None:
    architectures, dimensions, kernels = unit
    code = cuda_streaming.source(dimensions)
    found = resources(require_nvcc(), code, kernels, "const Params, int", architectures, tmp_path)
    assert len(found) == len(kernels) * len(architectures)
    most = {key: MOST_SPILLED_BYTES[key[1].split("_")[0]] for key in found}
    assert {key: one for key, one in found.items() if one.registers > MOST_REGISTERS or one.spilled > most[key]} == {}
