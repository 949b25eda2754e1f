"""Figure of the gathers of one shot: observed, predicted before and after, what is left, and single traces."""

from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.record import Results, RunRecord

# Direct waves are far stronger than reflections; clipping at this percentile of the observed amplitudes shows both.
_CLIP_PERCENTILE = 96.0
_TRACES = 4


def gathers(record: RunRecord) -> style.Picture | None:
    """Observed and predicted gathers of the middle stored shot, their residuals at one clip, and traces on top."""
    results = record.results
    stored = None if results is None else results.array("gathers/observed")
    if results is None or stored is None or stored.shape[0] == 0:
        return None
    place = stored.shape[0] // 2
    observed = np.asarray(stored[place], dtype=np.float64)
    initial, predicted = (_gather(results, name, place) for name in ("initial", "predicted"))
    shots = results.array("gathers/shots")
    shot = place if shots is None else int(shots[place])
    distances, distance_label = _receiver_axis(results, place, observed.shape[0])
    dt_s = results.dt_s
    times = np.arange(observed.shape[1]) * (dt_s if dt_s is not None else 1.0)
    time_label = "time (s)" if dt_s is not None else "time step"

    live = np.isfinite(observed).all(axis=1)
    clip = float(np.percentile(np.abs(observed[live]), _CLIP_PERCENTILE)) if live.any() else 0.0
    clip = clip or float(np.nanmax(np.abs(observed), initial=0.0)) or 1.0
    figure = style.new_figure(9.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.5, 1.0))
    top = upper.subplots(2, 3, sharex=True)
    panels = [
        (top[0, 0], observed, "Observed"),
        (top[0, 1], initial, "Predicted, start"),
        (top[0, 2], predicted, "Predicted, end"),
        (top[1, 1], None if initial is None else initial - observed, "Residual, start"),
        (top[1, 2], None if predicted is None else predicted - observed, "Residual, end"),
    ]
    image, images = None, [axes for axes, *_ in panels]
    drawn = 0
    for axes, gather, title in panels:
        if gather is None:
            axes.set_axis_off()
            continue
        image = axes.imshow(
            gather.T,
            extent=(distances[0], distances[-1], times[-1], times[0]),
            cmap=style.GATHER_MAP,
            vmin=-clip,
            vmax=clip,
            aspect="auto",
        )
        _say_fit(axes, gather, observed, f"{style.letter(drawn)} {title}", residual=title.startswith("Residual"))
        axes.set_ylabel(time_label if axes in (top[0, 0], top[1, 1]) else "")
        for spine in axes.spines.values():
            spine.set_visible(True)
        drawn += 1
    upper.colorbar(image, ax=images, label="pressure (stored unit)", shrink=0.6, aspect=30, pad=0.01, extend="both")
    _receiver_residuals(top[1, 0], distances, observed, initial, predicted, style.letter(drawn))
    for axes in top[1]:
        axes.set_xlabel(distance_label)
    _traces(lower, times, time_label, distances, distance_label, (observed, initial, predicted))
    return style.Picture(
        "gathers.png",
        figure,
        f"Gathers of shot {shot}",
        "The same grey scale everywhere, clipped so that reflections show. A good end leaves the residual flat grey; events "
        "left in it are unexplained. Traces: a predicted wiggle more than half a period away from the observed one is "
        "cycle-skipped, and the inversion will pull it the wrong way.",
        f"Observed and predicted gathers of shot {shot}, residuals before and after, and {_TRACES} traces overlaid.",
    )


def _gather(results: Results, name: str, place: int) -> np.ndarray | None:
    """float64[receiver, time] of one stored shot, None where the run has not written it."""
    stored = results.array(f"gathers/{name}")
    return None if stored is None or stored.shape[0] <= place else np.asarray(stored[place], dtype=np.float64)


def _receiver_axis(results: Results, place: int, receivers: int) -> tuple[np.ndarray, str]:
    """(one coordinate per receiver, axis label): km where positions are known or every column has one, else numbers."""
    positions = results.array("gathers/receivers_m")
    if positions is not None:
        distances = np.asarray(positions[place], dtype=np.float64)[:, 1]
        if np.isfinite(distances).all() and np.ptp(distances) > 0:
            return distances * 1e-3, "receiver (km)"
    initial = results.array("model/initial")
    if initial is not None and initial.shape[1] == receivers:
        return (results.origin_m[1] + np.arange(receivers) * results.spacing_m[1]) * 1e-3, "receiver (km)"
    return np.arange(receivers, dtype=np.float64), "receiver number"


def _say_fit(axes: Any, gather: np.ndarray, observed: np.ndarray, title: str, *, residual: bool) -> None:
    """Set the title; a residual's carries its rms as a share of the observed rms."""
    power = float(np.nansum(observed**2))
    share = f", {100 * np.sqrt(np.nansum(gather**2) / power):.3g} % rms" if residual and power > 0 else ""
    axes.set_title(title + share)


def _receiver_residuals(
    axes: Any,
    distances: np.ndarray,
    observed: np.ndarray,
    initial: np.ndarray | None,
    predicted: np.ndarray | None,
    letter: str,
) -> None:
    """Residual rms along the spread relative to the observed rms of the same receiver."""
    rms = np.sqrt(np.mean(observed**2, axis=1))
    for gather, name, line in ((initial, "start", style.INITIAL_LINE), (predicted, "end", style.INVERTED_LINE)):
        if gather is None:
            continue
        left = np.sqrt(np.mean((gather - observed) ** 2, axis=1))
        axes.plot(
            distances, 100 * np.divide(left, rms, out=np.full_like(left, np.nan), where=rms > 0), label=name, **line
        )
    style.line_axes(axes, f"{letter} Residual by receiver", None, "residual rms (% of observed)")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(loc="best")


def _traces(
    figure: Any,
    times: np.ndarray,
    time_label: str,
    distances: np.ndarray,
    distance_label: str,
    gathers_of_shot: tuple[np.ndarray, np.ndarray | None, np.ndarray | None],
) -> None:
    """Overlay observed and predicted at receivers spread over the line, each trace scaled to the observed maximum."""
    receivers = sorted({round(share * (len(distances) - 1)) for share in np.linspace(0.08, 0.92, _TRACES)})
    rows = figure.subplots(len(receivers), 1, sharex=True, squeeze=False)[:, 0]
    lines = (style.TRUE_LINE, style.INITIAL_LINE, style.INVERTED_LINE)
    names = ("observed", "predicted, start", "predicted, end")
    for axes, receiver in zip(rows, receivers, strict=True):
        scale = float(np.nanmax(np.abs(gathers_of_shot[0][receiver]), initial=0.0)) or 1.0
        for gather, name, line in zip(gathers_of_shot, names, lines, strict=True):
            if gather is not None:
                axes.plot(times, gather[receiver] / scale, label=name, **{**line, "linewidth": 1.0})
        where = f"{distances[receiver]:.3g} km" if "km" in distance_label else f"receiver {receiver}"
        axes.set_ylabel(where, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.set_xlim(times[0], times[-1])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
    rows[0].set_title("(g) Traces at four receivers, each scaled to its observed maximum")
    rows[0].legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3)
    rows[-1].set_xlabel(time_label)
