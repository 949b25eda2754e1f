"""Figures of the diagnostics: spectra of the model, plasticity of the network, and the other scalars."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hpfwi.figures import style
from hpfwi.figures.curves import HALVES, mark_resumes, marker
from hpfwi.figures.record import Event, RunRecord, as_number, series

# Keys of "diagnostics" events that `curves` draws or that are no measurement; all others go to `diagnostics`.
_DRAWN_ELSEWHERE = frozenset(
    {"kind", "time", "iteration", "model/wanted_rms_mps"} | {*HALVES["mse_kmps2"], *HALVES["ssim"]}
)
_SPECTRA = "spectra/"
_MOST_PANELS = 15
_MOST_LINES = 8
_MEASURES = {
    "error": ("Band error", "error relative to start"),
    "coherence": ("Coherence with the true update", "coherence"),
    "amplitude": ("Amplitude ratio to the true update", "amplitude ratio"),
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
    """Band error, coherence and amplitude ratio per wavenumber band against iteration."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key in _keys(record.diagnostics):
        if key.startswith(_SPECTRA):
            measure, label = _spectral_measure(key)
            found.setdefault(measure, []).append((key, label))
    if not found:
        return None
    shown = [measure for measure in _MEASURES if measure in found]
    figure = style.new_figure(4.0)
    for place, (axes, measure) in enumerate(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)):
        title, label = _MEASURES[measure]
        _draw_bands(axes, record, found[measure])
        if measure in ("error", "amplitude", "coherence"):
            axes.axhline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
        style.line_axes(axes, f"{style.letter(place)} {title}", "iteration", label)
        mark_resumes(axes, record)
    _band_legend(figure)
    return style.Picture(
        "spectra.png",
        figure,
        "Spectra of the model",
        "Bands of wavenumber, from the longest wavelengths (dark) to the shortest (bright)"
        + ("; dashed: the deep half. " if any("deep" in key for pairs in found.values() for key, _ in pairs) else ". ")
        + (
            "A band is being recovered when its error falls below 1 and its coherence rises to 1; amplitude without "
            "coherence is noise. Long wavelengths are normally recovered first."
            if "error" in found
            else "Without a true model they only say which wavelengths the run has put into the model so far."
        ),
        f"Curves of {', '.join(_MEASURES[measure][0].lower() for measure in shown)} against iteration, one per band.",
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
            axes.plot(at, values, color=colour, linestyle=linestyle, label=label, marker=marker(at))


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
        style.line_axes(axes, f"{style.letter(place)} {name}", None, "")
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
        "Small panels against iteration: " + ", ".join(name for name, _ in shown) + ".",
    )
