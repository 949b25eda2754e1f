"""Threads that share a shot: bands that cover every row once, and the bits of one thread."""

import threading
from typing import Any

import numpy as np
import pytest

from hpfwi_kernels.acoustic import Memory, Scheme, bands, off_grid
from hpfwi_kernels.acoustic.bands import LEAST_ROWS, joined, row_blocks, split_rows
from hpfwi_kernels.acoustic.layout import Layout
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.team import meet, new_barrier


@pytest.mark.parametrize(("low", "high"), [(10, 10), (0, 10), (0, 0), (40, 40)])
@pytest.mark.parametrize("wanted", [1, 2, 3, 7])
def test_bands_cover_every_row_once_and_cut_no_layer(low: int, high: int, wanted: int) -> None:
    layout = Layout(rows=90 + low + high, columns=60, radius=2)
    strips_x, strips_z = layout.column_strips(8, 8, 2), layout.row_strips(low, high, 4)
    split = split_rows(layout, strips_x, strips_z, wanted, layered=True)
    assert 1 <= len(split) <= wanted
    assert (len(split) == wanted) == (wanted * LEAST_ROWS <= 70)
    assert [band.leads for band in split] == [True] + [False] * (len(split) - 1)
    rows = np.concatenate([np.arange(*band.own) for band in split])
    assert np.array_equal(rows, np.arange(layout.rows))
    assert np.array_equal(np.concatenate([band.strips_z for band in split]), strips_z)
    assert all(band.rows[1] - band.rows[0] >= LEAST_ROWS for band in split)
    for band in split:
        updated = set(range(int(band.inside[0]), int(band.inside[1])))
        for first, last in band.strips_z.tolist():
            updated |= set(range(first, last))
        assert updated == set(range(int(band.rows[0]), int(band.rows[1])))
    whole = joined(split)
    (one,) = split_rows(layout, strips_x, strips_z, 1, layered=True)
    assert (whole.own, whole.rows, whole.inside) == (one.own, one.rows, one.inside)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows even for a small model."""
    monkeypatch.setattr(bands, "CACHED_BYTES", 0)
    monkeypatch.setattr(bands, "BLOCK_BYTES", 0)
    monkeypatch.setattr(bands, "BLOCK_LEVELS", 4)


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize(("low", "high"), [(10, 10), (0, 10), (10, 0), (0, 0), (60, 60)])
@pytest.mark.parametrize("radius", [1, 4])
def test_blocks_cover_every_row_of_every_step_and_cut_no_layer(low: int, high: int, radius: int) -> None:
    layout = Layout(rows=160 + low + high, columns=60, radius=radius)
    strips = layout.row_strips(low, high, 2 * radius)
    plan = row_blocks(layout, strips, 4, together=False, sharing=1)
    assert plan is not None
    spans = plan.spans.astype(int)
    assert spans.shape[0] > 1
    assert (spans[0, :, 1] > 2 * radius).all()  # the rows that a guard above a free surface repeats
    for level in range(spans.shape[1]):
        rows = np.concatenate([np.arange(*span) for span in spans[:, level]])
        assert np.array_equal(rows, np.arange(layout.rows) + radius)
        for first, last in strips.tolist():
            assert any(span[0] <= first and last <= span[1] for span in spans[:, level])
    # A tile finds what it reads: one level before it has come R rows further.
    assert (spans[:-1, 1:, 1] + radius <= spans[:-1, :-1, 1]).all()


def test_what_stays_in_the_cache_is_not_cut() -> None:
    layout = Layout(rows=341, columns=961, radius=2)
    strips = layout.row_strips(20, 20, 4)
    assert row_blocks(layout, strips, 4, together=False, sharing=2) is None
    assert row_blocks(layout, strips, 4, together=False, sharing=1) is not None
    large = Layout(rows=640, columns=1540, radius=2)
    assert row_blocks(large, large.row_strips(20, 20, 4), 4, together=False, sharing=2) is not None
    assert row_blocks(large, large.row_strips(20, 20, 4), 4, together=True, sharing=1) is None


@pytest.mark.parametrize(
    ("kind", "order"), [("cpml", 2), ("cpml", 8), ("free-surface", 8), ("sponge", 4), ("periodic-sponge", 4)]
)
@pytest.mark.parametrize("memory", [Memory(), Memory(mode="checkpoint", segment_steps=24)], ids=lambda way: way.mode)
def test_blocks_have_the_bits_of_whole_steps(
    compiled: Any, ricker: Any, kind: str, memory: Memory, order: int, request: pytest.FixtureRequest
) -> None:
    """An odd number of steps that is no multiple of a block's; sources and receivers between cells; more threads."""
    shape, free_surface = (90, 40), kind in ("free-surface", "sponge")
    scheme = Scheme(
        spacing_m=(10.0, 12.0),
        dt_s=1e-3,
        order=order,
        absorbing=(0 if free_surface else 10, 10, 10, 10),
        boundary="sponge" if "sponge" in kind else "cpml",
        free_surface=free_surface,
        pml_hz=25.0,
        max_velocity_mps=3300.0,
        min_velocity_mps=2000.0,
        store_every=3,
    )
    rng = np.random.default_rng(5)
    velocity = 2000.0 + 1000.0 * rng.random(shape)
    wavelet = np.tile(ricker(25.0, 1e-3, 93), (1, 2, 1))
    sources = off_grid(rng.uniform(10, [80, 30], (1, 2, 2)), shape, free_surface=free_surface)
    receivers = off_grid(rng.uniform(1, [88, 38], (1, 40, 2)), shape, free_surface=free_surface)
    work = (velocity, wavelet, sources, receivers, scheme)

    def results(threads: int) -> tuple[Any, ...]:
        records, kept = compiled.forward(*work, store=True, memory=memory, threads=threads)
        return (records, kept, *compiled.gradient(*work, kept, records, memory=memory, threads=threads))

    expected = results(1)
    request.getfixturevalue("small_cache")
    for threads in (1, 2, 3):
        for found, right in zip(results(threads), expected, strict=True):
            assert np.array_equal(found, right)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("kind", ["cpml", "free-surface", "sponge"])
def test_a_shared_shot_has_the_bits_of_one_thread(compiled: Any, ricker: Any, kind: str, shots: int) -> None:
    """Sources and receivers between cells, some across the cut; more threads than this machine may have cores."""
    shape, free_surface = (90, 40), kind == "free-surface"
    scheme = Scheme(
        spacing_m=(10.0, 12.0),
        dt_s=1e-3,
        order=4,
        absorbing=(0 if free_surface else 10, 10, 10, 10),
        boundary="sponge" if kind == "sponge" else "cpml",
        free_surface=free_surface,
        pml_hz=25.0,
        max_velocity_mps=3300.0,
        min_velocity_mps=2000.0,
    )
    rng = np.random.default_rng(4)
    velocity = 2000.0 + 1000.0 * rng.random(shape)
    wavelet = np.tile(ricker(25.0, 1e-3, 120), (shots, 1, 1))
    sources = off_grid(rng.uniform(30, [60, 30], (shots, 1, 2)), shape, free_surface=free_surface)
    receivers = off_grid(rng.uniform(1, [88, 38], (shots, 40, 2)), shape, free_surface=free_surface)
    work = (velocity, wavelet, sources, receivers, scheme)
    expected = None
    for threads in (1, 2, 4):
        records, kept = compiled.forward(*work, store=True, threads=threads)
        results = (records, kept, *compiled.gradient(*work, kept, records, threads=threads))
        if expected is None:
            expected = results
        for found, right in zip(results, expected, strict=True):
            assert np.array_equal(found, right)


@hot
def _relay(counter, size, rank, turns, written):
    """Every member adds to its own place what the one before it wrote in the turn before."""
    for turn in range(turns):
        here, there = turn % 2, 1 - turn % 2
        written[there, rank] = written[here, (rank + size - 1) % size] + 1
        meet(counter, size, turn + 1)


def test_nobody_passes_a_barrier_before_all_have_come() -> None:
    """A member that ran ahead would read a number of the wrong turn, and carry it on to the end."""
    size, turns = 3, 20_000
    counter, written = new_barrier(), np.zeros((2, size), np.int64)
    members = [threading.Thread(target=_relay, args=(counter, size, rank, turns, written)) for rank in range(size)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    assert (written[turns % 2] == turns).all()
    assert counter[0] == size * turns
