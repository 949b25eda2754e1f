"""Which planes a time loop updates when, and on which thread.

Time is cut into chunks of a few steps (levels) and planes into tiles; a block is one tile over the levels of one chunk.
Its planes at level n lie n R below the tile's own, so a block needs nothing from the tile after it. Blocks of one chunk
run in order. A block of the next chunk may start as soon as the planes it reads are done, so threads follow each other
through the model, one chunk apart, and wait for each other's blocks, never at every step. Every plane of every step is
computed by the same operations whatever the blocks and threads are.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition

import numpy as np
from numpy.typing import NDArray

Block = Callable[[int, int, int, int], None]

# Planes of a tile: enough for a block to outlast what it costs to hand out, few enough for several threads at once.
THICKNESS = 8
# Most time steps of a chunk; more gained nothing.
LEVELS = 4
# What a block's planes may fill of the last-level cache: measured with 32 MB, where more levels than this cost time.
CACHE_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class Plan:
    """Tiles and levels of a stack of planes.

    spans  uint64[tile, level, 2]  first and last+1 guarded plane
    needs  blocks of the previous chunk that must be done before each tile's
    """

    spans: NDArray[np.uint64]
    needs: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.spans.shape[0]

    @property
    def levels(self) -> int:
        """Time steps of a chunk."""
        return self.spans.shape[1]


def levels_that_fit(plane_bytes: int, radius: int) -> int:
    """Time steps of a chunk whose planes are still in the cache when the next level comes to them; at least one.

    plane_bytes   what one plane holds of all fields, memories of layers included
    """
    return max(1, min(LEVELS, (CACHE_BYTES // plane_bytes - THICKNESS) // radius - 1))


def plan(
    planes: int, radius: int, *, levels: int, thickness: int = THICKNESS, uncut: tuple[int, int] | None = None
) -> Plan:
    """Cut planes into tiles of about `thickness` planes, and time into chunks of `levels` steps.

    uncut   planes below the first and from the second on are cut at no level; None: every plane may be
    """
    tiles = max(1, planes // thickness)
    edges = np.arange(tiles + 1) * planes // tiles
    if uncut is not None:
        lowest, highest = uncut[0] + (levels - 1) * radius, uncut[1]
        inner = np.unique(np.clip(edges[1:-1], lowest, highest)) if lowest <= highest else edges[:0]
        edges = np.array([0, *inner[(inner > 0) & (inner < planes)], planes])
        tiles = len(edges) - 1
    spans = np.zeros((tiles, levels, 2), np.int64)
    for level in range(levels):
        cuts = np.maximum(edges - level * radius, 0)
        cuts[-1] = planes
        spans[:, level, 0], spans[:, level, 1] = cuts[:-1], cuts[1:]
    # The last level of the previous chunk must have passed the planes that the first level of this one reads.
    needs = tuple(
        min(tiles, int(np.searchsorted(edges[:-1], edges[tile + 1] + levels * radius))) if tile < tiles - 1 else tiles
        for tile in range(tiles)
    )
    return Plan((spans + radius).astype(np.uint64), needs)


def run(block: Block, plan: Plan, steps: int, threads: int, *, tiles_at_a_time: int = 1) -> None:
    """Call block(first tile, last+1 tile, first step, number of steps) for everything, on up to `threads` threads.

    tiles_at_a_time   with several threads: a call should take much longer than it costs to make it
    """
    chunks = -(-steps // plan.levels)
    workers = max(1, min(threads, chunks, plan.tiles))

    def size(chunk: int) -> int:
        return min(plan.levels, steps - chunk * plan.levels)

    if workers == 1:
        for chunk in range(chunks):
            block(0, plan.tiles, chunk * plan.levels, size(chunk))
        return
    done, failed, news = [0] * chunks, [False], Condition()

    def may_start(chunk: int, tile: int) -> bool:
        return failed[0] or chunk == 0 or done[chunk - 1] >= plan.needs[tile]

    def work(turn: int) -> None:
        try:
            for chunk in range(turn, chunks, workers):
                for tile in range(0, plan.tiles, tiles_at_a_time):
                    after = min(tile + tiles_at_a_time, plan.tiles)
                    with news:
                        while not may_start(chunk, after - 1):
                            news.wait()
                        if failed[0]:
                            return
                    block(tile, after, chunk * plan.levels, size(chunk))
                    with news:
                        done[chunk] = after
                        news.notify_all()
        except BaseException:
            with news:
                failed[0] = True
                news.notify_all()
            raise

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work, turn) for turn in range(workers)]:
            future.result()
