"""The run in one picture: the models on the left, and on the right how the numbers went and one profile."""

from typing import Any

import numpy as np

from hpfwi.figures import slices, style
from hpfwi.figures.curves import draw_misfit, mark_bands, marker
from hpfwi.figures.record import RunRecord, series
from hpfwi.figures.sections import draw_positions, draw_profile, frame_of_results, in_kmps, mean_squared_kmps2

_WIDTH_RATIOS = (1.55, 1.0)


def overview(record: RunRecord) -> style.Picture | None:
    """Models beside curves; None before the run has an inverted model or an iteration."""
    results = record.results
    initial, inverted = in_kmps(results, "initial"), in_kmps(results, "inverted")
    at, misfit = series(record.iterations, "misfit")
    if results is None or initial is None or inverted is None or len(at) == 0:
        return None
    true = in_kmps(results, "true")
    sections = [] if true is None else [("True", true)]
    sections += [("Initial", initial), (f"Inverted, after {record.inverted_after} iterations", inverted)]
    frame = frame_of_results(results, initial)
    left = style.PAGE_INCHES * _WIDTH_RATIOS[0] / sum(_WIDTH_RATIOS) - 0.6
    figure = style.new_figure(len(sections) * (left / frame.drawn_ratio + 0.35) + 1.0)
    panels, plots = figure.subfigures(1, 2, width_ratios=_WIDTH_RATIOS)
    rows = panels.subplots(len(sections), 1, sharex=True, squeeze=False)[:, 0]
    limits = style.velocity_limits(*([true] if true is not None else [initial, inverted]))
    image: Any = None
    for place, (axes, (title, model)) in enumerate(zip(rows, sections, strict=True)):
        error = "" if true is None or model is true else f", MSE {mean_squared_kmps2(model, true):#.3g} (km/s)²"
        image = style.draw_section(
            axes,
            slices.upright(model),
            frame,
            title=f"{style.letter(place)} {title}{error}",
            colours=style.VELOCITY_MAP,
            limits=limits,
            outer=(True, place == len(sections) - 1),
        )
    draw_positions(rows[0], results, frame)
    extend = style.extends([model for _, model in sections], limits)
    panels.colorbar(
        image, ax=rows, label="velocity (km/s)", location="bottom", shrink=0.7, aspect=32, pad=0.02, extend=extend
    )
    _draw_plots(plots, record, len(sections))
    text = f"The inverted model beside its start; the misfit goes from {misfit[0]:.3g} to {misfit[-1]:.3g}."
    return style.Picture(
        "overview.png",
        figure,
        "The run at a glance",
        "Left: the models on one colour scale. Right: the fit to the gathers, "
        + ("the error of the model, " if true is not None else "")
        + "and the velocity along one vertical line in the middle of the model. The figures below show each in detail."
        + slices.remark(initial.ndim),
        text,
    )


def _draw_plots(figure: Any, record: RunRecord, first: int) -> None:
    """Misfit, model error where there is one, and a profile; `first` is the place of their first letter."""
    at, misfit = series(record.iterations, "misfit")
    error_at, error = series(record.diagnostics, "mse_kmps2")
    rows = figure.subplots(3 if len(error) else 2, 1)
    draw_misfit(rows[0], at, misfit, record)
    mark_bands(rows[0], record, named=False)
    style.line_axes(rows[0], f"{style.letter(first)} Misfit, residual / observed energy", None, "")
    rows[0].legend(loc="best")
    if len(error):
        rows[1].plot(error_at, error, color=style.BLUE, marker=marker(error))
        rows[1].axhline(error[0], **style.INITIAL_LINE)
        rows[1].set_ylim(0, 1.08 * float(error.max()))
        style.line_axes(rows[1], f"{style.letter(first + 1)} Model error, (km/s)²", "iteration", "")
    else:
        rows[0].set_xlabel("iteration")
    results = record.results
    assert results is not None  # overview has seen to it
    column = int(np.asarray(results.array("model/initial")).shape[-1] // 2)
    where = draw_profile(rows[-1], results, column)
    style.line_axes(
        rows[-1], f"{style.letter(first + len(rows) - 1)} Profile at {where}", "velocity (km/s)", rows[-1].get_ylabel()
    )
    rows[-1].legend(loc="best")
