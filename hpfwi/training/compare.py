"""Several trained networks on the same samples: one table, one figure, and how much each differs from the first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpfwi.commands import command_on
from hpfwi.errors import ConfigError, DataError
from hpfwi.training.evaluate import PUBLISHED, Mean, evaluations_of, mean_of, read_scores
from hpfwi.training.metrics import Scores
from hpfwi.training.outputs import require_free
from hpfwi.training.pictures import draw_comparison
from hpfwi.training.trained import require_training

SHOWN = ("mae_mps", "rmse_mps", "ssim", "psnr_db", "boundary_mae_mps", "uqi")
"""Scores in the table and the figure; those as published stand in the files of each run."""


@dataclass(frozen=True)
class Row:
    """A run in the table.

    scale       of its velocities, in words
    means       by score
    changes     mean of the run's score minus the first run's, sample by sample; None for the first
    """

    name: str
    network: str
    parameters: int
    scale: str
    means: dict[str, Mean]
    changes: dict[str, Mean] | None


def compare(runs: Sequence[Path], split: str = "test", *, out: Path = Path("comparison.png")) -> list[Row]:
    """The rows of runs that were evaluated on the same samples of the same store; draws the figure `out`.

    runs        their folders, or files of `hpfwi export`

    raises      ConfigError: fewer than two runs, a folder for a figure; DataError: a run was not evaluated, or on other
                samples; a disk that refuses
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run cannot be compared; give two or more.")
    require_free(out, overwrite=True)
    found = [_read(run, split) for run in runs]
    first_summary, first_samples, first_scores = found[0]
    for run, (summary, samples, _) in zip(runs, found, strict=True):
        if samples != first_samples or summary["store_sha256"] != first_summary["store_sha256"]:
            raise DataError(
                f"{run} and {runs[0]} were evaluated on other samples or another store ({summary['store']}, "
                f"{first_summary['store']}); evaluate both with the same --split and --data."
            )
    rows = []
    for number, (summary, _, scores) in enumerate(found):
        changes = {name: mean_of(scores[name] - first_scores[name]) for name in SHOWN} if number else None
        means = {name: mean_of(scores[name]) for name in SHOWN}
        scale = summary.get("scale", summary["normalisation"])
        rows.append(Row(_label(runs, number), summary["network"], summary["parameters"], scale, means, changes))
    draw_comparison(
        out,
        [row.name for row in rows],
        {name: [scores[name] for _, _, scores in found] for name in SHOWN[:4]},
        f"{len(first_samples)} samples of {Path(first_summary['store']).name}, {split}: "
        "line median, diamond mean, box middle half, whiskers 5 to 95 %",
    )
    return rows


def as_text(rows: Sequence[Row]) -> list[str]:
    """The table: mean ± half of the 95 % confidence interval, the change from the first run, and the scales."""
    header = ["run", "network", "parameters", *SHOWN]
    lines = [header]
    for row in rows:
        lines.append([row.name, row.network, f"{row.parameters:,}", *(said(row.means[name]) for name in SHOWN)])
        if row.changes is not None:
            lines.append(["", "", "- first run", *(said(row.changes[name], sign="+") for name in SHOWN)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*table, *(f"{row.name}: velocities on {row.scale}" for row in rows)]


def _read(run: Path, split: str) -> tuple[dict[str, Any], tuple[int, ...], Scores]:
    if not run.is_file():
        require_training(run)
    folder = evaluations_of(run) / split
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{run} was not evaluated on {split!r}; do so with `{command_on('evaluate', run)} --split {split}`."
        ) from error
    samples, scores = read_scores(folder)
    if missing := [name for name in SHOWN if name not in scores]:
        raise DataError(f"{folder / 'scores.csv'} lacks {', '.join(missing)}; make it again with `hpfwi evaluate`.")
    return summary, samples, {name: values for name, values in scores.items() if not name.startswith(PUBLISHED)}


def _label(runs: Sequence[Path], number: int) -> str:
    """The run's folder name, with its parent's where two are called the same."""
    names = [run.resolve().name for run in runs]
    return names[number] if names.count(names[number]) == 1 else str(runs[number])


def said(mean: Mean, sign: str = "") -> str:
    """A mean with its interval, to the digits that the interval leaves.

    >>> said(Mean(123.456, 2.1, 9)), said(Mean(0.51234, 0.00123, 9)), said(Mean(3.0, math.nan, 1))
    ('123.5 ± 2.1', '0.5123 ± 0.0012', '3')
    """
    if not math.isfinite(mean.mean):
        return "-"
    if not mean.half_width > 0:
        return f"{mean.mean:{sign}.4g}"
    digits = max(0, 1 - math.floor(math.log10(mean.half_width)))
    return f"{mean.mean:{sign}.{digits}f} ± {mean.half_width:.{digits}f}"
