"""The streaming kernels compiled for GPUs: registers, spills, and vectors in one instruction.

A few instances are compiled always; `HPFWI_COMPILE_ALL=1 pytest tests/kernels/test_acoustic_cuda_streaming_compiled.py`
compiles every one for every architecture.
"""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpfwi_kernels.acoustic import cuda_streaming

Instance = tuple[str, int, str]  # architecture, dimensions, kernel
ALWAYS: tuple[Instance, ...] = (
    ("sm_90", 2, "forward_2d<2, CPML, FULL>"),
    ("sm_80", 3, "back_3d<2, CPML, FULL>"),
)
STEPS = [
    f"{way}_{{0}}d<{radius}, {boundary}, {keep}>"
    for way, radius, boundary, keep in itertools.product(
        ("forward", "back"), (1, 2, 3, 4), ("CPML", "SPONGE"), ("NOTHING", "FULL", "HALF")
    )
] + [f"rewind_{{0}}d<{radius}, {counts}>" for radius in (1, 2, 3, 4) for counts in ("true", "false")]
EVERY = tuple(
    (architecture, dimensions, step.format(dimensions))
    for architecture, dimensions, step in itertools.product(("sm_80", "sm_89", "sm_90"), (2, 3), STEPS)
)
MOST_REGISTERS = 128
"""So that a multiprocessor's 65536 hold two blocks of 256 threads, and memory is waited for by both."""
MOST_SPILLED_BYTES = {"forward": 64, "rewind": 64, "back": 256}
"""In the paths of layers alone: in the adjoint two memories and their profiles stand beside the field."""


@pytest.mark.parametrize("instance", EVERY if os.environ.get("HPFWI_COMPILE_ALL") else ALWAYS, ids=str)
def test_kernels_compile_within_their_registers(instance: Instance, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    architecture, dimensions, kernel = instance
    text = f"{cuda_streaming.source(dimensions)}\ntemplate __global__ void {kernel}(const Params, int);\n"
    (tmp_path / "one.cu").write_text(text)
    command = [compiler, "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas", "-v", "one.cu", "-o", "one.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= MOST_REGISTERS
    assert max(map(int, re.findall(r"(\d+) bytes spill", done.stderr))) <= MOST_SPILLED_BYTES[kernel.split("_")[0]]
