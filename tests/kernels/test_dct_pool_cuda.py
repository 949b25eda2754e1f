"""The CUDA pooling: its kernels run on the processor, compiled for GPUs, and the op itself where there is one."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic.cuda import Limits
from hpfwi_kernels.dct_pool import (
    cuda,
    eager_multi_frequency_pool,
    multi_frequency_pool,
    published_frequencies,
    reference,
)
from tests.kernels.cuda_on_cpu import Processor, filled
from tests.kernels.cupy_on_cpu import STREAM, cupy_on

LIMITS = Limits("a test", 58, 99 * 1024, clusters=False)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    made = Processor(tmp_path_factory.mktemp("kernels"))
    reals = ("float", "double")
    made.build(
        cuda.SOURCE.read_text("utf-8"),
        {*(f"forward<{real}, 7>" for real in reals), *(f"gradient<{real}>" for real in reals)},
    )
    return made


def pooled(
    processor: Processor, x: NDArray, side: int, above: NDArray, order: int, *, positions: bool = True
) -> tuple[NDArray, ...]:
    """Mean, largest and least [plane], cells, and where these are wanted the gradient of x [plane, row, column]."""
    frequencies, planes = published_frequencies(side), len(x)
    told: dict[str, Any] = {
        "planes": planes, "shape": x.shape[1:], "frequencies": frequencies, "side": side, "dtype": x.dtype.name,
        "device": 1, "stream": STREAM,
    }  # fmt: skip
    tables = cuda.tables(x.shape[1:], frequencies, side, x.dtype.name)
    shared = np.zeros(tables.size + 16, np.uint8)
    begin = -shared.ctypes.data % 16
    shared[begin : begin + tables.size] = tables
    parts, cells, gradient = filled((3, planes), x.dtype), filled((planes, 2, 16), np.int32), filled(x.shape, x.dtype)
    place = shared.ctypes.data + begin
    with cupy_on(processor, LIMITS, order) as gpus:
        mean, high, low = (part.ctypes.data for part in parts)
        cuda.forward(x.ctypes.data, place, mean, high, low, cells.ctypes.data if positions else 0, **told)
        if positions:
            mean, high, low = (one.ctypes.data for one in above)
            cuda.gradient(gradient.ctypes.data, place, mean, high, low, cells.ctypes.data, **told)
    assert {one[:2] for one in gpus.done} == {(1, STREAM)}
    return (*parts, cells, gradient)


# Pooled with shared cells; enlarged one way and pooled the other, with slices that have no rows left for them.
@pytest.mark.parametrize(("shape", "side", "dtype"), [((9, 8), 7, np.float64), ((5, 17), 14, np.float32)])
def test_the_kernels_on_the_processor(shape: tuple[int, int], side: int, dtype: Any, processor: Processor) -> None:
    rng = np.random.default_rng(13)
    x = np.maximum(rng.standard_normal((2, *shape)), 0).astype(dtype)
    x[1] = 0
    frequencies = published_frequencies(side)
    *expected, right = reference.forward(x[None], frequencies, side)
    above = rng.standard_normal((3, 2)).astype(dtype)
    *parts, cells, gradient = pooled(processor, x, side, above, 0)
    tolerance = 64 * np.finfo(dtype).eps / side
    for part, value in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, value[0], rtol=0, atol=tolerance)
    # Where no cell is repeated, rounding does not decide which of equal cells is found.
    if min(shape) >= side:
        np.testing.assert_array_equal(cells, right[0])
    right_gradient = reference.gradient(shape, cells[None], frequencies, side, *above[:, None])[0]
    np.testing.assert_allclose(gradient, right_gradient, rtol=0, atol=tolerance)
    for order in (1, 7):
        for one, same in zip(pooled(processor, x, side, above, order), (*parts, cells, gradient), strict=True):
            np.testing.assert_array_equal(one, same)
    *blind, untouched, _ = pooled(processor, x, side, above, 0, positions=False)
    np.testing.assert_array_equal(blind, parts)
    assert (untouched == np.iinfo(np.int32).max).all()


def test_nan_is_the_extreme_of_a_plane_that_has_one(processor: Processor) -> None:
    x = np.ones((1, 7, 7))
    x[0, 4, 4] = np.nan
    *parts, cells, _ = pooled(processor, x, 7, np.zeros((3, 1)), 0)
    assert np.isnan(parts).all()
    assert ((cells >= 0) & (cells < 49)).all()


def test_a_missing_barrier_is_seen(tmp_path: Path) -> None:
    """Without one of the barriers, the order in which threads run shows in the result, or a cell is NaN."""
    text = cuda.SOURCE.read_text("utf-8")
    barriers = [found.start() for found in re.finditer(r"__syncthreads\(\);", text)]
    assert len(barriers) == 3
    x, above = np.random.default_rng(5).standard_normal((1, 9, 8)), np.ones((3, 1))
    for number, at in list(enumerate(barriers))[1:]:
        folder = tmp_path / str(number)
        folder.mkdir()
        without = text[:at] + text[at:].replace("__syncthreads();", "", 1)
        broken = Processor(folder, edit={text: without}.__getitem__)
        broken.build(text, {"forward<double, 7>", "gradient<double>"})
        # Cells that a broken run found are no cells, and nothing may be looked up there.
        found = [pooled(broken, x, 7, above, order, positions=number == 2) for order in (0, 1)]
        assert not all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_what_a_gpu_cannot_hold_is_left_to_torch() -> None:
    assert cuda.takes(published_frequencies(56), 56)
    assert not cuda.takes([(0, 0)], cuda.MOST_THREADS + 1)
    assert not cuda.takes([(row, 0) for row in range(40)], 200)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_for_gpus_without_spilling(architecture: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc on PATH")
    instances = []
    for real in ("float", "double"):
        told = f"const {real}*, const int*, const {real}*, const int*, const {real}*, const {real}*, const int*"
        numbers = ", ".join(["int"] * 7)
        instances += [
            f"template __global__ void forward<{real}, 7>(const {real}*, {told}, {real}*, {real}*, {real}*, int*, "
            f"{numbers});",
            f"template __global__ void gradient<{real}>({real}*, {told}, const {real}*, const {real}*, const {real}*, "
            f"const int*, {numbers});",
        ]
    (tmp_path / "all.cu").write_text("\n".join([f'#include "{cuda.SOURCE}"', *instances]))
    command = [compiler, "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas", "-v", "all.cu", "-o", "all.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) == 4
    assert max(registers) <= 255
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_op_on_a_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip("cupy")
    generator = torch.Generator().manual_seed(1)
    for shape, side in (((70, 70), 56), ((17, 18), 14), ((8, 8), 28)):
        x = torch.randn(4, 8, *shape, generator=generator, dtype=torch.float64).to("cuda", dtype).requires_grad_()
        frequencies = published_frequencies(side)
        wide = x.detach().double().requires_grad_()
        own, peer = multi_frequency_pool(x, frequencies, side), eager_multi_frequency_pool(wide, frequencies, side)
        eps = torch.finfo(dtype).eps
        for part, right in zip(own, peer, strict=True):
            torch.testing.assert_close(part.double(), right, rtol=2 * eps, atol=64 * eps / side)
        (gradient,) = torch.autograd.grad(own, x, [torch.ones_like(part) for part in own])
        (expected,) = torch.autograd.grad(peer, wide, [torch.ones_like(part) for part in peer])
        gap = (gradient.double() - expected).norm() / expected.norm()
        assert gap < 64 * eps
