"""Velocity models to SEG-Y files that `hpfwi.store.segy` and other programs read back: a trace for every column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import segyio

from hpfwi.errors import DataError
from hpfwi.physics.grid import in_cells
from hpfwi.physics.model import EarthModel
from hpfwi.store.atomic import new_file

IEEE_FLOAT = 5
LARGEST_INTERVAL = 32767
"""The sample interval has two bytes with a sign; depth steps stand there in millimetres."""
LARGEST_COORDINATE = 2**31 - 1
MILLIMETRES = -1000
"""Coordinate scalar of coordinates in millimetres."""
TEXT = {
    1: "VELOCITY MODEL IN M/S, WRITTEN BY HPFWI",
    2: "A TRACE IS A COLUMN, ITS SAMPLES GO DOWN FROM THE TOP OF THE MODEL",
    3: "SAMPLE INTERVAL (BYTES 3217, 117): DEPTH STEP IN MILLIMETRES",
    4: "SOURCE, RECEIVER AND CDP X (BYTES 73, 81, 181): DISTANCE, MM, SCALAR -1000",
    5: "DELAY (BYTE 109): DEPTH OF THE FIRST SAMPLE IN METRES",
}


def write_segy_model(path: str | Path, model: EarthModel, *, overwrite: bool = False) -> None:
    """Write a model as big-endian SEG-Y of IEEE floats, with its cell size in the headers.

    raises  ConfigError: the path exists and overwrite is False; DataError: a 3-D model; the disk refuses; a depth step
            that is no whole number of millimetres or above 32.767 m, a distance beyond 2147 km, which the headers
            cannot hold
    """
    if len(model.grid.shape) != 2:
        raise DataError(
            f"A 3-D model of {in_cells(model.grid.shape)} cells cannot be written to SEG-Y here: write .npy or .zarr "
            "instead."
        )
    (rows, columns), dz_m = model.grid.shape, model.grid.spacing_m[0]
    interval = round(1000 * dz_m)
    x_mm = np.round(1000 * model.grid.distances_m()).astype(np.int64)
    if not 1 <= interval <= LARGEST_INTERVAL or abs(interval - 1000 * dz_m) > 1e-3:
        raise DataError(
            f"A depth step of {dz_m:g} m cannot be written to SEG-Y, whose headers hold whole millimetres up to "
            f"{LARGEST_INTERVAL}: write .npy or .zarr instead."
        )
    if np.abs(x_mm).max() > LARGEST_COORDINATE:
        raise DataError(f"Distances to {x_mm.max() / 1e6:g} km do not fit SEG-Y headers: write .npy or .zarr instead.")
    spec = segyio.spec()
    spec.format = IEEE_FLOAT
    spec.samples = np.arange(rows, dtype=np.float64) * dz_m
    spec.tracecount = columns
    with new_file(path, overwrite=overwrite) as temporary, segyio.create(str(temporary), spec) as file:
        file.text[0] = segyio.create_text_header(TEXT)
        file.bin.update({segyio.BinField.Interval: interval, segyio.BinField.MeasurementSystem: 1})
        for column in range(columns):
            x = int(x_mm[column])
            file.header[column] = {
                segyio.TraceField.TRACE_SEQUENCE_LINE: column + 1,
                segyio.TraceField.CDP: column + 1,
                segyio.TraceField.TraceIdentificationCode: 1,
                segyio.TraceField.SourceGroupScalar: MILLIMETRES,
                segyio.TraceField.SourceX: x,
                segyio.TraceField.GroupX: x,
                segyio.TraceField.CDP_X: x,
                segyio.TraceField.CoordinateUnits: 1,
                segyio.TraceField.DelayRecordingTime: round(model.grid.origin_m[0]),
                segyio.TraceField.TRACE_SAMPLE_COUNT: rows,
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
            }
            file.trace[column] = np.ascontiguousarray(model.velocity[:, column])
