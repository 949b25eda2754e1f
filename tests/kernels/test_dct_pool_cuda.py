"""The CUDA pooling: its kernels in Numba's simulator on any machine, and the op itself where there is a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from hpfwi_kernels.dct_pool import eager_multi_frequency_pool, multi_frequency_pool, published_frequencies

SIMULATED = """
import numpy as np
from hpfwi_kernels.dct_pool import cuda, published_frequencies, reference

rng = np.random.default_rng(13)
# Pooled with shared cells, and enlarged one way and pooled the other; there are slices with no rows left for them.
for shape, side, dtype, runs in (((9, 8), 7, np.float64, 2), ((5, 17), 14, np.float32, 1)):
    x = np.maximum(rng.standard_normal((2, *shape)), 0).astype(dtype)
    x[1] = 0
    frequencies = published_frequencies(side)
    *expected, right = reference.forward(x[None], frequencies, side)
    above = rng.standard_normal((3, 2)).astype(dtype)
    results = []
    for _ in range(runs):
        parts = [np.full(2, np.nan, dtype) for _ in range(3)]
        cells = np.full((2, 2, 16), -1, np.int32)
        cuda.forward(x, frequencies, side, *parts, cells)
        gradient = np.full(x.shape, np.nan, dtype)
        cuda.gradient(gradient, cells, frequencies, side, *above)
        results.append((*parts, cells, gradient))
    tolerance = 64 * np.finfo(dtype).eps
    for part, value in zip(parts, expected):
        np.testing.assert_allclose(part, value[0], rtol=0, atol=tolerance / side)
    # Where no cell is repeated, rounding does not decide which of equal cells is found.
    if dtype is np.float64 and min(shape) >= side:
        np.testing.assert_array_equal(cells, right[0])
    right_gradient = reference.gradient(shape, cells[None], frequencies, side, *above[:, None])[0]
    np.testing.assert_allclose(gradient, right_gradient, rtol=0, atol=tolerance / side)
    for one, other in zip(results[0], results[-1]):
        np.testing.assert_array_equal(one, other)
    if runs == 1:
        continue
    blind = [np.full(2, np.nan, dtype) for _ in range(3)]
    cuda.forward(x, frequencies, side, *blind, cells[:0])
    for one, other in zip(blind, parts):
        np.testing.assert_array_equal(one, other)

x = np.ones((1, 7, 7))
x[0, 4, 4] = np.nan
parts, cells = [np.zeros(1) for _ in range(3)], np.full((1, 2, 16), -1, np.int32)
cuda.forward(x, published_frequencies(7), 7, *parts, cells)
assert all(np.isnan(part).all() for part in parts), parts
assert ((cells >= 0) & (cells < 49)).all()
print("simulated")
"""


def test_the_kernels_in_numbas_simulator() -> None:
    """In a process of its own, since the simulator replaces Numba's CUDA target when it is imported."""
    pytest.importorskip("numba.cuda")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SIMULATED], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.returncode) == ("simulated", 0), done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_op_on_a_gpu(dtype: torch.dtype) -> None:
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
