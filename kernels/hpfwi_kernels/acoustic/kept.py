"""What a forward run keeps for its gradient in one call: shapes, segments of steps, and where things lie."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.acoustic.boundary import core, ring_cells
from hpfwi_kernels.acoustic.layout import aligned
from hpfwi_kernels.acoustic.memory import Memory, Mode, cells_of, kept_shape, segment_shape, segments
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.errors import ModelError


@dataclass(frozen=True, eq=False)
class Kept:
    """What a way of keeping the wavefield comes to for one call."""

    mode: Mode
    dtype: np.dtype
    """Of a field."""
    bracket_dtype: np.dtype
    """The same, or uint16 for bfloat16."""
    segments: list[tuple[int, int]]
    """First and last+1 step."""
    shape: tuple[int, ...]
    """[shot, slot, cell] in "store", [shot, segment, cell] in "checkpoint", [shot, cell] in "boundary"."""
    segment: tuple[int, int]
    """[slot, cell] of one segment's brackets where they are computed again, else of nothing."""
    core: tuple[np.uint64, ...]
    """As `boundary.core` gives it in mode "boundary"; zeros that nobody reads in the others."""
    ring_shape: tuple[int, int]
    """[step, cell]"""

    def room(self, pool: buffers.Pool | None) -> NDArray:
        """Uninitialised memory for all that is kept, from a cache line on."""
        return _take(self.shape, self.bracket_dtype if self.mode == "store" else self.dtype, pool)

    def segment_room(self, pool: buffers.Pool | None) -> NDArray:
        """Uninitialised memory for the brackets of one segment, from a cache line on."""
        return _take(self.segment, self.bracket_dtype, pool)

    def brackets(self, mine: NDArray | None) -> NDArray:
        """The brackets in what one shot keeps; where there are none, an array of their kind that nobody reads."""
        if mine is None or self.mode != "store":
            return buffers.zeros((1, 1), self.bracket_dtype)
        return mine

    def ring(self, mine: NDArray | None) -> tuple[NDArray, NDArray | None]:
        """The ring at every step and the last two fields, as views of what one shot keeps.

        Where there are none, an array that nobody reads, and None.
        """
        if mine is None or self.mode != "boundary":
            return buffers.zeros((1, 1), self.dtype), None
        size = math.prod(self.ring_shape)
        return mine[:size].reshape(self.ring_shape), mine[size:].reshape(2, -1)

    def require(self, stored: NDArray) -> None:
        """Raise ModelError unless this call keeps wavefields of that shape."""
        if stored.shape != self.shape:
            raise ModelError(
                f"The stored wavefields have shape {stored.shape} and this call keeps {self.shape}; pass what forward "
                "returned for the same scheme, memory and threads."
            )


def keep(
    memory: Memory,
    scheme: Scheme,
    padded: tuple[int, ...],
    dtype: np.dtype,
    *,
    steps: int,
    shots: int,
    threads: int,
) -> Kept:
    """Lay out what is kept; `padded` are the cells of the model with its layers.

    Raises ModelError for half=True in float64, and in mode "boundary" for a model that is all layers.
    """
    if memory.half and dtype != np.float32:
        raise ModelError(f"half=True keeps float32 brackets in 16 bits and velocity is {dtype}; leave half out.")
    parts = segments(memory, scheme, steps, shots, threads)
    segment, around, ring = (1, 1), (0,) * (2 * len(padded)), (1, 1)
    if memory.mode == "checkpoint":
        segment = segment_shape(parts[0], scheme, cells_of(padded, scheme))
    elif memory.mode == "boundary":
        around, ring = core(padded, scheme), (steps, ring_cells(padded, scheme))
    return Kept(
        mode=memory.mode,
        dtype=dtype,
        bracket_dtype=np.dtype(np.uint16) if memory.half else dtype,
        segments=parts,
        shape=kept_shape(memory, scheme, padded, steps, shots, threads),
        segment=segment,
        core=tuple(np.uint64(edge) for edge in around),
        ring_shape=ring,
    )


def _take(shape: tuple[int, ...], dtype: np.dtype, pool: buffers.Pool | None) -> NDArray:
    return aligned(math.prod(shape), dtype, pool=pool).reshape(shape)
