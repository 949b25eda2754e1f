"""A look at refined samples: what the network proposed, what the waveforms made of it, and what they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.figures import style

SAMPLES = 4


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample.

    models      float32[z, x] by name, m/s: true (where it is known), proposed, refined
    gathers     float32[time, receiver] of one shot by name: observed, and the residuals of proposed and refined
    title       over its column
    """

    models: Mapping[str, NDArray[np.float32]]
    gathers: Mapping[str, NDArray[np.float32]]
    title: str


def draw_refinement(path: Path, shown: Sequence[Shown], physics: Mapping[str, Any], title: str) -> None:
    """Write a PNG with a column for each sample: its models, then one shot's records and what is left of them.

    physics     of the store: dx_m, dz_m, dt_s
    """
    names = list(shown[0].models)
    gathers = list(shown[0].gathers)
    with style.look():
        frame = style.frame_of(
            shown[0].models["refined"].shape, (physics["dz_m"] or 1.0, physics["dx_m"] or 1.0), (0.0, 0.0)
        )
        rows = len(names) + len(gathers)
        figure = style.new_figure(0.6 + 2.3 * rows * max(1.0, 4 / max(len(shown), 3)))
        grid = figure.subplots(rows, len(shown), squeeze=False)
        limits = style.velocity_limits(*(model for one in shown for model in one.models.values()))
        for row, name in enumerate(names):
            for column, one in enumerate(shown):
                image = style.draw_section(
                    grid[row, column],
                    one.models[name],
                    frame,
                    title=f"{one.title}\n{name}" if row == 0 else name,
                    colours=style.VELOCITY_MAP,
                    limits=limits,
                    outer=(column == 0, row == len(names) - 1),
                )
        figure.colorbar(image, ax=grid[: len(names)], label="velocity (m/s)", shrink=0.6)
        clip = style.symmetric_limit(*(one.gathers["observed"] for one in shown), percentile=98.0)
        for row, name in enumerate(gathers, start=len(names)):
            for column, one in enumerate(shown):
                axes, gather = grid[row, column], one.gathers[name]
                duration = (physics["dt_s"] or 1.0) * len(gather)
                image = axes.imshow(
                    gather,
                    extent=(-0.5, gather.shape[1] - 0.5, duration, 0.0),
                    cmap=style.GATHER_MAP,
                    vmin=-clip,
                    vmax=clip,
                    aspect="auto",
                )
                axes.set_title(name)
                axes.tick_params(labelleft=column == 0, labelbottom=row == rows - 1)
                if column == 0:
                    axes.set_ylabel("time (s)" if physics["dt_s"] else "time (samples)")
                if row == rows - 1:
                    axes.set_xlabel("receiver")
        figure.colorbar(image, ax=grid[len(names) :], label="amplitude", shrink=0.6)
        figure.suptitle(title)
        style.save_png(figure, path)
