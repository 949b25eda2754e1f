"""Figures of trained networks: predictions beside truth, profiles through them, scores of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.figures import style

PROFILES = 3
"""Columns of a model that profiles are drawn along, at equal distances."""


def draw_predictions(
    path: Path,
    predicted_mps: NDArray[np.floating],
    true_mps: NDArray[np.floating],
    samples: Sequence[int],
    physics: Mapping[str, Any],
    title: str,
    *,
    names: Sequence[str] = (),
) -> None:
    """Write a PNG with a column for each sample: true, predicted, and their difference.

    predicted_mps, true_mps   floating[n, z, x], m/s
    samples                   their numbers in the store, for the headings
    physics                   of the store: dx_m and dz_m; without them a cell counts as 1 m
    names                     more words for the headings, such as "best"
    """
    with style.look():
        frame = _frame(true_mps, physics)
        height = 0.9 + 3 * min(3.2, 8.2 / max(len(samples), 3) / frame.drawn_ratio + 0.35)
        figure = style.new_figure(height)
        grid = figure.subplots(3, len(samples), squeeze=False)
        limits = style.velocity_limits(true_mps)
        error = predicted_mps - true_mps
        largest = style.symmetric_limit(error, percentile=99.0)
        for row, (fields, colours, ends, label) in enumerate(
            (
                (true_mps, style.VELOCITY_MAP, limits, "true"),
                (predicted_mps, style.VELOCITY_MAP, limits, "predicted"),
                (error, style.DIFFERENCE_MAP, (-largest, largest), "predicted - true"),
            )
        ):
            for column, sample in enumerate(samples):
                heading = f"{names[column]}: sample {sample}" if names else f"sample {sample}"
                mean = f", mean |error| {np.abs(error[column]).mean():.0f} m/s" if row == 2 else ""
                image = style.draw_section(
                    grid[row, column],
                    fields[column],
                    frame,
                    title=f"{heading}, {label}" if row == 0 else f"{label}{mean}",
                    colours=colours,
                    limits=ends,
                    outer=(column == 0, row == 2),
                )
            figure.colorbar(image, ax=list(grid[row]), label="m/s", shrink=0.9, extend=beyond(fields, ends))
        figure.suptitle(title)
        style.save_png(figure, path)


def beyond(values: NDArray[np.floating], ends: tuple[float, float]) -> str:
    """Which end of a colour bar is pointed, because values lie beyond it.

    >>> beyond(np.array([1.0, 3.0]), (2.0, 3.0)), beyond(np.array([1.0, 4.0]), (2.0, 3.0))
    ('min', 'both')
    """
    below, above = bool(values.min() < ends[0]), bool(values.max() > ends[1])
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def draw_profiles(
    path: Path,
    predicted_mps: NDArray[np.floating],
    true_mps: NDArray[np.floating],
    samples: Sequence[int],
    physics: Mapping[str, Any],
    title: str,
    *,
    names: Sequence[str],
) -> None:
    """Write a PNG with vertical profiles of each sample, true and predicted, along three columns of its model."""
    with style.look():
        frame = _frame(true_mps, physics)
        rows, columns = true_mps.shape[1:]
        depth = np.linspace(frame.top, frame.bottom, rows, endpoint=False) + (frame.bottom - frame.top) / rows / 2
        chosen = [columns * (2 * number + 1) // (2 * PROFILES) for number in range(PROFILES)]
        figure = style.new_figure(0.8 + 2.6 * len(samples))
        grid = figure.subplots(len(samples), PROFILES, squeeze=False, sharey=True)
        for row, sample in enumerate(samples):
            for place, column in enumerate(chosen):
                axes = grid[row, place]
                axes.plot(true_mps[row, :, column], depth, **style.TRUE_LINE, label="true")
                axes.plot(predicted_mps[row, :, column], depth, **style.INVERTED_LINE, label="predicted")
                at = frame.left + (column + 0.5) * (frame.right - frame.left) / columns
                heading = f"{names[row]}: sample {sample}, at {at:.3g} {frame.unit}"
                last, first = row == len(samples) - 1, place == 0
                style.line_axes(
                    axes, heading, "velocity (m/s)" if last else None, f"depth ({frame.unit})" if first else ""
                )
        grid[0, 0].set_ylim(frame.bottom, frame.top)
        grid[0, 0].legend(loc="best")
        figure.suptitle(title)
        style.save_png(figure, path)


def draw_comparison(
    path: Path, names: Sequence[str], scores: Mapping[str, Sequence[NDArray[np.float64]]], title: str
) -> None:
    """Write a PNG with a panel for each score: how the samples of each run are spread, and their mean.

    names    of the runs
    scores   by name, for each run float64[sample]
    """
    with style.look():
        figure = style.new_figure(0.9 + 0.32 * len(names) + 1.2, width_inches=style.PAGE_INCHES)
        panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for axes, (score, runs) in zip(panels, scores.items(), strict=True):
            drawn = axes.boxplot(
                [values[np.isfinite(values)] for values in runs],
                orientation="horizontal",
                tick_labels=list(names),
                showmeans=True,
                whis=(5, 95),
                showfliers=False,
                meanprops={"marker": "D", "markersize": 4, "markerfacecolor": style.VERMILION, "markeredgewidth": 0},
            )
            for line in drawn["medians"]:
                line.set_color(style.BLUE)
            style.line_axes(axes, score, None, "")
        panels[0].invert_yaxis()
        figure.suptitle(title)
        style.save_png(figure, path)


def _frame(models: NDArray[np.floating], physics: Mapping[str, Any]) -> style.Frame:
    shape = (models.shape[1], models.shape[2])
    return style.frame_of(shape, (physics.get("dz_m") or 1.0, physics.get("dx_m") or 1.0), (0.0, 0.0))
