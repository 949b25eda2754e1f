"""The compiled pooling equals its definition, ties and all, and its gradient is the transpose of its derivative."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.dct_pool import cpu, published_frequencies, reference
from hpfwi_kernels.dct_pool.tables import bins, cosine
from hpfwi_kernels.errors import KernelError

DTYPES = [np.float32, np.float64]
# Pooled, equal, enlarged, mixed; sides that are no multiple of a vector or of four rows; wide bins.
SIZES = [((18, 17), 14), ((14, 14), 14), ((8, 9), 28), ((9, 40), 14), ((1, 1), 7), ((70, 35), 56), ((100, 61), 7)]


def planes(shape: tuple[int, int], dtype: type, samples: int = 2, channels: int = 3) -> NDArray:
    """Random planes, rectified so that many cells are equal, and one that is all zeros."""
    x = np.maximum(np.random.default_rng(8).standard_normal((samples, channels, *shape)), 0)
    x[0, 1] = 0
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "side"), SIZES)
def test_pooling_equals_the_definition(shape: tuple[int, int], side: int, dtype: type) -> None:
    x, frequencies = planes(shape, dtype), published_frequencies(side)
    *parts, cells = cpu.forward(x, frequencies, side, threads=2)
    *expected, right = reference.forward(x, frequencies, side)
    eps = np.finfo(dtype).eps
    for part, value in zip(parts, expected, strict=True):
        assert part.dtype == dtype
        np.testing.assert_allclose(part, value, rtol=0, atol=16 * eps * np.abs(x).max() / side)
    # The cell found must hold the extreme; it is the same one where no cell is repeated, so that rounding does
    # not decide between equal ones.
    products = np.stack([_pooled(x, side) * table for table in reference.tables(frequencies, side)], axis=2).reshape(
        *x.shape[:2], len(frequencies), -1
    )
    held = np.stack([np.take_along_axis(products, c[..., None], -1)[..., 0] for c in np.moveaxis(cells, 2, 0)])
    extremes = np.stack([products.max(-1), products.min(-1)])
    np.testing.assert_allclose(held, extremes, rtol=0, atol=16 * eps * np.abs(x).max() / side)
    if dtype is np.float64 and min(shape) >= side:
        np.testing.assert_array_equal(cells, right)


def _pooled(x: NDArray, side: int) -> NDArray[np.float64]:
    rows = [x[:, :, first:end].mean(2, dtype=np.float64) for first, end in bins(x.shape[2], side)]
    grid = np.stack(rows, axis=2)
    return np.stack([grid[..., first:end].mean(-1) for first, end in bins(x.shape[3], side)], axis=-1)


def test_of_equal_cells_the_first_counts() -> None:
    x = np.ones((1, 1, 7, 7))
    x[..., 2:4, 3:] = 2.0
    x[..., 5, :2] = 2.0
    *_, cells = cpu.forward(x, [(0, 0)], 7)
    assert cells.ravel().tolist() == [2 * 7 + 3, 0]


def test_not_a_number_wins() -> None:
    x = np.ones((1, 2, 9, 9))
    x[0, 1, 4, 4] = np.nan
    mean, high, low, cells = cpu.forward(x, published_frequencies(7), 7)
    assert np.isfinite([mean[0, 0], high[0, 0], low[0, 0]]).all()
    assert np.isnan([mean[0, 1], high[0, 1], low[0, 1]]).all()
    assert ((cells >= 0) & (cells < 49)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "side"), SIZES)
def test_gradient_equals_the_definition(shape: tuple[int, int], side: int, dtype: type) -> None:
    x, frequencies = planes(shape, dtype), published_frequencies(side)
    cells = cpu.forward(x, frequencies, side)[3]
    above: NDArray = np.random.default_rng(9).standard_normal((3, *x.shape[:2])).astype(dtype)
    out = cpu.gradient(shape, cells, frequencies, side, *above, threads=2)
    expected = reference.gradient(shape, cells, frequencies, side, *above)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected, rtol=0, atol=32 * np.finfo(dtype).eps * np.abs(expected).max())


def test_gradient_is_the_transpose_where_the_extremes_stay() -> None:
    """The extremes keep their cells when x grows by a factor, so the results are linear along x."""
    shape, side = (18, 17), 14
    x, frequencies = planes(shape, np.float64), published_frequencies(side)
    *parts, cells = cpu.forward(x, frequencies, side)
    above = np.random.default_rng(10).standard_normal((3, *x.shape[:2]))
    left = sum(np.vdot(part, g) for part, g in zip(parts, above, strict=True))
    right = np.vdot(x, cpu.gradient(shape, cells, frequencies, side, *above))
    assert abs(left - right) < 1e-13 * np.linalg.norm(np.stack(parts)) * np.linalg.norm(above)


def test_the_bits_do_not_depend_on_threads_or_on_the_positions() -> None:
    x, frequencies = planes((18, 17), np.float32, samples=5), published_frequencies(14)
    *parts, cells = cpu.forward(x, frequencies, 14)
    above = np.random.default_rng(12).standard_normal((3, *x.shape[:2])).astype(np.float32)
    gradient = cpu.gradient((18, 17), cells, frequencies, 14, *above)
    for threads in (1, 2, 3):
        again = cpu.forward(x, frequencies, 14, threads=threads)
        for one, other in zip((*parts, cells), again, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(gradient, cpu.gradient((18, 17), cells, frequencies, 14, *above, threads=threads))
    *plain, none = cpu.forward(x, frequencies, 14, positions=False)
    assert none.size == 0
    for one, other in zip(parts, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_cosines_are_orthonormal() -> None:
    matrix = np.stack([cosine(frequency, 14) for frequency in range(14)])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(14), rtol=0, atol=1e-14)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(KernelError, match=re.escape("frequency 14 does not exist for side=14: give 0 to 13.")):
        cpu.forward(np.ones((1, 1, 3, 3)), [(14, 0)], 14)
    with pytest.raises(KernelError, match="x has dtype int64; give float32 or float64"):
        cpu.forward(np.ones((1, 1, 3, 3), np.int64), [(0, 0)], 14)
    with pytest.raises(KernelError, match="side=6 is smaller"):
        published_frequencies(6)
