"""A run that was stopped, damaged or pulled in two goes on to the bits of the run that was left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PARAMETERISATION = "inversion__parameterisation"
KINDS: dict[str, dict[str, object]] = {
    "s-denorm": {},
    "pixel": {f"{PARAMETERISATION}__lr_pixel_mps": 20.0},
    "pretrain": {f"{PARAMETERISATION}__pretrain__max_steps": 20},
    "a-denorm-joint": {},
    "a-denorm-recentre": {f"{PARAMETERISATION}__recentre_every": 2},
    "a-denorm-moving-mean": {f"{PARAMETERISATION}__moving_mean_rate": 0.2},
}


def last_of(path: Path) -> Path:
    return sorted((path / "checkpoints").iterdir())[-1]


def scalar_steps(path: Path) -> list[int]:
    """Return the iterations at which TensorBoard shows a misfit."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path / "tb")).Reload()
    return [event.step for event in found.Scalars("inversion/misfit")]


def image_steps(path: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    found = EventAccumulator(str(path / "tb"), size_guidance={IMAGES: 0}).Reload()
    return [event.step for event in found.Images("model/inverted")]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_twice_and_resumed_is_undisturbed(kind: str, run: Any, resume: Any, tmp_path: Path) -> None:
    changes = {f"{PARAMETERISATION}__kind": kind, "inversion__iterations": 6, **KINDS[kind]}
    straight = run(tmp_path / "straight", **changes)
    stopped = run(tmp_path / "stopped", stop_after=2, **changes)
    resume(stopped, stop_after=5)
    ended = resume(stopped)
    assert ended.bits == straight.bits
    assert [event["iteration"] for event in ended.of_kind("stop")] == [2, 5]
    assert len(ended.of_kind("resume")) == 2


def test_iterations_move_the_model(reference: Any) -> None:
    """Without this the comparisons would hold for runs that do nothing."""
    history = reference.array("model/history")
    assert list(reference.array("model/history_iteration")) == [0, 4, 8]
    assert np.abs(np.diff(history, axis=0)).max(axis=(1, 2)).min() > 1.0
    misfits = [event["misfit"] for event in reference.of_kind("iteration")]
    assert misfits[-1] < 0.9 * misfits[0]


@pytest.mark.parametrize("batch", [2, 4])
def test_the_draw_of_shots_survives_a_stop(batch: int, run: Any, resume: Any, tmp_path: Path) -> None:
    changes: dict[str, object] = {"inversion__shots_per_iteration": batch, "inversion__shots_per_item": 2}
    straight = run(tmp_path / "straight", **changes)
    ended = resume(run(tmp_path / "stopped", stop_after=5, **changes))
    assert ended.bits == straight.bits


def test_item_threads_change_no_bit(run: Any, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi import parallel

    for threads in (1, 2, 3):
        monkeypatch.setattr(parallel, "local_threads", lambda settings, threads=threads: threads)
        assert run(tmp_path / f"{threads}").bits == reference.bits


def test_threads_of_torch_change_no_bit(run: Any, reference: Any, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    try:
        torch.set_num_threads(other)
        ended = run(tmp_path)
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)
    assert ended.bits == reference.bits


def test_a_truncated_checkpoint_is_passed_over(run: Any, resume: Any, reference: Any, tmp_path: Path) -> None:
    stopped = run(tmp_path, stop_after=7)
    newest = last_of(stopped.path)
    tensors = newest / "tensors.safetensors"
    os.truncate(tensors, tensors.stat().st_size // 2)
    assert stopped.checkpoint.iteration == 6
    ended = resume(stopped)
    assert ended.bits == reference.bits
    assert stopped.checkpoint.iteration == 8


def test_after_a_kill_the_course_beyond_the_checkpoint_is_forgotten(
    run: Any, resume: Any, reference: Any, tmp_path: Path
) -> None:
    """Logs, history and TensorBoard run ahead of the checkpoints; going back takes them back too."""
    stopped = run(tmp_path, stop_after=5)
    shutil.rmtree(last_of(stopped.path))  # as if killed before it was written: the one after iteration 3 is left
    assert (stopped.checkpoint.iteration, scalar_steps(stopped.path)) == (3, [0, 1, 2, 3, 4])
    assert list(stopped.array("model/history_iteration")) == image_steps(stopped.path) == [0, 4]
    resume(stopped, stop_after=4)
    assert scalar_steps(stopped.path) == [0, 1, 2, 3]
    assert list(stopped.array("model/history_iteration")) == image_steps(stopped.path) == [0]
    ended = resume(stopped)
    assert ended.bits == reference.bits
    assert scalar_steps(ended.path) == list(range(8))
    assert image_steps(ended.path) == [0, 4, 8]


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    run: Any, resume: Any, reference: Any, tmp_path: Path
) -> None:
    stopped = run(tmp_path, stop_after=1)
    shutil.rmtree(stopped.path / "checkpoints")
    ended = resume(stopped)
    assert ended.bits == reference.bits


def test_the_best_model_survives_a_stop(run: Any, resume: Any, tmp_path: Path) -> None:
    """Rates that overshoot make an early model the best; a run stopped later still knows it."""
    changes: dict[str, object] = {f"{PARAMETERISATION}__lr_network": 0.03, "inversion__diagnostics_every": 1}
    straight = run(tmp_path / "straight", **changes)
    scores = [event["mse_kmps2"] for event in straight.of_kind("diagnostics")]
    assert np.argmin(scores) < 5
    ended = resume(run(tmp_path / "stopped", stop_after=6, **changes))
    assert ended.bits == straight.bits
    assert not np.array_equal(ended.array("model/best"), ended.array("model/inverted"))


def test_a_finished_run_is_not_run_again(reference: Any) -> None:
    from typer.testing import CliRunner

    from hpfwi import cli

    before = {path: path.stat().st_mtime_ns for path in reference.path.rglob("*")}
    result = CliRunner().invoke(cli.app, ["resume", str(reference.path)])
    assert result.exit_code == 0
    assert "nothing to resume" in result.output
    assert {path: path.stat().st_mtime_ns for path in reference.path.rglob("*") if path.name != "lock"} == {
        path: time for path, time in before.items() if path.name != "lock"
    }


def test_threads_that_share_a_shot_change_no_bit(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi import parallel
    from hpfwi.inversion.task import InversionTask

    whole, seen = InversionTask.gradient, set()

    def watched(self: InversionTask, shots: Any, *, threads: int = 1) -> Any:
        seen.add(threads)
        return whole(self, shots, threads=threads)

    monkeypatch.setattr(InversionTask, "gradient", watched)
    ended = []
    for threads in (1, 4):
        monkeypatch.setattr(parallel, "local_threads", lambda settings, threads=threads: threads)
        ended.append(run(tmp_path / f"{threads}", inversion__shots_per_iteration=2))
    assert seen == {1, 2}
    assert ended[0].bits == ended[1].bits
