"""Every training recipe at toy size: it trains, validates and leaves a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpfwi.cli import app
from hpfwi.config import training_recipe_names
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.settings import load_train_config

RECORDS, MODEL, SAMPLES, TRAIN = (5, 40, 16), (11, 15), 14, 12
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Two layers over each other, and noise."""
    random = np.random.default_rng(0)
    depths = random.integers(3, 8, SAMPLES)[:, None, None]
    models = np.where(np.arange(MODEL[0])[None, :, None] < depths, 1500.0, 3000.0) + np.zeros((1, 1, MODEL[1]))
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "layers.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="layers",
        physics=dict.fromkeys(NAMES) | {"dx_m": 10.0, "dz_m": 10.0},
        splits={"train": range(TRAIN), "test": range(TRAIN, SAMPLES)},
        shard_samples=SAMPLES,
    )
    writer.write(0, random.normal(size=(SAMPLES, *RECORDS)).astype(np.float32), models.astype(np.float32))
    return writer.finish()


@pytest.mark.parametrize("recipe", training_recipe_names())
def test_a_recipe_trains_at_toy_size(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = ["network.width=0.02", "training.batch=4", "training.slices=2", "training.epochs=1", "cluster.workers=0"]
    toy += ["training.shown_samples=0", "training.schedule.warm_up_epochs=0.5"]
    training = load_train_config(recipe)[0].training
    if training.curriculum is not None:
        toy += ["training.curriculum=[1, 1, 1]", "training.epochs=3"]
    words = ["train", recipe, "--data", str(store.path), *(word for text in toy for word in ("--set", text))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    done = json.loads((tmp_path / "runs" / recipe / "done.json").read_text())
    assert done["steps"] == 2 * done["epochs"]
    assert np.isfinite([done["loss"], done["best_validation"]["loss"], done["best_validation"]["mae_mps"]]).all()
