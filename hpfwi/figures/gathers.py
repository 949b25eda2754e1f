"""Figure of the gathers of one shot: observed, predicted before and after, what is left, and single traces."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.record import RunRecord, StoredResults

# Direct waves are far stronger than reflections; clipping at this percentile of the observed amplitudes shows both.
_CLIP_PERCENTILE = 96.0
_TRACES = 4


@dataclass(frozen=True)
class _Shot:
    """One stored shot: gathers float64[receiver, time] in the unit of the records, None where not written yet."""

    number: int
    observed: np.ndarray
    initial: np.ndarray | None
    predicted: np.ndarray | None
    along: np.ndarray  # float64[receiver], in the unit of along_label
    along_label: str
    times: np.ndarray  # float64[time], in the unit of time_label
    time_label: str
    muted: bool


def gathers(record: RunRecord) -> style.Picture | None:
    """Observed and predicted gathers of the middle stored shot, their residuals at one clip, and traces on top."""
    normalised = record.config.get("inversion", {}).get("misfit") == "normalised"
    shot = _middle_shot(record.results, normalised)
    if shot is None:
        return None
    figure = style.new_figure(10.4)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.2, 1.0))
    _draw_gathers(upper, shot)
    traces = _draw_traces(lower, shot)
    return style.Picture(
        "gathers.png",
        figure,
        f"Gathers of shot {shot.number}",
        "One grey scale everywhere, clipped so that reflections show. A good end leaves the residual flat grey; events "
        "left in it are unexplained. Traces: a predicted wiggle more than half a period away from the observed one is "
        "cycle-skipped, and the inversion will pull it the wrong way."
        + (" Predicted traces are scaled to the energy of the observed ones, as the misfit was." if normalised else "")
        + (" Everything is muted as for the misfit." if shot.muted else ""),
        f"Observed and predicted gathers of shot {shot.number}, residuals before and after, {traces} traces overlaid.",
    )


def _middle_shot(results: StoredResults | None, normalised: bool) -> _Shot | None:
    """The middle one of the stored shots, None where no observed gather is stored.

    normalised  predicted traces get the energy of observed ones
    """
    observed = None if results is None else results.array("gathers/observed")
    if results is None or observed is None or observed.shape[0] == 0:
        return None
    place = observed.shape[0] // 2
    shots = results.array("gathers/shots")
    _, receivers, samples = observed.shape
    along, along_label, order = _receiver_axis(results, place, receivers)
    dt_s = results.dt_s
    window = _gather(results, "window", place, order)
    heard = np.asarray(observed[place], dtype=np.float64)[order] * (1.0 if window is None else window)
    energies = np.square(heard).sum(axis=1) if normalised else None
    return _Shot(
        number=place if shots is None else int(shots[place]),
        observed=heard,
        initial=_gather(results, "initial", place, order, window, energies),
        predicted=_gather(results, "predicted", place, order, window, energies),
        along=along,
        along_label=along_label,
        times=np.arange(samples) * (1.0 if dt_s is None else dt_s),
        time_label="time step" if dt_s is None else "time (s)",
        muted=window is not None,
    )


def _gather(
    results: StoredResults,
    name: str,
    place: int,
    order: np.ndarray,
    window: np.ndarray | None = None,
    energies: np.ndarray | None = None,
) -> np.ndarray | None:
    """float64[receiver, time] of one stored shot, receivers in `order`; None where the run has not written it.

    window      that it is multiplied by, float64[receiver, time]
    energies    that every trace is scaled to, float64[receiver]; None leaves them
    """
    stored = results.array(f"gathers/{name}")
    if stored is None or stored.shape[0] <= place:
        return None
    gather = np.asarray(stored[place], dtype=np.float64)[order] * (1.0 if window is None else window)
    if energies is None:
        return gather
    own = np.square(gather).sum(axis=1)
    return np.asarray(gather * np.sqrt(np.divide(energies, own, out=np.zeros_like(own), where=own > 0))[:, None])


def _receiver_axis(results: StoredResults, place: int, receivers: int) -> tuple[np.ndarray, str, np.ndarray]:
    """(a coordinate per receiver that is shown, axis label, which receivers those are in which order).

    Receivers go along the line, absent ones left out, where positions are stored or every column has one; else they
    have their numbers. Those of a 3-D survey go by their distance from the source.
    """
    everyone = np.arange(receivers)
    positions, sources = results.array("gathers/receivers_m"), results.array("gathers/sources_m")
    if len(results.spacing_m) == 3 and positions is not None and sources is not None:
        offsets = np.hypot(*(np.asarray(positions[place]) - np.asarray(sources[place])[0])[:, 1:].T)
        order = np.argsort(offsets, kind="stable")[: np.isfinite(offsets).sum()]
        return np.arange(len(order), dtype=np.float64), "receiver, near to far", order
    if positions is not None:
        distances = np.asarray(positions[place], dtype=np.float64)[:, 1]
        order = np.argsort(distances, kind="stable")[: np.isfinite(distances).sum()]  # NaN, the absent, come last
        if len(order) and np.ptp(distances[order]) > 0:
            return distances[order] * 1e-3, "receiver (km)", order
    initial = results.array("model/initial")
    if initial is not None and initial.ndim == 2 and initial.shape[1] == receivers:
        return (results.origin_m[1] + everyone * results.spacing_m[1]) * 1e-3, "receiver (km)", everyone
    return everyone.astype(np.float64), "receiver number", everyone


def _clip(observed: np.ndarray) -> float:
    """Amplitude at which the grey scale ends, > 0."""
    finite = np.abs(observed[np.isfinite(observed)])
    if finite.size == 0:
        return 1.0
    return float(np.percentile(finite, _CLIP_PERCENTILE)) or float(finite.max()) or 1.0


def _draw_gathers(figure: Any, shot: _Shot) -> None:
    """Three gathers above; below them the residual by receiver and the two residual gathers."""
    grid = figure.subplots(2, 3, sharex=True)
    residuals = [None if gather is None else gather - shot.observed for gather in (shot.initial, shot.predicted)]
    clip = _clip(shot.observed)
    image = None
    for axes, gather, title in (
        (grid[0, 0], shot.observed, "(a) Observed"),
        (grid[0, 1], shot.initial, "(b) Predicted, start"),
        (grid[0, 2], shot.predicted, "(c) Predicted, end"),
        (grid[1, 1], residuals[0], "(e) Residual, start" + _share(residuals[0], shot.observed)),
        (grid[1, 2], residuals[1], "(f) Residual, end" + _share(residuals[1], shot.observed)),
    ):
        axes.set_title(title)
        if gather is None:
            axes.text(
                0.5, 0.5, "not computed yet", ha="center", va="center", transform=axes.transAxes, color=style.GREY
            )
            axes.set_yticks([])
            continue
        extent = (shot.along[0], shot.along[-1], shot.times[-1], shot.times[0])
        shown = axes.imshow(gather.T, extent=extent, cmap=style.GATHER_MAP, vmin=-clip, vmax=clip, aspect="auto")
        image = image or shown
        axes.tick_params(labelleft=axes in (grid[0, 0], grid[1, 1]))
        for spine in axes.spines.values():
            spine.set_visible(True)
    grid[0, 0].set_ylabel(shot.time_label)
    grid[1, 1].set_ylabel(shot.time_label)
    figure.colorbar(
        image, ax=grid, label="amplitude (unit of the records)", shrink=0.55, aspect=32, pad=0.01, extend="both"
    )
    _draw_residual_by_receiver(grid[1, 0], shot, residuals)
    for axes in grid[1]:
        axes.set_xlabel(shot.along_label)


def _share(residual: np.ndarray | None, observed: np.ndarray) -> str:
    """The residual's rms as a share of the observed rms, for a title."""
    power = float(np.nansum(observed**2))
    return "" if residual is None or power == 0 else f", {100 * np.sqrt(np.nansum(residual**2) / power):.3g} % rms"


def _draw_residual_by_receiver(axes: Any, shot: _Shot, residuals: list[np.ndarray | None]) -> None:
    """Residual rms along the spread relative to the observed rms of the same receiver."""
    rms = np.sqrt(np.mean(shot.observed**2, axis=1))
    lines = (("start", style.INITIAL_LINE), ("end", style.INVERTED_LINE))
    for residual, (name, line) in zip(residuals, lines, strict=True):
        if residual is not None:
            left = np.sqrt(np.mean(residual**2, axis=1))
            share = 100 * np.divide(left, rms, out=np.full_like(left, np.nan), where=rms > 0)
            axes.plot(shot.along, share, label=name, **line)
    style.line_axes(axes, "(d) Residual by receiver", None, "residual rms (% of observed)")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(loc="best")


def _draw_traces(figure: Any, shot: _Shot) -> int:
    """Overlay observed and predicted at receivers spread over the line; returns how many.

    Amplitudes are multiplied by time, which makes up for part of the spreading, and scaled to the panel.
    """
    places = sorted({round(share * (len(shot.along) - 1)) for share in np.linspace(0.08, 0.92, _TRACES)})
    rows = figure.subplots(len(places), 1, sharex=True, squeeze=False)[:, 0]
    curves = (
        (shot.observed, "observed", style.TRUE_LINE),
        (shot.initial, "predicted, start", style.INITIAL_LINE),
        (shot.predicted, "predicted, end", style.INVERTED_LINE),
    )
    for axes, place in zip(rows, places, strict=True):
        traces = [(gather[place] * shot.times, name, line) for gather, name, line in curves if gather is not None]
        scale = max(float(np.nanmax(np.abs(trace), initial=0.0)) for trace, *_ in traces) or 1.0
        for trace, name, line in traces:
            axes.plot(shot.times, trace / scale, label=name, **{**line, "linewidth": 1.1})
        where = f"{shot.along[place]:.3g} km" if "km" in shot.along_label else f"receiver {place}"
        axes.set_ylabel(where, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.set_ylim(-1.1, 1.1)
        axes.set_xlim(shot.times[0], shot.times[-1])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
    for axes in rows[:-1]:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False)
    rows[0].set_title("(g) Traces × time, each panel to its own scale")
    rows[0].legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3)
    rows[-1].set_xlabel(shot.time_label)
    return len(places)
