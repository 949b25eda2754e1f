"""The compiled wavelet convolution equals its definition, on any size and for any number of threads.

Two specialisations are compiled: float32 with 5 x 5 filters, which is what the networks use, and float64 with 3 x 3.
"""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.haar import cpu, reference

SIDE: dict[type, int] = {np.float32: 5, np.float64: 3}
# Odd and even, smaller than a filter, one row, one column, several blocks of four rows, wider than a vector.
SHAPES = [(1, 1), (2, 3), (5, 1), (1, 7), (9, 18), (18, 9), (35, 34), (13, 40)]


class Case(NamedTuple):
    x: NDArray
    base: NDArray
    bias: NDArray
    bands: NDArray
    gradient: NDArray


def case(shape: tuple[int, int], dtype: type, levels: int, samples: int = 5, k: int | None = None) -> Case:
    rng = np.random.default_rng(11)
    k = k or SIDE[dtype]
    sizes = [(samples, 3, *shape), (3, k, k), (3,), (levels, 3, 4, k, k), (samples, 3, *shape)]
    return Case(*(rng.standard_normal(size).astype(dtype) for size in sizes))


def require_close(result: NDArray, expected: NDArray, terms: float) -> None:
    """Rounding of sums of `terms` numbers near one, with a factor of 8 for the largest of many errors."""
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=8 * np.finfo(result.dtype).eps * terms)


def check(work: Case, wavelet: str, threads: int = 1) -> None:
    k, (samples, _, rows, columns) = work.base.shape[-1], work.x.shape
    out = cpu.forward(work.x, work.base, work.bias, work.bands, wavelet, threads=threads)
    assert out.dtype == work.x.dtype
    require_close(out, reference.forward(work.x, work.base, work.bias, work.bands, wavelet), 2 * k * k)
    parts = cpu.gradient(work.x, work.base, work.bands, work.gradient, wavelet, threads=threads)
    expected = reference.gradient(work.x, work.base, work.bands, work.gradient, wavelet)
    require_close(parts[0], expected[0], 2 * k * k)
    for part, right in zip(parts[1:], expected[1:], strict=True):
        require_close(part, right, 4 * np.sqrt(samples * rows * columns))


@pytest.mark.parametrize("dtype", SIDE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_haar_level_equals_the_definition(shape: tuple[int, int], dtype: type) -> None:
    check(case(shape, dtype, levels=1), "haar")


@pytest.mark.parametrize(
    ("levels", "wavelet"), [(0, "haar"), (2, "haar"), (4, "haar"), (1, "db2"), (2, "db3"), (1, "db4")]
)
@pytest.mark.parametrize("dtype", SIDE)
def test_levels_and_longer_wavelets_equal_the_definition(levels: int, wavelet: str, dtype: type) -> None:
    check(case((19, 22), dtype, levels), wavelet, threads=2)
    check(case((3, 5), dtype, levels), wavelet)


@pytest.mark.slow
def test_filters_of_seven() -> None:
    check(case((19, 22), np.float32, levels=2, k=7), "haar")


@pytest.mark.parametrize("wavelet", ["haar", "db3"])
@pytest.mark.parametrize("dtype", SIDE)
@pytest.mark.parametrize("shape", [(1, 1), (9, 18), (18, 35)], ids=str)
def test_transform_and_inverse_equal_the_definition(shape: tuple[int, int], dtype: type, wavelet: str) -> None:
    x = case(shape, dtype, levels=1).x
    bands = cpu.transform(x, wavelet, threads=2)
    require_close(bands, reference.transform(x, wavelet), 4)
    back = cpu.inverse(bands, shape, wavelet)
    require_close(back, reference.inverse(bands, shape, wavelet), 4)
    if wavelet == "haar":
        require_close(back, x, 4)


def test_the_bits_do_not_depend_on_threads_or_on_the_run() -> None:
    work = case((13, 21), np.float32, levels=2, samples=9)
    arguments = (work.x, work.base, work.bands, work.gradient)
    first = [cpu.forward(*work[:4]), *cpu.gradient(*arguments)]
    for threads in (1, 2, 3):
        again = [cpu.forward(*work[:4], threads=threads), *cpu.gradient(*arguments, threads=threads)]
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_plane_does_not_depend_on_its_neighbours() -> None:
    """Nothing of a plane stays in the buffers that the next one uses, not even infinities."""
    work = case((10, 17), np.float32, levels=2)
    loud = work.x.copy()
    loud[0] = np.inf
    with np.errstate(invalid="ignore"):
        out = cpu.forward(loud, *work[1:4])
    np.testing.assert_array_equal(out[1:], cpu.forward(work.x, *work[1:4])[1:])
    assert not np.isfinite(out[0]).any()


def test_the_data_gradient_is_the_transpose() -> None:
    work = case((12, 15), np.float64, levels=2)
    forward = cpu.forward(work.x, work.base, None, work.bands)
    gradient, *rest = cpu.gradient(work.x, work.base, work.bands, work.gradient, wants_weights=False)
    gap = abs(np.vdot(forward, work.gradient) - np.vdot(work.x, gradient))
    assert gap < 1e-13 * np.linalg.norm(forward) * np.linalg.norm(work.gradient)
    assert [part.size for part in rest] == [0, 0, 0]


def test_what_is_not_wanted_is_not_computed() -> None:
    work = case((5, 6), np.float64, levels=1)
    none, *weights = cpu.gradient(work.x, work.base, work.bands, work.gradient, wants_x=False)
    _, *expected = cpu.gradient(work.x, work.base, work.bands, work.gradient)
    assert none.size == 0
    for part, right in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(part, right)


def test_inputs_of_any_strides() -> None:
    work = case((9, 12), np.float64, levels=1)
    turned = work.x.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(cpu.forward(turned, *work[1:4]), cpu.forward(*work[:4]))


def test_other_dtypes_and_filters_are_refused() -> None:
    work = case((4, 4), np.float64, levels=1)
    with pytest.raises(KernelError, match="x has dtype int64; give float32 or float64"):
        cpu.forward(work.x.astype(np.int64), *work[1:4])
    with pytest.raises(KernelError, match="The filters are 9 x 9; this implementation has k = 3, 5, 7"):
        cpu.forward(work.x, np.ones((3, 9, 9)), work.bias, np.ones((1, 3, 4, 9, 9)))
