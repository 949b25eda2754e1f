"""A TensorBoard view of a run: nothing is known here that events.jsonl and results.zarr do not say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hpfwi.run_folder import read_events
from hpfwi.tensorboard_file import EventFile

FOLDER = "tb"
_SCALARS = ("misfit", "shots_per_s", "wait_share", "seconds", "stage", "trial_misfit", "step_length", "rejected")
_PIXELS_WIDE = 900


class TensorBoardView:
    """Write scalars and model images of the run in `path` under its folder tb/.

    raises      DiskError: the disk refuses; so does whatever adds to it
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = EventFile(path / FOLDER)

    def start_again(self) -> None:
        """Write everything again from the event log and the results, in place of what is there.

        Needed after a run went back, because a view written ahead of a checkpoint shows a course that was left.
        raises      DataError when the event log cannot be read
        """
        events = read_events(self._path)
        self.close()
        shutil.rmtree(self._path / FOLDER, ignore_errors=True)
        self._file = EventFile(self._path / FOLDER)
        for event in events:
            self.event(event)
        _add_models(self, self._path / "results.zarr")

    def __enter__(self) -> TensorBoardView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """Add the numbers of one event; events without an iteration, or with nothing to plot, add nothing."""
        iteration = event.get("iteration")
        if iteration is None:
            return
        if event["kind"] == "iteration":
            for name in _SCALARS:
                self._scalar(f"inversion/{name}", event.get(name), iteration, event["time"])
        elif event["kind"] == "diagnostics":
            for name, value in event.items():
                if name not in ("kind", "time", "iteration"):
                    self._diagnostic(f"diagnostics/{name}", value, iteration, event["time"])
        elif event["kind"] == "worker_lost":
            from torch.utils.tensorboard.summary import text

            self._file.add(text("workers lost", event.get("sentence", "")), iteration, event["time"])

    def _diagnostic(self, tag: str, value: Any, iteration: int, at: float) -> None:
        """A number, or the numbers of a table of them."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                self._diagnostic(f"{tag}/{key}", item, iteration, at)
        else:
            self._scalar(tag, value, iteration, at)

    def _scalar(self, tag: str, value: Any, iteration: int, at: float) -> None:
        if isinstance(value, int | float | np.number) and not isinstance(value, bool) and np.isfinite(value):
            from torch.utils.tensorboard.summary import scalar

            self._file.add(scalar(tag, float(value)), iteration, at)

    def _image(self, tag: str, pixels: np.ndarray, iteration: int) -> None:
        """A picture, uint8[row, column, 3]."""
        from torch.utils.tensorboard.summary import image

        self._file.add(image(tag, pixels, dataformats="HWC"), iteration)

    def model(
        self,
        name: str,
        velocity: np.ndarray,
        iteration: int,
        *,
        spacing_m: tuple[float, ...],
        limits_mps: tuple[float, float],
    ) -> None:
        """Add a picture of a model [z, x], or of planes through one [z, y, x], in m/s, with axes in km.

        limits_mps  keep the colours comparable
        """
        self._image(f"model/{name}", _picture(velocity, spacing_m, limits_mps), iteration)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rebuild(path: Path) -> None:
    """Write tb/ of the run folder `path` again from its event log and its results, in place of what is there."""
    with TensorBoardView(path) as view:
        view.start_again()


def _add_models(view: TensorBoardView, results: Path) -> None:
    if not results.is_dir():
        return
    import zarr

    root: Any = zarr.open_group(results, mode="r")
    if "model/initial" not in root or "spacing_m" not in root.attrs:
        return
    spacing_m = tuple(root.attrs["spacing_m"])
    limits_mps = colour_limits_mps(*(root[name][:] for name in ("model/true", "model/initial") if name in root))
    if "model/true" in root:
        view.model("true", root["model/true"][:], 0, spacing_m=spacing_m, limits_mps=limits_mps)
    if "model/history_iteration" in root:
        for record, iteration in enumerate(root["model/history_iteration"][:]):
            velocity = root["model/history"][record]
            view.model("inverted", velocity, int(iteration), spacing_m=spacing_m, limits_mps=limits_mps)


def colour_limits_mps(*models: np.ndarray) -> tuple[float, float]:
    """The range of all models together: one scale for every picture of a run."""
    return min(float(model.min()) for model in models), max(float(model.max()) for model in models)


def _picture(velocity: np.ndarray, spacing_m: tuple[float, ...], limits_mps: tuple[float, float]) -> np.ndarray:
    """uint8[row, column, 3]: the section, or the planes through the middle of a block, with axes and colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hpfwi.figures import slices

    sides_km = [count * step / 1000 for count, step in zip(velocity.shape, spacing_m, strict=True)]
    shown = slices.planes(velocity.ndim)
    heights_km, widths_km = ([sides_km[plane[side]] for plane in shown] for side in (0, 1))
    inches = _PIXELS_WIDE / 100
    figure = Figure(
        figsize=(inches, float(np.clip(inches * 0.8 * max(heights_km) / sum(widths_km) + 1.1, 2.0, 12.0))),
        dpi=100,
        layout="constrained",
    )
    canvas = FigureCanvasAgg(figure)
    every = figure.subplots(1, len(shown), squeeze=False, width_ratios=widths_km)[0]
    for axes, plane, height_km, width_km in zip(every, shown, heights_km, widths_km, strict=True):
        image = axes.imshow(
            slices.cut(np.asarray(velocity), plane) / 1000,
            extent=(0, width_km, height_km, 0),
            vmin=limits_mps[0] / 1000,
            vmax=limits_mps[1] / 1000,
            interpolation="nearest",
        )
        down, right = slices.names(plane, velocity.ndim)
        axes.set_xlabel(f"{right} (km)")
        axes.set_ylabel(f"{down} (km)")
    figure.colorbar(image, ax=every, label="velocity (km/s)")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
