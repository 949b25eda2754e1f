"""The Numba implementation, float32 or float64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.threads import share
from hpfwi_kernels.vectors import VECTOR_BYTES
from hpfwi_kernels.winograd import loops, transforms
from hpfwi_kernels.winograd.product import COLUMNS, ROWS
from hpfwi_kernels.winograd.tiles import TERMS, Tiles, tiles_of

CHANNELS = 8
"""Channels before and after must be multiples of this, so that blocks of sums have no ends."""
POINTS = (math.sqrt(0.5), math.sqrt(2.0))
"""a and b. Their product is 1, on which the transforms rely; powers stay small, so that little is cancelled."""


def forward(x: NDArray, weight: NDArray, bias: NDArray | None, *, threads: int = 1) -> NDArray:
    """3x3 convolution with a border of zeros: [sample, output, row, column] in the dtype of x.

    x         float32 or float64 [sample, input, row, column]
    weight    [output, input, 3, 3]; both counts multiples of CHANNELS      bias   [output] or None
    threads   how many work at a time; the bits do not depend on it
    raises    KernelError for another dtype or other counts
    """
    _require_supported(x, weight.shape)
    return _convolved(x, weight, bias, transposed=False, threads=threads)


def gradient(
    x: NDArray,
    weight: NDArray,
    output_gradient: NDArray,
    *,
    wants_x: bool = True,
    wants_weight: bool = True,
    threads: int = 1,
) -> tuple[NDArray, NDArray, NDArray]:
    """Transpose of forward's derivative: gradients of x, weight and bias; what is not wanted comes back empty."""
    _require_supported(x, weight.shape)
    given = output_gradient.astype(x.dtype, copy=False)
    none = buffers.empty((0,), x.dtype)
    x_gradient = _convolved(given, weight, None, transposed=True, threads=threads) if wants_x else none
    weight_gradient, bias_gradient = _weight_gradient(x, given, threads) if wants_weight else (none, none)
    return x_gradient, weight_gradient, bias_gradient


def _require_supported(x: NDArray, shape: tuple[int, ...]) -> None:
    if x.dtype not in (np.float32, np.float64):
        raise KernelError(f"x has dtype {x.dtype}; give float32 or float64.")
    if shape[2:] != (3, 3) or shape[0] % CHANNELS or shape[1] % CHANNELS or shape[1] != x.shape[1]:
        raise KernelError(
            f"The weight has shape {shape} for {x.shape[1]} channels; this implementation has 3 x 3 filters between "
            f"multiples of {CHANNELS} channels."
        )


def _points(dtype: np.dtype) -> tuple[np.floating, ...]:
    a, b = POINTS
    aa, bb = a * a, b * b
    values = (a, b, aa, bb, aa + bb, 1 / (2 * aa * (aa - bb)), 1 / (2 * bb * (bb - aa)))
    return tuple(dtype.type(value) for value in values)


@dataclass(frozen=True)
class _Chunk:
    """Maps that are in memory together, `count` of them from `sample` on; their tiles fill so many vectors."""

    sample: int
    count: int
    vectors: int


def _chunks(tiles: Tiles, samples: int) -> Iterator[_Chunk]:
    for sample in range(0, samples, tiles.samples):
        count = min(tiles.samples, samples - sample)
        yield _Chunk(sample, count, -(-count * tiles.tiles // tiles.lanes))


class _Space:
    """What one thread keeps of one map: its 16 planes, and a row twice, the second one zeros."""

    def __init__(self, tiles: Tiles, dtype: np.dtype) -> None:
        self.phases = buffers.zeros(16 * tiles.phase, dtype)
        self.line = buffers.zeros(2 * 4 * (tiles.pitch + tiles.lanes), dtype)


def _nine(dtype: np.dtype) -> NDArray:
    """Nine vectors."""
    return buffers.empty(9 * VECTOR_BYTES // dtype.itemsize, dtype)


def _sizes(*values: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(value) for value in values)


def _convolved(x: NDArray, weight: NDArray, bias: NDArray | None, *, transposed: bool, threads: int) -> NDArray:
    """The convolution, or, transposed, that with filters turned by half a turn from outputs to inputs."""
    samples, inputs, rows, columns = x.shape
    outputs = weight.shape[1] if transposed else weight.shape[0]
    dtype = x.dtype
    tiles = tiles_of(rows, columns, samples, inputs, outputs, dtype)
    filters = _evaluated(weight, dtype, transposed=transposed, threads=threads)
    seen_plane, made_plane = tiles.plane(inputs), tiles.plane(outputs)
    seen, numbers = buffers.empty(TERMS * seen_plane, dtype), buffers.empty(TERMS * made_plane, dtype)
    out = buffers.empty((samples, outputs, rows, columns), dtype)
    offsets = np.zeros(outputs, dtype) if bias is None else np.ascontiguousarray(bias, dtype)
    for chunk in _chunks(tiles, samples):
        _see(x, seen, tiles, chunk, threads)
        sizes = _sizes(outputs, inputs, chunk.vectors, tiles.stride, seen_plane, made_plane)

        def multiply(space: None, first: int, end: int, sizes: tuple[np.uint64, ...] = sizes) -> None:
            loops.multiply_terms(filters, seen, numbers, *_sizes(first, end), *sizes)

        share(multiply, TERMS, threads, lambda: None)
        _make(numbers, offsets, out, tiles, chunk, threads)
    return out


def _weight_gradient(x: NDArray, output_gradient: NDArray, threads: int) -> tuple[NDArray, NDArray]:
    """Gradients of weight and bias."""
    samples, inputs, rows, columns = x.shape
    outputs = output_gradient.shape[1]
    dtype = x.dtype
    tiles = tiles_of(rows, columns, samples, inputs, outputs, dtype)
    seen_plane, unmade_plane = tiles.plane(inputs), tiles.plane(outputs)
    seen, unmade = buffers.empty(TERMS * seen_plane, dtype), buffers.empty(TERMS * unmade_plane, dtype)
    sums, totals = buffers.zeros(TERMS * outputs * inputs, dtype), buffers.zeros(outputs, np.float64)
    for chunk in _chunks(tiles, samples):
        _see(x, seen, tiles, chunk, threads)
        _unmake(output_gradient, unmade, totals, tiles, chunk, threads)
        sizes = _sizes(outputs, inputs, chunk.vectors, tiles.stride, unmade_plane, seen_plane)

        def correlate(space: None, first: int, end: int, sizes: tuple[np.uint64, ...] = sizes) -> None:
            loops.correlate_terms(unmade, seen, sums, *_sizes(first, end), *sizes)

        share(correlate, TERMS, threads, lambda: None)
    return _unevaluated(sums, outputs, inputs, threads), totals.astype(dtype)


def _see(x: NDArray, seen: NDArray, tiles: Tiles, chunk: _Chunk, threads: int) -> None:
    """Numbers of a chunk's input tiles."""
    channels, points, flat = x.shape[1], _points(x.dtype), np.ascontiguousarray(x).reshape(-1)
    place = _sizes(chunk.sample, channels, tiles.rows, tiles.columns)
    sizes = _sizes(
        chunk.count, tiles.tiles, tiles.phase, tiles.pitch, chunk.vectors, tiles.stride, tiles.plane(channels)
    )

    def run(space: _Space, first: int, end: int) -> None:
        transforms.see_planes(flat, *place, *_sizes(first, end), *sizes, points, seen, space.phases, space.line)

    share(run, channels, threads, lambda: _Space(tiles, x.dtype))


def _unmake(gradient: NDArray, unmade: NDArray, totals: NDArray, tiles: Tiles, chunk: _Chunk, threads: int) -> None:
    """Numbers of a chunk's output tiles, from their gradient; adds up the gradient of every channel."""
    channels, points, flat = gradient.shape[1], _points(gradient.dtype), np.ascontiguousarray(gradient).reshape(-1)
    place = _sizes(chunk.sample, channels, tiles.rows, tiles.columns)
    sizes = _sizes(
        chunk.count, tiles.tiles, tiles.phase, tiles.pitch, chunk.vectors, tiles.stride, tiles.plane(channels)
    )

    def run(space: _Space, first: int, end: int) -> None:
        transforms.unmake_planes(
            flat, *place, *_sizes(first, end), *sizes, points, unmade, space.phases, space.line, totals
        )

    share(run, channels, threads, lambda: _Space(tiles, gradient.dtype))


def _make(numbers: NDArray, offsets: NDArray, out: NDArray, tiles: Tiles, chunk: _Chunk, threads: int) -> None:
    """Output cells of a chunk from the numbers of their tiles."""
    channels, points, flat = out.shape[1], _points(out.dtype), out.reshape(-1)
    place = _sizes(chunk.sample, channels, tiles.rows, tiles.columns)
    sizes = _sizes(chunk.count, tiles.tiles, tiles.phase, tiles.pitch, tiles.stride, tiles.plane(channels))

    def run(space: _Space, first: int, end: int) -> None:
        transforms.make_planes(
            numbers, *place, *_sizes(first, end), *sizes, points, offsets, flat, space.phases, space.line
        )

    share(run, channels, threads, lambda: _Space(tiles, out.dtype))


def _evaluated(weight: NDArray, dtype: np.dtype, *, transposed: bool, threads: int) -> NDArray:
    """The 36 numbers of every filter, [36, output / ROWS, input, ROWS], flat."""
    outputs, inputs = weight.shape[:2]
    flat, points = np.ascontiguousarray(weight, dtype).reshape(-1), _points(dtype)
    numbers = buffers.empty(TERMS * outputs * inputs, dtype)
    shape = _sizes(*((inputs, outputs, 9, 9 * inputs) if transposed else (outputs, inputs, 9 * inputs, 9)))

    def run(nine: NDArray, first: int, end: int) -> None:
        transforms.evaluate_filters(flat, *shape, transposed, *_sizes(ROWS, first, end), points, numbers, nine)

    share(run, outputs * inputs * dtype.itemsize // VECTOR_BYTES, threads, lambda: _nine(dtype))
    return numbers


def _unevaluated(numbers: NDArray, outputs: int, inputs: int, threads: int) -> NDArray:
    """Gradients of the filters from those of their numbers, in the blocks that `correlate_terms` leaves."""
    dtype, points = numbers.dtype, _points(numbers.dtype)
    weight = buffers.empty((outputs, inputs, 3, 3), dtype)
    shape = _sizes(outputs, inputs, COLUMNS)

    def run(nine: NDArray, first: int, end: int) -> None:
        transforms.unevaluate_filters(numbers, *shape, *_sizes(first, end), points, weight.reshape(-1), nine)

    share(run, outputs * inputs * dtype.itemsize // VECTOR_BYTES, threads, lambda: _nine(dtype))
    return weight
