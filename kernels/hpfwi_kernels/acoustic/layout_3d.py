"""The flat layout that loops_3d.py runs on: where a padded cell lies, where layers keep their memories, and weights."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hpfwi_kernels import buffers
from hpfwi_kernels.absorbing import Profiles
from hpfwi_kernels.acoustic.layout import Layout, aligned
from hpfwi_kernels.acoustic.regions import LANES, MARGIN
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.stencils import first_derivative, second_derivative

# Rows of a plane that are updated at a time: few enough for the Laplacian's scratch to stay in the nearest cache.
TILE_ROWS = 16


@dataclass(frozen=True)
class Stack:
    """Planes of the 2-D layout one after the other, R guard planes above and below."""

    planes: int
    rows: int
    columns: int
    radius: int

    @cached_property
    def plane(self) -> Layout:
        """Layout of one plane [y, x]."""
        return Layout(rows=self.rows, columns=self.columns, radius=self.radius)

    @property
    def hop(self) -> int:
        """Cells from one plane to the next."""
        return (self.rows + 2 * self.radius) * self.plane.stride

    @property
    def size(self) -> int:
        """Cells of a field."""
        return (self.planes + 2 * self.radius) * self.hop + MARGIN

    @property
    def width(self) -> int:
        """Columns rounded up to whole vectors."""
        return self.plane.width

    @property
    def kept(self) -> int:
        """Cells of a kept bracket: planes and rows without guards, columns rounded up."""
        return self.planes * self.rows * self.width

    def inner(self, field: NDArray) -> NDArray:
        """View [z, y, x] of a field's padded cells."""
        first, radius = self.radius * self.hop, self.radius
        planes = field[first : first + self.planes * self.hop].reshape(self.planes, -1, self.plane.stride)
        return planes[:, radius : radius + self.rows, MARGIN : MARGIN + self.columns]

    def inner_of_kept(self, bracket: NDArray) -> NDArray:
        """View [z, y, x] of a kept bracket's padded cells."""
        return bracket.reshape(self.planes, self.rows, self.width)[..., : self.columns]

    def field_of(self, inner: NDArray, dtype: DTypeLike, pool: buffers.Pool | None) -> NDArray:
        """A field that holds `inner` and zeros around it."""
        field = aligned(self.size, dtype, pool=pool)
        field[:] = 0
        self.inner(field)[:] = inner
        return field

    def cells(self, cell: tuple[NDArray[np.int64], ...]) -> NDArray[np.uint64]:
        """Flat indices of padded cells (z, y, x)."""
        z, y, x = cell
        return ((z + self.radius) * self.hop + self.plane.cells(y, x).astype(np.int64)).astype(np.uint64)


@dataclass(frozen=True, eq=False)
class Layers:
    """Where a C-PML acts and where its memories lie.

    packed_z  uint64[guarded plane]  place of a plane in the memories of the layer along z, 0 where it does not act
    packed_y  uint64[guarded row]    the same for rows
    strips_x  uint64[strip, 3]       first and last+1 column, place in a packed row
    tiles_y   uint64[tile, 2]        first and last+1 guarded row of what is updated at a time
    sizes     cells of one memory array of the layers along z, y and x
    """

    packed_z: NDArray[np.uint64]
    packed_y: NDArray[np.uint64]
    strips_x: NDArray[np.uint64]
    tiles_y: NDArray[np.uint64]
    packed_rows: int
    packed_row: int
    sizes: tuple[int, int, int]

    @property
    def most_rows(self) -> int:
        """Rows of the longest tile."""
        return int((self.tiles_y[:, 1] - self.tiles_y[:, 0]).max())


def layers(stack: Stack, widths: tuple[tuple[int, int], ...], reach: int) -> Layers:
    """The places of layers of `widths` cells that change the update of cells up to `reach` cells away from them."""
    lines = Layout(rows=stack.planes, columns=1, radius=stack.radius)
    strips_z = lines.row_strips(*widths[0], reach)
    strips_y = stack.plane.row_strips(*widths[1], reach)
    columns = stack.plane.column_strips(*widths[2], reach) - np.uint64(MARGIN)
    packed_z, planes = _packed(strips_z, stack.planes, stack.radius)
    packed_y, packed_rows = _packed(strips_y, stack.rows, stack.radius)
    lengths = columns[:, 1] - columns[:, 0]
    strips_x = np.column_stack([columns, np.cumsum(lengths) - lengths]).astype(np.uint64)
    # One vector of zeros after every packed row: its last cells and the next row's first read it as their neighbours.
    packed_row = int(lengths.sum()) + LANES
    return Layers(
        packed_z=packed_z,
        packed_y=packed_y,
        strips_x=strips_x,
        tiles_y=_tiles(strips_y, stack.rows, stack.radius),
        packed_rows=packed_rows,
        packed_row=packed_row,
        sizes=(
            planes * stack.rows * stack.width,
            stack.planes * packed_rows * stack.width,
            LANES + stack.planes * stack.rows * packed_row if len(columns) else 0,
        ),
    )


def forward_layers(stack: Stack, scheme: Scheme) -> Layers:
    """Where the forward layers act: on cells within R of their own."""
    return layers(stack, _widths(scheme), scheme.radius)


def adjoint_layers(stack: Stack, scheme: Scheme) -> Layers:
    """Where the transposed layers act: on cells within 2 R of their own."""
    return layers(stack, _widths(scheme), 2 * scheme.radius)


def _widths(scheme: Scheme) -> tuple[tuple[int, int], ...]:
    """Widths of the layers that have memories: a sponge's have none."""
    return scheme.widths if scheme.boundary == "cpml" else ((0, 0),) * 3


STATE = (0, 1, 2, 4, 5, 7, 8, 9)
"""Of the fields of a forward run, those that hold its state at the start of an even step."""


def forward_sizes(stack: Stack, near: Layers) -> tuple[int, ...]:
    """Cells of u and v, then of psi, its successor and zeta along z and y, and of psi and zeta along x."""
    z, y, x = near.sizes
    return (stack.size,) * 2 + (z,) * 3 + (y,) * 3 + (x,) * 2


def adjoint_sizes(stack: Stack, far: Layers) -> tuple[int, ...]:
    """Cells of mu twice, then of P and Z and their successors along z and y, and of P and Z along x."""
    z, y, x = far.sizes
    return (stack.size,) * 2 + (z,) * 4 + (y,) * 4 + (x,) * 2


def _packed(strips: NDArray[np.uint64], cells: int, radius: int) -> tuple[NDArray[np.uint64], int]:
    """Places of guarded planes or rows in an array that holds the strips alone, R zero ones around each; its length."""
    places, length = np.zeros(cells + 2 * radius, np.uint64), radius
    for first, last in strips.tolist():
        places[first:last] = np.arange(length, length + last - first)
        length += last - first + radius
    return places, length if len(strips) else 0


def _tiles(strips: NDArray[np.uint64], rows: int, radius: int) -> NDArray[np.uint64]:
    edges = np.unique([radius, radius + rows, *strips.astype(int).ravel()])
    tiles: list[tuple[int, int]] = []
    for first, last in pairwise(edges.tolist()):
        pieces = -(-(last - first) // TILE_ROWS)
        tiles += pairwise(first + part * (last - first) // pieces for part in range(pieces + 1))
    return np.array(tiles, np.uint64)


def across_profile(values: NDArray[np.float64], radius: int, dtype: DTypeLike) -> NDArray:
    """One value per plane or row, guard ones zero."""
    return np.pad(values, radius).astype(dtype)


def along_profile(values: NDArray[np.float64], width: int, dtype: DTypeLike) -> NDArray:
    """One value per column, zero for rounded-up columns and one vector more."""
    profile = buffers.zeros(width + LANES, dtype)
    profile[: len(values)] = values
    return profile


def adjoint_weights(profiles: Profiles, order: int, spacing_m: float, dtype: DTypeLike) -> NDArray:
    """The weights that `regions_3d.adjoint_across` takes, one line for each guarded plane or row.

    With T = (1+b) mu + b Z the layer adds D2((1+b) T - mu) - D1(b' T + b P) to the bracket and subtracts D1 T from P.
    Written out for mu, Z and P at a cell and its 2 R neighbours (0, +1, -1, +2, -2, ...) these are weights of their own
    for every plane or row.
    """
    radius = order // 2
    gain, slope = (np.pad(values, 2 * radius) for values in (profiles.gain, profiles.slope))
    lines = np.arange(radius, len(gain) - radius)
    second = np.array(second_derivative(order)) / spacing_m**2
    first = np.array(first_derivative(order)) / spacing_m
    table = np.zeros((len(lines), 5, 2 * radius + 1))
    table[:, 0, 0] = second[0] * (gain * (2 + gain))[lines]
    table[:, 1, 0] = second[0] * (gain * (1 + gain))[lines]
    for distance in range(1, radius + 1):
        for column, sign in ((2 * distance - 1, 1), (2 * distance, -1)):
            b, tilt = gain[lines + sign * distance], slope[lines + sign * distance]
            k, d = second[distance], sign * first[distance - 1]
            table[:, 0, column] = k * b * (2 + b) - d * tilt * (1 + b)
            table[:, 1, column] = k * b * (1 + b) - d * tilt * b
            table[:, 2, column] = -d * b
            table[:, 3, column] = d * (1 + b)
            table[:, 4, column] = d * b
    return table.reshape(-1).astype(dtype)
