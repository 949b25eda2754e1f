"""Training runs of seconds: the same bits on any number of workers and across stops, and what is made of them."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hpfwi import checkpoints, parallel
from hpfwi.cli import app
from hpfwi.errors import DataError, NumericsError, Stopped
from hpfwi.figures import style
from hpfwi.parallel import GroupLost
from hpfwi.run_folder import RunFolder, read_events
from hpfwi.status import status
from hpfwi.stop import Stop
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_manifest import digest_of
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training import train as loop
from hpfwi.training.replicas import weights_of
from hpfwi.training.settings import load_train_config, resolved
from hpfwi.training.train import train
from hpfwi.training.trained import open_trained
from hpfwi.training.weights import export, open_network

RECORDS, MODEL, SAMPLES, TRAIN = (3, 40, 16), (11, 15), 24, 20
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
TINY: dict[str, object] = {
    "network.name": "fcnvmb",
    "network.width": 0.05,
    "training.loss.name": "mse",
    "training.epochs": 2,
    "training.batch": 6,
    "training.slices": 3,
    "training.records_noise": 0.1,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.shown_samples": 0,
    "cluster.workers": 0,
}
"""3 steps an epoch, 6 in all; checkpoints after 2, 3, 4 and 6."""
CLOCKS = {"time", "seconds", "samples_per_s", "wait_share", "data_wait_share"}

Bits = dict[str, object]
RunTraining = Callable[..., Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Two layers over each other, and waves whose period grows with the depth between them."""
    depths = np.random.default_rng(0).integers(3, 8, SAMPLES)[:, None, None]
    models = np.where(np.arange(MODEL[0])[None, :, None] < depths, 1500.0, 3000.0) + np.zeros((1, 1, MODEL[1]))
    waves = np.sin(np.arange(RECORDS[1])[None, None, :, None] / (1 + depths[..., None]))
    records = waves + np.random.default_rng(1).normal(0, 0.3, (SAMPLES, *RECORDS))
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
    writer.write(0, records.astype(np.float32), models.astype(np.float32))
    return writer.finish()


class StopAfter(Stop):
    """Raised by itself once so many steps are done."""

    def __init__(self, path: Path, steps: int | None) -> None:
        super().__init__()
        self._path, self._steps = path, steps

    @property
    def requested(self) -> bool:
        done = [event["iteration"] + 1 for event in read_events(self._path) if event["kind"] == "step"]
        if self._steps is not None and max(done, default=0) >= self._steps:
            self.request("it is time")
        return super().requested


def texts(options: dict[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="module")
def trained(store: PairStore) -> RunTraining:
    """Return a function that trains in a new folder, with some options changed (dots written as __)."""

    def trained(parent: Path, stop_after: int | None = None, **changes: object) -> Path:
        options = TINY | {"data.pairs": store.path} | {name.replace("__", "."): v for name, v in changes.items()}
        config = resolved(load_train_config(None, ["name=tiny", *texts(options)])[0], store)
        with RunFolder.create(config, "tiny", parent=parent, environment={}) as folder:
            return ended(folder, resume=False, stop_after=stop_after)

    return trained


def gone_on(path: Path, stop_after: int | None = None, **changes: object) -> Path:
    with RunFolder.open(path) as folder:
        return ended(folder, resume=True, stop_after=stop_after, **changes)


def ended(folder: RunFolder, *, resume: bool, stop_after: int | None, **changes: object) -> Path:
    config, _ = load_train_config(folder.config_path, texts({n.replace("__", "."): v for n, v in changes.items()}))
    stop = StopAfter(folder.path, stop_after)
    if stop_after is None:
        train(config, folder, resume=resume, stop=stop)
    else:
        with pytest.raises(Stopped, match=rf"Stopped after step {stop_after} of \d+ .*hpfwi resume"):
            train(config, folder, resume=resume, stop=stop)
    assert folder.is_done is (stop_after is None)
    return folder.path


def bits(path: Path) -> Bits:
    """The last checkpoint, the best network, and what steps and epochs said."""
    found = checkpoints.load_latest(path / "checkpoints")
    assert found is not None
    kept: Bits = {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in found.tensors.items()}
    kept |= {name: value for name, value in found.meta.items() if name not in ("seconds", "epoch_times")}
    kept |= {"done": found.iteration}
    best = open_trained(path).network.state_dict()
    kept |= {f"best {name}": value.numpy().tobytes() for name, value in best.items()}
    kept["events"] = [
        {name: value for name, value in event.items() if name not in CLOCKS}
        for event in read_events(path)
        if event["kind"] in ("step", "epoch")
    ]
    return kept


@pytest.fixture(scope="module")
def whole(trained: RunTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run that nothing disturbed."""
    return trained(tmp_path_factory.mktemp("whole"), training__shown_samples=2)


def test_a_run_leaves_what_its_user_and_a_resume_need(whole: Path) -> None:
    names = {entry.name for entry in whole.iterdir()}
    assert names >= {"config.toml", "env.json", "events.jsonl", "checkpoints", "done.json", "tb", "figures"}
    done = json.loads((whole / "done.json").read_text())
    assert done["steps"] == 6
    events = read_events(whole)
    steps = [event for event in events if event["kind"] == "step"]
    epochs = [event for event in events if event["kind"] == "epoch"]
    assert [event["iteration"] for event in steps] == list(range(6))
    for number, epoch in enumerate(epochs):
        mean = np.mean([event["loss"] for event in steps[3 * number : 3 * number + 3]])
        assert epoch["loss"] == pytest.approx(mean, rel=1e-12)
        times = [event["seconds"] for event in steps[3 * number : 3 * number + 3]]
        assert epoch["samples_per_s"] == pytest.approx(18 / sum(times))
        assert 0 <= epoch["data_wait_share"] <= 1
    assert steps[-1]["loss"] < steps[0]["loss"]
    best = min(epochs, key=lambda event: event["validation"]["loss"])
    assert done["best_epoch"] == best["epoch"] + 1
    assert done["best_validation"] == best["validation"]


def test_tensorboard_shows_losses_rates_speeds_and_pictures(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    found = EventAccumulator(str(whole / "tb"), size_guidance={IMAGES: 0}).Reload()
    tags = set(found.Tags()["scalars"])
    assert tags >= {"training/loss", "training/learning_rate", "speed/samples_per_s", "speed/data_wait_share"}
    assert tags >= {"epoch/loss", "epoch/validation/loss", "epoch/validation/mae_mps", "epoch/data_wait_share"}
    assert [event.step for event in found.Images("validation")] == [3, 6]
    assert sorted(file.name for file in (whole / "figures").iterdir()) == [
        "validation-00000003.png",
        "validation-00000006.png",
    ]


@pytest.mark.parametrize("stops", [(1,), (2, 4)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    trained: RunTraining, whole: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    path = trained(tmp_path, stop_after=stops[0])
    for stop_after in (*stops[1:], None):
        gone_on(path, stop_after)
    assert bits(path) == bits(whole)


PATIENT = {
    "training__epochs": 9,
    "training__curriculum": "[1, 0, 8]",
    "training__early_stop__patience": 2,
    "training__early_stop__minimum_gain": 0.9,
    "training__schedule__kind": "multi-step",
    "training__schedule__milestones": "[1, 2]",
    "training__checkpoint_every": 100,
}
"""27 steps at most; no validation gains nine tenths of the loss after the first epoch of true records."""


def test_a_run_without_gains_ends_early_and_a_resumed_one_at_the_same_step(
    trained: RunTraining, tmp_path: Path
) -> None:
    path = trained(tmp_path / "whole", **PATIENT)
    done = json.loads((path / "done.json").read_text())
    assert (done["epochs"], done["steps"], done["early"]) == (4, 12, True)
    events = read_events(path)
    epochs = [event for event in events if event["kind"] == "epoch"]
    assert [event["without_gain"] for event in epochs] == [0, 0, 1, 2]
    assert done["best_epoch"] == 1 + int(np.argmin([event["validation"]["loss"] for event in epochs]))
    assert status(path).why == "early; validations in a row without a gain: 2"
    rates = [event["learning_rate"] for event in events if event["kind"] == "step"]
    assert rates == pytest.approx(np.repeat([1e-3, 1e-4, 1e-5, 1e-5], 3))

    for step in (4, 11):
        parted = trained(tmp_path / str(step), stop_after=step, **PATIENT)
        assert bits(gone_on(parted)) == bits(path)
    # Killed after its last checkpoint: there is nothing to train any more.
    (parted / "done.json").unlink()
    assert bits(gone_on(parted)) == bits(path)
    again = json.loads((parted / "done.json").read_text())
    assert {name for name in done if done[name] != again[name]} <= CLOCKS


def test_a_run_that_was_killed_goes_back_to_its_checkpoint(trained: RunTraining, whole: Path, tmp_path: Path) -> None:
    path = trained(tmp_path, stop_after=4)
    newest = sorted((path / "checkpoints").iterdir())[-1]
    (newest / "tensors.safetensors").write_bytes(b"torn")
    assert bits(gone_on(path)) == bits(whole)
    assert [event["iteration"] for event in read_events(path) if event["kind"] == "step"] == list(range(6))


@pytest.mark.parametrize("when", [(4, -2), (5,), (-2,)])
def test_a_lost_group_is_put_back_to_the_last_checkpoint(
    trained: RunTraining, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: tuple[int, ...]
) -> None:
    lost = []

    def start(*arguments: Any) -> Any:
        group = parallel.start_training(*arguments)
        run = group.run

        def losing(iteration: int, *rest: Any) -> Any:
            if iteration in when and iteration not in lost:
                lost.append(iteration)
                raise GroupLost("Every worker is gone.")
            return run(iteration, *rest)

        monkeypatch.setattr(group, "run", losing)
        return group

    monkeypatch.setattr(loop, "start_training", start)
    path = trained(tmp_path)
    assert lost == list(when)
    assert bits(path) == bits(whole)
    assert [event["iteration"] for event in read_events(path) if event["kind"] == "rewind"] == [4] * len(when)


def test_the_number_of_threads_changes_no_bit(
    trained: RunTraining, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 3 if parallel.local_threads(parallel.ClusterSettings(workers=0)) == 1 else 1
    monkeypatch.setattr(parallel, "local_threads", lambda settings: threads)
    assert bits(trained(tmp_path)) == bits(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_the_number_of_workers_changes_no_bit(trained: RunTraining, whole: Path, tmp_path: Path) -> None:
    path = trained(tmp_path, stop_after=2)
    gone_on(path, 4, cluster__workers=2)
    assert bits(gone_on(path, cluster__workers=3)) == bits(whole)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", r".*damaged\.zarr"),
        ("missing", r".*damaged\.zarr"),
        ("records", r"Sample 5 of .*damaged\.zarr has NaN or infinity in its records: look"),
        ("model", r"Sample 19 of .*damaged\.zarr has NaN or infinity in its model: look"),
    ],
)
def test_a_damaged_store_ends_the_run_with_one_sentence_about_it(
    trained: RunTraining, store: PairStore, tmp_path: Path, damage: str, said: str
) -> None:
    copied = tmp_path / "damaged.zarr"
    shutil.copytree(store.path, copied)
    name, sample, cells = ("models", TRAIN - 1, MODEL) if damage == "model" else ("records", 5, RECORDS)
    (shard,) = (path for path in (copied / name / "c").rglob("*") if path.is_file())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        os.truncate(shard, 1000)
    else:  # of a sample that trains, or of the one that validates
        with shard.open("r+b") as file:
            file.seek(4 * sample * math.prod(cells))
            file.write(np.float32(np.nan).tobytes())
    with pytest.raises(DataError, match=rf"^Training cannot go on: .* DataError: {said}") as caught:
        trained(tmp_path, data__pairs=copied)
    assert "Nothing was applied" in str(caught.value)


def test_a_run_begins_with_the_weights_of_another(
    trained: RunTraining, whole: Path, store: PairStore, tmp_path: Path
) -> None:
    path = trained(tmp_path, stop_after=2, training__initial_weights=whole, training__average_decay=0.5)
    first = checkpoints.load(path / "checkpoints" / "iteration-00000000").tensors
    for name, value in weights_of(open_trained(whole).network).items():
        np.testing.assert_array_equal(first[f"state/network/{name}"], value.detach().numpy())
        np.testing.assert_array_equal(first[f"state/average/{name}"], value.detach().numpy())
    assert not [name for name in first if name.startswith("state/optimiser/network/0/")]
    (told,) = [event for event in read_events(path) if event["kind"] == "weights"]
    assert told["path"] == str(whole)
    bits(gone_on(path))  # the weights are in the checkpoint


def test_a_run_goes_on_with_its_own_pairs_alone(
    trained: RunTraining, whole: Path, store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, place = tmp_path / "moved.zarr", tmp_path / "pairs.zarr"
    shutil.copytree(store.path, place)
    path = trained(tmp_path, stop_after=3, data__pairs=place)
    place.rename(moved)
    assert "put them back, or say where they are now with `hpfwi resume" in command("resume", path, code=3)
    before = (path / "config.toml").read_bytes()
    manifest = (moved / "zarr.json").read_bytes()
    changed = json.loads(manifest)
    changed["attributes"]["family"] = "others"
    changed["attributes"]["sha256"] = digest_of(changed["attributes"])
    (moved / "zarr.json").write_text(json.dumps(changed))
    assert "holds other pairs than" in command("resume", path, "--data", moved, code=3)
    (moved / "zarr.json").write_bytes(manifest)
    (shard,) = (file for file in (moved / "records" / "c").rglob("*") if file.is_file())
    shard.rename(tmp_path / "shard")
    told = command("resume", path, "--data", moved, code=3)
    assert f"lacks 1 of the store's 4 files, such as {shard.relative_to(moved)}: copy it whole" in told
    (tmp_path / "shard").rename(shard)
    assert (path / "config.toml").read_bytes() == before
    monkeypatch.chdir(tmp_path)
    assert "Going on after step 3" in command("resume", path, "--data", "moved.zarr")
    assert bits(path) == bits(whole)
    assert load_train_config(path / "config.toml")[0].data.pairs == str(moved)
    moved.rename(place)
    assert "trained this network" in command("evaluate", path, "--split", "train", "--data", place, code=2)
    with no_pictures():
        assert f"{path / 'evaluation' / 'test'}" in command("evaluate", path, "--data", place)


def losses(path: Path) -> list[float]:
    return [event["loss"] for event in read_events(path) if event["kind"] == "step"]


LONG = {
    "training__slices": 2,
    "training__epochs": 17,
    "training__validate_every": 17,
    "training__checkpoint_every": 51,
    "training__schedule__peak": 3e-4,
}
"""51 steps of two slices, whose sum has the same bits in either order: who computes which cannot change the curve."""


@pytest.fixture(scope="module")
def exact_losses(trained: RunTraining, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of 51 steps whose gradients were added exactly."""
    return losses(trained(tmp_path_factory.mktemp("exact"), **LONG))


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_in_float32_give_the_same_curve(
    trained: RunTraining, exact_losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(parallel, "local_threads", lambda settings: threads)
    path = trained(tmp_path, training__exact=False, **LONG)
    found = losses(path)
    assert len(found) == 51
    np.testing.assert_allclose(found, exact_losses, rtol=1e-5)
    assert found[-1] < 0.5 * found[0]


def test_float32_rounds_sums_of_three_slices(trained: RunTraining, whole: Path, tmp_path: Path) -> None:
    found, exact = losses(trained(tmp_path, training__exact=False)), losses(whole)
    assert found != exact
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.ray
def test_sums_in_float32_on_workers_give_the_same_curve(
    trained: RunTraining, exact_losses: list[float], tmp_path: Path
) -> None:
    path = trained(tmp_path, training__exact=False, cluster__workers=2, **LONG)
    np.testing.assert_allclose(losses(path), exact_losses, rtol=1e-5)


def test_a_loss_that_leaves_the_numbers_ends_the_run_before_the_step(trained: RunTraining, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="Nothing was applied"):
        trained(tmp_path, training__schedule__peak=1e18, training__schedule__kind="constant")
    found = checkpoints.load_latest(tmp_path / "tiny" / "checkpoints")
    assert found is not None
    assert all(np.isfinite(value).all() for value in found.tensors.values())


@contextlib.contextmanager
def no_pictures() -> Iterator[None]:
    """Spare an evaluation most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save_png", lambda figure, path: path.touch())
        yield


def without_models(store: PairStore, path: Path) -> Path:
    """Write a store of the same records whose models nobody knows, and have nine rows."""
    records, _ = store.read(range(SAMPLES))
    writer = create_pairs(
        path,
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=(9, MODEL[1]),
        family="unknown",
        physics=store.physics,
        splits=store.splits,
    )
    writer.write(0, records, np.full((SAMPLES, 9, MODEL[1]), 1500.0, np.float32))
    writer.finish()
    return path


def command(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands_from_training_to_comparison(
    store: PairStore, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [word for text in texts(TINY | {"training.epochs": 1}) for word in ("--set", text)]
    told = command("train", "train_fcnvmb", "--data", store.path, *changes, "--name", "other", "--workers", "0")
    assert "epoch 1/1" in told
    assert "Next         hpfwi evaluate runs/other" in told
    assert "is finished" in command("resume", "runs/other")
    assert "`hpfwi resume runs/other`" in command("train", "runs/other", code=2)
    assert "`hpfwi resume runs/NAME`" in command("train", "--resume", "runs/other", code=2)
    assert "hpfwi evaluate" in command("report", "runs/other", code=2)
    late = ("--set", "training.schedule.warm_up_epochs=9", "--set", "training.schedule.kind=warm-up-cosine")
    words = ("--data", store.path, *changes, *late, "--name", "none")
    assert "leaves none of 1 for the cosine" in command("train", "train_fcnvmb", *words, code=2)
    assert not Path("runs/none").exists()
    assert "needs pairs" in command("train", "train_amfms", code=2)
    assert 'name = "amfms"' in command("config", "train_amfms")
    assert "trained this network" in command("evaluate", "runs/other", "--split", "train", code=2)
    assert "was not evaluated" in command("compare", whole, "runs/other", code=3)

    for run in (whole, Path("runs/other")):
        with no_pictures() if run != whole else contextlib.nullcontext():
            told = command("evaluate", run)
        assert f"Wrote {run / 'evaluation' / 'test'}" in told
        assert "Velocities   range: 1500 to 3000 m/s on [0, 1]" in told
        (lpips,) = [line for line in told.splitlines() if line.startswith("published_lpips ")]
        assert lpips.endswith("  not computed: give its weights with --lpips")
    folder = whole / "evaluation" / "test"
    assert {file.name for file in folder.iterdir()} == {"scores.csv", "summary.json", "predictions.png", "profiles.png"}
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    assert [int(row["sample"]) for row in rows] == list(store.splits["test"])

    records, true = store.read(store.splits["test"])
    np.save("records.npy", records)
    command("predict", whole, "records.npy", "out.npy")
    predicted = np.load("out.npy")
    errors = np.abs(predicted.astype(np.float64) - true).mean(axis=(1, 2))
    np.testing.assert_allclose([float(row["mae_mps"]) for row in rows], errors, rtol=1e-12)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["means"]["mae_mps"]["mean"] == pytest.approx(errors.mean(), rel=1e-12)
    np.save("one.npy", records[1])
    command("predict", whole, "one.npy", "single.npy")
    np.testing.assert_allclose(np.load("single.npy"), predicted[1], rtol=1e-5)
    assert "exists" in command("predict", whole, "one.npy", "single.npy", code=2)
    assert "is a folder" in command("predict", whole, "one.npy", ".", "--overwrite", code=2)
    assert "is a folder" in command("compare", whole, "runs/other", "--out", ".", code=2)
    np.save("wrong.npy", records[:, :2])
    assert "this network takes" in command("predict", whole, "wrong.npy", "wrong-out.npy", code=3)
    assert not Path("wrong-out.npy").exists()

    records[2, 0, 3, 4] = np.nan
    np.save("broken.npy", records)
    assert "The records of sample 2 hold NaN" in command("predict", whole, "broken.npy", "broken-out.npy", code=3)
    constant = without_models(store, Path("constant.zarr"))
    told = command("train", "train_fcnvmb", "--data", constant, *changes, "--name", "none", code=3)
    assert "The models of split 'train' of " in told
    assert "constant.zarr are all 1500, and nothing can be learnt from that" in told
    assert not Path("runs/none").exists()
    assert "has records [3, 40, 16] and models [9, 15], and this" in command(
        "evaluate", whole, "--data", constant, code=3
    )
    if not torch.cuda.is_available():
        assert "--device cpu" in command("evaluate", whole, "--device", "cuda", code=2)

    assert "Wrote fcnvmb after step 6" in command("export", whole, "weights.safetensors")
    assert "name a store with --data" in command("evaluate", "weights.safetensors", code=2)
    own = ("evaluate", "weights.safetensors", "--data", store.path)
    assert "trained this network" in command(*own, "--split", "train", code=2)
    assert "leave --checkpoint last out" in command(*own, "--checkpoint", "last", code=2)
    with no_pictures():
        assert "Wrote weights-evaluation/validation" in command(*own, "--split", "validation")
        assert "Wrote weights-evaluation/test" in command(*own)
    assert Path("weights-evaluation/test/scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()
    assert "weights.safetensors" in command("compare", whole, "weights.safetensors")
    words = ("--data", store.path, *changes, "--weights", "weights.safetensors", "--name", "tuned")
    assert "Beginning with the weights of" in command("train", "train_fcnvmb", *words)
    words = ("--data", store.path, *changes, "--weights", "runs/tuned", "--name", "tuned", "--overwrite")
    assert "would be deleted" in command("train", "train_fcnvmb", *words, code=2)
    words = ("--data", store.path, *changes, "--weights", "none.safetensors", "--name", "none")
    assert "cannot be used" in command("train", "train_fcnvmb", *words, code=3)
    assert not Path("runs/none").exists()

    assert (summary["scale"], summary["lpips"]) == ("range: 1500 to 3000 m/s on [0, 1]", "not computed")
    assert "cannot be read" in command("evaluate", whole, "--lpips", "records.npy", code=3)
    table = command("compare", whole, "runs/other").splitlines()
    assert table[4:6] == [f"{name}: velocities on range: 1500 to 3000 m/s on [0, 1]" for name in ("tiny", "other")]
    assert [line.split()[0] for line in table[1:3]] == ["tiny", "other"]
    assert "- first run" in table[3]
    assert Path("comparison.png").stat().st_size > 1000


def test_a_network_trained_on_each_samples_range_says_no_velocities(
    trained: RunTraining, store: PairStore, tmp_path: Path
) -> None:
    path = trained(tmp_path, training__epochs=1, training__normalisation__normalisation="per-sample")
    np.save(tmp_path / "records.npy", store.read([20])[0])
    words = ("predict", path, tmp_path / "records.npy", tmp_path / "out.npy")
    assert "--normalised" in command(*words, code=2)
    assert not (tmp_path / "out.npy").exists()
    command(*words, "--normalised")
    assert np.load(tmp_path / "out.npy").shape == (1, *MODEL)


@pytest.mark.parametrize(
    ("network", "loss"), [("amfms", "mmt"), ("inversionnet", "mse"), ("tu-net-seg", "mpe"), ("velocitygan", "wgan-gp")]
)
def test_networks_are_trained_and_judged(
    trained: RunTraining, store: PairStore, tmp_path: Path, network: str, loss: str
) -> None:
    options = {"network__name": network, "training__loss__name": loss, "training__average_decay": 0.5}
    path = trained(tmp_path, training__epochs=1, training__batch=18, **options)
    network_ = open_trained(path, "last")
    assert network_.step == 1
    velocities = network_.predict(store.read([20, 21])[0])
    assert velocities.shape == (2, *MODEL)
    assert torch.isfinite(torch.from_numpy(velocities)).all()
    export(path, tmp_path / "weights.safetensors", which="last")
    again = open_network(tmp_path / "weights.safetensors").predict(store.read([20, 21])[0])
    np.testing.assert_array_equal(again, velocities)
