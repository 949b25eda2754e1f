"""A barrier for the threads of one compiled loop: they share every time step of one large problem.

A step of a small model takes microseconds, less than waking a sleeping thread. So a thread that arrives early looks at
the counter again and again, and after a while gives its core away between looks: where another program wants the core,
both go on, and nothing collapses.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from hpfwi_kernels.compiling import hot

LOOKS = 3000
"""Looks at the counter, each some nanoseconds, before a waiting thread gives its core away."""


def new_barrier() -> NDArray[np.int64]:
    """A barrier that nobody has reached: its counter, alone on its cache lines."""
    return np.zeros(16, np.int64)


def _counter(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return context.make_array(signature.args[0])(context, builder, arguments[0]).data


@intrinsic
def _arrive(typingctx: Any, counter: Any) -> Any:
    """Add one to counter[0] as one operation, after everything this thread has written."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _counter(context, builder, signature, arguments)
        builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), ordering="seq_cst")
        return context.get_dummy_value()

    return types.void(counter), codegen


@intrinsic
def _arrived(typingctx: Any, counter: Any) -> Any:
    """counter[0] as it is in memory now, before everything this thread reads next."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _counter(context, builder, signature, arguments)
        return builder.load_atomic(pointer, ordering="acquire", align=8)

    return types.int64(counter), codegen


@intrinsic
def _give_way(typingctx: Any) -> Any:
    """Let another thread have the core (POSIX sched_yield)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        return builder.call(function, [])

    return types.int32(), codegen


@hot
def meet(counter, size, turn):
    """Wait until all `size` threads have come here for the `turn`-th time, counted from 1."""
    if size == 1:
        return
    _arrive(counter)
    looks = 0
    while _arrived(counter) < turn * size:
        looks += 1
        if looks > LOOKS:
            _give_way()
