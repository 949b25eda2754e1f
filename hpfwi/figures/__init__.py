"""The figures of a run, drawn from its folder alone."""

from pathlib import Path

from hpfwi.figures import curves, diagnostics, gathers, overview, sections, style
from hpfwi.figures.record import RunRecord
from hpfwi.figures.style import Picture

# The order of the report.
FIGURES = (
    overview.overview,
    sections.models,
    curves.curves,
    gathers.gathers,
    sections.profiles,
    sections.history,
    diagnostics.spectra,
    diagnostics.diagnostics,
    curves.cluster,
)


def draw_figures(record: RunRecord, folder: Path) -> list[Picture]:
    """Draw every figure that the run has something for, write them to `folder` as PNG and return them in order.

    raises  DiskError: the disk refuses
    """
    pictures = []
    with style.look():
        for draw in FIGURES:
            picture = draw(record)
            if picture is not None:
                style.save_png(picture.figure, folder / picture.file)
                pictures.append(picture)
    return pictures
