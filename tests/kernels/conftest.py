"""What every kernel test shares: poisoned buffers, the implementations under test, and a real wavelet."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand NaN to every kernel that asks for uninitialised memory: a cell no loop wrote then shows in the result."""

    def poison(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
        array = np.empty(shape, dtype)
        array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
        return array

    monkeypatch.setattr("hpfwi_kernels.buffers.empty", poison)


@dataclass(frozen=True)
class Engine:
    """One implementation of the acoustic kernel at one precision."""

    module: ModuleType
    dtype: Any

    @property
    def single(self) -> bool:
        """Whether the fields are float32."""
        return np.dtype(self.dtype) == np.float32

    def forward(self, velocity: NDArray, wavelet: NDArray, *args: Any, **kwargs: Any) -> Any:
        """Call the implementation's forward with inputs in this engine's precision, on one thread unless told."""
        kwargs = {"store": False, "threads": 1} | kwargs
        return self.module.forward(velocity.astype(self.dtype), wavelet.astype(self.dtype), *args, **kwargs)

    def gradient(self, velocity: NDArray, wavelet: NDArray, *args: Any, **kwargs: Any) -> Any:
        """Call the implementation's gradient; the last positional argument is the record gradient."""
        *rest, stored, record_gradient = args
        return self.module.gradient(
            velocity.astype(self.dtype),
            wavelet.astype(self.dtype),
            *rest,
            stored,
            record_gradient.astype(self.dtype),
            **({"threads": 1} | kwargs),
        )


def _engine(name: str) -> Engine:
    from hpfwi_kernels.acoustic import cpu, reference

    return {
        "reference": Engine(reference, np.float64),
        "cpu-float64": Engine(cpu, np.float64),
        "cpu-float32": Engine(cpu, np.float32),
    }[name]


@pytest.fixture(params=["reference", "cpu-float64", "cpu-float32"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every implementation at every precision it works in."""
    return _engine(request.param)


@pytest.fixture(params=["reference", "cpu-float64"])
def engine64(request: pytest.FixtureRequest) -> Engine:
    """Every implementation that works in float64."""
    return _engine(request.param)


@pytest.fixture(params=["cpu-float64", "cpu-float32"])
def compiled(request: pytest.FixtureRequest) -> Engine:
    """The compiled implementation, for runs that would take the reference minutes."""
    return _engine(request.param)


@pytest.fixture
def fast64() -> Engine:
    """The compiled implementation in float64."""
    return _engine("cpu-float64")


@pytest.fixture
def fast32() -> Engine:
    """The compiled implementation in float32."""
    return _engine("cpu-float32")


def _ricker(peak_hz: float, dt_s: float, samples: int, delay_s: float | None = None) -> NDArray[np.float64]:
    centre = 1.0 / peak_hz if delay_s is None else delay_s
    phase = (np.pi * peak_hz * (np.arange(samples) * dt_s - centre)) ** 2
    return (1.0 - 2.0 * phase) * np.exp(-phase)


@pytest.fixture
def ricker() -> Callable[..., NDArray[np.float64]]:
    """Ricker wavelet by peak frequency; its centre is one period after sample 0 unless told otherwise."""
    return _ricker
