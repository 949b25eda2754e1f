"""Figures of the earth models: the models and their errors, their history, vertical profiles."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpfwi.figures import slices, style
from hpfwi.figures.record import RunRecord, StoredResults
from hpfwi.figures.slices import Group, Panel

MPS_TO_KMPS = 1e-3
_HISTORY_ROWS = 4
# More sources or receivers than these become dots: their markers would hide each other.
_MOST_MARKERS = 60
_PROFILE_POSITIONS = (0.2, 0.4, 0.6, 0.8)
# Sections at least this many times as wide as deep are stacked in columns, others are set side by side.
_WIDE_RATIO = 1.7


def mean_squared_kmps2(model_kmps: np.ndarray, true_kmps: np.ndarray) -> float:
    """Mean over all cells of the squared velocity error, in (km/s)²."""
    return float(np.mean((model_kmps - true_kmps) ** 2))


def in_kmps(results: StoredResults | None, name: str) -> np.ndarray | None:
    """A model of the results in km/s, None where the run has none."""
    model = None if results is None else results.model(name)
    return None if model is None else model * MPS_TO_KMPS


def frame_of_results(results: StoredResults, model: np.ndarray) -> style.Frame:
    """The axes of the sections [z, x] that `slices.upright` shows of a run's models."""
    return slices.frames(model.shape, results.spacing_m, results.origin_m)[0]


def _draw_groups(
    frame: style.Frame,
    velocities: Sequence[Panel],
    differences: Sequence[Panel],
    *,
    limits: tuple[float, float],
    label: str,
) -> Any:
    """Draw velocities and differences, each group with one colour bar.

    Wide sections stand in two columns, or in one where the groups differ in number; others in two rows.
    """
    groups = _groups(velocities, differences, limits, label)
    wide = frame.ratio >= _WIDE_RATIO
    columned = wide and len(velocities) == len(differences)
    if columned:
        rows, columns = len(velocities), 2
    elif wide:
        rows, columns = len(velocities) + len(differences), 1
    else:
        rows, columns = len(groups), max(len(velocities), len(differences))
    width = style.PAGE_INCHES if columns > 1 else 0.75 * style.PAGE_INCHES
    panel_height = (width - 0.9) / max(columns, 2 if not wide else 1) / frame.drawn_ratio
    height = rows * (panel_height + 0.33) + (1.0 if columned else 0.5)
    figure = style.new_figure(height, width_inches=width, layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    if columned:
        lines = [list(grid[:, 0]), list(grid[:, 1])]
        bar: dict[str, Any] = {"location": "bottom", "shrink": 0.7, "aspect": 32, "pad": 0.02}
    elif wide:
        lines = [list(grid[: len(velocities), 0]), list(grid[len(velocities) :, 0])]
        bar = {"location": "right", "shrink": 0.9, "aspect": 18, "pad": 0.015}
    else:
        lines = [list(row) for row in grid]
        bar = {"location": "right", "shrink": 0.9, "aspect": 18, "pad": 0.015}
    drawn = 0
    for line, group in zip(lines, groups, strict=False):
        for spare in line[len(group.panels) :]:
            spare.remove()
        used = line[: len(group.panels)]
        for axes, panel in zip(used, group.panels, strict=True):
            place = axes.get_subplotspec()
            image = style.draw_section(
                axes,
                slices.upright(panel.values),
                frame,
                title=f"{style.letter(drawn)} {panel.title}",
                colours=group.colours,
                limits=group.limits,
                outer=(place.is_first_col(), place.is_last_row()),
            )
            drawn += 1
        extend = style.extends([panel.values for panel in group.panels], group.limits)
        figure.colorbar(image, ax=used, label=group.label, extend=extend, **bar)
    return figure


def _groups(
    velocities: Sequence[Panel], differences: Sequence[Panel], limits: tuple[float, float], label: str
) -> list[Group]:
    """Velocities within their limits, and differences, where there are any, within symmetric ones."""
    largest = style.symmetric_limit(*[panel.values for panel in differences])
    groups = [
        Group(velocities, style.VELOCITY_MAP, limits, "velocity (km/s)"),
        Group(differences, style.DIFFERENCE_MAP, (-largest, largest), label),
    ]
    return [group for group in groups if group.panels]


def draw_positions(
    axes: Any, results: StoredResults, frame: style.Frame, plane: slices.Plane = (0, -1), *, height: float = 1.0
) -> None:
    """Mark sources and receivers on a plane of the model, with their legend; nothing where none are stored.

    height  of the legend's lower edge, as a share of the panel: 1 is on the title line
    """
    for name, look in (
        ("receivers", {"marker": "v", "markersize": 3.0, "color": style.SKY}),
        ("sources", {"marker": "*", "markersize": 8.0, "color": style.VERMILION}),
    ):
        stored = results.array(f"survey/{name}_m")
        if stored is None:
            continue
        places = np.asarray(stored[:], dtype=np.float64) * frame.per_metre
        label = f"{len(places)} {name if len(places) != 1 else name.removesuffix('s')}"
        crowded = {"markersize": 2.5, "marker": "."} if len(places) > _MOST_MARKERS else {}
        axes.plot(
            places[:, plane[1]],
            places[:, plane[0]],
            linestyle="none",
            label=label,
            clip_on=False,
            **{**look, **crowded},
        )
    if axes.lines:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, height),
            ncols=2,
            borderaxespad=0.1,
            borderpad=0.0,
            handletextpad=0.1,
            columnspacing=1.0,
            numpoints=1,
        )


def models(record: RunRecord) -> style.Picture | None:
    """The models side by side with their errors; without a true model, the update takes the errors' place."""
    results = record.results
    true, initial, inverted = (in_kmps(results, name) for name in ("true", "initial", "inverted"))
    if results is None or initial is None:
        return None
    velocities, differences = [], []
    if true is not None:
        velocities.append(Panel("True", true))
    velocities.append(Panel("Initial", initial))
    if inverted is not None:
        velocities.append(Panel(f"Inverted, after {record.inverted_after} iterations", inverted))
        differences.append(Panel("Update: inverted − initial", inverted - initial))
    if true is not None:
        differences.append(Panel(f"Initial − true{_error(initial, true)}", initial - true))
        if inverted is not None:
            differences.append(Panel(f"Inverted − true{_error(inverted, true)}", inverted - true))
    limits = style.velocity_limits(*([true] if true is not None else [initial, inverted]))
    label = "difference (km/s)"
    if initial.ndim == 3:
        groups = _groups(velocities, differences, limits, label)
        figure = slices.draw_blocks(groups, results.spacing_m, results.origin_m)
        place, plane = 2, slices.planes(3)[2]  # seen from above
        frame = slices.frames(initial.shape, results.spacing_m, results.origin_m)[place]
        draw_positions(figure.axes[place], results, frame, plane, height=1.1)  # above the title
        where = "Three planes through the middle of each block, the level one seen from above. "
    else:
        frame, where = frame_of_results(results, initial), ""
        figure = _draw_groups(frame, velocities, differences, limits=limits, label=label)
        draw_positions(figure.axes[0], results, frame)
    return style.Picture(
        "models.png",
        figure,
        "Models",
        where + _models_caption(true is not None, inverted is not None),
        _models_alt(true, initial, inverted),
    )


def _models_caption(has_true: bool, has_inverted: bool) -> str:
    colours = "All velocity panels share one colour scale, all difference panels another; in the first, the survey. "
    if not has_inverted:
        return colours + "The run has not stored an inverted model yet."
    if not has_true:
        return colours + (
            "No true model is known. Look for layers in the update that continue across shots; "
            "rings around the sources or stripes at the edges are artefacts."
        )
    return colours + (
        "In the errors red is too fast and blue too slow. Look at whether the inverted error is paler than the "
        "initial one, and where colour is left: usually in the deep part and at the sides, where few waves pass."
    )


def _models_alt(true: np.ndarray | None, initial: np.ndarray, inverted: np.ndarray | None) -> str:
    parts = [
        f"the {name} model from {model.min():.2f} to {model.max():.2f} km/s"
        for name, model in (("true", true), ("initial", initial), ("inverted", inverted))
        if model is not None
    ]
    return "Velocity sections: " + ", ".join(parts) + "; beside them their differences."


def _error(model: np.ndarray, true: np.ndarray | None) -> str:
    return "" if true is None else f", MSE {mean_squared_kmps2(model, true):#.3g} (km/s)²"


def history(record: RunRecord) -> style.Picture | None:
    """Four records of the model over the iterations, each with what is still wrong (or has changed)."""
    results = record.results
    if results is None or len(results.history_iterations) < 2:
        return None
    iterations = results.history_iterations
    chosen = sorted({round(place) for place in np.linspace(0, len(iterations) - 1, _HISTORY_ROWS)})
    stack = results.history(chosen) * MPS_TO_KMPS
    true, initial = in_kmps(results, "true"), in_kmps(results, "initial")
    reference = true if true is not None else initial if initial is not None else stack[0]
    kind = "true" if true is not None else "initial"
    velocities = [Panel(f"Iteration {iterations[place]}", model) for place, model in zip(chosen, stack, strict=True)]
    differences = [
        Panel("Change" if true is None else f"MSE {mean_squared_kmps2(model, true):#.3g} (km/s)²", model - reference)
        for model in stack
    ]
    limits = style.velocity_limits(*([true] if true is not None else stack))
    figure = _draw_groups(
        frame_of_results(results, stack[0]),
        velocities,
        differences,
        limits=limits,
        label=f"difference to the {kind} model (km/s)",
    )
    caption = (
        "The model on its way, and its error. Healthy runs fix the shallow part first and then deepen; an error that "
        "grows while the misfit falls points to cycle skipping."
        if true is not None
        else "The model on its way, and how far it has moved from its start."
    ) + slices.remark(reference.ndim)
    shown = ", ".join(str(iterations[place]) for place in chosen)
    return style.Picture(
        "history.png",
        figure,
        "History of the model",
        caption,
        f"Velocity sections at iterations {shown} beside their difference to the {kind} model.",
    )


def profiles(record: RunRecord) -> style.Picture | None:
    """Velocity against depth at four positions: true, initial and inverted."""
    results = record.results
    initial = in_kmps(results, "initial")
    if results is None or initial is None:
        return None
    frame = frame_of_results(results, initial)
    columns = sorted({round(share * (initial.shape[-1] - 1)) for share in _PROFILE_POSITIONS})
    figure = style.new_figure(4.3)
    axes_row = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for place, (axes, column) in enumerate(zip(axes_row, columns, strict=True)):
        where = draw_profile(axes, results, column)
        style.line_axes(axes, f"{style.letter(place)} {where}", "velocity (km/s)", "")
    axes_row[0].set_ylabel(f"depth ({frame.unit})")
    axes_row[0].legend(loc="lower left")
    return style.Picture(
        "profiles.png",
        figure,
        "Vertical profiles",
        "Velocity against depth. Look at whether interfaces sit at the right depth, and at which depth the inverted "
        "curve falls back to the initial one: below it the data said nothing." + slices.remark(initial.ndim),
        f"Velocity against depth at {len(columns)} positions along the line for the models that the run has.",
    )


def draw_profile(axes: Any, results: StoredResults, column: int) -> str:
    """Draw the velocities of the models that the run has along one column, depth down; returns where that is."""
    where = ""
    for name, line in (
        ("true", style.TRUE_LINE),
        ("initial", style.INITIAL_LINE),
        ("inverted", style.INVERTED_LINE),
    ):
        model = in_kmps(results, name)
        if model is None:
            continue
        frame = frame_of_results(results, model)
        depths = (results.origin_m[0] + np.arange(model.shape[0]) * results.spacing_m[0]) * frame.per_metre
        axes.plot(slices.upright(model)[:, column], depths, label=name, **line)
        axes.set_ylim(depths[-1], depths[0])
        axes.set_ylabel(f"depth ({frame.unit})")
        distance = (results.origin_m[-1] + column * results.spacing_m[-1]) * frame.per_metre
        where = f"x = {distance:.3g} {frame.unit}"
    return where
