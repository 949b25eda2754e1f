"""Short vectors as values in compiled loops: what an element of a loop is to one lane, a vector is to all of them.

LLVM vectorises simple loops by itself, but it reads every neighbour of a cell from memory again and it rounds short
rows up to a multiple that it chooses. Loops written with these vectors read a row once, take neighbours along the row
by shuffling registers, and waste nothing but the last vector's lanes; in cache, stencils run 1.5 to 3 times as fast.

A vector holds VECTOR_BYTES of float32 or float64. Operators +, - and * work between vectors and with scalars; a product
and a sum may be contracted to a fused multiply-add. Everything here is built on the documented extension interface of
Numba and on LLVM's own vector type, so it runs on every processor that LLVM knows, split into narrower instructions
where the processor has no wide ones.
"""

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic, models, overload, register_model


def _has_wide_shuffles() -> bool:
    features = config.CPU_FEATURES
    if features is None and config.CPU_NAME in (None, "host"):
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))
    return "+avx512f" in (features or "")


WIDE = _has_wide_shuffles()
"""Whether one instruction shifts lanes across two registers. Without it neighbours are cheaper read from memory."""

VECTOR_BYTES = 64 if WIDE else 32


class Vector(types.Type):
    """The compile-time type of a vector: an element type and a number of lanes."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        element = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def _element_pointer(context: Any, builder: Any, signature: Any, arguments: Any, pointed: Any) -> Any:
    """Address of element `arguments[1]` of the array `arguments[0]`, as a pointer to an LLVM type."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), pointed.as_pointer())


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, vector: Vector) -> Any:
    """Address of element `arguments[1]` of the array `arguments[0]`, as a pointer to vectors."""
    return _element_pointer(context, builder, signature, arguments, context.get_value_type(vector))


def _constant_lanes(values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


@intrinsic
def lanes(typingctx: Any, array: Any) -> Any:
    """Lanes of a vector of the array's element type, a uint64 constant."""
    count = Vector(array.dtype).lanes

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.uint64, count)

    return types.uint64(array), codegen


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector at array[index : index + lanes]; index is a uint64 and is not checked."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments, vector), align=array.dtype.bitwidth // 8)

    return vector(array, types.uint64), codegen


@intrinsic
def put(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the vector to array[index : index + lanes]; index is a uint64 and is not checked."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments, value)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), codegen


@intrinsic
def stream(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`put` past the caches, for what is read again much later; array[index] must lie on a multiple of its vector.

    A uint16 array takes float32 lanes as bfloat16, rounded to nearest. The thread that stored reads its own values in
    order; another may read them once a lock has passed between the two.
    """
    width = value.lanes * array.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = arguments[2] if array.dtype == value.dtype else _to_bfloat16(builder, arguments[2], value.lanes)
        pointer = _element_pointer(context, builder, signature, arguments, values.type)
        instruction = builder.store(values, pointer, align=width)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), codegen


@intrinsic
def unpack(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    """The vector at array[index] in the element type of the array `like`; a uint16 array holds bfloat16."""
    vector = Vector(like.dtype)
    stored = ir.VectorType(ir.IntType(16), vector.lanes)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        align = array.dtype.bitwidth // 8
        if array.dtype == like.dtype:
            return builder.load(_pointer(context, builder, signature, arguments, vector), align=align)
        halves = builder.load(_element_pointer(context, builder, signature, arguments, stored), align=align)
        words = builder.zext(halves, ir.VectorType(ir.IntType(32), vector.lanes))
        return builder.bitcast(builder.shl(words, _same_lanes(32, 16, vector.lanes)), context.get_value_type(vector))

    return vector(array, types.uint64, like), codegen


def _same_lanes(bits: int, value: int, count: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(bits), count), [value] * count)


def _to_bfloat16(builder: Any, values: Any, count: int) -> Any:
    """The upper halves of float32 lanes, rounded to nearest with ties to even; infinities survive."""
    words = builder.bitcast(values, ir.VectorType(ir.IntType(32), count))
    odd = builder.and_(builder.lshr(words, _same_lanes(32, 16, count)), _same_lanes(32, 1, count))
    rounded = builder.add(builder.add(words, odd), _same_lanes(32, 0x7FFF, count))
    return builder.trunc(builder.lshr(rounded, _same_lanes(32, 16, count)), ir.VectorType(ir.IntType(16), count))


@intrinsic
def _spread(typingctx: Any, scalar: Any) -> Any:
    vector = Vector(scalar)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        undefined = ir.Constant(context.get_value_type(vector), ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, _constant_lanes([0] * vector.lanes))

    return vector(scalar), codegen


def _shuffle(builder: Any, low: Any, high: Any, first: int, count: int) -> Any:
    """`count` lanes from lane `first` on of two vectors put side by side."""
    return builder.shuffle_vector(low, high, _constant_lanes([first + lane for lane in range(count)]))


@intrinsic(prefer_literal=True)
def ahead(typingctx: Any, here: Any, high: Any, distance: Any) -> Any:
    """Each lane's neighbour `distance` lanes on, where `high` is the next vector; the distance is a literal."""
    cells = distance.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _shuffle(builder, arguments[0], arguments[1], cells, here.lanes)

    return here(here, high, distance), codegen


@intrinsic(prefer_literal=True)
def behind(typingctx: Any, low: Any, here: Any, distance: Any) -> Any:
    """Each lane's neighbour `distance` lanes back, where `low` is the previous vector; the distance is a literal."""
    cells = distance.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _shuffle(builder, arguments[0], arguments[1], here.lanes - cells, here.lanes)

    return here(low, here, distance), codegen


@intrinsic(prefer_literal=True)
def right(typingctx: Any, array: Any, index: Any, here: Any, high: Any, distance: Any) -> Any:
    """load(array, index + distance), given here = load(array, index) and the next vector; the distance is a literal."""
    cells = distance.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if WIDE:
            return _shuffle(builder, arguments[2], arguments[3], cells, here.lanes)
        moved = builder.add(arguments[1], context.get_constant(types.uint64, cells))
        pointer = _pointer(context, builder, signature, [arguments[0], moved], here)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return here(array, types.uint64, here, high, distance), codegen


@intrinsic(prefer_literal=True)
def left(typingctx: Any, array: Any, index: Any, low: Any, here: Any, distance: Any) -> Any:
    """load(array, index - distance), given the previous vector and load(array, index); the distance is a literal."""
    cells = distance.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if WIDE:
            return _shuffle(builder, arguments[2], arguments[3], here.lanes - cells, here.lanes)
        moved = builder.sub(arguments[1], context.get_constant(types.uint64, cells))
        pointer = _pointer(context, builder, signature, [arguments[0], moved], here)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return here(array, types.uint64, low, here, distance), codegen


def _arithmetic(operation: Callable[..., Any], instruction: str) -> None:
    """Define an operator between two vectors, or a vector and a scalar of its element type."""

    @intrinsic
    def apply(typingctx: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(arguments[0], arguments[1], flags=("contract",))

        return x(x, y), codegen

    @overload(operation)
    def resolve(x, y):  # without annotations: Numba compares this signature with the returned function's
        if isinstance(x, Vector) and isinstance(y, Vector):
            return lambda x, y: apply(x, y)
        if isinstance(x, Vector) and isinstance(y, types.Float):
            return lambda x, y: apply(x, _spread(y))
        if isinstance(x, types.Float) and isinstance(y, Vector):
            return lambda x, y: apply(_spread(x), y)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
