"""The CUDA wavelet convolution: its source run on the processor, compiled for GPUs, and the op where there is one."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.haar import cuda, eager_wavelet_convolution, reference, wavelet_convolution
from tests.kernels.cuda_on_cpu import library_of

K = 3
# The kernels as functions of addresses, for a block's threads as fibers.
HARNESS = """
#include "cuda_on_cpu.h"
#include "{source}"
#define FIELDS(t) t->rows, t->columns, t->tile_rows, t->tile_columns, t->tiles_down, t->tiles_across, t->channels

extern "C" int run_forward(
    const void* x, const float* base, const float* bias, const float* bands, void* y, const Tile* t, int planes,
    int threads, int backwards, int low
) {{
    const int blocks = planes * t->tiles_down * t->tiles_across;
    return fibers::launch(blocks, threads, backwards, [&] {{
        if (low) forward<Bf16, {k}>((const Bf16*)x, base, bias, bands, (Bf16*)y, FIELDS(t));
        else forward<float, {k}>((const float*)x, base, bias, bands, (float*)y, FIELDS(t));
    }});
}}

extern "C" int run_gradient(
    const float* x, const float* g, float* partial, float* total, const Tile* t, int samples, int threads, int backwards
) {{
    const int tiles = t->tiles_down * t->tiles_across, terms = 5 * {k} * {k} + 1;
    const bool done = fibers::launch(samples * t->channels * tiles, threads, backwards, [&] {{
        filter_gradient<float, {k}>(x, g, partial, FIELDS(t));
    }});
    return done && fibers::launch((t->channels * terms + threads - 1) / threads, threads, backwards, [&] {{
        sum_partials(partial, total, samples, t->channels, tiles, terms);
    }});
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return library_of(HARNESS.format(source=cuda.SOURCE, k=K), tmp_path_factory.mktemp("kernels"))


def address(array: NDArray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


# Even and odd, several tiles with an odd rest, less than a strip, more cells than threads.
TILES = [
    cuda.tile_of(12, 10, 2),
    cuda.tile_of(9, 7, 2),
    cuda.Tile(21, 19, 4, 3, 3, 4, 2),
    cuda.tile_of(1, 2, 2),
    cuda.tile_of(40, 38, 2),
]


def problem(tile: cuda.Tile, samples: int = 2) -> list[NDArray]:
    rng = np.random.default_rng(17)
    sizes = [(samples, 2, tile.rows, tile.columns), (2, K, K), (2,), (1, 2, 4, K, K)]
    return [rng.standard_normal(size).astype(np.float32) for size in (*sizes, sizes[0])]


def run_forward(
    library: ctypes.CDLL, tile: cuda.Tile, x: NDArray, weights: list[NDArray | None], order: int
) -> NDArray:
    y = np.full(x.shape, -1 if x.dtype == np.uint16 else np.nan).astype(x.dtype)
    parts = [address(array) for array in (x, *weights, y)]
    fields = np.array(tile, np.int32)
    assert library.run_forward(*parts, address(fields), x.shape[0] * x.shape[1], 32, order, x.dtype == np.uint16)
    return y


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_forward_on_the_processor(library: ctypes.CDLL, tile: cuda.Tile) -> None:
    x, base, bias, bands, _ = problem(tile)
    y = run_forward(library, tile, x, [base, bias, bands], 0)
    np.testing.assert_allclose(y, reference.forward(x, base, bias, bands), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(y, run_forward(library, tile, x, [base, bias, bands], 1))
    plain = run_forward(library, tile, x, [base, None, bands], 0)
    np.testing.assert_allclose(plain, reference.forward(x, base, None, bands), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_filter_gradients_on_the_processor(library: ctypes.CDLL, tile: cuda.Tile) -> None:
    x, base, _, bands, gradient = problem(tile)
    count, terms = x.shape[0] * 2 * tile.tiles * (5 * K * K + 1), 5 * K * K + 1
    totals = []
    for order in (0, 1):
        partial, total = np.full(count, np.nan, np.float32), np.full((2, terms), np.nan, np.float32)
        arrays = [address(array) for array in (x, gradient, partial, total, np.array(tile, np.int32))]
        assert library.run_gradient(*arrays, x.shape[0], 32, order)
        totals.append(total)
    np.testing.assert_array_equal(totals[0], totals[1])
    _, base_gradient, bias_gradient, band_gradient = reference.gradient(x, base, bands, gradient)
    atol = 2e-6 * np.sqrt(x.size)
    np.testing.assert_allclose(totals[0][:, : K * K], base_gradient.reshape(2, -1), rtol=0, atol=atol)
    np.testing.assert_allclose(totals[0][:, K * K : -1], band_gradient[0].reshape(2, -1), rtol=0, atol=atol)
    np.testing.assert_allclose(totals[0][:, -1], bias_gradient, rtol=0, atol=atol)


def test_bfloat16_is_rounded_once_and_to_even(library: ctypes.CDLL) -> None:
    tile = TILES[1]
    x, base, bias, bands, _ = problem(tile)
    low = torch.from_numpy(x).bfloat16()
    y = run_forward(library, tile, low.view(torch.uint16).numpy(), [base, bias, bands], 0)
    wide = run_forward(library, tile, low.float().numpy(), [base, bias, bands], 0)
    expected = torch.from_numpy(wide).bfloat16()
    assert torch.equal(torch.from_numpy(y).view(torch.bfloat16), expected)


def test_a_missing_barrier_is_seen(tmp_path: Path) -> None:
    """Without one of the barriers, the order in which threads run shows in the result, or a cell is NaN."""
    text = cuda.SOURCE.read_text("utf-8")
    barriers = [found.start() for found in re.finditer(r"__syncthreads\(\);", text)]
    assert len(barriers) == 7
    second = text[: barriers[1]] + text[barriers[1] :].replace("__syncthreads();", "", 1)
    (tmp_path / "broken.cu").write_text(second)
    broken = library_of(HARNESS.format(source="broken.cu", k=K), tmp_path)
    x, base, bias, bands, _ = problem(TILES[0])
    good = reference.forward(x, base, bias, bands)
    results = [run_forward(broken, TILES[0], x, [base, bias, bands], order) for order in (0, 1)]
    assert any(not np.allclose(result, good, atol=1e-3, equal_nan=False) for result in results)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
def test_the_kernels_compile_for_gpus_without_spilling(architecture: str, tmp_path: Path) -> None:
    """Registers and shared memory leave room for three blocks of a 70 x 70 plane on a multiprocessor of an A100."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc on PATH")
    instances, numbers = [], ", ".join(["int"] * 7)
    for name in cuda.names()[:-1]:
        io = "Bf16" if "Bf16" in name else "float"
        rest = "const float*, const float*, const float*, " if name.startswith("forward") else f"const {io}*, "
        last = f"{io}*" if name.startswith("forward") else "float*"
        instances.append(f"template __global__ void {name}(const {io}*, {rest}{last}, {numbers});")
    (tmp_path / "all.cu").write_text("\n".join([f'#include "{cuda.SOURCE}"', *instances]))
    command = [compiler, "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas", "-v", "all.cu", "-o", "all.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", done.stderr)]
    spills = [int(found) for found in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert len(registers) == len(cuda.names())
    assert max(registers) <= 128
    assert set(spills) == {0}
    tile = cuda.tile_of(70, 70, 64)
    assert 3 * (tile.shared_bytes(5, gradient=False) + 1024) <= 164 * 1024
    # What the smallest of them, sm_89, gives a block.
    assert max(tile.shared_bytes(5, gradient=gradient) for gradient in (False, True)) <= 99 * 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70, 70), (35, 35), (18, 18), (280, 70), (301, 149)])
def test_the_op_on_a_gpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pytest.importorskip("cupy")
    generator = torch.Generator().manual_seed(2)
    sizes = [(2, 4, *shape), (4, 1, 5, 5), (4,), (4,), (16, 1, 5, 5), (16,)]
    values = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    values[0] = values[0].to(dtype).double()
    own = [value.to("cuda", dtype if n == 0 else torch.float32).requires_grad_() for n, value in enumerate(values)]
    right = [value.to("cuda").requires_grad_() for value in values]
    results = []
    for layer, tensors in ((wavelet_convolution, own), (eager_wavelet_convolution, right)):
        x, base, bias, scale, bands, band_scale = tensors
        y = layer(x, base, bias, scale, [bands], [band_scale])
        results.append((y, *torch.autograd.grad(y, tensors, torch.ones_like(y))))
    eps = torch.finfo(dtype).eps
    for part, expected in zip(*results, strict=True):
        assert (part.double() - expected).norm() < 8 * eps * expected.norm()
