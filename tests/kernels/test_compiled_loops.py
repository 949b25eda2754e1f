"""The compiled float32 time loops use packed fused multiply-adds and count no references.

Both come from settings that Numba does not publish (compiling.py): a Numba release could drop them without an error,
and the kernels would merely be several times slower.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest

from hpfwi_kernels import compiling
from hpfwi_kernels.acoustic import Scheme, loops, on_grid

PACKED = re.compile(r"\bvfn?m(?:add|sub)\w*ps\b.*%[yz]mm")
SCALAR = re.compile(r"\bvfn?m(?:add|sub)\w*ss\b")
# Order 4 forward has 38 such instructions and the adjoint 50 where AVX2 or AVX-512 is; half of that means a lost loop.
LEAST = 20


def assembly(name: str, engine: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    """Assembly of a time loop for float32 and order 4; code loaded from a cache has none, so it is compiled afresh."""
    shape = (8, 9)
    scheme = Scheme(
        spacing_m=(10.0, 10.0),
        dt_s=1e-3,
        order=4,
        absorbing=(3, 3, 3, 3),
        boundary="cpml",
        free_surface=False,
        pml_hz=20.0,
        max_velocity_mps=2000.0,
    )
    velocity, wavelet, points = np.full(shape, 2000.0), np.ones((1, 1, 5)), on_grid(np.array([[[3, 4]]]), shape)
    records, stored = engine.forward(velocity, wavelet, points, points, scheme, store=True)
    engine.gradient(velocity, wavelet, points, points, scheme, stored, records)
    loop = getattr(loops, name)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache))
    float32_order4 = next(
        signature
        for signature in loop.signatures
        if numba.types.UniTuple(numba.types.int64, 2) in signature and numba.types.float32[::1] in signature
    )
    fresh: Any = compiling.hot(loop.py_func)
    fresh.compile(float32_order4)
    return str(fresh.inspect_asm(float32_order4))


@pytest.mark.skipif(
    not llvmlite.binding.get_host_cpu_features().get("fma", False), reason="this processor has no x86 FMA instructions"
)
@pytest.mark.parametrize("name", ["march", "march_back"])
def test_hot_loops_are_packed_and_fused(
    name: str, fast32: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = assembly(name, fast32, monkeypatch, tmp_path)
    assert len(PACKED.findall(text)) >= LEAST
    assert len(SCALAR.findall(text)) <= 3 * len(PACKED.findall(text))
    assert "NRT_incref" not in text
    assert "NRT_decref" not in text


def test_settings_that_numba_lost_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a Numba release has neither private setting, the same function compiles without them."""
    assert set(compiling.private_options()) == {"pipeline_class", "_nrt"}
    monkeypatch.setattr(compiling, "Flags", object)
    monkeypatch.setattr(compiling, "CPUTargetOptions", object)
    monkeypatch.setitem(compiling._PUBLIC, "cache", False)
    assert compiling.private_options() == {}

    def double(values: Any) -> None:
        for i in range(values.size):
            values[i] *= 2.0

    values = np.arange(4.0)
    compiling.hot(double)(values)
    assert values.tolist() == [0.0, 2.0, 4.0, 6.0]


CALLER = """
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.callee import weight

@hot
def scale(values):
    for i in range(values.size):
        values[i] *= weight()
"""
CALLEE = """
from hpfwi_kernels.compiling import hot

@hot
def weight():
    return {weight}
"""
PROGRAM = """
import numpy as np
from hpfwi_kernels.caller import scale
values = np.ones(1)
scale(values)
print(values[0], sum(scale.stats.cache_hits.values()))
"""


def test_machine_code_is_kept_until_something_it_calls_changes(tmp_path: Path) -> None:
    """Numba alone would look at the caller's file and run the old callee."""
    package = tmp_path / "hpfwi_kernels"
    package.mkdir()
    shutil.copy(Path(compiling.__file__), package)
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)

    def run(weight: float) -> list[str]:
        (package / "callee.py").write_text(CALLEE.format(weight=weight))
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert run(2.0) == ["2.0", "0"]
    assert run(2.0) == ["2.0", "1"]
    assert run(3.0) == ["3.0", "0"]
