"""Asking for memory before it is needed, where the processor does not foresee it by itself.

Processors follow a few sequential streams. A stencil in three dimensions reads many short ones; without this a sweep
over a model that is larger than the caches takes two to three times as long.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

READ, MODERATE_LOCALITY, DATA = 0, 2, 1


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Start to bring the cache line of array[index] nearer; index is a uint64 and may lie outside the array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], _FUNCTION)
        builder.call(
            function, [address, *(ir.Constant(ir.IntType(32), hint) for hint in (READ, MODERATE_LOCALITY, DATA))]
        )
        return context.get_dummy_value()

    return types.void(array, types.uint64), codegen


_FUNCTION = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3])
