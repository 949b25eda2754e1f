"""Numbers too small for a normal exponent count as zero while a compiled time loop runs.

Ahead of a wavefront a field falls to zero through float32's subnormal numbers (below 1.2e-38), and processors take
longer over these than over any others: a little on some, a hundred times on others. x86 processors treat them as zeros
where two bits of a thread's own control register say so: flush-to-zero for results and denormals-are-zero for operands
(Intel 64 Architectures Software Developer's Manual, volume 1, section 10.2.3). On other processors nothing is changed.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FLUSH_TO_ZERO = 1 << 15
DENORMALS_ARE_ZERO = 1 << 6

HAS_CONTROL = llvmlite.binding.get_process_triple().startswith(("x86_64", "amd64"))
"""Whether this processor has the control register."""


def _register(builder: Any, instruction: str, place: Any) -> None:
    """Store the control register to `place` (st) or load it from there (ld)."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer])
    name = f"llvm.x86.sse.{instruction}mxcsr"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(place, pointer)])


@intrinsic
def ignore_subnormals(typingctx: Any) -> Any:
    """From here on this thread takes subnormal numbers as zero. Returns the state to give to `restore`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not HAS_CONTROL:
            return context.get_constant(types.uint32, 0)
        place = builder.alloca(ir.IntType(32))
        _register(builder, "st", place)
        before = builder.load(place)
        flags = ir.Constant(ir.IntType(32), FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)
        builder.store(builder.or_(before, flags), place)
        _register(builder, "ld", place)
        return before

    return types.uint32(), codegen


@intrinsic
def restore(typingctx: Any, state: Any) -> Any:
    """Undo `ignore_subnormals`: other code on this thread computes as it did before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if HAS_CONTROL:
            place = builder.alloca(ir.IntType(32))
            builder.store(arguments[0], place)
            _register(builder, "ld", place)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen
