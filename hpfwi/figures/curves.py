"""Figures of numbers against iteration: misfit and model error, and how the workers did."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.record import Event, RunRecord, as_number, series

# A metric over the whole model and over its halves.
HALVES = {
    "mse_kmps2": {"mse_kmps2": "whole model", "mse_shallow_kmps2": "shallow half", "mse_deep_kmps2": "deep half"},
    "ssim": {"ssim": "whole model", "ssim_shallow": "shallow half", "ssim_deep": "deep half"},
}

# Weighted penalties on the model, in units of the misfit.
PENALTIES = {"regularisation/tv": "total variation", "regularisation/tikhonov": "squared slope"}


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """float64[n]: the median over the `width` values that end at each place (fewer at the beginning).

    >>> running_median(np.array([5.0, 1.0, 3.0, 9.0]), 3).tolist()
    [5.0, 3.0, 3.0, 3.0]
    """
    return np.array([np.median(values[max(0, place - width + 1) : place + 1]) for place in range(len(values))])


def computing_hours(events: Sequence[Event]) -> np.ndarray:
    """float64[n]: hours of computing up to the end of each iteration, pauses between resumes left out."""
    return np.cumsum([as_number(event.get("seconds")) or 0.0 for event in events]) / 3600.0


def _time_axis(hours: np.ndarray) -> tuple[np.ndarray, str]:
    """The times in the unit that reads best."""
    total = float(hours[-1]) if len(hours) else 0.0
    if total >= 2.0:
        return hours, "computing time (h)"
    return (hours * 60.0, "computing time (min)") if total >= 1 / 30 else (hours * 3600.0, "computing time (s)")


def mark_resumes(axes: Any, record: RunRecord) -> None:
    """Dotted uprights where the run was resumed or went back to a checkpoint."""
    for iteration in record.taken_up_at:
        axes.axvline(iteration, color=style.GREY, linewidth=0.8, linestyle=":", zorder=1)


def mark_bands(axes: Any, record: RunRecord, *, named: bool = True) -> None:
    """Dash-dotted uprights where the run went on to another band; the bands' names beside them if asked for."""
    for stage in record.stages[1:]:
        axes.axvline(stage.first, color=style.GREY, linewidth=0.9, linestyle="-.", zorder=1)
    if not named or len(record.stages) == 1:
        return
    for stage in record.stages:  # at the bottom, for a misfit starts high in each band
        place, offset = (stage.first, 0.0), (4, 4)
        axes.annotate(
            stage.band,
            place,
            offset,
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="left",
            va="bottom",
            fontsize=7,
            color=style.GREY,
        )


def _log_scale(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis where all values are positive, with numbers on minor ticks over a short range."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        """Its choice of ticks, their numbers without powers of ten."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        formatter = Plain if values.min() >= 1e-3 and values.max() < 1e4 else LogFormatterSciNotation
        axes.yaxis.set_major_formatter(formatter())
        axes.yaxis.set_minor_formatter(formatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))
        axes.tick_params(axis="y", which="minor", labelsize=7.5)


def marker(values: np.ndarray) -> str:
    """Dots on curves of few points, so that a curve of one point shows."""
    return "." if len(values) < 30 else ""


def draw_misfit(axes: Any, x: np.ndarray, misfit: np.ndarray, record: RunRecord) -> None:
    """Draw the misfit of every iteration over x, a curve for each band: misfits of two bands do not compare.

    Where each pass takes several iterations, its running median stands out.
    """
    width = record.iterations_per_pass
    for place, stage in enumerate(record.stages):
        inside = slice(stage.first, stage.end)
        labels = ["each iteration", f"median of {width}", "misfit"] if place == 0 else [None] * 3
        if width > 1 and len(misfit) > width:
            axes.plot(x[inside], misfit[inside], color=style.SKY, linewidth=0.8, alpha=0.7, label=labels[0])
            axes.plot(x[inside], running_median(misfit[inside], width), color=style.BLUE, label=labels[1])
        else:
            axes.plot(x[inside], misfit[inside], color=style.BLUE, label=labels[2], marker=marker(x))
    if len(record.stages) == 1:
        axes.axhline(misfit[0], label="start", **style.INITIAL_LINE)
    _log_scale(axes, misfit)


def curves(record: RunRecord) -> style.Picture | None:
    """Misfit against iteration and time; model error and SSIM against iteration where a true model is known."""
    at, misfit = series(record.iterations, "misfit")
    if len(at) == 0:
        return None
    _, error = series(record.diagnostics, "mse_kmps2")
    _, ssim = series(record.diagnostics, "ssim")
    rows = 2 if len(error) or len(ssim) else 1
    figure = style.new_figure(3.1 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    draw_misfit(grid[0, 0], at, misfit, record)
    for (key, label_penalty), colour in zip(PENALTIES.items(), (style.VERMILION, style.PURPLE), strict=True):
        penalty_at, penalty = series(record.diagnostics, key)
        if len(penalty):
            grid[0, 0].plot(penalty_at, penalty, color=colour, linewidth=1.0, label=f"{label_penalty}, weighted")
    failed = [event for event in record.iterations if event.get("rejected")]
    if failed:
        tried_at, tried = series(failed, "trial_misfit")
        label = f"trials rejected ({len(failed)})"
        grid[0, 0].plot(tried_at, tried, "x", color=style.VERMILION, markersize=5, linestyle="none", label=label)
    mark_bands(grid[0, 0], record)
    style.line_axes(grid[0, 0], "(a) Misfit against iteration", "iteration", "misfit")
    mark_resumes(grid[0, 0], record)
    # The names of bands take the room of the first panel.
    grid[0, 0 if len(record.stages) == 1 else 1].legend(*grid[0, 0].get_legend_handles_labels(), loc="best")
    timed = [event for event in record.iterations if as_number(event.get("misfit")) is not None]
    times, time_label = _time_axis(computing_hours(timed))
    draw_misfit(grid[0, 1], times, misfit, record)
    style.line_axes(grid[0, 1], "(b) Misfit against time", time_label, "misfit")
    if rows == 2:
        _draw_metric(grid[1, 0], record, "mse_kmps2", "(c) Model error", "MSE, (km/s)²", best=np.argmin)
        _draw_metric(grid[1, 1], record, "ssim", "(d) Similarity", "SSIM", best=np.argmax)
        shown = [axes.get_legend_handles_labels() for axes in grid[1] if axes.lines]
        handles, labels = max(shown, key=lambda pair: len(pair[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    stage = record.stages[-1]
    of_band = "" if stage.number == 1 else f", of the last band from {misfit[stage.first]:.3g}"
    text = f"Misfit from {misfit[0]:.3g} to {misfit[-1]:.3g} over {len(at)} iterations{of_band}"
    if len(error):
        text += f"; model error from {error[0]:.3g} to {error[-1]:.3g} (km/s)²"
    return style.Picture(
        "curves.png",
        figure,
        "Misfit and model error",
        "Dashed: the level at the start; star: the best. The misfit is the energy of the residual over the energy of "
        "the observed gathers. Misfit and model error should fall together; a model error that rises "
        "while the misfit falls means that the data are explained by the wrong model."
        + (
            " Dash-dotted uprights: the run went on to another band, whose misfit is a share of that band's energy."
            if len(record.stages) > 1
            else ""
        )
        + (" Crosses: models that the line search tried and left." if failed else "")
        + (" Dotted uprights: the run was taken up from a checkpoint." if record.taken_up_at else ""),
        text + ".",
    )


def _draw_metric(
    axes: Any,
    record: RunRecord,
    key: str,
    title: str,
    label: str,
    *,
    best: Callable[[np.ndarray], np.intp],
) -> None:
    """A metric of the model with its start, its best value and its halves; an empty panel where the run has none."""
    at, values = series(record.diagnostics, key)
    if len(values) == 0:
        axes.set_axis_off()
        return
    halves = zip(HALVES[key].items(), (style.BLUE, style.SKY, style.PURPLE), strict=True)
    for (part, label_part), colour in halves:
        part_at, part_values = series(record.diagnostics, part)
        if len(part_values):
            width = 1.6 if part == key else 1.0
            axes.plot(part_at, part_values, color=colour, linewidth=width, label=label_part, marker=marker(part_at))
    axes.axhline(values[0], **style.INITIAL_LINE)
    place = int(best(values))
    axes.plot(at[place], values[place], "*", color=style.VERMILION, markersize=10, linestyle="none", zorder=4)
    found = f"{values[0]:.3g} at the start, best {values[place]:.3g} at iteration {at[place]}"
    style.line_axes(axes, f"{title}: {found}", "iteration", label)
    mark_resumes(axes, record)
    mark_bands(axes, record, named=False)


def cluster(record: RunRecord) -> style.Picture | None:
    """Seconds per iteration, share of time off the shots and shots per second, with lost workers and resumes marked."""
    panels = [
        (key, title, label, scale)
        for key, title, label, scale in (
            ("seconds", "Duration of an iteration", "s", 1.0),
            ("wait_share", "Share of the workers' time not spent on shots", "%", 100.0),
            ("shots_per_s", "Throughput", "shots per second", 1.0),
        )
        if len(series(record.iterations, key)[0])
    ]
    if not panels:
        return None
    lost = [event for event in record.of_kind("worker_lost") if as_number(event.get("iteration")) is not None]
    figure = style.new_figure(1.7 * len(panels) + 0.5)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, (key, title, label, scale)) in enumerate(zip(rows, panels, strict=True)):
        at, values = series(record.iterations, key)
        axes.plot(at, values * scale, color=style.BLUE, linewidth=1.0, marker=marker(at))
        style.line_axes(axes, f"{style.letter(place)} {title}", None, label)
        axes.set_ylim(0, 1.15 * max(float(values.max()) * scale, 1e-3))
        mark_resumes(axes, record)
        if place == 0 and lost:
            where = np.array([float(event["iteration"]) for event in lost])
            heights = np.interp(where, at, values * scale)
            label_lost = f"worker lost ({len(lost)})"
            axes.plot(where, heights, "v", color=style.VERMILION, markersize=7, label=label_lost, zorder=4)
            axes.legend(loc="best")
    rows[-1].set_xlabel("iteration")
    _, seconds = series(record.iterations, "seconds")
    typical = f"A typical iteration took {np.median(seconds):.3g} s. " if len(seconds) else ""
    return style.Picture(
        "cluster.png",
        figure,
        "Workers",
        typical
        + ("Triangles mark iterations in which a worker was lost: they cost time, not accuracy. " if lost else "")
        + "Time not spent on shots is waiting and, the same on every worker, the network's own step: a high share "
        "means few shots per worker, shots of very unequal cost, or a network that costs as much as the waves.",
        f"Seconds, share of time off the shots and shots per second of every iteration; lost workers: {len(lost)}.",
    )
