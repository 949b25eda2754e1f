"""Training with batch norm over whole batches: one curve, however the batch is cut and whoever computes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi import checkpoints, parallel
from hpfwi.errors import Stopped
from hpfwi.parallel import GroupLost
from hpfwi.run_folder import RunFolder, read_events
from hpfwi.stop import Stop
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training import train as loop
from hpfwi.training.settings import load_train_config, resolved
from hpfwi.training.task import TrainingTask
from hpfwi.training.train import train

RECORDS, MODEL, SAMPLES = (2, 40, 16), (11, 15), 13
NAMES = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
Trained = Callable[..., Path]
Bits = dict[str, bytes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains four steps, or until it is stopped, in a new folder or an old one."""
    random = np.random.default_rng(3)
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "noise.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="noise",
        physics=dict.fromkeys(NAMES),
        shard_samples=SAMPLES,
    )
    records = random.normal(size=(SAMPLES, *RECORDS)) * np.arange(1, SAMPLES + 1)[:, None, None, None]
    writer.write(0, records.astype(np.float32), random.uniform(1500, 4500, (SAMPLES, *MODEL)).astype(np.float32))
    store = writer.finish()

    def trained(path: Path, *changes: str, stop: Stop | None = None) -> Path:
        again = (path / "tiny").is_dir()
        common = ["network.width=0.05", "training.loss.name=mse", "training.epochs=2", "training.batch=6"]
        common += ["training.slices=3", "training.log_every=1", "training.shown_samples=0", "cluster.workers=0"]
        options = ["name=tiny", f"data.pairs={store.path}", "network.name=inversionnet", *common]
        config = resolved(load_train_config(None, [*options, "training.sync_batch_norm=true", *changes])[0], store)
        opened = (
            RunFolder.open(path / "tiny") if again else RunFolder.create(config, "tiny", parent=path, environment={})
        )
        with opened as folder:
            if stop is None:
                train(config, folder, resume=again, stop=Stop())
            else:
                with pytest.raises(Stopped):
                    train(config, folder, resume=again, stop=stop)
        return path / "tiny"

    return trained


def losses(path: Path) -> list[float]:
    return [event["loss"] for event in read_events(path) if event["kind"] in ("step", "epoch")]


def bits(path: Path) -> Bits:
    found = checkpoints.load_latest(path / "checkpoints")
    assert found is not None
    assert not any("halted" in name for name in found.tensors)
    return {name: value.tobytes() for name, value in found.tensors.items()} | {"losses": repr(losses(path)).encode()}


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run that nothing disturbed."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_slices_follow_the_curve_of_the_whole_batch(trained: Trained, whole: Path, tmp_path: Path) -> None:
    """Adam makes steps of rounding where a bias has no gradient, so curves part a little from step to step."""
    one_slice = losses(trained(tmp_path / "one", "training.slices=1"))
    np.testing.assert_allclose(losses(whole)[:2], one_slice[:2], rtol=1e-5)
    np.testing.assert_allclose(losses(whole), one_slice, rtol=1e-3)
    alone = losses(trained(tmp_path / "alone", "training.sync_batch_norm=false"))
    assert abs(alone[0] - one_slice[0]) > 1e-3 * one_slice[0]


def test_a_run_that_stops_in_the_middle_of_a_step_goes_on_to_the_same_bits(
    trained: Trained, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step with a checkpoint before it, and in one without."""
    for stopped in (1, 2):
        stop = Stop()
        sums: list[int] = []
        with monkeypatch.context() as patched:
            advance = TrainingTask.advance

            def counted(
                task: TrainingTask,
                step: int,
                total: np.ndarray,
                stopped: int = stopped,
                stop: Stop = stop,
                sums: list[int] = sums,
                advance: Callable[..., None] = advance,
            ) -> None:
                advance(task, step, total)
                sums.append(step)
                if sums.count(stopped) == 20:
                    stop.request("it is time")

            patched.setattr(TrainingTask, "advance", counted)
            path = trained(tmp_path, stop=stop)
        assert sums[-20:] == [stopped] * 20
        assert checkpoints.load_latest(path / "checkpoints").iteration == stopped  # type: ignore[union-attr]
        bits(path)
    assert bits(trained(tmp_path)) == bits(whole)


def test_a_group_lost_in_the_middle_of_a_step_takes_it_again(
    trained: Trained, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def start(*arguments: Any) -> Any:
        group = parallel.start_training(*arguments)
        run = group.run

        def losing(iteration: int, *rest: Any) -> Any:
            calls.append(iteration)
            if len(calls) == 30:
                raise GroupLost("Every worker is gone.")
            return run(iteration, *rest)

        monkeypatch.setattr(group, "run", losing)
        return group

    monkeypatch.setattr(loop, "start_training", start)
    path = trained(tmp_path)
    assert calls[28] == calls[29] == 0  # a sum of the first step
    assert bits(path) == bits(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_give_the_same_bits(trained: Trained, whole: Path, tmp_path: Path) -> None:
    """With three slices one worker has two of them; which ones may change from sum to sum."""
    assert bits(trained(tmp_path, "cluster.workers=2")) == bits(whole)
