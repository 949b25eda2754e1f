"""What both compiled implementations do around their loops: input to the inner time step, results back from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.acoustic.kept import Kept, keep
from hpfwi_kernels.acoustic.memory import Memory
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import Setup, downsample, prepare, require_records, upsample
from hpfwi_kernels.errors import ModelError


@dataclass(frozen=True, eq=False)
class Call:
    """One call's input, checked."""

    setup: Setup
    scheme: Scheme
    dtype: np.dtype
    """Of the fields and of the results."""
    drive: NDArray
    """The wavelet at the inner time step, [shot, source, step]."""
    kept: Kept

    @property
    def shots(self) -> int:
        """Number of shots."""
        return self.drive.shape[0]

    @property
    def steps(self) -> int:
        """Number of inner time steps."""
        return self.drive.shape[2]

    def records(self, recorded: NDArray) -> NDArray:
        """Records [shot, receiver, time] of what was recorded at the inner time step, [shot, receiver, step]."""
        return np.ascontiguousarray(downsample(recorded, self.scheme.substeps), self.dtype)

    def residual(self, record_gradient: NDArray, receivers: Points, stored: NDArray) -> NDArray:
        """The gradient of the records at the inner time step, [shot, receiver, step].

        Raises ModelError unless it and the kept wavefields belong to this call.
        """
        substeps = self.scheme.substeps
        require_records(record_gradient, (self.shots, receivers.per_shot, self.steps // substeps))
        self.kept.require(stored)
        residual = record_gradient if substeps == 1 else upsample(record_gradient, substeps) / substeps
        return np.ascontiguousarray(residual, self.dtype)

    def wavelet_gradient(self, drive_gradient: NDArray) -> NDArray:
        """The gradient of the wavelet, [shot, source, time], from that at the inner time step."""
        return (downsample(drive_gradient, self.scheme.substeps) * self.scheme.substeps).astype(self.dtype)


def call_of(
    velocity: NDArray,
    wavelet: NDArray,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    memory: Memory,
    threads: int,
) -> Call:
    """Check the input of a forward run or a gradient; raises ModelError, GeometryError, StabilityError."""
    setup = prepare(velocity, wavelet, sources, receivers, scheme)
    dtype = velocity.dtype
    if dtype not in (np.float32, np.float64):
        raise ModelError(f"velocity has dtype {dtype}; give float32 or float64.")
    drive = upsample(wavelet, scheme.substeps).astype(dtype)
    shots, _, steps = drive.shape
    kept = keep(memory, scheme, setup.shape, dtype, steps=steps, shots=shots, threads=threads)
    return Call(setup, scheme, dtype, drive, kept)
