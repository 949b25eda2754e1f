"""Figures of numbers against iteration: misfit and model error, spectra, plasticity, and how the workers did."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.record import Event, RunRecord, as_number, series

# Keys of "diagnostics" events that `curves` draws or that are no measurement; all others go to `diagnostics`.
_DRAWN_ELSEWHERE = frozenset({"kind", "time", "iteration", "mse_kmps2", "ssim"})
_SPECTRA = "spectra/"
_MOST_PANELS = 12
_MOST_LINES = 8


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


def _mark_resumes(axes: Any, record: RunRecord) -> None:
    for event in record.of_kind("rewind", "resume"):
        if (iteration := as_number(event.get("iteration"))) is not None:
            axes.axvline(iteration, color=style.GREY, linewidth=0.8, linestyle=":", zorder=1)


def _log_scale(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis where all values are positive, with numbers on minor ticks over a short range."""
    from matplotlib.ticker import LogFormatterSciNotation

    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))
        axes.tick_params(axis="y", which="minor", labelsize=7.5)


def _draw_misfit(axes: Any, x: np.ndarray, misfit: np.ndarray, width: int) -> None:
    if width > 1 and len(misfit) > width:
        axes.plot(x, misfit, color=style.SKY, linewidth=0.8, alpha=0.7, label="each iteration")
        axes.plot(x, running_median(misfit, width), color=style.BLUE, label=f"median of {width}")
    else:
        axes.plot(x, misfit, color=style.BLUE, label="misfit", marker="." if len(misfit) < 30 else "")
    axes.axhline(misfit[0], label="start", **style.INITIAL_LINE)
    _log_scale(axes, misfit)


def curves(record: RunRecord) -> style.Picture | None:
    """Misfit against iteration and time; model error and SSIM against iteration where a true model is known."""
    at, misfit = series(record.iterations, "misfit")
    if len(at) == 0:
        return None
    error_at, error = series(record.diagnostics, "mse_kmps2")
    ssim_at, ssim = series(record.diagnostics, "ssim")
    rows = 2 if len(error) or len(ssim) else 1
    figure = style.new_figure(3.1 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    width = record.iterations_per_pass
    _draw_misfit(grid[0, 0], at, misfit, width)
    style.line_axes(grid[0, 0], "(a) Misfit against iteration", "iteration", "misfit")
    _mark_resumes(grid[0, 0], record)
    grid[0, 0].legend(loc="best")
    timed = [event for event in record.iterations if as_number(event.get("misfit")) is not None]
    times, time_label = _time_axis(computing_hours(timed))
    _draw_misfit(grid[0, 1], times, misfit, width)
    style.line_axes(grid[0, 1], "(b) Misfit against time", time_label, "misfit")
    if rows == 2:
        _draw_metric(grid[1, 0], record, error_at, error, "(c) Model error", "MSE, (km/s)²", best=np.argmin)
        _draw_metric(grid[1, 1], record, ssim_at, ssim, "(d) Similarity to the true model", "SSIM", best=np.argmax)
    text = f"Misfit from {misfit[0]:.3g} to {misfit[-1]:.3g} over {len(at)} iterations"
    if len(error):
        text += f"; model error from {error[0]:.3g} to {error[-1]:.3g} (km/s)²"
    return style.Picture(
        "curves.png",
        figure,
        "Misfit and model error",
        "Dashed: the level at the start. Misfit and model error should fall together; a model error that rises while "
        "the misfit falls means that the data are explained by the wrong model."
        + (" Dotted uprights: the run was resumed." if record.of_kind("rewind", "resume") else ""),
        text + ".",
    )


def _draw_metric(
    axes: Any,
    record: RunRecord,
    at: np.ndarray,
    values: np.ndarray,
    title: str,
    label: str,
    *,
    best: Callable[[np.ndarray], np.intp],
) -> None:
    """A metric of the model with its start and its best value; an empty panel where the run has none."""
    if len(values) == 0:
        axes.set_axis_off()
        return
    axes.plot(at, values, color=style.BLUE, marker="." if len(values) < 40 else "")
    axes.axhline(values[0], label=f"start, {values[0]:.3g}", **style.INITIAL_LINE)
    place = int(best(values))
    found = f"best, {values[place]:.3g} at iteration {at[place]}"
    axes.plot(at[place], values[place], "*", color=style.VERMILION, markersize=10, label=found, linestyle="none")
    axes.legend(loc="best")
    style.line_axes(axes, title, "iteration", label)
    _mark_resumes(axes, record)


def _keys(events: Iterable[Event]) -> list[str]:
    """All keys that hold numbers, in the order in which they first appear."""
    return list(dict.fromkeys(key for event in events for key, value in event.items() if as_number(value) is not None))


def _spectral_measure(key: str) -> tuple[str, str]:
    """(measure, what is left of the key as a label).

    >>> _spectral_measure("spectra/deep/error/band_2"), _spectral_measure("spectra/coherence_band0")
    (('error', 'deep band 2'), ('coherence', 'band0'))
    """
    rest = key.removeprefix(_SPECTRA)
    measure = next((name for name in ("error", "coherence", "amplitude") if name in rest), "other")
    words = [word for word in re.split(r"[/_\s]+", rest.replace(measure, " ")) if word not in ("", "ratio")]
    return measure, " ".join(words) or measure


def spectra(record: RunRecord) -> style.Picture | None:
    """Band error, coherence and amplitude ratio per wavenumber band against iteration."""
    titles = {
        "error": ("Band error", "error relative to start"),
        "coherence": ("Coherence with the true update", "coherence"),
        "amplitude": ("Amplitude ratio to the true update", "amplitude ratio"),
        "other": ("Other spectral measures", "value"),
    }
    found: dict[str, list[tuple[str, str]]] = {}
    for key in _keys(record.diagnostics):
        if key.startswith(_SPECTRA):
            measure, label = _spectral_measure(key)
            found.setdefault(measure, []).append((key, label))
    if not found:
        return None
    shown = [measure for measure in titles if measure in found]
    figure = style.new_figure(4.0)
    for place, (axes, measure) in enumerate(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)):
        title, label = titles[measure]
        _draw_bands(axes, record, found[measure])
        if measure in ("error", "amplitude", "coherence"):
            axes.axhline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
        style.line_axes(axes, f"{style.letter(place)} {title}", "iteration", label)
        _mark_resumes(axes, record)
    _band_legend(figure)
    return style.Picture(
        "spectra.png",
        figure,
        "Spectra of the model error",
        "Bands of wavenumber, from the longest wavelengths (dark) to the shortest (bright)"
        + ("; dashed: the deep half. " if any("deep" in key for pairs in found.values() for key, _ in pairs) else ". ")
        + "A band is being recovered when its error falls below 1 and its coherence rises to 1; amplitude without "
        "coherence is noise. Long wavelengths are normally recovered first.",
        f"Curves of {', '.join(titles[measure][0].lower() for measure in shown)} against iteration, one per band.",
    )


def _band_legend(figure: Any) -> None:
    """One legend below all panels: a row for the whole model, a row for its deep half."""
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    labels = [label for label in lines if not label.startswith("_")]
    deep = [label for label in labels if "deep" in label]
    whole = [label for label in labels if "deep" not in label]
    columns = max(len(whole), len(deep), 1)
    ordered = [label for pair in zip(whole, deep, strict=True) for label in pair] if len(whole) == len(deep) else labels
    handles = [lines[label] for label in ordered]
    figure.legend(handles, ordered, loc="outside lower center", ncols=min(columns, 6), handlelength=2.6)


def _draw_bands(axes: Any, record: RunRecord, keys: Sequence[tuple[str, str]]) -> None:
    """One curve per band, dark to bright; curves of the deep half are dashed in the same colours."""
    import matplotlib

    whole = [pair for pair in keys if "deep" not in pair[1]]
    deep = [pair for pair in keys if "deep" in pair[1]]
    for group, linestyle in ((whole, "-"), (deep, (0, (4, 1.5)))):
        shades = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.85, max(len(group), 2)))
        for (key, label), colour in zip(group, shades, strict=False):
            at, values = series(record.diagnostics, key)
            axes.plot(at, values, color=colour, linestyle=linestyle, label=label, marker="." if len(at) < 15 else "")


def _with_unit(name: str) -> str:
    """A scalar's name in words, its unit in brackets.

    >>> _with_unit("deep_mae_mps"), _with_unit("effective_rank")
    ('deep MAE (m/s)', 'effective rank')
    """
    for suffix, unit in (
        ("_kmps2", " ((km/s)²)"),
        ("_kmps", " (km/s)"),
        ("_mps", " (m/s)"),
        ("_s", " (s)"),
        ("_m", " (m)"),
    ):
        if name.endswith(suffix):
            name = name.removesuffix(suffix) + unit
            break
    words = name.replace("_", " ").split(" ")
    return " ".join(word.upper() if word in ("mse", "mae", "rmse", "ssim", "rms", "ntk") else word for word in words)


def _grouped(keys: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Keys by measure: a trailing or embedded layer name becomes the label of a line in the measure's panel.

    >>> _grouped(["plasticity/dormant/layer_0", "plasticity/dormant/layer_1", "mae_mps"])["plasticity: dormant"]
    [('plasticity/dormant/layer_0', 'layer 0'), ('plasticity/dormant/layer_1', 'layer 1')]
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        layer = re.search(
            r"(?:^|[/_.])((?:layer|linear|hidden|net)s?[_./]?\d+|final|first|last|all|total)(?=$|[/_.])", key
        )
        rest = key if layer is None else key[: layer.start()] + key[layer.end() :]
        head, _, tail = rest.rpartition("/")
        name = f"{head.replace('/', ' ')}: {_with_unit(tail)}" if head else _with_unit(tail)
        label = "" if layer is None else re.sub(r"[_./]", " ", layer.group(1))
        groups.setdefault(name.replace("_", " ").strip(": "), []).append((key, label))
    return groups


def diagnostics(record: RunRecord) -> style.Picture | None:
    """Small panels with the plasticity measures and every other scalar that the run's diagnostics left."""
    keys = [key for key in _keys(record.diagnostics) if key not in _DRAWN_ELSEWHERE and not key.startswith(_SPECTRA)]
    keys.sort(key=lambda key: not key.startswith("plasticity/"))
    groups = _grouped(keys)
    if not groups:
        return None
    shown = list(groups.items())[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = style.new_figure(2.2 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes in grid[len(shown) :]:
        axes.remove()
    for place, (axes, (name, lines)) in enumerate(zip(grid, shown, strict=False)):
        for (key, label), colour in zip(lines[:_MOST_LINES], [*style.CYCLE, style.GREY], strict=False):
            at, values = series(record.diagnostics, key)
            axes.plot(at, values, color=colour, label=label or None, marker="." if len(at) < 15 else "", linewidth=1.2)
        style.line_axes(axes, f"{style.letter(place)} {name}", None, "")
        axes.tick_params(labelbottom=place + columns >= len(shown))
        if any(label for _, label in lines):
            axes.legend(loc="best", fontsize=7, ncols=2 if len(lines) > 4 else 1, handlelength=1.2)
    figure.supxlabel("iteration", fontsize=9.5)
    left_out = len(groups) - len(shown)
    more = f" {left_out} more measures are in events.jsonl." if left_out else ""
    return style.Picture(
        "diagnostics.png",
        figure,
        "Diagnostics",
        "Plasticity of the network and other measures. Compare methods at equal iterations rather than with an "
        "absolute limit: growing shares of dormant or inactive units, a falling effective rank and parameters that "
        "hardly travel mean that the network has stopped learning." + more,
        "Small panels against iteration: " + ", ".join(name for name, _ in shown) + ".",
    )


def cluster(record: RunRecord) -> style.Picture | None:
    """Seconds per iteration, share of idle time and shots per second, with lost workers and resumes marked."""
    panels = [
        (key, title, label, scale)
        for key, title, label, scale in (
            ("seconds", "Duration of an iteration", "s", 1.0),
            ("wait_share", "Idle share of the workers", "%", 100.0),
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
        axes.plot(at, values * scale, color=style.BLUE, linewidth=1.0, marker="." if len(at) < 60 else "")
        style.line_axes(axes, f"{style.letter(place)} {title}", None, label)
        axes.set_ylim(0, 1.15 * max(float(values.max()) * scale, 1e-3))
        _mark_resumes(axes, record)
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
        + "A high idle share means too few items for the workers, or items of very unequal cost.",
        f"Seconds, idle share and shots per second of every iteration; lost workers: {len(lost)}.",
    )
