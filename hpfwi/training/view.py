"""What TensorBoard shows of a training run: nothing that events.jsonl and figures/ do not say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi.tensorboard_view import TensorBoardView

FIGURES = "figures"
_PREFIX = "validation-"
_NOT_PLOTTED = ("kind", "time", "iteration", "epoch", "samples")
_SPEED = ("samples_per_s", "wait_share", "data_wait_share", "seconds")


class TrainingView(TensorBoardView):
    """Write losses, rates, speeds and validation pictures of the run in `path` under its folder tb/."""

    def start_again(self) -> None:
        """Write everything again from the event log and the figures, in place of what is there."""
        super().start_again()
        for figure in sorted((self._path / FIGURES).glob(f"{_PREFIX}*.png")):
            self.figure(figure)

    def event(self, event: Mapping[str, Any]) -> None:
        """Add the numbers of one event; events without an iteration, or with nothing to plot, add nothing."""
        if event["kind"] not in ("step", "epoch"):
            super().event(event)
            return
        for name, value in event.items():
            if name in _NOT_PLOTTED:
                continue
            table = "epoch" if event["kind"] == "epoch" else "speed" if name in _SPEED else "training"
            self._diagnostic(f"{table}/{name}", value, event["iteration"], event["time"])

    def figure(self, path: Path) -> None:
        """Add a picture that `figure_path` named."""
        from matplotlib.image import imread

        pixels = (np.asarray(imread(path))[..., :3] * 255).round().astype(np.uint8)
        self._image("validation", pixels, _steps_of(path))


def figure_path(run: Path, steps: int) -> Path:
    """Where the picture of the validation after so many steps is kept."""
    return run / FIGURES / f"{_PREFIX}{steps:08d}.png"


def forget_figures_after(run: Path, steps: int) -> None:
    """Delete pictures of a course that the run left when it went back to `steps` steps."""
    for figure in (run / FIGURES).glob(f"{_PREFIX}*.png"):
        if _steps_of(figure) > steps:
            figure.unlink()


def _steps_of(figure: Path) -> int:
    return int(figure.stem.removeprefix(_PREFIX))
