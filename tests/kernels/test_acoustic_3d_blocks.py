"""Blocks in any order that `needs` allows, on any threads: every plane finds its neighbours at the time it needs."""

import threading

import numpy as np
import pytest

from hpfwi_kernels.acoustic import blocks


class Planes:
    """Two buffers of planes that know what time they hold, updated as a leap-frog step of radius R does."""

    def __init__(self, planes: int, radius: int) -> None:
        self.radius, self.lock = radius, threading.Lock()
        self.times = np.array([[0] * planes, [-1] * planes])

    def update(self, plane: int, step: int) -> None:
        with self.lock:
            neighbours = self.times[step % 2, max(plane - self.radius, 0) : plane + self.radius + 1]
            assert (neighbours == step).all()
            assert self.times[(step + 1) % 2, plane] == step - 1
            self.times[(step + 1) % 2, plane] = step + 1


def advance(planes: Planes, plan: blocks.Plan, tile: int, first: int, levels: int) -> None:
    for level in range(levels):
        low, high = plan.spans[tile, level].astype(int) - planes.radius
        for plane in range(low, high):
            planes.update(plane, first + level)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize(("planes", "thickness", "levels"), [(1, 4, 4), (7, 4, 3), (23, 4, 4), (40, 8, 1), (64, 5, 6)])
def test_any_order_that_is_allowed_is_right(planes: int, thickness: int, levels: int, radius: int) -> None:
    plan, steps = blocks.plan(planes, radius, thickness=thickness, levels=levels), 4 * levels + 1
    for seed in range(4):
        rng, state = np.random.default_rng(seed), Planes(planes, radius)
        done = [0] * -(-steps // levels)
        while min(done) < plan.tiles:
            ready = [
                chunk
                for chunk, tile in enumerate(done)
                if tile < plan.tiles and (chunk == 0 or done[chunk - 1] >= plan.needs[tile])
            ]
            # Seed 0 runs as far ahead as it may, seed 1 stays as far behind, the others mix.
            chunk = ready[-1] if seed == 0 else ready[0] if seed == 1 else int(rng.choice(ready))
            advance(state, plan, done[chunk], chunk * levels, min(levels, steps - chunk * levels))
            done[chunk] += 1
        assert (state.times.max(axis=0) == steps).all()


@pytest.mark.parametrize("tiles_at_a_time", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_threads_keep_to_what_is_allowed(threads: int, tiles_at_a_time: int) -> None:
    plan, state = blocks.plan(60, 2, thickness=4, levels=3), Planes(60, 2)

    def block(first_tile: int, last_tile: int, first: int, levels: int) -> None:
        for tile in range(first_tile, last_tile):
            advance(state, plan, tile, first, levels)

    blocks.run(block, plan, 50, threads, tiles_at_a_time=tiles_at_a_time)
    assert (state.times.max(axis=0) == 50).all()


def test_an_error_in_a_block_reaches_the_caller_and_stops_the_others() -> None:
    plan = blocks.plan(40, 2, thickness=4, levels=2)

    def block(first_tile: int, last_tile: int, first: int, levels: int) -> None:
        if first == 4 and first_tile == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        blocks.run(block, plan, 400, 3)


def test_large_planes_are_not_kept_for_later_levels() -> None:
    assert blocks.levels_that_fit(2**10, 4) == blocks.LEVELS
    assert blocks.levels_that_fit(2**20, 2) == 3
    assert blocks.levels_that_fit(2**22, 1) == blocks.levels_that_fit(2**40, 1) == 1
