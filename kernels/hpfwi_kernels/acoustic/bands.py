"""How threads share one shot: bands of rows of equal cost, cut where no layer is.

Shots are better shared out whole, since threads that share one meet after every time step (`hpfwi_kernels.team`). Bands
are for the shots that are left when every thread has had as many, and for a single shot.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import blocks
from hpfwi_kernels.acoustic.layout import Layout

LAYER_COST = 1.3
"""What the C-PML of one axis adds to the cost of a cell, in updates of a cell without: measured 1.0 to 1.6."""

FIELDS = 3
"""Fields that every update reads or writes: u at two times and c."""

CACHED_BYTES = 2**21
"""Fields of this size for each thread that shares them stay in the caches from one time step to the next; larger ones
go in blocks. Measured with 1 MiB of a core's own: 4 MB go 10 % faster in blocks on one thread, and slower on two."""

BLOCK_LEVELS = 12
"""Time steps that a block of rows is taken through while it is in the cache; an even number, after which fields that
change places at every step are where they were."""

BLOCK_BYTES = 2**19
"""What the rows of a block may fill of a core's own cache: half of it where it has 1 MiB."""

LEAST_ROWS = 16
"""Fewer rows are not worth a thread: it would wait for the others more than it works."""


@dataclass(frozen=True, eq=False)
class Band:
    """The rows of a shot that one thread updates."""

    own: tuple[int, int]
    """First and last+1 row of the padded model."""
    rows: tuple[np.uint64, np.uint64]
    """The same as rows of a field."""
    inside: tuple[np.uint64, ...]
    """First and last+1 row and column of its cells that no layer touches; for a sponge, of all its cells."""
    strips_x: NDArray[np.uint64]
    """First and last+1 column of the lateral layers, [strip, 2]."""
    strips_z: NDArray[np.uint64]
    """First and last+1 row of the vertical layers in this band, [strip, 2]."""
    leads: bool
    """Whether this thread also does what is done once: it has the top row."""

    @property
    def spans(self) -> NDArray[np.uint64]:
        """[tile, level, 2]: first and last+1 row that it updates, all its rows at every time step."""
        return np.array([[self.rows]], np.uint64)


def split_rows(
    layout: Layout, strips_x: NDArray[np.uint64], strips_z: NDArray[np.uint64], wanted: int, *, layered: bool
) -> list[Band]:
    """At most `wanted` bands of equal cost; fewer where rows are too few or layers leave no room to cut.

    strips_x, strips_z   columns and rows that layers touch, as `Layout` gives them
    layered              whether their cells cost more (C-PML) or the same (sponge)
    """
    first_row, last_row, first, last = (int(edge) for edge in layout.box[:4])
    inside = between(strips_z, first_row, last_row) + between(strips_x, first, last)
    bands = []
    for top, bottom in itertools.pairwise([first_row, *_cuts(layout, inside, wanted, layered=layered), last_row]):
        mine = (max(top, inside[0]), max(top, min(bottom, inside[1])), inside[2], inside[3])
        own = [strip for strip in strips_z.tolist() if top <= strip[0] and strip[1] <= bottom]
        bands.append(
            Band(
                own=(top - layout.radius, bottom - layout.radius),
                rows=(np.uint64(top), np.uint64(bottom)),
                inside=tuple(np.uint64(edge) for edge in mine),
                strips_x=strips_x,
                strips_z=np.array(own, np.uint64).reshape(-1, 2),
                leads=top == first_row,
            )
        )
    return bands


def row_blocks(
    layout: Layout, strips_z: NDArray[np.uint64], itemsize: int, *, together: bool, sharing: int
) -> blocks.Plan | None:
    """The blocks of rows in which a shot is taken through a few time steps at a time.

    strips_z   rows that layers touch, which no block cuts     together   every step needs all rows of the one before
    sharing    threads that share the shot

    None where that is so, and where the fields stay in the cache by themselves.
    """
    first_row, last_row = int(layout.box[0]), int(layout.box[1])
    row_bytes = FIELDS * itemsize * layout.stride
    if together or layout.rows * row_bytes <= sharing * CACHED_BYTES:
        return None
    thickness = max(LEAST_ROWS // 2, BLOCK_BYTES // row_bytes - BLOCK_LEVELS * layout.radius)
    inside = between(strips_z, first_row, last_row)
    # The guard above a free surface repeats the R rows below it, which must all be new by then.
    uncut = max(inside[0] - first_row, layout.radius + 1), inside[1] - first_row
    return blocks.plan(layout.rows, layout.radius, levels=BLOCK_LEVELS, thickness=thickness, uncut=uncut)


def joined(bands: list[Band]) -> Band:
    """All bands of a shot as one."""
    first, last = bands[0], bands[-1]
    return Band(
        own=(first.own[0], last.own[1]),
        rows=(first.rows[0], last.rows[1]),
        inside=(first.inside[0], last.inside[1], *first.inside[2:]),
        strips_x=first.strips_x,
        strips_z=np.concatenate([band.strips_z for band in bands]),
        leads=True,
    )


def between(strips: NDArray[np.uint64], first: int, last: int) -> tuple[int, int]:
    """What strips at the ends of [first, last) leave of it: empty when they cover everything."""
    for low, high in strips.tolist():
        if low == first:
            first = high
        else:
            last = low
    return first, max(first, last)


def _cuts(layout: Layout, inside: tuple[int, ...], wanted: int, *, layered: bool) -> list[int]:
    """Rows at which bands of equal cost begin, all of them inside and at least LEAST_ROWS apart."""
    first_row, last_row = int(layout.box[0]), int(layout.box[1])
    rows = np.arange(first_row, last_row)
    cost = np.full(len(rows), float(layout.width))
    if layered:
        cost += LAYER_COST * (layout.width - (inside[3] - inside[2]))
        cost[(rows < inside[0]) | (rows >= inside[1])] += LAYER_COST * layout.width
    done = np.cumsum(cost)
    # Threads must not share scratch rows, which reach 2 R beyond a layer's strip.
    lowest, highest = inside[0] + 2 * layout.radius, inside[1] - 2 * layout.radius
    cuts: list[int] = []
    for part in range(1, wanted):
        row = min(max(first_row + int(np.searchsorted(done, done[-1] * part / wanted)) + 1, lowest), highest)
        if row >= lowest and row - (cuts[-1] if cuts else first_row) >= LEAST_ROWS and last_row - row >= LEAST_ROWS:
            cuts.append(row)
    return cuts
