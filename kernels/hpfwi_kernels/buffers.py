"""The one place where kernels take uninitialised memory.

Kernels call `buffers.empty` through the module, so that a test can replace it by a version that returns NaN: a cell
that no loop wrote then shows in the result at once.
"""

import math
import threading
import weakref

import numpy as np
from numpy.typing import DTypeLike, NDArray

Shape = int | tuple[int, ...]


def empty(shape: Shape, dtype: DTypeLike) -> NDArray:
    """Uninitialised array of the given shape and dtype."""
    return np.empty(shape, dtype)


def zeros(shape: Shape, dtype: DTypeLike) -> NDArray:
    """Array of zeros: for state that the equations start from zero, such as wavefields and absorbing-layer memory."""
    return np.zeros(shape, dtype)


class Pool:
    """Large buffers that are used again instead of being given back to the operating system.

    The first touch of fresh memory costs more than the time step that fills it, so a caller that propagates again and
    again keeps one pool and passes it to every call. Safe to use from several threads.

    >>> pool = Pool()
    >>> first = pool.lend((2, 3), np.float32)
    >>> row = first[1]
    >>> address = first.ctypes.data
    >>> del first  # the row still needs the memory
    >>> second = pool.lend((3, 2), np.float32)
    >>> second.ctypes.data == address
    False
    >>> del row
    >>> pool.lend((3, 2), np.float32).ctypes.data == address
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[NDArray[np.uint8]] = []

    def lend(self, shape: Shape, dtype: DTypeLike) -> NDArray:
        """Uninitialised array; its memory returns to the pool by itself when nothing refers to the array any more."""
        sizes = (shape,) if isinstance(shape, int) else shape
        size = math.prod(sizes) * np.dtype(dtype).itemsize
        memory = self._fitting(size)
        if memory is None:
            memory = empty(math.prod(sizes), dtype).view(np.uint8)
        # NumPy makes a view refer to the array at the end of its chain of bases. The buffer object ends that chain at
        # `owner`, which therefore dies with the last view, and not before.
        owner = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(owner, self._take_back, memory)
        return owner.view(dtype).reshape(sizes)

    def _fitting(self, size: int) -> NDArray[np.uint8] | None:
        """The smallest free buffer of at least that size; where all are smaller, the largest of them is let go."""
        with self._lock:
            if not self._free:
                return None
            self._free.sort(key=lambda memory: memory.nbytes)
            for index, memory in enumerate(self._free):
                if memory.nbytes >= size:
                    return self._free.pop(index)
            self._free.pop()
            return None

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(memory)
