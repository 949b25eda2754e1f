"""The pooling by Numba's CUDA target: in its simulator on any machine, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from hpfwi_kernels.dct_pool import eager_multi_frequency_pool, op, published_frequencies

SIMULATED = """
import torch
from hpfwi_kernels.dct_pool import eager_multi_frequency_pool, published_frequencies
from hpfwi_kernels.dct_pool.op import numba_multi_frequency_pool

# Pooled into cells that are shared; there are slices with no rows left for them.
side, generator = 7, torch.Generator().manual_seed(13)
x = torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64).relu()
x[0, 1] = 0
above = torch.randn(3, 1, 2, generator=generator, dtype=torch.float64).unbind()
results = []
for pool in (numba_multi_frequency_pool, eager_multi_frequency_pool, numba_multi_frequency_pool):
    leaf = x.clone().requires_grad_()
    parts = pool(leaf, published_frequencies(side), side)
    (gradient,) = torch.autograd.grad(parts, leaf, above)
    results.append((*parts, gradient))
own, right, again = results
for one, other, same in zip(own, right, again, strict=True):
    torch.testing.assert_close(one, other, rtol=0, atol=64 * 2.3e-16 / side)
    assert torch.equal(one, same)
x = torch.ones(1, 1, 7, 7)
x[0, 0, 4, 4] = torch.nan
assert all(part.isnan().all() for part in numba_multi_frequency_pool(x, published_frequencies(7), 7))
print("simulated")
"""


def test_the_kernels_in_numbas_simulator() -> None:
    """In a process of its own, since the simulator replaces Numba's CUDA target when it is imported."""
    pytest.importorskip("numba.cuda")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SIMULATED], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.returncode) == ("simulated", 0), done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_on_a_gpu(dtype: torch.dtype) -> None:
    if not op.numba_is_usable():
        pytest.skip("Numba has no CUDA target that compiles here")
    generator = torch.Generator().manual_seed(1)
    for shape, side in (((70, 70), 56), ((17, 18), 14), ((8, 8), 28)):
        x = torch.randn(4, 8, *shape, generator=generator, dtype=torch.float64).to("cuda", dtype).requires_grad_()
        frequencies, eps = published_frequencies(side), torch.finfo(dtype).eps
        wide = x.detach().double().requires_grad_()
        own = op.numba_multi_frequency_pool(x, frequencies, side)
        peer = eager_multi_frequency_pool(wide, frequencies, side)
        for part, right in zip(own, peer, strict=True):
            torch.testing.assert_close(part.double(), right, rtol=2 * eps, atol=64 * eps / side)
        (gradient,) = torch.autograd.grad(own, x, [torch.ones_like(part) for part in own])
        (expected,) = torch.autograd.grad(peer, wide, [torch.ones_like(part) for part in peer])
        assert (gradient.double() - expected).norm() < 64 * eps * expected.norm()
