"""Vectors in compiled loops do, lane by lane, what NumPy does; with and without wide shuffles."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import ahead, behind, lanes, left, load, put, right, stream


@hot
def _neighbours(field, out, first):
    """Rows of out: both ways of reading one and three cells to the right and to the left."""
    width = lanes(field)
    low, here, high = load(field, first - width), load(field, first), load(field, first + width)
    put(out[0], np.uint64(0), right(field, first, here, high, 1))
    put(out[1], np.uint64(0), ahead(here, high, 1))
    put(out[2], np.uint64(0), right(field, first, here, high, 3))
    put(out[3], np.uint64(0), ahead(here, high, 3))
    put(out[4], np.uint64(0), left(field, first, low, here, 1))
    put(out[5], np.uint64(0), behind(low, here, 1))
    put(out[6], np.uint64(0), left(field, first, low, here, 3))
    put(out[7], np.uint64(0), behind(low, here, 3))
    return width


@hot
def _arithmetic(x, y, scalar, out):
    zero = np.uint64(0)
    put(out[0], zero, load(x, zero) + load(y, zero))
    put(out[1], zero, load(x, zero) - load(y, zero))
    put(out[2], zero, load(x, zero) * load(y, zero))
    put(out[3], zero, scalar * load(y, zero))
    put(out[4], zero, load(x, zero) - scalar)
    stream(out[5], zero, load(x, zero))
    return lanes(x)


def aligned(rows: int, columns: int, dtype: type) -> np.ndarray:
    raw = np.full(rows * columns * np.dtype(dtype).itemsize + 64, 255, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + rows * columns * np.dtype(dtype).itemsize].view(dtype).reshape(rows, columns)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_along_a_row(dtype: type) -> None:
    field: np.ndarray = np.random.default_rng(1).standard_normal(80).astype(dtype)
    out = aligned(8, 16, dtype)
    first = 21  # no multiple of anything: loads need no alignment
    width = _neighbours(field, out, np.uint64(first))
    for row, hop in zip(out, (1, 1, 3, 3, -1, -1, -3, -3), strict=True):
        assert np.array_equal(row[:width], field[first + hop : first + hop + width])
        assert np.isnan(row[width:]).all(), "written beyond the vector"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operators(dtype: type) -> None:
    x, y = np.random.default_rng(2).standard_normal((2, 16)).astype(dtype)
    scalar = dtype(0.3)
    out = aligned(6, 16, dtype)
    width = _arithmetic(x, y, scalar, out)
    expected = (x + y, x - y, x * y, scalar * y, x - scalar, x)
    for row, values in zip(out, expected, strict=True):
        assert np.array_equal(row[:width], values[:width])
        assert np.isnan(row[width:]).all(), "written beyond the vector"


CHILD = """
import numpy as np
from hpfwi_kernels import vectors
from hpfwi_kernels.acoustic import Scheme, cpu, on_grid, reference
assert not vectors.WIDE and vectors.VECTOR_BYTES == 32
velocity = np.linspace(1500, 3000, 13 * 19).reshape(13, 19)
scheme = Scheme(spacing_m=(10.0, 10.0), dt_s=1e-3, order=6, absorbing=(5,) * 4, boundary="cpml", free_surface=False,
                pml_hz=25.0, max_velocity_mps=3000.0)
wavelet = np.random.default_rng(0).standard_normal((1, 1, 40))
source, receivers = (on_grid(np.array([cells]), velocity.shape) for cells in ([[6, 9]], [[1, 2], [3, 17]]))
expected, kept = reference.forward(velocity, wavelet, source, receivers, scheme, store=True)
records, stored = cpu.forward(velocity, wavelet, source, receivers, scheme, store=True)
assert np.abs(records - expected).max() <= 1e-12 * np.abs(expected).max()
right = reference.gradient(velocity, wavelet, source, receivers, scheme, kept, expected)[0]
gradient = cpu.gradient(velocity, wavelet, source, receivers, scheme, stored, records)[0]
assert np.abs(gradient - right).max() <= 1e-12 * np.abs(right).max()
"""


@pytest.mark.slow
def test_a_processor_without_wide_shuffles_gets_the_same_numbers(tmp_path: os.PathLike[str]) -> None:
    """Numba compiles for the processor it is told; the code for this one runs on any that has AVX2."""
    if "avx2" not in cpu_flags():
        pytest.skip("this processor has no AVX2, which the code that is checked needs")
    told = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CHILD], env=os.environ | told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read()
    except OSError:
        return ""
