"""Figures of the diagnostics: spectra of the model, plasticity of the network, and the other scalars."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.curves import HALVES, PENALTIES, mark_resumes, marker
from hpfwi.figures.record import Event, RunRecord, as_number, series

# Keys of "diagnostics" events that `curves` draws or that are no measurement; all others go to `diagnostics`.
_DRAWN_ELSEWHERE = frozenset(
    {"kind", "time", "iteration", "model/wanted_rms_mps"} | {*HALVES["mse_kmps2"], *HALVES["ssim"], *PENALTIES}
)
_SPECTRA = "spectra/"
# Panels whose scalar's name does not say what it is.
_TITLES = {
    "plasticity: cosine": "weights: cosine to their start",
    "plasticity: travel": "weights: distance from their start",
    "plasticity: inactive share": "share of units that hardly moved",
    "plasticity: dormant share activation": "share of units dormant by activation",
    "plasticity: dormant share gradient": "share of units dormant by gradient",
    "plasticity: linearised share": "share of units in the linear range",
    "plasticity: feature rank": "effective rank of the features",
    "plasticity: kernel rank": "effective rank of the tangent kernel",
    "plasticity: kernel drift": "change of the tangent kernel",
    "plasticity: gradient conflict": "cosine of the pulls of waves and start",
    "model: bound share": "share of cells at the bounds",
    "model: update RMS (m/s)": "update of the model, RMS (m/s)",
    "model: gradient RMS": "gradient, RMS",
    "skipped share": "share of cycle-skipped traces",
}
_MOST_PANELS = 15
_MOST_LINES = 8
_MEASURES = {
    "error": ("Band error", "error relative to start"),
    "coherence": ("Coherence", "coherence with the true update"),
    "amplitude": ("Amplitude ratio", "ratio to the true update"),
    "update_share": ("Share of the update in each band", "share"),
    "": ("Other spectral measures", "value"),
}


def _keys(events: Iterable[Event]) -> list[str]:
    """All keys that hold numbers, in the order in which they first appear."""
    return list(dict.fromkeys(key for event in events for key, value in event.items() if as_number(value) is not None))


def _spectral_measure(key: str) -> tuple[str, str]:
    """(measure, label of its curve) of a key of the spectra.

    >>> _spectral_measure("spectra/error_deep_2"), _spectral_measure("spectra/update_share_0")
    (('error', 'band 2, deep half'), ('update_share', 'band 0'))
    """
    rest = key.removeprefix(_SPECTRA)
    measure = next(name for name in _MEASURES if name in rest)
    words = [word for word in re.split(r"[/_]+", rest.replace(measure, "")) if word not in ("", "band", "whole")]
    band = next((word for word in words if word.isdecimal()), None)
    others = ["deep half" if word == "deep" else word for word in words if word != band]
    return measure, ", ".join([*([] if band is None else [f"band {band}"]), *others]) or measure


def spectra(record: RunRecord) -> style.Picture | None:
    """Band error, coherence and amplitude ratio per wavenumber band against iteration, a row for each half drawn."""
    found: dict[tuple[bool, str], list[tuple[str, str]]] = {}
    for key in _keys(record.diagnostics):
        if key.startswith(_SPECTRA):
            measure, label = _spectral_measure(key)
            found.setdefault(("deep half" in label, measure), []).append((key, label.removesuffix(", deep half")))
    if not found:
        return None
    shown = [measure for measure in _MEASURES if any(measure == other for _, other in found)]
    halves = sorted({deep for deep, _ in found})
    names = _band_names(record)
    figure = style.new_figure(2.9 * len(halves) + 0.6)
    grid = figure.subplots(len(halves), len(shown), squeeze=False, sharex=True, sharey="col")
    for place, (deep, measure) in enumerate((deep, measure) for deep in halves for measure in shown):
        axes, (title, label) = grid.ravel()[place], _MEASURES[measure]
        _draw_bands(axes, record, found.get((deep, measure), []), names)
        if measure in ("error", "amplitude", "coherence"):
            axes.axhline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
        where = ", deep half" if deep else ""
        style.line_axes(
            axes, f"{style.letter(place)} {title}{where}", "iteration" if deep is halves[-1] else None, label
        )
        mark_resumes(axes, record)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    labels = [label for label in lines if not label.startswith("_")]
    figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=min(len(labels), 6))
    measures = ", ".join(_MEASURES[measure][0].lower() for measure in shown)
    return style.Picture(
        "spectra.png",
        figure,
        "Spectra of the model",
        "Bands of wavelength, from the longest (dark) to the shortest (bright). "
        + (
            "A band is being recovered when its error falls below 1 and its coherence rises to 1; amplitude without "
            "coherence is noise. A smooth start already holds the longest wavelengths: their error, a share of almost "
            "nothing, may grow."
            if "error" in shown
            else "Without a true model they only say which wavelengths the run has put into the model so far."
        ),
        f"Curves of {measures} against iteration, one per band.",
    )


def _band_names(record: RunRecord) -> dict[str, str]:
    """ "band 0" and so on in metres of wavelength, as far as the run says what wavelength the bands are made from."""
    from hpfwi.inversion.spectra import band_edges  # here, because it takes SciPy's signal processing along

    initial = None if record.results is None else record.results.model("initial")
    peaks = [as_number(event.get("value")) for event in record.of_kind("derived") if event.get("name") == "peak_hz"]
    if initial is None or not peaks or not peaks[-1]:
        return {}
    edges_m = [f"{float(f'{1.0 / edge:.3g}'):g}" for edge in band_edges(float(initial.mean()) / peaks[-1])]
    inner = [f"{low} to {high} m" for high, low in itertools.pairwise(edges_m)]
    names = [f"above {edges_m[0]} m", *inner, f"below {edges_m[-1]} m"]
    return {f"band {number}": name for number, name in enumerate(names)}


def _draw_bands(axes: Any, record: RunRecord, keys: Sequence[tuple[str, str]], names: Mapping[str, str]) -> None:
    """One curve per band, dark to bright."""
    import matplotlib

    shades = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.85, max(len(keys), 2)))
    for (key, label), colour in zip(keys, shades, strict=False):
        at, values = series(record.diagnostics, key)
        axes.plot(at, values, color=colour, label=names.get(label, label), marker=marker(at))


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
    """Keys by measure: the layer of the network or the half of the model becomes the label of a line.

    >>> _grouped(["plasticity/dormant/layer_0", "plasticity/dormant/layer_1", "mae_mps"])["plasticity: dormant"]
    [('plasticity/dormant/layer_0', 'layer 0'), ('plasticity/dormant/layer_1', 'layer 1')]
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        layer = re.search(r"(?:^|[/_.])(layer[_./]?\d+|shallow|deep)(?=$|[/_.])", key)
        rest = key if layer is None else key[: layer.start()] + key[layer.end() :]
        head, _, tail = rest.rpartition("/")
        name = f"{head.replace('/', ' ')}: {_with_unit(tail)}" if head else _with_unit(tail)
        label = "whole" if layer is None else re.sub(r"[_./]", " ", layer.group(1))
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
            axes.plot(at, values, color=colour, label=label, marker=marker(at), linewidth=1.2)
        style.line_axes(axes, f"{style.letter(place)} {_TITLES.get(name, name)}", None, "")
        if "share" in name:
            axes.set_ylim(bottom=0.0, top=None if any(line.get_ydata().any() for line in axes.lines) else 0.01)
        axes.tick_params(labelbottom=place + columns >= len(shown))
        if len(lines) > 1:
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
        "Small panels against iteration: " + ", ".join(_TITLES.get(name, name) for name, _ in shown) + ".",
    )
