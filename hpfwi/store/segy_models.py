"""Velocity models in SEG-Y files: one trace per column of the model, samples going down.

The SEG-Y standard has no field for a depth step. By habit the sample interval holds millimetres where a trace is a
function of depth, and the coordinates hold metres, or millimetres with no scalar. Some models that circulate have
neither, or counters in the coordinate fields, so a spacing is taken from the headers only when they leave no doubt.

A file is a block where it has one trace at every crossing of its inlines and crosslines: inlines follow each other in
y, and an inline's traces lie along x. Every other file is a section.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segyio
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.physics.grid import AXES, along_axes
from hpfwi.store.segy import SegyFile, open_segy

PLAUSIBLE_STEP_M = (0.5, 200.0)
"""Spacings outside this range are taken for something else than metres."""

COORDINATES = ((181, 185), (73, 77), (81, 85))
"""Trace header bytes of x and y: of the midpoint, the source and the receiver."""

INLINE, CROSSLINE = 189, 193
"""Trace header bytes of the two numbers of a trace in a block."""


@dataclass(frozen=True, eq=False)
class SegyTable:
    """The samples of a SEG-Y file and what its headers say about the spacing."""

    samples: NDArray[np.float32]
    """float32[z, trace] or [z, inline, crossline], in the unit of the file."""
    spacing_m: tuple[float, ...] | None
    """(dz, dx) or (dz, dy, dx) in metres, or None where the headers leave a doubt."""
    doubt: str
    """Why spacing_m is None; empty otherwise."""


def read_segy(path: str | Path, axes: int | None = None) -> SegyTable:
    """All samples of a SEG-Y file with traces of equal length, big- or little-endian, IBM, IEEE or integer.

    axes    2 takes the file for a section and 3 for a block; None believes its headers

    raises  DataError: not a file, not SEG-Y, truncated, without traces, an unknown sample format; axes=3 and no block
    """
    with open_segy(path) as file:
        places = None if axes == 2 else _block(file, required=axes == 3)
        traces = file.read(np.arange(file.traces))
        runs = [np.arange(file.traces)] if places is None else [places[:, 0], places[0]]
        spacing_m, doubt = _spacing(file, runs)
    samples = traces.T if places is None else np.moveaxis(traces[places], -1, 0)
    return SegyTable(np.ascontiguousarray(samples), spacing_m, doubt)


def read_segy_model(
    path: str | Path, spacing_m: float | tuple[float, ...] | None = None
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """A model from a SEG-Y file: values float32[z, x] or [z, y, x] in the file's unit, and its cell size in metres.

    spacing_m  (dz, dx) or (dz, dy, dx) in metres, which says what the file is, or one number for all axes; it takes
               precedence over the headers, None uses them

    raises  DataError: see `read_segy`; or the headers leave a doubt about the spacing and none is given
    """
    table = read_segy(path, len(spacing_m) if isinstance(spacing_m, tuple) else None)
    axes = table.samples.ndim
    if spacing_m is not None:
        return table.samples, along_axes(spacing_m, axes)
    if table.spacing_m is None:
        steps = ", ".join(f"d{axis}" for axis in AXES[axes])
        raise DataError(
            f"The headers of {path} do not tell the cell size ({table.doubt}): give it in metres as spacing_m = "
            f"[{steps}]."
        )
    return table.samples, table.spacing_m


def _block(file: SegyFile, *, required: bool) -> NDArray[np.int64] | None:
    """The number of the trace at every crossing, int64[inline, crossline], both in growing order; None for a section.

    raises  DataError: there is none and it is required
    """
    numbers = [file.field(byte) for byte in (INLINE, CROSSLINE)]
    counts = [len(np.unique(one)) for one in numbers]
    crossings = len(np.unique(np.stack(numbers), axis=1).T)
    if min(counts) < 2 or not math.prod(counts) == crossings == file.traces:
        if not required:
            return None
        raise DataError(
            f"{file.path} is no block of traces: it has {file.traces} at {crossings} crossings of {counts[0]} inlines "
            f"and {counts[1]} crosslines (bytes 189 and 193), and a 3-D model needs one at each. Mend the headers, "
            "fill the gaps, or write the model as .npy."
        )
    return np.lexsort(numbers[::-1]).reshape(counts)


def _spacing(file: segyio.SegyFile, runs: Sequence[NDArray[np.int64]]) -> tuple[tuple[float, ...] | None, str]:
    """((dz, dx) or (dz, dy, dx) in metres, "") or (None, the doubt).

    runs    numbers of the traces that follow each other along every horizontal axis
    """
    low, high = PLAUSIBLE_STEP_M
    if file.of_file(segyio.BinField.MeasurementSystem) == 2:
        return None, "they are in feet"
    interval = file.of_file(segyio.BinField.Interval) or int(file.field(segyio.TraceField.TRACE_SAMPLE_INTERVAL)[0])
    dz_m = interval / 1000
    if not low <= dz_m <= high:
        return None, f"the sample interval {interval} is no depth step in mm"
    spacing_m = [dz_m]
    for run in runs:
        found = {round(step, 6) for step in (_lateral_step_m(file, *fields, run) for fields in COORDINATES) if step}
        steps = sorted(found)
        if not steps:
            return None, "no coordinate grows evenly from trace to trace"
        if steps[-1] > 1.01 * steps[0]:
            return None, f"different coordinates give steps of {steps[0]:g} and {steps[-1]:g} m"
        if not 1 / 5 <= dz_m / steps[0] <= 5:
            return None, f"a depth step of {dz_m:g} m does not go with a trace step of {steps[0]:g} m"
        spacing_m.append(steps[0])
    return tuple(spacing_m), ""


def _lateral_step_m(file: SegyFile, x_byte: int, y_byte: int, run: NDArray[np.int64]) -> float | None:
    """Distance between neighbouring traces of a run in metres, or None where these coordinates do not give one."""
    low, high = PLAUSIBLE_STEP_M
    x = file.field(x_byte)[run].astype(np.float64)
    y = file.field(y_byte)[run].astype(np.float64)
    if len(x) < 2:
        return None
    raw = np.hypot(np.diff(x), np.diff(y))
    if raw.min() <= 0 or raw.max() > 1.01 * raw.min():
        return None
    scalars = set(file.field(segyio.TraceField.SourceGroupScalar).tolist())
    if len(scalars) > 1:
        return None
    scalar = int(scalars.pop())
    step = float(raw.mean()) * (scalar if scalar > 0 else -1 / scalar if scalar < 0 else 1)
    if scalar in (0, 1):
        # A step of 1 without a scalar is a trace counter; one of 500 and more is in millimetres.
        if math.isclose(step, 1.0):
            return None
        if step > high:
            step /= 1000
    return step if low <= step <= high else None
