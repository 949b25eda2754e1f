"""Progress shows life at once, keeps a log short, and its TensorBoard view says what the event log says."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from rich.console import Console

from hpfwi import tensorboard_view
from hpfwi.progress import Progress
from hpfwi.run_folder import RunFolder


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set; every reading is its last value."""
    readings = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: readings[-1])
    return readings


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def step(progress: Progress, iteration: int) -> None:
    progress.update(iteration=iteration, misfit=2.5 / (iteration + 1), seconds=0.5, shots=6, wait_share=0.25)


def test_a_log_starts_at_once_has_a_line_per_interval_and_the_last_iteration(ticks: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress(40, console=console, every_s=5.0) as progress:
        assert lines_of(console) == ["iteration 0/40: starting"]
        for iteration in range(40):
            ticks.append(ticks[-1] + 0.5)
            step(progress, iteration)
        progress.say("Worker 2 was lost [on node a].")
    lines = lines_of(console)
    assert lines[1] == "iteration 1/40  misfit 2.5  12 shots/s  waiting 25 %"
    assert [line.split()[1] for line in lines[1:-1]] == ["1/40", "11/40", "21/40", "31/40", "40/40"]
    assert lines[-2].endswith("0:00 left")
    assert lines[-1] == "Worker 2 was lost [on node a]."


def test_the_remaining_time_follows_the_recent_pace(ticks: list[float]) -> None:
    with Progress(200, console=Console(file=io.StringIO(), force_terminal=False)) as progress:
        assert progress.remaining_s() is None
        ticks.append(ticks[-1] + 60.0)  # the first iteration compiles
        step(progress, 0)
        assert progress.remaining_s() is None
        ticks.append(ticks[-1] + 3.0)
        step(progress, 1)
        assert progress.remaining_s() == pytest.approx(3.0 * 198)
        for iteration in range(2, 100):
            ticks.append(ticks[-1] + 0.1)
            step(progress, iteration)
        assert progress.remaining_s() == pytest.approx(10.0)
        progress.went_back(50)
        assert progress.remaining_s() is None
        for iteration in (50, 51):
            ticks.append(ticks[-1] + 2.0)
            step(progress, iteration)
        assert progress.remaining_s() == pytest.approx(2.0 * 148)


def test_a_resumed_run_counts_from_where_it_is(ticks: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress(40, first=20, console=console) as progress:
        for iteration in (20, 21):
            ticks.append(ticks[-1] + 6.0)
            step(progress, iteration)
    assert lines_of(console)[0] == "iteration 20/40: starting"
    assert lines_of(console)[1].startswith("iteration 21/40")
    assert lines_of(console)[2].endswith("1:48 left")


def test_a_terminal_gets_a_bar_that_is_taken_down() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    with Progress(4, console=console) as progress:
        for iteration in range(4):
            step(progress, iteration)
        progress.say("one sentence")
    shown = "\n".join(lines_of(console))
    assert "iteration 4/4" in shown
    assert "one sentence" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back


class Settings(BaseModel):
    name: str = "toy"


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path / "tb")).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in sorted(found.Tags()["scalars"])}


def images(path: Path) -> dict[str, list[tuple[int, int]]]:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    found = EventAccumulator(str(path / "tb"), size_guidance={IMAGES: 0}).Reload()
    return {tag: [(event.step, event.width) for event in found.Images(tag)] for tag in sorted(found.Tags()["images"])}


def test_the_view_says_what_the_log_says_and_can_be_rebuilt(tmp_path: Path) -> None:
    with RunFolder.create(Settings(), "toy", parent=tmp_path, environment={}) as folder:
        with tensorboard_view.TensorBoardView(folder.path) as view:
            for iteration in range(4):
                fields: dict[str, Any] = {"misfit": 4.0 - iteration, "shots_per_s": 3.0, "wait_share": 0.5}
                view.event(folder.event("iteration", iteration=iteration, seconds=1.0, **fields))
            view.event(folder.event("diagnostics", iteration=2, ssim=0.5, mse=float("nan"), dead={"layer 1": 0.25}))
            view.event(folder.event("worker_lost", iteration=2, sentence="Worker 1 was lost."))
            view.event(folder.event("stop", reason="Ctrl-C"))
        expected = {
            "diagnostics/dead/layer 1": [(2, 0.25)],
            "diagnostics/ssim": [(2, 0.5)],
            "inversion/misfit": [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)],
            "inversion/seconds": [(iteration, 1.0) for iteration in range(4)],
            "inversion/shots_per_s": [(iteration, 3.0) for iteration in range(4)],
            "inversion/wait_share": [(iteration, 0.5) for iteration in range(4)],
        }
        assert scalars(folder.path) == expected

        folder.truncate_events_after(2)
        results = folder.results
        results.describe(name="toy", spacing_m=(10.0, 20.0), origin_m=(0.0, 0.0), dt_s=0.002)
        velocity = np.linspace(1500, 4500, 12 * 30, dtype=np.float32).reshape(12, 30)
        results.model("true", velocity)
        results.model("initial", velocity[::-1])
        for iteration in (0, 2):
            results.append_history(iteration, velocity)
        tensorboard_view.rebuild(folder.path)
        rebuilt = scalars(folder.path)
        assert rebuilt == {tag: [pair for pair in pairs if pair[0] <= 2] for tag, pairs in expected.items()}
        assert images(folder.path) == {"model/inverted": [(0, 900), (2, 900)], "model/true": [(0, 900)]}


def test_pictures_share_one_colour_scale() -> None:
    slow, fast = np.full((4, 9), 1500.0), np.full((4, 9), 4500.0)
    limits = tensorboard_view.colour_limits_mps(slow, fast)
    assert limits == (1500.0, 4500.0)
    pictures = [tensorboard_view._picture(model, (10.0, 10.0), limits) for model in (slow, fast, slow)]
    assert pictures[0].dtype == np.uint8
    assert pictures[0].shape[2] == 3
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()
    for picture, other in itertools.combinations(pictures, 2):
        assert picture.shape == other.shape
