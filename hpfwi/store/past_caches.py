"""Copies of large rows past the processor's caches.

A batch is larger than the caches, and ordinary stores would fetch every line of it from memory only to overwrite it.
Stores past the caches do not, which takes a third off the memory's traffic, and they leave what the training step works
on where it is. `benchmarks/loading.py` shows what that saves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hpfwi_kernels.compiling import hot
from hpfwi_kernels.vectors import VECTOR_BYTES, Vector, lanes, stream


def copy_rows(sources: list[int], rows: list[int], out: NDArray[np.float32]) -> None:
    """Copy memory into rows of `out`, C-contiguous float32[row, …], without the interpreter's lock.

    sources   address of each row's values, which are float32 and stay there until this returns
    rows      of `out`, all of them in it and different

    What was stored is seen by other threads once a lock has passed to them, as with every result of a thread.
    """
    flat = out.reshape(-1)
    assert np.shares_memory(flat, out)
    length = flat.size // len(out)
    if sources:
        _copy(np.array(sources, np.uint64), np.array(rows, np.uint64), np.uint64(length), flat)


def _loaded(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


@intrinsic
def _value_at(typingctx: Any, address: Any) -> Any:
    """The float32 at an address, a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _loaded(builder, arguments[0], ir.FloatType())

    return types.float32(types.uint64), codegen


@intrinsic
def _vector_at(typingctx: Any, address: Any) -> Any:
    """The float32 vector at an address, a uint64."""
    vector = Vector(types.float32)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _loaded(builder, arguments[0], context.get_value_type(vector))

    return vector(types.uint64), codegen


@hot
def _copy(sources, rows, length, out):
    size, width, vector = np.uint64(4), lanes(out), np.uint64(VECTOR_BYTES)
    start_of_out = np.uint64(out.ctypes.data)
    for number in range(sources.size):
        source, first = sources[number], rows[number] * length
        # Stores past the caches take whole vectors at multiples of their size.
        beyond = (start_of_out + size * first) % vector
        head = np.uint64(0) if beyond == 0 else (vector - beyond) // size
        done = np.uint64(0)
        while done < min(head, length):
            out[first + done] = _value_at(source + size * done)
            done += np.uint64(1)
        while done + np.uint64(4) * width <= length:
            here, there = source + size * done, first + done
            one, two = _vector_at(here), _vector_at(here + vector)
            three, four = _vector_at(here + np.uint64(2) * vector), _vector_at(here + np.uint64(3) * vector)
            stream(out, there, one)
            stream(out, there + width, two)
            stream(out, there + np.uint64(2) * width, three)
            stream(out, there + np.uint64(3) * width, four)
            done += np.uint64(4) * width
        while done < length:
            out[first + done] = _value_at(source + size * done)
            done += np.uint64(1)
