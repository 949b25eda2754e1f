"""The wavelet transform's definition: the published bands, orthonormal filters, PyWavelets, and its own transpose."""

import numpy as np
import pytest

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.haar import reference
from hpfwi_kernels.haar.filters import NAMES, filters

EPS = np.finfo(np.float64).eps


def test_haar_bands_of_one_cell() -> None:
    """Low, difference along rows, difference along columns, diagonal: the table of the published layer."""
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    bands = reference.transform(np.array([[a, b], [c, d]]))[:, 0, 0]
    expected = [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
    np.testing.assert_allclose(bands, expected, rtol=0, atol=16 * EPS)


def test_an_odd_side_continues_with_zeros() -> None:
    x = np.arange(1.0, 16.0).reshape(3, 5)
    np.testing.assert_array_equal(reference.transform(x), reference.transform(np.pad(x, ((0, 1), (0, 1)))))


@pytest.mark.parametrize("wavelet", NAMES)
def test_filters_are_orthonormal_and_their_high_pass_has_its_vanishing_moments(wavelet: str) -> None:
    low, high = filters(wavelet)
    length = low.size
    for shift in range(0, length, 2):
        expected = 1.0 if shift == 0 else 0.0
        for taps in (low, high):
            assert abs(taps[shift:] @ taps[: length - shift] - expected) < 8 * EPS
        assert abs(low[shift:] @ high[: length - shift]) < 8 * EPS
        assert abs(high[shift:] @ low[: length - shift]) < 8 * EPS
    for moment in range(length // 2):
        assert abs(high @ np.arange(length) ** moment) < 8 * EPS * length**moment


@pytest.mark.parametrize("wavelet", NAMES)
@pytest.mark.parametrize("shape", [(8, 12), (7, 9)])
def test_transform_equals_pywavelets(wavelet: str, shape: tuple[int, int]) -> None:
    """PyWavelets starts one sample later where length / 2 is even: it is given one zero more in front."""
    peer = pytest.importorskip("pywt")
    x = np.random.default_rng(5).standard_normal(shape)
    half = filters(wavelet).low.size // 2
    early = (half + 1) % 2
    padded = np.pad(x, ((early, 0), (early, 0)))
    low, (rows, columns, cross) = peer.dwt2(padded, wavelet, mode="zero")
    first = (half - 1 + early) // 2
    place = (slice(first, first + -(-shape[0] // 2)), slice(first, first + -(-shape[1] // 2)))
    expected = np.stack([low[place], rows[place], columns[place], cross[place]])
    np.testing.assert_allclose(reference.transform(x, wavelet), expected, rtol=0, atol=32 * EPS)


@pytest.mark.parametrize("wavelet", NAMES)
def test_inverse_is_the_transpose_and_gives_back_what_lies_inside(wavelet: str) -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((2, 24, 26)), rng.standard_normal((2, 4, 12, 13))
    left, right = np.vdot(reference.transform(x, wavelet), y), np.vdot(x, reference.inverse(y, (24, 26), wavelet))
    assert abs(left - right) < 64 * EPS * np.linalg.norm(x) * np.linalg.norm(y)
    edge = filters(wavelet).low.size - 2
    inside = (..., slice(edge, 24 - edge), slice(edge, 26 - edge))
    back = reference.inverse(reference.transform(x, wavelet), (24, 26), wavelet)
    np.testing.assert_allclose(back[inside], x[inside], rtol=0, atol=64 * EPS)


@pytest.mark.parametrize(("levels", "wavelet"), [(0, "haar"), (1, "haar"), (3, "haar"), (2, "db2")])
def test_gradient_is_the_transpose_in_every_argument(levels: int, wavelet: str) -> None:
    rng = np.random.default_rng(7)
    shape, k = (2, 3, 11, 14), 3
    x, base, bias = rng.standard_normal(shape), rng.standard_normal((3, k, k)), rng.standard_normal(3)
    bands, y = rng.standard_normal((levels, 3, 4, k, k)), rng.standard_normal(shape)
    x_gradient, *weights = reference.gradient(x, base, bands, y, wavelet)
    linear = reference.forward(x, base, None, bands, wavelet)
    bound = 1e-13 * np.linalg.norm(linear) * np.linalg.norm(y)
    assert abs(np.vdot(linear, y) - np.vdot(x, x_gradient)) < bound
    full = np.vdot(reference.forward(x, base, bias, bands, wavelet), y)
    assert abs(full - sum(np.vdot(p, g) for p, g in zip((base, bias, bands), weights, strict=True))) < bound


def test_an_unknown_wavelet_is_refused() -> None:
    with pytest.raises(KernelError, match="wavelet='db9' is not known: give one of haar, db2, db3, db4"):
        filters("db9")
