"""Batch norm over slices that halt: the batch's own gradient and statistics, whoever computes a slice.

The batch in one slice is the definition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.errors import ConfigError, NumericsError
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.replicas import trained_parameters
from hpfwi.training.settings import load_train_config, resolved
from hpfwi.training.shared_norm import HaltedSlice, SharedNorm, share_statistics
from hpfwi.training.task import TrainingTask

RECORDS, MODEL, SAMPLES = (3, 40, 16), (11, 15), 16
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Make = Callable[..., TrainingTask]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    random = np.random.default_rng(4)
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "noise.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="noise",
        physics=dict.fromkeys(NAMES),
        shard_samples=SAMPLES,
    )
    # Amplitudes differ from sample to sample, and so do the statistics of the slices.
    records = random.normal(size=(SAMPLES, *RECORDS)) * np.arange(1, SAMPLES + 1)[:, None, None, None]
    writer.write(0, records.astype(np.float32), random.uniform(1500, 4500, (SAMPLES, *MODEL)).astype(np.float32))
    return writer.finish()


@pytest.fixture
def make(store: PairStore) -> Iterator[Make]:
    """Return a function that builds a task whose batch of 7 is cut into so many slices."""
    made: list[TrainingTask] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(slices: int, network: str = "fcnvmb", **options: object) -> TrainingTask:
        options |= {"network.name": network, "network.width": 0.05, "training.loss.name": "mse"}
        options |= {"data.pairs": store.path, "training.batch": 7, "training.slices": slices, "training.epochs": 2}
        texts = [f"{name}={value}" for name, value in options.items()]
        config, _ = load_train_config(None, [*texts, "training.sync_batch_norm=true"])
        made.append(TrainingTask(resolved(config, store), store))
        return made[-1]

    yield make
    for task in made:
        task.begin(None)
        task.batches.close()
    torch.set_num_threads(threads)


def run(task: TrainingTask, number: int, until: int = 10_000) -> tuple[FloatArray, list[dict[str, float]]]:
    """A step, as a group of one rank takes it, or its first sums; returns the last sum and its slices' numbers."""
    for _ in range(until):
        task.begin(number)
        parts = [task.gradient(slot) for slot in range(task.settings.slices)]
        total = np.sum([array.astype(np.float64) for array, _ in parts], axis=0)
        task.advance(number, total)
        if "halted" not in parts[0][1]:
            break
    return total, [numbers for _, numbers in parts]


def bits(task: TrainingTask) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in task.state().items()}


@pytest.mark.parametrize(
    ("network", "steps"),
    [("fcnvmb", 2), ("inversionnet", 2), ("dd-net70", 2), ("aba-fwi", 2), ("amfms", 1)],
)
def test_slices_that_halt_give_the_gradient_and_the_statistics_of_the_batch(
    make: Make, network: str, steps: int
) -> None:
    """Where layers are visited twice (dd-net70) and where maps branch (amfms) as well.

    After its first step the least and the greatest of AMFMS's cells lie so close that rounding decides which they are.
    """
    whole, cut = make(1, network), make(3, network)
    for number in range(steps):
        expected, (of_batch,) = run(whole, number)
        found, of_slices = run(cut, number)
        assert [part["samples"] for part in of_slices] == [2, 2, 3]
        mean = sum(part["loss"] * part["samples"] for part in of_slices) / 7
        assert mean == pytest.approx(of_batch["loss"], rel=1e-5)
        size = sum(value.numel() for value in trained_parameters(whole.network))
        for part in (slice(size), slice(size, None)):
            # Some 20 layers, each 1e-7; divisions by small deviations make it more.
            assert np.linalg.norm(found[part] - expected[part]) < 1e-4 * np.linalg.norm(expected[part])
        cut.load_state(whole.state())


def test_statistics_of_single_slices_are_others(make: Make) -> None:
    """The test above would fail without the sums."""
    whole, cut = make(1), make(3)
    cut._halted = None
    size = sum(value.numel() for value in trained_parameters(whole.network))
    expected, found = run(whole, 0)[0][:size], run(cut, 0)[0][:size]
    assert np.linalg.norm(found - expected) > 0.1 * np.linalg.norm(expected)


def test_a_slice_taken_up_by_another_rank_gives_the_same_bits(make: Make) -> None:
    """In the middle of the way forward and of the way back; the one that leaves it goes on unharmed."""
    first = make(3)
    start = {name: value.copy() for name, value in first.state().items()}
    norms = sum(isinstance(module, SharedNorm) for module in first.network.modules())
    for done in (1, norms, 2 * norms - 1, 2 * norms):
        first.load_state(start)
        run(first, 0, until=done)
        other = make(3)
        other.load_state(first.state())
        other.begin(0)
        first.begin(0)
        for slot in (2, 0):
            array, numbers = other.gradient(slot)
            again, same = first.gradient(slot)
            assert array.tobytes() == again.tobytes()
            assert first.gradient(slot)[0].tobytes() == again.tobytes()
            assert numbers["loss"] == same["loss"]
            assert ("halted" in numbers) == (done < 2 * norms)
        assert len([name for name in first.state() if name.startswith("halted/")]) == done + 1
        run(first, 0)
        run(other, 0)
        assert bits(first) == bits(other)
        assert not any(name.startswith("halted/") for name in bits(first))


def test_slices_of_a_step_that_was_given_up_go_away(make: Make) -> None:
    task, undisturbed = make(3), make(3)
    before = set(threading.enumerate())
    run(task, 0, until=2)
    slices = {thread for thread in set(threading.enumerate()) - before if thread.name == "hpfwi-slice"}
    assert slices
    task.load_state(undisturbed.state())
    assert not [thread for thread in slices if thread.is_alive()]
    for one in (task, undisturbed):
        run(one, 0)
        run(one, 1)
    assert bits(task) == bits(undisturbed)
    assert len(task._replicas._idle) == 3


def test_an_error_on_the_way_is_raised_and_the_slice_can_be_tried_again(make: Make) -> None:
    task = make(3)
    run(task, 0, until=1)
    task.begin(0)
    weights = trained_parameters(task.network)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.fill_(np.inf)
    with pytest.raises(NumericsError, match="slice 2 of step 1 of epoch 1"):
        task.gradient(1)
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    run(task, 0)
    expected = make(3)
    run(expected, 0)
    assert bits(task) == bits(expected)


def test_a_norm_alone_agrees_with_torch_in_bfloat16_maps_too() -> None:
    """One slice that is the whole batch: values, gradients and running statistics."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3, 5, 6, generator=generator) * 3 + 10
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        results = []
        for shared in (False, True):
            torch.manual_seed(1)
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 1, 1))

            def forward(network: torch.nn.Module, dtype: torch.dtype = dtype) -> dict[str, torch.Tensor]:
                layers = list(network.children())
                out = layers[2](layers[1](layers[0](maps).to(dtype)).float())
                return {"loss": out.pow(4).mean()}

            if shared:
                assert share_statistics(network) == 1
                one = HaltedSlice(network, forward, 1.0)
                while one.sums is not None:
                    one.give(one.sums)
                one.close()
            else:
                sum(forward(network).values()).backward()  # type: ignore[union-attr]
            values = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            assert len(values) == 6
            results.append([*values, *(buffer for name, buffer in network.named_buffers() if "running" in name)])
        scale = max(float(value.abs().max()) for value in results[0])  # the bias before a norm has no gradient
        for one_of_ours, one_of_torch in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(one_of_ours, one_of_torch, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["training.exact=false"], "cannot go with exact=false, compile=false; take exact=true"),
        (["training.compile=true"], "cannot go with exact=true, compile=true; take exact=true"),
        (["network.name=velocitygan", "training.loss.name=wgan-gp"], "cannot train velocitygan"),
    ],
)
def test_what_cannot_be_shared_is_refused(options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_train_config(None, ["training.sync_batch_norm=true", *options])
    load_train_config(None, ["training.sync_batch_norm=true", "training.slices=1", *options])
