"""The field of a point source in a homogeneous medium equals the two-dimensional Green's function.

(1/v²) u_tt = lap u + s(t) delta(x) has, at angular frequency w with fields ~ exp(iwt), the solution
S(w) G(k r), k = w/v, G = -i/4 H0^(2)(k r). The transform is taken along a contour w - i e just below the real axis (the
record is damped by exp(-e t) and grown back), which keeps G away from its singularity at w = 0 and lets nothing wrap
around in time. Grids are so large that nothing returns from their edges within a record, and the wavelet starts so late
that cutting its beginning off is below rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import hankel2

from hpfwi_kernels.acoustic import Scheme, on_grid

VELOCITY_MPS = 2000.0
PEAK_HZ = 10.0
# A Ricker wavelet's amplitude spectrum at 2.5 times its peak frequency is 3 % of its maximum: the shortest wavelength.
SHORTEST_M = VELOCITY_MPS / (2.5 * PEAK_HZ)
DELAY_S = 2.0 / PEAK_HZ


def green(wavelet: NDArray, dt_s: float, distances_m: NDArray, *, leap_frog: bool) -> NDArray[np.float64]:
    """Records [receiver, time] at the distances; with `leap_frog` time is discrete as in the kernel, space is not.

    The leap-frog step turns w² into (2/dt sin(w dt/2))²; with it, only the error of the spatial differences is left.
    """
    samples = wavelet.size
    length = 4 * samples
    decay = math.log(1e12) / (length * dt_s)
    time = np.arange(samples) * dt_s
    spectrum = np.fft.rfft(wavelet * np.exp(-decay * time), length)
    omega = 2 * np.pi * np.fft.rfftfreq(length, dt_s) - 1j * decay
    wavenumber = (2.0 / dt_s * np.sin(omega * dt_s / 2.0) if leap_frog else omega) / VELOCITY_MPS
    response = -0.25j * hankel2(0, wavenumber[None] * distances_m[:, None])
    return np.fft.irfft(response * spectrum, length)[:, :samples] * np.exp(decay * time)


def numerical(engine: Any, wavelet: NDArray, dt_s: float, spacing_m: float, order: int, offsets: NDArray) -> NDArray:
    """Records at cells `offsets` from the source, on a grid whose edges are too far to be heard."""
    heard = math.ceil(wavelet.size * dt_s * VELOCITY_MPS / spacing_m)
    half = (heard + int(offsets.max())) // 2 + 2 * order
    shape = (2 * half + 1, 2 * half + 1)
    scheme = Scheme(
        spacing_m=(spacing_m, spacing_m),
        dt_s=dt_s,
        order=order,
        absorbing=(0, 0, 0, 0),
        boundary="cpml",
        free_surface=False,
        pml_hz=PEAK_HZ,
        max_velocity_mps=VELOCITY_MPS,
    )
    centre = np.array([half, half])
    strength = (wavelet / spacing_m**2)[None, None]
    velocity = np.full(shape, VELOCITY_MPS)
    sources, receivers = on_grid(centre[None, None], shape), on_grid(centre + offsets[None], shape)
    return engine.forward(velocity, strength, sources, receivers, scheme)[0][0].astype(np.float64)


def relative(result: NDArray, truth: NDArray) -> float:
    """Relative L2 distance over all records."""
    return float(np.linalg.norm(result - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(("order", "per_wavelength", "bar"), [(8, 8, 0.01), (4, 10, 0.02)])
def test_green_function_over_ten_shortest_wavelengths(
    order: int, per_wavelength: int, bar: float, compiled: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    spacing = SHORTEST_M / per_wavelength
    dt = 0.15 * spacing / VELOCITY_MPS
    cells = 10 * per_wavelength
    diagonal = round(cells / math.sqrt(2.0))
    offsets = np.array([[0, cells], [cells, 0], [diagonal, diagonal], [cells // 2, cells // 3], [3, 1]])
    wavelet = ricker(PEAK_HZ, dt, math.ceil((12 * SHORTEST_M / VELOCITY_MPS + 1.5 * DELAY_S) / dt), DELAY_S)
    records = numerical(compiled, wavelet, dt, spacing, order, offsets)
    expected = green(wavelet, dt, np.hypot(*offsets.T) * spacing, leap_frog=False)
    for one, truth in zip(records, expected, strict=True):  # every receiver by itself: near ones must not hide far ones
        assert relative(one, truth) <= bar


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_error_falls_with_the_order_of_the_differences(
    order: int, fast64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    coarse_m, dt = SHORTEST_M / 4.0, 1e-3
    wavelet = ricker(PEAK_HZ, dt, 450, DELAY_S)
    far = np.array([[0, 12], [8, 8], [12, 4]])
    spacings, errors = [], []
    for refinement in (2, 3, 4):
        spacing, offsets = coarse_m / refinement, far * refinement
        records = numerical(fast64, wavelet, dt, spacing, order, offsets)
        expected = green(wavelet, dt, np.hypot(*offsets.T) * spacing, leap_frog=True)
        spacings.append(spacing)
        errors.append(relative(records, expected))
    observed = np.polyfit(np.log(spacings), np.log(errors), 1)[0]
    assert observed >= order - 0.3, f"errors {errors} at spacings {spacings}"


def test_leap_frog_correction_is_what_the_continuous_solution_lacks(
    fast64: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    spacing, dt = SHORTEST_M / 16.0, 1e-3
    offsets = np.array([[0, 60]])
    wavelet = ricker(PEAK_HZ, dt, 450, DELAY_S)
    records = numerical(fast64, wavelet, dt, spacing, 8, offsets)
    distances = np.hypot(*offsets.T) * spacing
    discrete = relative(records, green(wavelet, dt, distances, leap_frog=True))
    assert 100.0 * discrete < relative(records, green(wavelet, dt, distances, leap_frog=False))
