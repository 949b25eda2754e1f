"""Mirrored samples: the mirror image of a pair is a pair, which of them an epoch shows, and where that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.errors import ConfigError
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.store.openfwi import PairStore
from hpfwi.store.openfwi_families import family_named, physics_of
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.batches import Slice
from hpfwi.training.mirror import mirror, require_symmetric
from hpfwi.training.order import mirrored
from hpfwi.training.settings import load_train_config, require_trainable, resolved
from hpfwi.training.task import TrainingTask

SAMPLES, RECORDS, MODEL = 12, (3, 40, 16), (11, 16)


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    """Return noise under models that rise from left to right, shot from three of sixteen cells."""
    random = np.random.default_rng(0)
    columns = [0, 8, 15]  # the middle one is one cell off
    physics = dict.fromkeys(("dt_s", "peak_hz", "records_unit")) | {
        "dx_m": 10.0,
        "dz_m": 10.0,
        "sources_m": [[10.0, 10.0 * column] for column in columns],
        "receivers_m": [[10.0, 10.0 * column] for column in range(16)],
    }
    writer = create_pairs(
        tmp_path / "noise.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="noise",
        physics=physics,
        shard_samples=SAMPLES,
    )
    models = np.broadcast_to(np.linspace(1500, 3000, MODEL[1], dtype=np.float32), (SAMPLES, *MODEL))
    writer.write(0, random.normal(0, 1, (SAMPLES, *RECORDS)).astype(np.float32), models)
    return writer.finish()


def task_of(store: PairStore, *changes: str) -> TrainingTask:
    options = ["network.name=fcnvmb", "network.width=0.05", "training.loss.name=mse", "training.epochs=4"]
    options += ["training.batch=8", "training.slices=2", "training.schedule.kind=constant", "cluster.workers=0"]
    config = load_train_config(None, [f"data.pairs={store.path}", *options, *changes])[0]
    config = resolved(config, store)
    require_trainable(config, store)
    return TrainingTask(config, store)


def test_the_mirror_image_of_a_pair_is_a_pair() -> None:
    """Records of the mirrored model are the mirrored records, with sources that are symmetric to the cell."""
    model = np.full((30, 40), 2000.0, np.float32)
    model[6:, :12], model[10:, 25:] = 2500.0, 3000.0
    simulator = OpenFwiSimulator((30, 40), OpenFwiSettings(steps=150, shots=2, absorbing_cells=20), device="cpu")
    records, other = (simulator.records(np.ascontiguousarray(one)) for one in (model, model[:, ::-1]))
    flipped, velocity = torch.from_numpy(records[None].copy()), torch.from_numpy(model[None, None].copy())
    mirror(flipped, velocity, np.array([True]))
    np.testing.assert_array_equal(velocity[0, 0].numpy(), model[:, ::-1])
    largest = float(np.abs(other).max())
    assert np.abs(records - other).max() > 1e-2 * largest
    # The stencil adds its two sides in another order: rounding, over 150 steps.
    assert np.abs(flipped[0].numpy() - other).max() < 150 * np.finfo(np.float32).eps * largest


def test_every_sample_is_shown_both_ways_whoever_asks() -> None:
    samples = np.arange(2000)
    first, second = mirrored(3, 6, samples), mirrored(3, 7, samples)
    assert (first ^ second).all()
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(samples))
    np.testing.assert_array_equal(first, mirrored(3, 8, samples))
    np.testing.assert_array_equal(first[[7, 5]], mirrored(3, 6, np.array([7, 5])))
    assert (first != mirrored(4, 6, samples)).any()


def test_a_slice_is_that_of_pairs_mirrored_by_hand(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, task = task_of(store), task_of(store, "training.mirror=true")
    for number in (0, 1):  # the only steps of two epochs
        for one in (plain, task):
            one.begin(number)
        as_stored, _ = plain.gradient(1)
        found, _ = task.gradient(1)
        taken = task.batches.take(*divmod(number, task.batches.steps_per_epoch), 1)
        which = mirrored(0, taken.epoch, taken.indices)
        assert which.any()
        assert (found != as_stored).any()
        take = plain.batches.take

        def by_hand(*key: int, take: Any = take, which: Any = which) -> Slice:
            one: Slice = take(*key)
            one.records[which] = one.records[which].flip(1, 3)
            one.models[which] = one.models[which].flip(3)
            return one

        with monkeypatch.context() as patch:
            patch.setattr(plain.batches, "take", by_hand)
            np.testing.assert_array_equal(plain.gradient(1)[0], found)
    for one in (plain, task):
        one.batches.close()


def test_validation_sees_the_stored_pairs(store: PairStore) -> None:
    plain, task = task_of(store), task_of(store, "training.mirror=true")
    assert plain.judge(0) == task.judge(0)
    for one in (plain, task):
        one.batches.close()


def test_a_spread_that_is_not_its_own_mirror_image_is_refused(store: PairStore) -> None:
    family = family_named("FlatVel-A")
    assert family is not None
    require_symmetric(physics_of(family, (5, 1000, 70), (70, 70)), 70, "openfwi")
    require_symmetric(dict.fromkeys(("dx_m", "sources_m", "receivers_m")), 70, "unknown")
    physics = store.physics
    require_symmetric(physics, MODEL[1], "noise")
    with pytest.raises(ConfigError, match=r"needs receivers .* in noise number 1 is 1.1 cells off"):
        require_symmetric(physics | {"sources_m": None, "receivers_m": [[0, 0], [0, 139]]}, MODEL[1], "noise")
    with pytest.raises(ConfigError, match=r"needs sources .* in noise number 1 is 2 cells off"):
        require_symmetric(physics | {"sources_m": [[0, 0], [0, 70], [0, 130]]}, MODEL[1], "noise")
