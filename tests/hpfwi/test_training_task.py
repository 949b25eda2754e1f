"""A replica of a training run: what a slice gives, what a step does with it, and that both depend on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.errors import ConfigError, DataError, NumericsError
from hpfwi.networks.build import build_network
from hpfwi.networks.velocitygan import VelocityGan
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.batches import Slice
from hpfwi.training.edges import edge_masks
from hpfwi.training.losses import loss_terms
from hpfwi.training.replicas import largest_gradient, statistics_of, take_total, trained_parameters, weights_of
from hpfwi.training.settings import (
    TrainConfig,
    load_train_config,
    require_trainable,
    resolved,
    samples_of,
)
from hpfwi.training.slice_loss import noise_of
from hpfwi.training.task import TrainingTask, slice_sizes

RECORDS, MODEL, SAMPLES, TRAIN = (3, 40, 16), (11, 15), 24, 20
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Two layers over each other, and waves whose period grows with the depth between them."""
    depths = np.random.default_rng(0).integers(3, 8, SAMPLES)[:, None, None]
    models = np.where(np.arange(MODEL[0])[None, :, None] < depths, 1500.0, 3000.0) + np.zeros((1, 1, MODEL[1]))
    waves = np.sin(np.arange(RECORDS[1])[None, None, :, None] / (1 + depths[..., None]))
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "layers.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="layers",
        physics=dict.fromkeys(NAMES),
        splits={"train": range(TRAIN), "test": range(TRAIN, SAMPLES)},
        shard_samples=SAMPLES,
    )
    records = waves + np.random.default_rng(1).normal(0, 0.3, (SAMPLES, *RECORDS))
    writer.write(0, records.astype(np.float32), models.astype(np.float32))
    return writer.finish()


def configured(store: PairStore, **options: object) -> TrainConfig:
    named: dict[str, object] = {
        "data__pairs": store.path,
        "network__name": "fcnvmb",
        "network__width": 0.05,
        "training__loss__name": "mse",
        "training__epochs": 2,
        "training__batch": 6,
        "training__slices": 3,
    }
    texts = [f"{name.replace('__', '.')}={value}" for name, value in (named | options).items()]
    config, _ = load_train_config(None, texts)
    return resolved(config, store)


@pytest.fixture
def make(store: PairStore) -> Iterator[Callable[..., TrainingTask]]:
    """Return a function that builds a task from changed options."""
    made: list[TrainingTask] = []

    def make(**options: object) -> TrainingTask:
        made.append(TrainingTask(configured(store, **options), store))
        return made[-1]

    yield make
    for task in made:
        task.batches.close()


def step(task: TrainingTask, number: int) -> tuple[FloatArray, list[dict[str, float]]]:
    """Take one step as a group of one rank does; returns the sum and the slices' numbers."""
    task.begin(number)
    parts = [task.gradient(slot) for slot in range(task.settings.slices)]
    total = np.sum([vector.astype(np.float64) for vector, _ in parts], axis=0)
    task.advance(number, total)
    return total, [numbers for _, numbers in parts]


def bits(task: TrainingTask) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in task.state().items()}


def test_a_slice_gives_the_gradient_and_the_statistics_of_its_samples(
    make: Callable[..., TrainingTask], store: PairStore
) -> None:
    task = make()
    task.begin(1)
    vector, numbers = task.gradient(2)
    network = build_network(task.config.network).train()
    records, models = store.read(task.batches.indices(0, 1, 2))
    target = (torch.from_numpy(models).unsqueeze(1) - 1500) / 1500
    loss = (network(torch.from_numpy(records)) - target).square().mean()
    loss.backward()
    expected = [
        parameter.grad.reshape(-1) / 3 for parameter in trained_parameters(network) if parameter.grad is not None
    ]
    expected += [buffer.reshape(-1) / 3 for buffer in statistics_of(network).values()]
    assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    # Both sides run the same operations; only the division by 3 rounds, once.
    np.testing.assert_allclose(vector, torch.cat(expected).numpy(), rtol=3e-7, atol=0)


def test_a_step_is_adams_with_the_mean_over_slices(make: Callable[..., TrainingTask]) -> None:
    task, twin = make(), make()
    total, numbers = step(task, 0)
    optimiser = torch.optim.Adam(trained_parameters(twin.network), lr=task.optimiser.param_groups[0]["lr"])
    with torch.no_grad():
        take_total(twin.network, total, 0, largest_gradient(twin.network, total))
    optimiser.step()
    assert bits(task).keys() >= {"network/" + name for name in weights_of(twin.network)}
    for name, value in weights_of(twin.network).items():
        assert torch.equal(value, weights_of(task.network)[name]), name
    assert [part["samples"] for part in numbers] == slice_sizes(task.config)


def test_weights_decay_apart_from_their_gradient(make: Callable[..., TrainingTask]) -> None:
    """AdamW is Adam's step after rate · decay of every weight is gone: what a step adds is the same."""
    plain, decayed = make(), make(training__weight_decay=0.1)
    before = [parameter.detach().clone() for parameter in trained_parameters(plain.network)]
    for task in (plain, decayed):
        step(task, 0)
    rate = plain.optimiser.param_groups[0]["lr"]
    pairs = zip(before, trained_parameters(plain.network), trained_parameters(decayed.network), strict=True)
    for start, one, other in pairs:
        # Two roundings of a weight, of its own size.
        torch.testing.assert_close(other, one - rate * 0.1 * start, rtol=3e-7, atol=3e-8)
        assert not torch.equal(other, one) or not start.any()


def test_a_slice_depends_on_the_state_and_its_place_alone(make: Callable[..., TrainingTask]) -> None:
    task = make(training__records_noise=0.3)
    step(task, 0)
    task.begin(1)
    alone = [task.gradient(slot)[0] for slot in (2, 0, 1, 2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda slot: task.gradient(slot)[0], (2, 0, 1, 2)))
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()
    assert alone[0].tobytes() == alone[3].tobytes()
    assert alone[0].tobytes() != alone[1].tobytes()


def test_a_restored_replica_goes_on_to_the_same_bits(make: Callable[..., TrainingTask]) -> None:
    options = {"training__records_noise": 0.3, "training__average_decay": 0.5}
    whole, first, second = make(**options), make(**options), make(**options)
    for number in range(4):
        step(whole, number)
    for number in range(2):
        step(first, number)
    second.load_state(first.state())
    for number in range(2, 4):
        step(second, number)
    assert bits(second) == bits(whole)


def test_a_state_of_another_network_is_refused(make: Callable[..., TrainingTask]) -> None:
    with pytest.raises(DataError, match="does not fit this configuration"):
        make(network__width=0.2).load_state(make().state())


def test_noise_is_added_to_training_records_and_to_no_others(make: Callable[..., TrainingTask]) -> None:
    quiet, noisy = make(), make(training__records_noise=20.0)
    for task in (quiet, noisy):
        task.begin(0)
    assert quiet.gradient(0)[1]["loss"] != noisy.gradient(0)[1]["loss"]
    for task in (quiet, noisy):
        task.begin(None)
    assert quiet.judge(0) == noisy.judge(0)


def test_a_curriculum_shows_other_records_in_its_first_epochs(make: Callable[..., TrainingTask]) -> None:
    """Three steps an epoch: the third epoch is the first with the true records."""
    plain = make(training__epochs=3)
    staged = make(training__epochs=3, training__curriculum="[1, 1, 1]")
    gradients = []
    for task in (plain, staged):
        for number in (0, 3, 6):
            task.begin(number)
            gradients.append(task.gradient(1)[0])
    assert not np.array_equal(gradients[0], gradients[3])
    assert not np.array_equal(gradients[1], gradients[4])
    assert np.array_equal(gradients[2], gradients[5])


def test_every_slice_has_noise_of_its_own() -> None:
    records = torch.zeros(2, 3, 50, 20)
    places = [(7, 0, 0, 0), (8, 0, 0, 0), (7, 1, 0, 0), (7, 0, 1, 0), (7, 0, 0, 1)]
    drawn = [
        noise_of(seed, Slice(epoch, number, slot, np.arange(2), records, records), 0.3).flatten()
        for seed, epoch, number, slot in places
    ]
    # 6000 values: correlations within 5 / sqrt(6000), the deviation within 5 / sqrt(2 x 6000) of itself.
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.065
    assert float(drawn[0].std()) == pytest.approx(0.3, rel=0.046)


def test_statistics_of_any_size_leave_the_gradients_their_digits() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    gradients = 1e-9 * np.arange(1.0, 9.0)
    exponent = take_total(network, np.concatenate([gradients, [0.0, 0.0, 3e5, 2e5]]), 0, gradients.max())
    assert statistics_of(network)["1.running_var"].tolist() == [3e5, 2e5]
    scaled = 3e5 * math.ldexp(1.0, exponent)
    assert 0.5 <= scaled / gradients.max() <= 2
    scaled_total = np.concatenate([gradients, np.ldexp([0.0, 0.0, 3e5, 2e5], exponent)])
    again = take_total(network, scaled_total, exponent, gradients.max())
    assert again == exponent
    assert statistics_of(network)["1.running_var"].tolist() == [3e5, 2e5]


@pytest.mark.parametrize(("loss", "term"), [("mpe", "edge"), ("l1+l2+rctb", "boundary")])
def test_a_term_summed_over_a_batch_keeps_its_size_in_slices(
    make: Callable[..., TrainingTask], store: PairStore, loss: str, term: str
) -> None:
    task = make(training__loss__name=loss)
    task.begin(0)
    _, numbers = task.gradient(0)
    records, models = store.read(task.batches.indices(0, 0, 0))
    target = (torch.from_numpy(models).unsqueeze(1) - 1500) / 1500
    outputs = build_network(task.config.network).train()(torch.from_numpy(records))
    edges = torch.from_numpy(edge_masks(models))
    expected = loss_terms(task.settings.loss, outputs.detach(), target, edges=edges)
    assert numbers[term] == pytest.approx(float(expected[term]) / 3, rel=1e-5)
    assert numbers["l1"] == pytest.approx(float(expected["l1"]), rel=1e-5)


def test_the_critic_trains_every_step_and_the_generator_in_its_turns(make: Callable[..., TrainingTask]) -> None:
    task = make(network__name="velocitygan", training__loss__name="wgan-gp", training__critic_steps=2)
    assert isinstance(task.network, VelocityGan)
    for number, moves in enumerate((False, True, True)):
        before = [
            [p.detach().clone() for p in part.parameters()] for part in (task.network.generator, task.network.critic)
        ]
        _, numbers = step(task, number)
        after = [list(part.parameters()) for part in (task.network.generator, task.network.critic)]
        changed = [
            any(not torch.equal(*pair) for pair in zip(*both, strict=True)) for both in zip(before, after, strict=True)
        ]
        assert changed == [moves, True]
        assert ("adversarial" in numbers[0]) == moves
        assert {"critic", "penalty", "l1", "l2"} <= numbers[0].keys()


def test_the_average_follows_the_weights(make: Callable[..., TrainingTask]) -> None:
    task = make(training__average_decay=0.75)
    first = {name: value.detach().clone() for name, value in weights_of(task.network).items()}
    step(task, 0)
    for name, value in task.weights().items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * weights_of(task.network)[name])


def test_bfloat16_is_refused_on_a_cpu(store: PairStore) -> None:
    require_trainable(configured(store, training__precision="float32"), store)
    with pytest.raises(ConfigError, match="is for GPUs"):
        require_trainable(configured(store, training__precision="bfloat16"), store)


def test_bfloat16_is_for_the_layers_alone(make: Callable[..., TrainingTask]) -> None:
    full, low = make(training__slices=1), make(training__slices=1, training__precision="bfloat16")
    results = []
    for task in (full, low):
        task.begin(0)
        results.append(task.gradient(0)[0].astype(np.float64))
    one, other = results
    assert one.tobytes() != other.tobytes()
    # bfloat16 keeps 8 bits: 0.4 % an operation, over some 20 layers.
    assert np.linalg.norm(one - other) / np.linalg.norm(one) < 20 * 2**-8
    assert {value.dtype for value in weights_of(low.network).values()} == {torch.float32}


def test_channels_last_gives_the_same_gradient(make: Callable[..., TrainingTask]) -> None:
    results = []
    for task in (make(), make(training__channels_last="true")):
        task.begin(0)
        results.append(task.gradient(0)[0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-5 * float(np.abs(results[0]).max()))


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradient(
    make: Callable[..., TrainingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator is compiled, the critic, which is differentiated twice, is not.

    Without the code generator, whose minutes are no part of what is tested.
    """
    own, compiled = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        compiled.append(module)
        own(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    options = {"network__name": "velocitygan", "training__loss__name": "wgan-gp", "network__width": 0.02}
    vectors = []
    for compile_ in (False, True):
        task = make(training__compile=compile_, training__critic_steps=1, **options)
        task.begin(0)
        vectors.append(task.gradient(0)[0])
        assert len(compiled) == compile_
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5 * float(np.abs(vectors[0]).max()))


def test_validation_sums_make_the_means_of_all_its_samples(make: Callable[..., TrainingTask]) -> None:
    task = make(data__validation_share=0.25, training__normalisation__normalisation="per-sample")
    assert len(task.validation) == 5
    assert task.validation_parts() == 3
    task.begin(None)
    parts = [task.judge(part) for part in range(3)]
    assert sum(part["samples"] for part in parts) == 5
    records, models = task.store.read(task.validation)
    network = build_network(task.config.network).eval()
    with torch.no_grad():
        error = network(torch.from_numpy(records)).numpy()[:, 0] - (models - 1500) / 1500
    assert sum(part["loss"] for part in parts) / 5 == pytest.approx(float(np.square(error).mean()), rel=1e-5)
    assert sum(part["mae_mps"] for part in parts) / 5 == pytest.approx(1500 * float(np.abs(error).mean()), rel=1e-5)


def test_no_sample_validates_or_tests_that_trains(store: PairStore) -> None:
    config = configured(store, data__validation_share=0.3)
    train, validation = samples_of(config, store)
    assert (train, validation) == (range(14), range(14, 20))
    task = TrainingTask(config, store)
    with task.batches as batches:
        seen = {
            int(n) for epoch in range(3) for s in range(2) for slot in range(3) for n in batches.indices(epoch, s, slot)
        }
    assert seen <= set(train)


def test_a_split_called_validation_is_used(tmp_path: Any) -> None:
    writer = create_pairs(
        tmp_path / "three.zarr",
        samples=6,
        records_shape=(1, 4, 4),
        model_shape=(3, 3),
        family="three",
        physics=dict.fromkeys(NAMES),
        splits={"train": range(3), "validation": range(3, 5), "test": range(5, 6)},
        shard_samples=6,
    )
    writer.write(0, np.ones((6, 1, 4, 4), np.float32), np.full((6, 3, 3), 1500, np.float32))
    three = writer.finish()
    config, _ = load_train_config(None, ["training.batch=3", "training.slices=1"])
    assert samples_of(config, three) == (range(3), range(3, 5))
    with pytest.raises(ConfigError, match="leaves 3 samples to train beside 2 that validate"):
        samples_of(load_train_config(None, [])[0], three)


@pytest.mark.parametrize("network", ["inversionnet", "velocitygan"])
def test_slices_of_one_sample_are_refused_where_they_give_no_statistics(store: PairStore, network: str) -> None:
    loss = {"velocitygan": "wgan-gp"}.get(network, "mse")
    options = {"network__name": network, "training__loss__name": loss, "training__batch": 6}
    with pytest.raises(ConfigError, match=f"slices of 1 sample, and batch norm of {network} needs 2; take 3 slices"):
        require_trainable(configured(store, **options, training__slices=4), store)
    require_trainable(configured(store, **options, training__slices=3), store)


def test_a_step_with_an_absurd_gradient_changes_nothing(make: Callable[..., TrainingTask]) -> None:
    """Neither weights, nor Adam's moments, nor statistics of batch norm, nor the average; the next step says so."""
    task = make(training__average_decay=0.5)
    step(task, 0)
    before = bits(task)
    task.begin(1)
    total = sum(task.gradient(slot)[0].astype(np.float64) for slot in range(3))
    assert isinstance(total, np.ndarray)
    total[7] = -1e33
    task.advance(1, total)
    changed = {name for name, value in bits(task).items() if value != before[name]}
    assert changed == {"guard/skipped"}
    task.begin(2)
    numbers = task.gradient(0)[1]
    expected = {"skipped_steps": 1.0, "skipped_in_a_row": 1.0, "skipped_largest": 1e33}
    assert numbers.items() >= expected.items()
    assert 1.8e19 < numbers["skipped_limit"] < 1.9e19
    step(task, 2)
    task.begin(3)
    assert task.gradient(0)[1]["skipped_in_a_row"] == 0


def test_a_loss_that_is_not_finite_is_refused(make: Callable[..., TrainingTask]) -> None:
    task = make()
    with torch.no_grad():
        trained_parameters(task.network)[0].fill_(math.inf)
    task.begin(0)
    with pytest.raises(NumericsError, match="slice 2 of step 1 of epoch 1"):
        task.gradient(1)


def test_what_the_store_decides_is_filled_in(store: PairStore) -> None:
    config = configured(store, training__normalisation__records="log")
    assert config.network.records_shape == RECORDS
    assert config.training.normalisation.range_mps == (1500.0, 3000.0)
    statistics = store.statistics["records"]
    assert config.training.normalisation.amplitudes == (statistics["min"], statistics["max"])
    with pytest.raises(ConfigError, match="contradicts"):
        configured(store, network__model_shape="[70, 70]")
