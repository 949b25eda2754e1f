"""Some samples of a refinement drawn: the best, the worst and two between, by what their records are left with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DiskError
from hpfwi.figures.refinement import SAMPLES, Shown, draw_refinement
from hpfwi.refinement.source import RefinementSource
from hpfwi.refinement.table import Row
from hpfwi.store.openfwi import PairStore
from hpfwi.training.forward import in_mps

FIGURE = "refinement.png"


def draw_some(path: Path, source: RefinementSource, refined: PairStore, rows: Sequence[Row]) -> None:
    """Write the figure; proposals and residuals are computed again, by the modelling that made the records.

    refined     the finished store
    rows        of all its samples
    raises      DiskError: the disk refuses
    """
    order = np.argsort([row.misfit_refined for row in rows], kind="stable")
    picked = sorted({round(share * (len(rows) - 1)) for share in np.linspace(0, 1, SAMPLES)})
    places = [int(order[place]) for place in picked]
    records, true = source.store().read([source.samples[place] for place in places])
    _, models = refined.read(places)
    trained = source.trained()
    simulator = source.simulator(refined.model_shape, "cpu", exact=True)
    shot = refined.records_shape[0] // 2
    known = all(rows[place].mae_refined_mps is not None for place in places)
    shown = []
    for column, place in enumerate(places):
        proposed = in_mps(trained.config.training, trained.predict(records[column : column + 1]))[0]
        proposed = np.clip(proposed, *source.settings.bounds_mps)
        observed = records[column, shot]

        def left(model: NDArray[np.float32], observed: NDArray[np.float32] = observed) -> NDArray[np.float32]:
            return simulator.records(model)[shot] - observed

        found = {"true": true[column]} if known else {}
        gathers = {"observed": observed, "left by proposed": left(proposed), "left by refined": left(models[column])}
        row = rows[place]
        title = f"sample {row.sample}: {row.misfit_proposed:.2g} → {row.misfit_refined:.2g}"
        shown.append(Shown(found | {"proposed": proposed, "refined": models[column]}, gathers, title))
    title = f"{refined.family}: misfit before and after as a share of the energy; shot {shot + 1}"
    try:
        draw_refinement(path, shown, refined.physics, title)
    except DiskError as error:
        raise DiskError(f"{str(error).rstrip('.')}, and start the same command again; the pairs are whole.") from error
