"""What became of each sample of a refinement: a row of OUT.zarr/refinement.csv.

sample              number in the store that the records came from
misfit_proposed     of the network's proposal, as a share of the observed energy
misfit_refined      of the model that was kept
iteration           after which that was met; 0 is the proposal
mae_proposed_mps    mean absolute error of the proposal, where a true model is known; the refinement never saw it
mae_refined_mps     the same of the model that was kept

While a store is unfinished, the rows of each shard lie in a file of their own, written before the shard is: a shard
that is whole has its rows.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.refinement.refine import Refined
from hpfwi.store.atomic import new_file
from hpfwi.store.pair_writer import PairsWriter
from hpfwi.store.shards import write_flushed

TABLE = "refinement.csv"
ROWS = "refinement"
"""Folder of the rows in an unfinished store."""


@dataclass(frozen=True)
class Row:
    """One sample; errors are None where its true model is not known."""

    sample: int
    misfit_proposed: float
    misfit_refined: float
    iteration: int
    mae_proposed_mps: float | None
    mae_refined_mps: float | None

    @classmethod
    def of(cls, sample: int, refined: Refined, proposal: NDArray[np.float32], true: NDArray[np.float32] | None) -> Self:
        """The row of a sample; models are float32[z, x], m/s."""
        errors = (
            None if true is None else float(np.mean(np.abs(model - true), dtype=np.float64))
            for model in (proposal, refined.velocity)
        )
        return cls(sample, refined.proposed, refined.refined, refined.iteration, *errors)


def write_rows(writer: PairsWriter, first: int, rows: Sequence[Row]) -> None:
    """Keep the rows of the shard that begins with sample `first`, unless the store is finished already."""
    if not writer.part.is_dir():
        return
    text = json.dumps([asdict(row) for row in rows])
    try:
        write_flushed(writer.part / ROWS / f"{first}.json", [text.encode()])
    except OSError as error:
        raise DataError(
            f"The table of {writer.path} cannot be written ({error.strerror or error}): make room and start the same "
            "command again; it goes on from here."
        ) from error


def finish_rows(store: Path) -> list[Row]:
    """The rows of a finished store, in one file from now on; in the order of its samples.

    raises  DataError: a table that is damaged, or a disk that refuses
    """
    table, parts = store / TABLE, store / ROWS
    if not table.is_file():
        files = sorted(parts.glob("*.json"), key=lambda file: int(file.stem))
        if not files:  # somebody took the table away
            return []
        rows = [Row(**row) for file in files for row in json.loads(file.read_bytes())]
        with new_file(table) as temporary:
            temporary.write_text(_as_csv(rows), "utf-8")
    shutil.rmtree(parts, ignore_errors=True)
    return read_rows(table)


def read_rows(table: Path) -> list[Row]:
    """The rows of a table; raises DataError where it is missing or damaged."""
    try:
        header, *lines = csv.reader(table.read_text("utf-8").splitlines())
        if header != [field.name for field in fields(Row)]:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [
            Row(
                int(sample), float(proposed), float(refined), int(iteration), *(float(e) if e else None for e in errors)
            )
            for sample, proposed, refined, iteration, *errors in lines
        ]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{table} cannot be read ({error}); delete the store and refine again.") from error


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in rows:
        writer.writerow(["" if value is None else repr(value) for value in asdict(row).values()])
    return text.getvalue()
