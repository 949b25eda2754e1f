"""A look at a store of pairs: some models, the records of one shot of each, and how often each value occurs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.figures import style

SAMPLES = 4
BINS = 80


def draw_pairs(
    path: Path,
    records: NDArray[np.float32],
    models: NDArray[np.float32],
    samples: Sequence[int],
    physics: dict[str, Any],
    title: str,
) -> None:
    """Write a PNG of up to four pairs.

    records  float32[n, shot, time, receiver]
    models   float32[n, z, x], m/s
    samples  their numbers, for the titles
    physics  of the store: dx_m, dz_m, dt_s
    """
    with style.look():
        figure = style.new_figure(7.6)
        grid = figure.add_gridspec(3, len(samples), height_ratios=(1.0, 1.25, 0.8))
        frame = style.frame_of(models.shape[1:], (physics["dz_m"] or 1.0, physics["dx_m"] or 1.0), (0.0, 0.0))
        limits = style.velocity_limits(models)
        shot, clip = records.shape[1] // 2, style.symmetric_limit(records[:, records.shape[1] // 2], percentile=98.0)
        duration = (physics["dt_s"] or 1.0) * records.shape[2]
        panels = []
        for column, sample in enumerate(samples):
            outer = (column == 0, True)
            axes = figure.add_subplot(grid[0, column])
            panels.append(axes)
            image = style.draw_section(
                axes,
                models[column],
                frame,
                title=f"sample {sample}",
                colours=style.VELOCITY_MAP,
                limits=limits,
                outer=outer,
            )
            axes = figure.add_subplot(grid[1, column])
            axes.imshow(
                records[column, shot],
                extent=(-0.5, records.shape[3] - 0.5, duration, 0.0),
                cmap=style.GATHER_MAP,
                vmin=-clip,
                vmax=clip,
                aspect="auto",
            )
            axes.set_title(f"shot {shot + 1} of {records.shape[1]}")
            axes.set_xlabel("receiver")
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("time (s)" if physics["dt_s"] else "time (samples)")
        figure.colorbar(image, ax=panels, label="velocity (m/s)", shrink=0.9)
        half = max(len(samples) // 2, 1)
        for place, values, label in (
            (grid[2, :half], models, "velocity (m/s)"),
            (grid[2, half:] if len(samples) > 1 else None, records, "amplitude"),
        ):
            if place is not None:
                axes = figure.add_subplot(place)
                axes.hist(values.ravel(), bins=BINS, color=style.BLUE, log=values is records)
                style.line_axes(axes, "how often in these samples", label, "values")
        figure.suptitle(title)
        style.save_png(figure, path)
