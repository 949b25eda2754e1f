"""Threads that share a shot: bands that cover every row once, and the bits of one thread."""

import threading
from typing import Any

import numpy as np
import pytest

from hpfwi_kernels.acoustic import Scheme, off_grid
from hpfwi_kernels.acoustic.bands import LEAST_ROWS, joined, split_rows
from hpfwi_kernels.acoustic.layout import Layout
from hpfwi_kernels.compiling import hot
from hpfwi_kernels.team import meet, new_barrier


@pytest.mark.parametrize(("low", "high"), [(10, 10), (0, 10), (0, 0), (40, 40)])
@pytest.mark.parametrize("wanted", [1, 2, 3, 7])
def test_bands_cover_every_row_once_and_cut_no_layer(low: int, high: int, wanted: int) -> None:
    layout = Layout(rows=90 + low + high, columns=60, radius=2)
    strips_x, strips_z = layout.column_strips(8, 8, 2), layout.row_strips(low, high, 4)
    bands = split_rows(layout, strips_x, strips_z, wanted, layered=True)
    assert 1 <= len(bands) <= wanted
    assert (len(bands) == wanted) == (wanted * LEAST_ROWS <= 70)
    assert [band.leads for band in bands] == [True] + [False] * (len(bands) - 1)
    rows = np.concatenate([np.arange(*band.own) for band in bands])
    assert np.array_equal(rows, np.arange(layout.rows))
    assert np.array_equal(np.concatenate([band.strips_z for band in bands]), strips_z)
    assert all(band.rows[1] - band.rows[0] >= LEAST_ROWS for band in bands)
    for band in bands:
        updated = set(range(int(band.inside[0]), int(band.inside[1])))
        for first, last in band.strips_z.tolist():
            updated |= set(range(first, last))
        assert updated == set(range(int(band.rows[0]), int(band.rows[1])))
    whole = joined(bands)
    (one,) = split_rows(layout, strips_x, strips_z, 1, layered=True)
    assert (whole.own, whole.rows, whole.inside) == (one.own, one.rows, one.inside)


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
