"""Velocity models to SEG-Y files that `segy_models.py` and other programs read back: a trace for every column."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import segyio

from hpfwi.errors import DataError
from hpfwi.physics.model import EarthModel
from hpfwi.store.atomic import new_file

IEEE_FLOAT = 5
LARGEST_INTERVAL = 32767
"""The sample interval has two bytes with a sign; depth steps stand there in millimetres."""
LARGEST_COORDINATE = 2**31 - 1
MILLIMETRES = -1000
"""Coordinate scalar of coordinates in millimetres."""
ALONG_X = (segyio.TraceField.SourceX, segyio.TraceField.GroupX, segyio.TraceField.CDP_X)
ALONG_Y = (segyio.TraceField.SourceY, segyio.TraceField.GroupY, segyio.TraceField.CDP_Y)
NUMBERS = (segyio.TraceField.INLINE_3D, segyio.TraceField.CROSSLINE_3D)
TEXT = {
    1: "VELOCITY MODEL IN M/S, WRITTEN BY HPFWI",
    2: "A TRACE IS A COLUMN, ITS SAMPLES GO DOWN FROM THE TOP OF THE MODEL",
    3: "SAMPLE INTERVAL (BYTES 3217, 117): DEPTH STEP IN MILLIMETRES",
    4: "SOURCE, RECEIVER AND CDP X (BYTES 73, 81, 181): DISTANCE, MM, SCALAR -1000",
    5: "DELAY (BYTE 109): DEPTH OF THE FIRST SAMPLE IN METRES",
}
BLOCK_TEXT = TEXT | {
    6: "SOURCE, RECEIVER AND CDP Y (BYTES 77, 85, 185): ACROSS, MM, SCALAR -1000",
    7: "INLINE (BYTE 189): PLACE ALONG Y, FROM 1; CROSSLINE (BYTE 193): ALONG X",
}


def write_segy_model(path: str | Path, model: EarthModel, *, overwrite: bool = False) -> None:
    """Write a model as big-endian SEG-Y of IEEE floats, with its cell size in the headers.

    A block's traces are sorted by inline, which is their place along y, then by crossline, their place along x.

    raises  ConfigError: the path exists and overwrite is False; DataError: the disk refuses; a depth step that is no
            whole number of millimetres or above 32.767 m, a distance beyond 2147 km, which the headers cannot hold
    """
    grid, dz_m = model.grid, model.grid.spacing_m[0]
    interval = round(1000 * dz_m)
    places_mm = [np.round(1000 * grid.nodes_m(axis)).astype(np.int64) for axis in range(1, len(grid.shape))]
    if not 1 <= interval <= LARGEST_INTERVAL or abs(interval - 1000 * dz_m) > 1e-3:
        raise DataError(
            f"A depth step of {dz_m:g} m cannot be written to SEG-Y, whose headers hold whole millimetres up to "
            f"{LARGEST_INTERVAL}: write .npy or .zarr instead."
        )
    farthest = max(int(np.abs(places).max()) for places in places_mm)
    if farthest > LARGEST_COORDINATE:
        raise DataError(f"Distances to {farthest / 1e6:g} km do not fit SEG-Y headers: write .npy or .zarr instead.")
    spec = segyio.spec()
    spec.format = IEEE_FLOAT
    spec.samples = np.arange(grid.shape[0], dtype=np.float64) * dz_m
    spec.tracecount = math.prod(grid.shape[1:])
    common = {
        segyio.TraceField.TraceIdentificationCode: 1,
        segyio.TraceField.SourceGroupScalar: MILLIMETRES,
        segyio.TraceField.CoordinateUnits: 1,
        segyio.TraceField.DelayRecordingTime: round(grid.origin_m[0]),
        segyio.TraceField.TRACE_SAMPLE_COUNT: grid.shape[0],
        segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
    }
    with new_file(path, overwrite=overwrite) as temporary, segyio.create(str(temporary), spec) as file:
        file.text[0] = segyio.create_text_header(TEXT if len(places_mm) == 1 else BLOCK_TEXT)
        file.bin.update({segyio.BinField.Interval: interval, segyio.BinField.MeasurementSystem: 1})
        for trace, place in enumerate(np.ndindex(*grid.shape[1:])):
            header = {segyio.TraceField.TRACE_SEQUENCE_LINE: trace + 1, segyio.TraceField.CDP: trace + 1} | common
            header |= dict.fromkeys(ALONG_X, int(places_mm[-1][place[-1]]))
            if len(place) == 2:
                header |= dict.fromkeys(ALONG_Y, int(places_mm[0][place[0]]))
                header |= dict(zip(NUMBERS, (number + 1 for number in place), strict=True))
            file.header[trace] = header
            file.trace[trace] = np.ascontiguousarray(model.velocity[:, *place])
