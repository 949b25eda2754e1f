"""Configurations of training runs: contradictions are refused, recipes train as published."""

from __future__ import annotations

from typing import Any

import pytest

from hpfwi.config import training_recipe_names
from hpfwi.errors import ConfigError
from hpfwi.networks.build import build_network
from hpfwi.training.published import published_recipe
from hpfwi.training.settings import is_training, load_train_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["network.name=velocitygan"], "velocitygan takes 'wgan-gp'"),
        (["training.loss.name=dd"], "needs the edges that dd-net"),
        (["training.slices=21"], "slices=21 of a batch of 20"),
        (["training.seed=9999999999999999999"], "give at most 9.22337e"),
        (["network.seed=9999999999999999999"], "give at most 9.22337e"),
        (["training.epoch=3"], "did you mean training.epochs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(None, options)


@pytest.mark.parametrize("recipe", training_recipe_names())
def test_recipes_train_as_published(recipe: str) -> None:
    assert is_training(recipe)
    config, _ = load_train_config(recipe, ["network.width=0.01"])
    build_network(config.network)
    training = config.training
    if training.curriculum is not None:
        return  # another publication's, see below
    if recipe.startswith("train_openfwi"):
        return  # OpenFWI's own benchmark, see below
    beginnings = {"train_seg": "seg-salt", "train_marmousi": "marmousi-slices"}
    data: Any = next((data for name, data in beginnings.items() if recipe.startswith(name)), "openfwi")
    published = published_recipe(config.network.name, data)
    assert training.loss == published.loss
    assert (training.epochs, training.batch) == (published.epochs, published.batch)
    assert training.schedule.kind == published.schedule.kind
    assert training.schedule.peak == published.schedule.peak
    assert training.schedule.warm_up_epochs in (None, published.schedule.warm_up_epochs)
    assert training.records_noise == published.records_noise
    assert (
        training.normalisation.normalisation
        == {"per-sample": "range", "none": "none"}[published.normalisation.normalisation]
    )


@pytest.mark.parametrize(
    ("recipe", "stages", "epochs", "batch", "edge_weight"),
    [
        ("train_ddnet70_curriculum", (10, 10, 100), 120, 64, 0.1),
        ("train_seg_ddnet_curriculum", (40, 30, 30), 100, 10, 1e6),
    ],
)
def test_dd_net_s_own_recipes_have_its_curriculum(
    recipe: str, stages: tuple[int, int, int], epochs: int, batch: int, edge_weight: float
) -> None:
    training = load_train_config(recipe)[0].training
    assert (training.curriculum, training.epochs, training.batch) == (stages, epochs, batch)
    assert sum(stages) == epochs
    assert (training.loss.name, training.loss.edge_weight) == ("dd", edge_weight)
    assert (training.schedule.kind, training.schedule.peak) == ("constant", 1e-3)
    assert training.records_noise == 0.0


@pytest.mark.parametrize(
    ("network", "epochs", "batch", "beta1", "beta2", "loss"),
    [
        ("inversionnet", 120, 256, 0.9, 0.999, {"name": "mae"}),
        ("velocitygan", 500, 64, 0.0, 0.9, {"name": "wgan-gp", "l1_weight": 100, "l2_weight": 0, "penalty_weight": 10}),
    ],
)
def test_the_benchmark_s_own_recipes(
    network: str, epochs: int, batch: int, beta1: float, beta2: float, loss: dict[str, Any]
) -> None:
    training = load_train_config(f"train_openfwi_{network}")[0].training
    assert (training.epochs, training.batch, training.weight_decay) == (epochs, batch, 1e-4)
    assert (training.optimiser.beta1, training.optimiser.beta2) == (beta1, beta2)
    assert (training.schedule.kind, training.schedule.peak) == ("constant", 1e-4)
    assert {name: getattr(training.loss, name) for name in loss} == loss
    scale = training.normalisation
    assert (scale.range_mps, scale.signed, scale.records) == ((1500.0, 4500.0), True, "log")
    # Batch norm sees the whole batch.
    assert training.slices == 1 or training.sync_batch_norm


def test_every_network_has_a_recipe_on_every_data_set_it_is_for() -> None:
    """FCNVMB is for records of either shape."""
    named: dict[str, set[str]] = {"train_seg_": set(), "train_marmousi_": set(), "train_": set()}
    for recipe in training_recipe_names():
        data = next(beginning for beginning in named if recipe.startswith(beginning))
        named[data].add(load_train_config(recipe)[0].network.name)
    openfwi = {"amfms", "inversionnet", "fcnvmb", "dd-net70", "aba-fwi", "tu-net", "velocitygan"}
    assert named["train_"] == openfwi
    assert named["train_marmousi_"] == openfwi
    assert named["train_seg_"] == {"amfms-seg", "fcnvmb", "dd-net", "aba-fwi+", "tu-net-seg"}
