"""The CUDA implementation: one Haar level, float32 or bfloat16 maps, float32 filters and sums, compiled by CuPy.

Memory is the caller's: arguments are addresses on GPU number `device`, and everything runs in the caller's stream.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpfwi_kernels.gpu import compiled, launching_on

SOURCE = Path(__file__).with_name("wavelet_convolution.cu")
SIDES = (3, 5)
"""Filter sizes that are compiled."""
PIXEL_TYPES = {"float32": "float", "bfloat16": "Bf16"}
THREADS = 128
ROWS_PER_STRIP = 4
WIDEST_TILE = 36
"""Cells of 2 x 2 pixels on a side of a tile: 35, half of OpenFWI's 70, fits."""


class Tile(NamedTuple):
    """How a plane is cut into tiles of cells: the kernels' last arguments, in order."""

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    tiles_down: int
    tiles_across: int
    channels: int

    @property
    def tiles(self) -> int:
        """Tiles of one plane."""
        return self.tiles_down * self.tiles_across

    def shared_bytes(self, k: int, *, gradient: bool) -> int:
        """Shared memory of a block: pixels and bands, or two maps' pixels and what the sums need."""
        cells = (self.tile_rows + 2 * (k // 2)) * (self.tile_columns + 2 * (k // 2))
        rest = max(k * k * THREADS, 2 * cells) if gradient else 5 * k * k
        return 4 * (8 * cells + rest)


def tile_of(rows: int, columns: int, channels: int) -> Tile:
    """Tiles of equal size, as few as fit.

    >>> tile_of(70, 70, 64)
    Tile(rows=70, columns=70, tile_rows=36, tile_columns=35, tiles_down=1, tiles_across=1, channels=64)
    """
    cell_rows, cell_columns = -(-rows // 2), -(-columns // 2)
    down, across = -(-cell_rows // WIDEST_TILE), -(-cell_columns // WIDEST_TILE)
    tile_rows = -(-cell_rows // (down * ROWS_PER_STRIP)) * ROWS_PER_STRIP
    return Tile(rows, columns, tile_rows, -(-cell_columns // across), down, across, channels)


def forward(
    x: int,
    base: int,
    bias: int,
    bands: int,
    y: int,
    *,
    shape: tuple[int, int, int, int],
    k: int,
    dtype: str,
    device: int,
    stream: int,
) -> None:
    """Fill y from x [sample, channel, row, column] of `dtype` 'float32' or 'bfloat16'.

    base [channel, k, k], bias [channel] or 0, bands [channel, 4, k, k] are float32. With filters turned by half a turn
    and no bias, y is the gradient of x.
    """
    samples, channels, rows, columns = shape
    tile = tile_of(rows, columns, channels)
    name, shared = f"forward<{PIXEL_TYPES[dtype]}, {k}>", tile.shared_bytes(k, gradient=False)
    _launch(name, samples * channels * tile.tiles, shared, device, stream, (x, base, bias, bands, y), tile)


def gradient_terms(shape: tuple[int, int, int, int], k: int) -> tuple[int, int]:
    """Float32 numbers that filter_gradient needs for its partial sums, and terms per channel that it returns."""
    terms = 5 * k * k + 1
    return shape[0] * shape[1] * tile_of(shape[2], shape[3], shape[1]).tiles * terms, terms


def filter_gradient(
    x: int, y_gradient: int, partial: int, total: int, *, shape: tuple[int, int, int, int], k: int, dtype: str,
    device: int, stream: int,
) -> None:  # fmt: skip
    """Fill total [channel, terms]: the gradients of base [k, k], bands [4, k, k] and bias; partial is work space."""
    samples, channels, rows, columns = shape
    tile, terms = tile_of(rows, columns, channels), 5 * k * k + 1
    name, shared = f"filter_gradient<{PIXEL_TYPES[dtype]}, {k}>", tile.shared_bytes(k, gradient=True)
    _launch(name, samples * channels * tile.tiles, shared, device, stream, (x, y_gradient, partial), tile)
    sizes = samples, channels, tile.tiles, terms
    _launch("sum_partials", -(-channels * terms // THREADS), 0, device, stream, (partial, total), sizes)


def names() -> tuple[str, ...]:
    """Every kernel that is compiled."""
    kernels = [f"{name}<{io}, {k}>" for name in ("forward", "filter_gradient") for io in PIXEL_TYPES.values()
               for k in SIDES]  # fmt: skip
    return (*kernels, "sum_partials")


@functools.cache
def _kernels(device: int) -> dict[str, Any]:
    """The compiled source, once per GPU."""
    return compiled(SOURCE.read_text("utf-8"), names())


def _launch(
    name: str, blocks: int, shared: int, device: int, stream: int, addresses: tuple[int, ...], numbers: Iterable[int]
) -> None:
    if blocks == 0:  # of no sample; CuPy would launch one block
        return
    arguments = (*map(np.uint64, addresses), *map(np.int32, numbers))
    with launching_on(device, stream):
        _kernels(device)[name]((blocks,), (THREADS,), arguments, shared_mem=shared)
