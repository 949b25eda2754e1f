"""The two matrix products where the time goes, written as LLVM instructions on blocks that stay in registers.

A block of `multiply` is ROWS x 3 vectors of sums (24 of the 32 wide registers), fed by 3 loads and ROWS broadcasts per
step; one of `correlate` is as many sums as a vector has lanes, added up across lanes at the end by halving, so that the
sums themselves fill one vector. LLVM keeps neither in registers when it vectorises the plain loops by itself.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpfwi_kernels.vectors import WIDE, Vector

ROWS = 8 if WIDE else 4
"""Rows of the left matrix that `multiply` works on at once."""
COLUMNS = 4
"""Rows of the right matrix that `correlate` works on at once; of the left one, lanes / COLUMNS."""
INDEX = ir.IntType(64)


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> Callable[[int], Any]:
    """The data pointer of the array that is argument `n`."""

    def data(n: int) -> Any:
        return context.make_array(signature.args[n])(context, builder, arguments[n]).data

    return data


def _loop(builder: Any, count: Any, sums: list[Any], step: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """`sums` after step(i, sums) for i = 0 to count - 1, count at least 1; they are registers, not memory."""
    before = builder.block
    body = builder.append_basic_block("steps")
    after = builder.append_basic_block("sums")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(INDEX)
    index.add_incoming(ir.Constant(INDEX, 0), before)
    running = []
    for first in sums:
        phi = builder.phi(first.type)
        phi.add_incoming(first, before)
        running.append(phi)
    stepped = step(index, running)
    end = builder.block
    following = builder.add(index, ir.Constant(INDEX, 1))
    index.add_incoming(following, end)
    for phi, value in zip(running, stepped, strict=True):
        phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_unsigned("<", following, count), body, after)
    builder.position_at_end(after)
    return stepped


def _fused(builder: Any, total: Any, x: Any, y: Any) -> Any:
    return builder.fadd(total, builder.fmul(x, y, flags=("contract",)), flags=("contract",))


@intrinsic(prefer_literal=True)
def multiply(
    typingctx: Any, left: Any, left_at: Any, right: Any, right_at: Any, stride: Any, out: Any, out_at: Any, depth: Any,
    count: Any,
) -> Any:  # fmt: skip
    """out[out_at + r stride + j] = sum over k of left[left_at + k ROWS + r] right[right_at + k stride + j].

    For r below ROWS and j below count vectors; count is a literal, depth at least 1.
    """
    vector = Vector(left.dtype)
    vectors = count.literal_value
    align = left.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _pointers(context, builder, signature, arguments)
        _, left_0, _, right_0, pitch, _, out_0, steps, _ = arguments
        packed = context.get_value_type(vector)
        none = ir.Constant(ir.IntType(32), 0)
        spread = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
        undefined = ir.Constant(packed, ir.Undefined)

        def at(array: int, index: Any, j: int) -> Any:
            moved = builder.add(index, ir.Constant(INDEX, j * vector.lanes))
            return builder.bitcast(builder.gep(data(array), [moved]), packed.as_pointer())

        def step(k: Any, sums: list[Any]) -> list[Any]:
            row = builder.add(right_0, builder.mul(k, pitch))
            loaded = [builder.load(at(2, row, j), align=align) for j in range(vectors)]
            first = builder.add(left_0, builder.mul(k, ir.Constant(INDEX, ROWS)))
            result = []
            for r in range(ROWS):
                value = builder.load(builder.gep(data(0), [builder.add(first, ir.Constant(INDEX, r))]), align=align)
                lanes = builder.shuffle_vector(builder.insert_element(undefined, value, none), undefined, spread)
                result += [_fused(builder, sums[r * vectors + j], lanes, loaded[j]) for j in range(vectors)]
            return result

        zero = ir.Constant(packed, [0.0] * vector.lanes)
        sums = _loop(builder, steps, [zero] * (ROWS * vectors), step)
        for r in range(ROWS):
            to = builder.add(out_0, builder.mul(pitch, ir.Constant(INDEX, r)))
            for j in range(vectors):
                builder.store(sums[r * vectors + j], at(5, to, j), align=align)
        return context.get_dummy_value()

    index = types.uint64
    return types.void(left, index, right, index, index, out, index, index, count), codegen


@intrinsic
def correlate(
    typingctx: Any, left: Any, left_at: Any, right: Any, right_at: Any, stride: Any, out: Any, out_at: Any, steps: Any
) -> Any:
    """out[out_at + COLUMNS r + c] += sum over i of left[left_at + r stride + i] right[right_at + c stride + i].

    For as many (r, c) as a vector has lanes and i below steps vectors; steps is at least 1.
    """
    vector = Vector(left.dtype)
    rows = vector.lanes // COLUMNS
    align = left.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _pointers(context, builder, signature, arguments)
        _, left_0, _, right_0, pitch, _, out_0, count = arguments
        packed = context.get_value_type(vector)

        def at(array: int, index: Any) -> Any:
            return builder.bitcast(builder.gep(data(array), [index]), packed.as_pointer())

        def starts(first: Any, number: int) -> list[Any]:
            return [builder.add(first, builder.mul(pitch, ir.Constant(INDEX, r))) for r in range(number)]

        left_rows, right_rows = starts(left_0, rows), starts(right_0, COLUMNS)

        def step(i: Any, sums: list[Any]) -> list[Any]:
            moved = builder.mul(i, ir.Constant(INDEX, vector.lanes))
            ours = [builder.load(at(0, builder.add(row, moved)), align=align) for row in left_rows]
            theirs = [builder.load(at(2, builder.add(row, moved)), align=align) for row in right_rows]
            pairs = [(x, y) for x in ours for y in theirs]
            return [_fused(builder, total, x, y) for total, (x, y) in zip(sums, pairs, strict=True)]

        zero = ir.Constant(packed, [0.0] * vector.lanes)
        sums = _loop(builder, count, [zero] * vector.lanes, step)
        width = vector.lanes
        while len(sums) > 1:  # halve the vectors: lane group g of two of them becomes groups 2 g and 2 g + 1 of one
            half = len(sums) // 2
            width //= 2
            sums = [_halved(builder, sums[i], sums[i + half], width, vector.lanes) for i in range(half)]
        to = at(5, out_0)
        builder.store(builder.fadd(builder.load(to, align=align), sums[0]), to, align=align)
        return context.get_dummy_value()

    index = types.uint64
    return types.void(left, index, right, index, index, out, index, index), codegen


def _halved(builder: Any, x: Any, y: Any, width: int, lanes: int) -> Any:
    """Sums of the two halves of every group of 2 width lanes, those of x and those of y in turn."""
    halves = []
    for part in (0, 1):
        chosen = [
            which * lanes + group * 2 * width + part * width + lane
            for group in range(lanes // (2 * width))
            for which in (0, 1)
            for lane in range(width)
        ]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), chosen)
        halves.append(builder.shuffle_vector(x, y, mask))
    return builder.fadd(halves[0], halves[1])


@intrinsic
def split(typingctx: Any, array: Any, index: Any) -> Any:
    """Four vectors: lane i of vector p is array[index + 4 i + p]."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _pointers(context, builder, signature, arguments)
        wide = ir.VectorType(context.get_value_type(array.dtype), 4 * vector.lanes)
        place = builder.bitcast(builder.gep(data(0), [arguments[1]]), wide.as_pointer())
        loaded = builder.load(place, align=array.dtype.bitwidth // 8)
        parts = []
        for phase in range(4):
            mask = ir.Constant(
                ir.VectorType(ir.IntType(32), vector.lanes), [4 * lane + phase for lane in range(vector.lanes)]
            )
            parts.append(builder.shuffle_vector(loaded, ir.Constant(wide, ir.Undefined), mask))
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(vector, 4)(array, types.uint64), codegen


@intrinsic
def join(typingctx: Any, array: Any, index: Any, parts: Any) -> Any:
    """The opposite of `split`: write lane i of vector p of four to array[index + 4 i + p]."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _pointers(context, builder, signature, arguments)
        wide = ir.VectorType(context.get_value_type(array.dtype), 4 * vector.lanes)
        place = builder.bitcast(builder.gep(data(0), [arguments[1]]), wide.as_pointer())
        four = [builder.extract_value(arguments[2], phase) for phase in range(4)]
        count = 2 * vector.lanes
        side_by_side = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(count)))
        low, high = (builder.shuffle_vector(four[n], four[n + 1], side_by_side) for n in (0, 2))
        order = [phase * vector.lanes + lane for lane in range(vector.lanes) for phase in range(4)]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 4 * vector.lanes), order)
        builder.store(builder.shuffle_vector(low, high, mask), place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.UniTuple(vector, 4)), codegen
