"""The OpenFWI preset against its recipe written out plainly in float64, and against one of OpenFWI's own records."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.physics import openfwi
from hpfwi.physics.lanes import in_lanes
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator, openfwi_wavelet
from hpfwi.physics.simulator import Simulator

SHARED_DATA = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
REAL_RECORD = SHARED_DATA / "dl" / "openfwi_waveforms_000039dca2.npy"
PERIODIC = True
"""Whether the propagator's sponge wraps around as the public code does, or ends in a wall: tests with a thin sponge, or
with a map whose top is fast, see the difference."""
SHAPE = (15, 22)
TOY = OpenFwiSettings(absorbing_cells=12, steps=260, shots=3)

Field = NDArray[np.float64]


def recipe(
    velocity: NDArray, shot_column: int, *, cells: int, steps: int, peak_hz: float = 15.0, periodic: bool
) -> Field:
    """One shot of OpenFWI's recipe, float64[time, receiver], on cells of 10 m with a step of 1 ms.

    periodic    the padded grid wraps around, as in the public code; otherwise the field is zero beyond it
    """
    dx_m, dt_s = 10.0, 0.001
    rows, columns = velocity.shape
    padded = np.pad(velocity.astype(np.float64), cells, mode="edge")
    length_m = (cells - 1) * dx_m
    strength = 3.0 * velocity.min() * math.log(1e7) / (2.0 * length_m)
    layer = strength * (np.arange(cells) * dx_m / length_m) ** 2
    damping = np.zeros_like(padded)
    damping[:cells] = layer[::-1, None]
    damping[cells + rows :] = layer[:, None]
    damping[:, :cells] = layer[::-1]
    damping[:, cells + columns :] = layer

    count = 2 * (int(2.2 / (peak_hz * dt_s)) // 2) + 1
    alpha = ((count // 2 + 1) - np.arange(1, count + 1)) * peak_hz * dt_s * np.pi
    wavelet = np.zeros(max(steps, count))
    wavelet[:count] = (1.0 - 2.0 * alpha**2) * np.exp(-(alpha**2))

    def moved(field: Field, by: int, axis: int) -> Field:
        if periodic:
            return np.roll(field, by, axis)
        wide = np.pad(field, 2)
        return np.roll(wide, by, axis)[2:-2, 2:-2]

    def around(field: Field, distance: int) -> Field:
        left, right = moved(field, -distance, 1), moved(field, distance, 1)
        up, down = moved(field, -distance, 0), moved(field, distance, 0)
        return left + right + up + down

    c, k = (padded * dt_s / dx_m) ** 2, damping * dt_s
    now_weight, before_weight = 2.0 - 5.0 * c - k, 1.0 - k
    now, before = np.zeros_like(padded), np.zeros_like(padded)
    record = np.empty((steps, columns))
    for n in range(steps):
        after = now_weight * now - before_weight * before
        after += c * (4.0 / 3.0 * around(now, 1) - 1.0 / 12.0 * around(now, 2))
        after[cells + 1, cells + shot_column] += (velocity[1, shot_column] * dt_s) ** 2 * wavelet[n]
        now, before = after, now
        record[n] = now[cells + 1, cells : cells + columns]
    return record


def blocks(shape: tuple[int, int], low_mps: float, high_mps: float) -> NDArray[np.float32]:
    """Blocks of a few cells with a velocity each; the slowest lies in the middle."""
    random = np.random.default_rng(7)
    coarse = random.uniform(low_mps, high_mps, (shape[0] // 4 + 1, shape[1] // 5 + 1))
    coarse[len(coarse) // 2, coarse.shape[1] // 2] = low_mps
    return np.kron(coarse, np.ones((4, 5)))[: shape[0], : shape[1]].astype(np.float32)


def gap(found: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_records_are_those_of_the_recipe() -> None:
    velocity = blocks(SHAPE, 1500.0, 4500.0)
    records = OpenFwiSimulator(SHAPE, TOY).records(velocity)
    assert records.dtype == np.float32
    assert records.shape == (3, 260, 22)
    for shot, column in enumerate((0, 10, 21)):
        expected = recipe(velocity, column, cells=12, steps=260, periodic=PERIODIC)
        assert gap(records[shot], expected) < 1e-5
        # The first sample at the source tells the velocity there: (v dt)² s_1.
        assert records[shot, 0, column] == pytest.approx((velocity[1, column] * 1e-3) ** 2 * -1.6444e-4, rel=1e-4)


@pytest.mark.slow
def test_whole_records_of_full_size_are_those_of_the_recipe() -> None:
    """70 x 70 cells, 120 cells of sponge, 1000 steps, the padded grid periodic as in the public code."""
    velocity = blocks((70, 70), 1500.0, 4500.0)
    records = OpenFwiSimulator((70, 70)).records(velocity)
    assert records.shape == (5, 1000, 70)
    assert gap(records[2], recipe(velocity, 34, cells=120, steps=1000, periodic=True)) < 1e-5


def test_the_wavelet_is_the_recipes_at_any_frequency() -> None:
    for peak_hz in (15.0, 22.0):
        wavelet = openfwi_wavelet(OpenFwiSettings(peak_hz=peak_hz, steps=300))
        plain = recipe(np.full((2, 2), 2000.0), 0, cells=2, steps=1, peak_hz=peak_hz, periodic=False)[0, 0]
        assert wavelet[0] == pytest.approx(plain / 4.0, rel=1e-12)
        assert wavelet.max() == 1.0
        assert np.flatnonzero(wavelet).tolist() == list(range(2 * int(wavelet.argmax()) + 1))


def test_a_kept_sample_is_the_sample_of_its_step() -> None:
    velocity = blocks(SHAPE, 1500.0, 3000.0)
    every = OpenFwiSimulator(SHAPE, TOY).records(velocity)
    fifth = OpenFwiSimulator(SHAPE, TOY.model_copy(update={"keep_every": 5}))
    assert fifth.records_shape == (3, 52, 22)
    assert np.array_equal(fifth.records(velocity), every[:, ::5])
    assert fifth.physics["dt_s"] == pytest.approx(0.005)


def test_one_simulator_serves_maps_with_other_slowest_velocities_and_any_threads() -> None:
    fast, slow = blocks(SHAPE, 2500.0, 3000.0), blocks(SHAPE, 1500.0, 3000.0)
    shared = OpenFwiSimulator(SHAPE, TOY)
    first = shared.records(fast)
    shared.records(slow)
    assert np.array_equal(shared.records(fast, threads=2), first)
    assert np.array_equal(OpenFwiSimulator(SHAPE, TOY).records(fast), first)


def three_maps() -> NDArray[np.float32]:
    """Two that share a slowest velocity, and one between them with another."""
    maps = np.stack([blocks(SHAPE, 1500.0, 3000.0), blocks(SHAPE, 2500.0, 3000.0), blocks(SHAPE, 1500.0, 4000.0)])
    assert maps[0].min() == maps[2].min() < maps[1].min()
    return maps


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_of_a_map_do_not_depend_on_its_batch(threads: int) -> None:
    simulator, maps = OpenFwiSimulator(SHAPE, TOY), three_maps()
    together = simulator.records_of(maps, threads=threads)
    assert together.shape == (3, 3, 260, 22)
    in_one_call = simulator.predict_each(torch.tensor(maps), threads=threads).numpy()
    assert np.array_equal(in_one_call, together)
    for number, alone in enumerate(maps):
        assert np.array_equal(together[number], simulator.records(alone))
    # One sponge for all is not what they have.
    same = simulator._simulator.with_slowest(float(maps[0].min())).predict_each(torch.tensor(maps))
    gaps = [gap(simulator._recorded(same)[number].numpy(), records) for number, records in enumerate(together)]
    assert gaps[0] == gaps[2] == 0.0 < 1e-3 < gaps[1]


@pytest.mark.parametrize(("device", "calls"), [("cpu", [1] * 5), ("cuda", [2, 2, 1])])
def test_a_call_takes_as_many_maps_as_a_gpus_memory_allows(
    device: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed on is the processor in both cases."""
    simulator, maps = OpenFwiSimulator(SHAPE, TOY, device="cpu"), three_maps()[[0, 1, 2, 0, 0]]
    expected = np.stack([simulator.records(each) for each in maps])
    found: list[int] = []
    propagated = Simulator._propagated

    def counted(self: Simulator, velocity: torch.Tensor, shots: list[int], *rest: Any) -> torch.Tensor:
        found.append(len(shots) // TOY.shots)
        return propagated(self, velocity, shots, *rest)

    monkeypatch.setattr(Simulator, "_propagated", counted)
    monkeypatch.setattr(openfwi, "budget_bytes", lambda _: 2 * simulator._bytes_per_map)
    maps_per_call = openfwi._maps_per_call
    monkeypatch.setattr(openfwi, "_maps_per_call", lambda _, size: maps_per_call(torch.device(device), size))
    assert np.array_equal(simulator.records_of(maps), expected)
    assert found == calls


def test_maps_that_cannot_be_modelled_together() -> None:
    simulator, maps = OpenFwiSimulator(SHAPE, TOY), three_maps()
    maps[1, 3, 4] = 0.0
    with pytest.raises(DataError, match="A velocity of 0 m/s cannot be modelled"):
        simulator.records_of(maps)
    with pytest.raises(DataError, match=r"shape \(2, 3, 4\) cannot be modelled together: give \[model, z, x\]"):
        simulator._simulator.predict_each(torch.ones(2, 3, 4))


def test_lanes_do_every_piece_once_and_end_at_the_first_failure() -> None:
    done: list[tuple[str, int]] = []
    in_lanes(["a", "b", "c"], range(20), lambda lane, piece: done.append((lane, piece)))
    assert sorted(piece for _, piece in done) == list(range(20))
    begun: list[int] = []

    def fails(lane: str, piece: int) -> None:
        begun.append(piece)
        time.sleep(0.01)
        raise ValueError(f"piece {piece}")

    for lanes in (["a"], ["a", "b"]):
        begun.clear()
        with pytest.raises(ValueError, match="piece"):
            in_lanes(lanes, range(1000), fails)
        assert len(begun) <= len(lanes)


def test_gradient_is_the_derivative_with_the_sponge_held() -> None:
    """Central difference in float64 with a snapshot at every step; the slowest cells stay, or the sponge would move."""
    simulator = OpenFwiSimulator(SHAPE, TOY, store_every=1)
    velocity = torch.tensor(blocks(SHAPE, 1500.0, 3000.0), dtype=torch.float64)
    target = simulator.predict(torch.full_like(velocity, 2000.0)).detach()
    direction = torch.tensor(np.random.default_rng(1).standard_normal(SHAPE))
    slowest = velocity == velocity.min()
    direction[slowest] = 0.0

    def misfit(model: torch.Tensor) -> torch.Tensor:
        return 0.5 * (simulator.predict(model) - target).square().sum()

    at = velocity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(misfit(at), at)
    step = 0.01
    slope = float(misfit(velocity + step * direction) - misfit(velocity - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)
    # With the slowest cells slower the sponge weakens too, and that part is not in the gradient.
    slower = velocity.clone()
    slower[slowest] -= step
    faster = velocity.clone()
    faster[slowest] += step
    whole = float(misfit(faster) - misfit(slower)) / (2 * step)
    assert float(gradient[slowest].sum()) != pytest.approx(whole, rel=1e-6)


def test_what_a_store_says_about_the_physics_is_plain_json() -> None:
    physics: dict[str, Any] = OpenFwiSimulator((70, 70)).physics
    assert json.loads(json.dumps(physics)) == physics
    assert physics["sources_m"] == [[10.0, 0.0], [10.0, 170.0], [10.0, 340.0], [10.0, 520.0], [10.0, 690.0]]
    assert (physics["receivers_m"][0], physics["receivers_m"][-1]) == ([10.0, 0.0], [10.0, 690.0])
    assert (physics["dx_m"], physics["dt_s"], physics["peak_hz"]) == (10.0, 0.001, 15.0)


def test_what_cannot_be_modelled_is_said() -> None:
    with pytest.raises(DataError, match=r"depth_cells=15 lies below a map of 15 rows: use at most 14\."):
        OpenFwiSimulator(SHAPE, TOY.model_copy(update={"depth_cells": 15}))
    with pytest.raises(DataError, match=r"50 steps of 0\.001 s end before the peak of a wavelet of 15 Hz"):
        OpenFwiSimulator(SHAPE, TOY.model_copy(update={"steps": 50}))
    with pytest.raises(DataError, match=r"A velocity of 0 m/s cannot be modelled"):
        OpenFwiSimulator(SHAPE, TOY).records(np.zeros(SHAPE, np.float32))


@pytest.mark.skipif(not REAL_RECORD.is_file(), reason="the shared OpenFWI record is not on this machine")
def test_a_record_of_openfwi_begins_as_the_preset_says() -> None:
    """The velocities under the five sources follow from each first sample, and with them the first 20 ms of the middle
    shot around its source; a record one sample earlier or later misses by orders of magnitude."""
    real = np.load(REAL_RECORD, allow_pickle=False)
    columns = np.array([0, 17, 34, 52, 69])
    first = openfwi_wavelet(OpenFwiSettings())[0]
    under_sources = np.sqrt(real[np.arange(5), 0, columns] / first) / 1e-3
    assert under_sources == pytest.approx([1630.6, 1638.8, 1641.2, 1636.7, 1694.1], abs=0.1)
    across = np.interp(np.arange(70), columns, under_sources).astype(np.float32)
    settings = OpenFwiSettings(steps=120)
    records = OpenFwiSimulator((70, 70), settings).records(np.tile(across, (70, 1)))
    near = slice(32, 37)
    assert gap(records[2, :20, near], real[2, :20, near]) < 3e-5
    assert gap(records[2, :40, near], real[2, :40, near]) < 2e-4
    for shot in (0, 1, 3, 4):
        around = slice(max(columns[shot] - 2, 0), columns[shot] + 3)
        assert gap(records[shot, :20, around], real[shot, :20, around]) < 2e-3
    assert gap(records[2, 1:21, near], real[2, :20, near]) > 0.1
