"""Batches: their samples follow from (seed, epoch, step) alone, each comes once an epoch, and memory is used again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpfwi.errors import ConfigError, DataError
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.batches import Batches, LoaderSettings, batch_indices, order, slice_of, steps_per_epoch

SAMPLES, RECORDS, MODEL = 60, (2, 20, 6), (5, 6)
TRAIN = range(7, 60)
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Pairs whose values are the number of the sample."""
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "toy.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="toy",
        physics=dict.fromkeys(NAMES),
        shard_samples=16,
    )
    numbers = np.arange(SAMPLES, dtype=np.float32)
    for samples in writer.missing():
        rows = numbers[samples.start : samples.stop]
        records = np.broadcast_to(rows[:, None, None, None], (len(rows), *RECORDS))
        writer.write(samples.start, records, np.broadcast_to(1500 + rows[:, None, None], (len(rows), *MODEL)))
    return writer.finish()


@pytest.fixture
def batches(store: PairStore) -> Iterator[Batches]:
    with Batches(store, TRAIN, seed=3, batch=10, slots=4) as made:
        yield made


def right(taken: Any) -> bool:
    """Whether the tensors of a slice are those of its samples, and have the network's axes."""
    numbers = torch.from_numpy(taken.indices).float()
    return (
        taken.records.shape == (len(numbers), *RECORDS)
        and taken.models.shape == (len(numbers), 1, *MODEL)
        and bool((taken.records == numbers[:, None, None, None]).all())
        and bool((taken.models == 1500 + numbers[:, None, None, None]).all())
    )


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(1, 300))
def test_an_epoch_holds_every_sample_once(seed: int, epoch: int, samples: int) -> None:
    assert sorted(order(seed, epoch, samples).tolist()) == list(range(samples))


def order_in_whole_numbers(seed: int, epoch: int, samples: int) -> list[int]:
    """The order by Python's integers: the hash of SplitMix64 written out."""
    modulus, gamma = 2**64, 0x9E3779B97F4A7C15

    def mixed(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % modulus
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % modulus
        return value ^ (value >> 31)

    start = mixed(((mixed((seed + gamma) % modulus) ^ epoch) + gamma) % modulus)
    return sorted(range(samples), key=lambda sample: mixed((start + gamma * (sample + 1)) % modulus))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 1), (2**63 - 1, 1000), (12345, 2**63 - 1)])
def test_the_order_is_that_of_plain_integers(seed: int, epoch: int) -> None:
    assert order(seed, epoch, 200).tolist() == order_in_whole_numbers(seed, epoch, 200)


def test_the_order_is_pinned() -> None:
    """A run that is resumed by a later version must find the same samples: these numbers may never change."""
    assert order(7, 0, 8).tolist() == [3, 7, 1, 6, 4, 0, 5, 2]


def test_orders_are_even() -> None:
    """Every order of 4 samples is as frequent as the others: chi-squared of 23 degrees, its 1e-6 quantile is 72."""
    keys = [tuple(order.__wrapped__(seed, epoch, 4)) for seed in range(60) for epoch in range(60)]
    counts = np.unique(np.array(keys), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert np.square(counts - 150).sum() / 150 < 72


def test_neighbouring_seeds_and_epochs_are_unrelated() -> None:
    """Two random orders of n agree in one place on average, with a standard deviation of one."""
    base = order(5, 5, 5000)
    for other in (order(5, 6, 5000), order(6, 5, 5000), order(6, 6, 5000), order(4, 6, 5000)):
        assert np.count_nonzero(base == other) < 8
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(5000)


def test_the_order_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        order(1, 1, 10)[0] = 3


@given(st.integers(1, 64), st.integers(1, 64))
def test_slots_cut_a_batch_without_loss(batch: int, slots: int) -> None:
    if slots > batch:
        with pytest.raises(ConfigError, match=f"Slot 0 of {slots} of a batch of {batch} is impossible"):
            slice_of(np.arange(batch), 0, slots)
        return
    parts = [slice_of(np.arange(batch), slot, slots) for slot in range(slots)]
    assert np.concatenate(parts).tolist() == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_impossible_batches_are_refused(store: PairStore) -> None:
    assert steps_per_epoch(53, 10) == 5
    for call, words in (
        (lambda: steps_per_epoch(9, 10), "A batch of 10 of 9 samples is impossible: take 1 to 9"),
        (lambda: batch_indices(0, 0, 5, 10, 53), "Step 5 is beyond the epoch: 53 samples make 5 batches of 10"),
        (lambda: order(-1, 0, 5), "seed=-1, epoch=0, samples=5 give no order"),
        (lambda: Batches(store, range(50, 61), seed=0, batch=2), r"Samples range\(50, 61\) are not all in .* 0 to 59"),
        (lambda: Batches(store, TRAIN, seed=0, batch=2, slots=3), "Slot 2 of 3 of a batch of 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()
    with pytest.raises(ValidationError):
        LoaderSettings(threads=0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("slots", [1, 4, 10])
def test_every_slice_holds_its_samples(store: PairStore, threads: int, slots: int) -> None:
    settings = LoaderSettings(threads=threads, buffers=2)
    with Batches(store, TRAIN, seed=3, batch=10, slots=slots, settings=settings) as batches:
        seen: dict[tuple[int, int], list[int]] = {}
        for taken in batches.iterate(0, 0, epochs=2):
            assert right(taken)
            seen.setdefault((taken.epoch, taken.step), []).extend(taken.indices.tolist())
    assert list(seen) == [(epoch, step) for epoch in range(2) for step in range(5)]
    for (epoch, step), samples in seen.items():
        assert samples == (batch_indices(3, epoch, step, 10, len(TRAIN)) + TRAIN.start).tolist()
    first = [sample for step in range(5) for sample in seen[0, step]]
    assert len(set(first)) == 50  # every sample once, the three that are left over are dropped
    assert set(first) <= set(TRAIN)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_number_of_ranks_changes_nothing(store: PairStore, ranks: int) -> None:
    """Ranks share the slots of a step, and together they get what one rank gets."""
    found = {}
    for rank in range(ranks):
        with Batches(store, TRAIN, seed=3, batch=10, slots=4) as batches:
            for taken in batches.iterate(0, 0, epochs=1, slots=range(rank, 4, ranks)):
                assert right(taken)
                found[taken.step, taken.slot] = taken.indices.tolist()
    chosen = [batch_indices(3, 0, step, 10, len(TRAIN)) + TRAIN.start for step in range(5)]
    assert found == {(step, slot): slice_of(chosen[step], slot, 4).tolist() for step in range(5) for slot in range(4)}


def test_resumed_in_the_middle_is_the_same(store: PairStore) -> None:
    def run(epoch: int, step: int, slots: int) -> list[tuple[int, int, list[int]]]:
        with Batches(store, TRAIN, seed=9, batch=8, slots=slots) as batches:
            return [(one.epoch, one.step, one.indices.tolist()) for one in batches.iterate(epoch, step, epochs=3)]

    whole = run(0, 0, 1)
    assert run(1, 4, 1) == whole[6 + 4 :]
    assert run(1, 6, 1) == whole[12:]  # the end of an epoch
    assert run(3, 0, 1) == []
    resumed = run(2, 1, 4)
    samples = [sample for *_, part in resumed for sample in part]
    assert samples == [sample for *_, part in whole[13:] for sample in part]
    with pytest.raises(ConfigError, match=r"Step 7 and slots \[0\] are not all there: an epoch has 6 steps of 1 slots"):
        run(0, 7, 1)


def test_another_process_finds_the_same_samples() -> None:
    code = "from hpfwi.training.order import batch_indices; print(batch_indices(11, 4, 2, 6, 1000).tolist(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == str(batch_indices(11, 4, 2, 6, 1000).tolist())


def test_memory_is_used_again(batches: Batches) -> None:
    places = set()
    for taken in batches.iterate(0, 0, epochs=2):
        places.add(taken.records.data_ptr())
    assert len(places) == 3
    assert batches._buffers == 3


def test_slices_are_taken_out_of_turn(batches: Batches) -> None:
    assert batches.request(0, 4, 1)
    assert batches.request(0, 4, 1)
    held = [batches.take(0, step, slot) for step, slot in ((4, 1), (0, 0), (2, 3), (2, 3), (1, 2))]
    assert all(right(taken) for taken in held)
    assert (held[2].indices == held[3].indices).all()
    assert not batches.request(0, 0, 1)  # every buffer is in use
    for taken in (*held, held[0]):
        batches.release(taken)
    assert len(batches._free) == batches._buffers == 5
    with pytest.raises(ConfigError, match="Slot 4 of 4"):
        batches.take(0, 0, 4)
    with pytest.raises(ConfigError, match="Step 5 is beyond the epoch"):
        batches.request(0, 5, 0)
    assert len(batches._free) == 5


def test_a_request_that_nobody_takes_gives_way(batches: Batches) -> None:
    for slot in range(3):
        assert batches.request(0, 0, slot)
    taken = batches.take(3, 1, 2)
    assert right(taken)
    assert list(batches._readings) == [(0, 0, 1), (0, 0, 2)]
    assert batches._buffers == 3


def test_several_threads_take_at_the_same_time(batches: Batches) -> None:
    wrong: list[object] = []

    def work(slot: int) -> None:
        for epoch in range(6):
            for step in range(5):
                taken = batches.take(epoch, step, slot)
                batches.request(epoch, (step + 1) % 5, slot)
                time.sleep(0.0005)
                if not right(taken) or (taken.epoch, taken.step, taken.slot) != (epoch, step, slot):
                    wrong.append(taken)
                batches.release(taken)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_sample_that_cannot_be_read_ends_the_iteration(
    store: PairStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = int(batches.indices(0, 1, 2)[0])
    read_rows = PairStore.read_rows

    def failing(self: PairStore, places: list[tuple[int, int]], *out: Any) -> None:
        if victim in [sample for _, sample in places]:
            raise DataError(f"Sample {victim} is damaged.")
        read_rows(self, places, *out)

    monkeypatch.setattr(PairStore, "read_rows", failing)
    iterator = batches.iterate(0, 0, epochs=1)
    seen = [next(iterator) for _ in range(6)]
    assert [(taken.step, taken.slot) for taken in seen] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    with pytest.raises(DataError, match=f"Sample {victim} is damaged"):
        next(iterator)
    assert len(batches._free) == batches._buffers
    assert batches._readings == {}


def test_waiting_is_counted(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes slices that are there does not wait; who takes them as fast as they come does nothing else."""
    read_rows = PairStore.read_rows

    def slow(self: PairStore, places: list[tuple[int, int]], *out: Any) -> None:
        time.sleep(0.005 * len(places))
        read_rows(self, places, *out)

    monkeypatch.setattr(PairStore, "read_rows", slow)
    with Batches(store, TRAIN, seed=0, batch=4) as batches:
        assert batches.wait_share == 0.0
        for _ in batches.iterate(0, 0, epochs=1):
            wait([part.future for reading in batches._readings.values() for part in reading.parts])
            time.sleep(0.01)
        assert batches.wait_share < 0.5  # the first slice is waited for
    with Batches(store, TRAIN, seed=0, batch=4) as batches:
        for _ in batches.iterate(0, 0, epochs=1):
            pass
        assert batches.wait_share > 0.5
        assert batches.waited_s > 0


def test_closing_twice_and_leaving_early(store: PairStore) -> None:
    batches = Batches(store, TRAIN, seed=0, batch=4)
    for _ in batches.iterate(0, 0, epochs=1):
        break
    batches.close()
    batches.close()
    assert len(batches._free) == batches._buffers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_slices_arrive_on_a_gpu(store: PairStore) -> None:
    with Batches(store, TRAIN, seed=3, batch=10, slots=3, device="cuda") as batches:
        held = []
        for taken in batches.iterate(0, 0, epochs=8):
            assert taken.records.is_cuda
            held.append((taken, taken.records * 1))  # work that is still under way when the next slice is asked for
        for taken, copy in held:
            numbers = torch.from_numpy(taken.indices).float().cuda()[:, None, None, None]
            assert bool((copy == numbers).all())
            assert bool((taken.models == 1500 + numbers).all())
        assert batches._buffers <= 3


def test_who_waits_reads_what_no_thread_has_begun(store: PairStore) -> None:
    """The only reader is held up in another slice: the caller's own slice does not wait for it."""
    with Batches(store, TRAIN, seed=3, batch=10, slots=4, settings=LoaderSettings(threads=1)) as batches:
        let_go, held_up = threading.Event(), threading.Event()
        let_go_in_time: list[bool] = []

        def held() -> None:
            held_up.set()
            let_go_in_time.append(let_go.wait(20))

        holding = batches._pool.submit(held)
        assert held_up.wait(20)
        taken = batches.take(0, 0, 0)
        let_go.set()
        holding.result()
        assert let_go_in_time == [True]  # the slice was there while the reader was still held
        expected = store.read(taken.indices)
        assert np.array_equal(taken.records.numpy(), expected[0])
        assert np.array_equal(taken.models.numpy()[:, 0], expected[1])
