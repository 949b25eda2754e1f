"""Field records in SEG-Y files: the gathers of a line or an area, with the positions that the trace headers give.

Headers hold map coordinates and elevations, an inversion wants distance along a straight line and depth below a datum.
The line is given, or the best straight one through all sources and receivers; what is off it is projected onto it. Of
an area the line is the x axis, and distances across it, to its left as seen from above, are y.

Bytes are counted from 1 as the standard does: 9 field record, 29 trace code, 37 offset, 41 receiver elevation,
45 source surface elevation, 49 source depth, 69 and 71 scalars of elevations and coordinates, 73 to 88 coordinates of
source and receiver, 89 their unit, 109 delay (ms), 117 sample interval (µs), 215 scalar of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import segyio
from numpy.typing import NDArray

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.bands import band_passed
from hpfwi.physics.survey import Survey, horizontal_m
from hpfwi.store.segy import SegyFile

PRESSURE_CODES = (0, 1, 11)
"""Trace codes taken for records of pressure: unknown, seismic, and pressure of a multi-component cable."""

ANGLES = (2, 4)
"""Coordinate units that are angles: seconds of arc, and degrees with minutes and seconds. Unit 3, decimal degrees, is
found in files whose coordinates are plainly metres, so it is not trusted."""

FOOT_M = 0.3048
FEET = 2
"""Measurement system of a file in feet."""

OFFSET_TOLERANCE = 0.05
"""Relative difference of the offsets in the headers from those of the coordinates that is worth a remark."""

Line = tuple[float, float, float, float]
"""Map coordinates (X, Y) of distance 0 and of another point of the line, metres; of an area's origin and x axis."""


@dataclass(frozen=True, eq=False)
class Records:
    """The shots of a SEG-Y file, laid on a line or over an area; the samples are read when `gathers` is walked."""

    file: SegyFile
    survey: Survey
    line_m: Line
    """As used: given, or the best straight line, from the first position to the last; of an area see `open_records`."""
    remarks: tuple[str, ...]
    """What was left out, and what a careful reader should know."""
    _traces: tuple[NDArray[np.int64], ...]
    """Trace numbers of every shot, in the order of its receivers."""
    _delays: NDArray[np.int64]
    """Samples between the shot and the first sample of every trace of the file."""
    _band_hz: tuple[float, float] | None

    def gathers(self) -> Iterator[NDArray[np.float32]]:
        """The gather of every shot in turn, float32[receiver, time], zeros where a receiver is absent."""
        for traces in self._traces:
            gather = np.zeros((self.survey.receivers, self.survey.samples), dtype=np.float32)
            gather[: len(traces)] = _shifted(self.file.read(traces), self._delays[traces], self.survey.samples)
            yield gather if self._band_hz is None else band_passed(gather, self.survey.dt_s, *self._band_hz)


def open_records(
    file: SegyFile,
    *,
    line_m: Line | None = None,
    areal: bool = False,
    datum_m: float = 0.0,
    source_depth_m: float | None = None,
    receiver_depth_m: float | None = None,
    min_offset_m: float = 0.0,
    max_offset_m: float = math.inf,
    every: int = 1,
    duration_s: float | None = None,
    band_hz: tuple[float, float] | None = None,
    codes: Sequence[int] = PRESSURE_CODES,
) -> Records:
    """Find the shots of a file: traces of one field record and one source position.

    line_m                 None takes the best straight line, of an area one along X, from the lowest X and Y
    areal                  positions are (z, y, x), and not (z, x) after projection onto the line
    datum_m                elevation of the model's top; depths are counted from it
    source_depth_m, receiver_depth_m   below the datum, in place of the headers
    min_, max_offset_m     distances along the line, or over the area, that are kept
    every                  1 keeps every shot, 2 every second one, from the first on
    duration_s             records are cut there; None keeps all samples
    band_hz                see `hpfwi.physics.bands.band_passed`; None leaves the records as they are
    codes                  trace codes that are kept

    Traces that are dead by their samples (all zero, or with NaN or infinity) are left out.

    raises  DataError: no positions, no sample interval, a position above the datum, nothing left to keep
            ConfigError: a line without length, a duration or band that does not fit the sampling
    """
    remarks: list[str] = []
    dt_s = _sample_interval_s(file, remarks)
    kept = np.flatnonzero(np.isin(file.field(29), np.asarray(codes)))
    if len(kept) < file.traces:
        others = np.unique(file.field(29)[~np.isin(file.field(29), np.asarray(codes))]).tolist()
        remarks.append(f"{file.traces - len(kept)} traces of the codes {others} are left out (bytes 29-30).")
    if not len(kept):
        raise DataError(f"{file.path} has no trace of the codes {list(codes)}; name those to keep with --trace-code.")
    sources, receivers = _map_positions_m(file)
    if line_m is None:
        line_m = (_along_x if areal else _best_line)(np.concatenate([sources[kept], receivers[kept]]))
    depths = _depths_m(file, datum_m, source_depth_m, receiver_depth_m)
    first = 0 if areal else 1  # a line has no y
    source_m, receiver_m = (
        np.column_stack([z, np.round(_in_frame(places, line_m)[:, first:], _decimals(file)) + 0.0])
        for z, places in zip(depths, (sources, receivers), strict=True)
    )
    offsets = horizontal_m(source_m, receiver_m)
    remarks += _about_offsets(file, sources, receivers, offsets)
    offsets = offsets[kept]
    inside = (offsets >= min_offset_m) & (offsets <= max_offset_m)
    if not inside.all():
        kept_m = f"outside {min_offset_m:g} to {max_offset_m:g} m"
        if max_offset_m == math.inf:
            kept_m = f"nearer than {min_offset_m:g} m"
        remarks.append(f"{int((~inside).sum())} traces {kept_m} are left out.")
    delays = _delays(file, dt_s)
    samples = _samples(file, dt_s, duration_s, int(delays[kept].max()))
    live, dead, silent = [], 0, []
    for traces in _shots(file, kept[inside], sources)[::every]:
        table = file.read(traces)
        dies = ~(np.isfinite(table).all(axis=1) & table.any(axis=1))
        dead += int(dies.sum())
        if dies.all():
            silent.append(str(file.field(9)[traces[0]]))
        else:
            live.append(traces[~dies])
    if dead:
        of_shots = f", among them all of field record {', '.join(silent)}" if silent else ""
        remarks.append(f"{dead} dead traces (zeros, NaN or infinity) are left out{of_shots}.")
    if not live:
        raise DataError(f"No trace of {file.path} is left; widen the offsets, or look at its trace codes and samples.")
    if band_hz is not None:
        band_passed(np.zeros((1, 2), np.float32), dt_s, *band_hz)  # refuses what does not fit the sampling
    most = max(len(traces) for traces in live)
    positions = np.full((2, len(live), most, source_m.shape[1]), np.nan)
    for shot, traces in enumerate(live):
        positions[0, shot, 0] = source_m[traces[0]]
        positions[1, shot, : len(traces)] = receiver_m[traces]
    survey = Survey(positions[0, :, :1], positions[1], dt_s, samples)
    _check_below(survey, datum_m)
    return Records(file, survey, line_m, tuple(remarks), tuple(live), delays, band_hz)


def _scaled(values: NDArray[np.int64], scalars: NDArray[np.int64]) -> NDArray[np.float64]:
    """Header values after their scalar: a factor where it is positive, a divisor where it is negative, 0 is 1."""
    factor = np.where(scalars > 0, scalars, 1.0) / np.where(scalars < 0, -scalars, 1.0)
    return values * factor


def _metres(file: SegyFile) -> float:
    return FOOT_M if file.of_file(segyio.BinField.MeasurementSystem) == FEET else 1.0


def _sample_interval_s(file: SegyFile, remarks: list[str]) -> float:
    of_file = file.of_file(segyio.BinField.Interval)
    of_traces = np.unique(file.field(117))
    of_traces = of_traces[of_traces != 0]
    if len(of_traces) > 1:
        raise DataError(
            f"The traces of {file.path} have sample intervals from {of_traces[0]} to {of_traces[-1]} µs (bytes "
            "117-118): resample them to one interval first."
        )
    interval = int(of_traces[0]) if len(of_traces) else of_file
    if interval <= 0:
        raise DataError(
            f"{file.path} has the sample interval {interval} µs (bytes 117-118 of the traces, 3217-3218 of the file): "
            "write the true one there, in microseconds."
        )
    if of_file not in (0, interval):
        remarks.append(f"The file header says {of_file} µs a sample, the traces {interval} µs; these are believed.")
    return interval * 1e-6


def _map_positions_m(file: SegyFile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map coordinates of source and receiver, float64[trace, 2] each, metres."""
    units = np.unique(file.field(89))
    if np.isin(units, ANGLES).any():
        raise DataError(
            f"The coordinates of {file.path} are angles (unit {units.tolist()} in bytes 89-90): convert them to metres "
            "first."
        )
    scalars = file.field(71)
    source, receiver = (
        np.stack([_scaled(file.field(first + shift), scalars) for shift in (0, 4)], axis=1) * _metres(file)
        for first in (73, 81)
    )
    unset = [name for name, places in (("source", source), ("receiver", receiver)) if not places.any()]
    if "receiver" in unset or (unset and len(np.unique(file.field(9))) > 1):
        raise DataError(
            f"The {' and '.join(unset)} coordinates of {file.path} are all zero (bytes 73-88): write them into the "
            "trace headers, or store the gathers from Python with hpfwi.store.gathers.write_gathers."
        )
    return source, receiver


def _best_line(places: NDArray[np.float64]) -> Line:
    """The straight line nearest to all positions, walked towards growing X, or growing Y where it runs along Y."""
    places = np.unique(places, axis=0)
    centre = places.mean(axis=0)
    direction = np.linalg.svd(places - centre, full_matrices=False)[2][0]
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    along = (places - centre) @ direction
    start, end = centre + along.min() * direction, centre + along.max() * direction
    return (float(start[0]), float(start[1]), float(end[0]), float(end[1]))


def _along_x(places: NDArray[np.float64]) -> Line:
    """From the lowest X and Y to the highest X."""
    (x0, y0), x1 = places.min(axis=0), places[:, 0].max()
    return (float(x0), float(y0), float(x1), float(y0))


def _in_frame(places: NDArray[np.float64], line_m: Line) -> NDArray[np.float64]:
    """Distances (across the line to its left, along it), float64[trace, 2], metres."""
    start, end = np.array(line_m[:2]), np.array(line_m[2:])
    length = float(np.hypot(*(end - start)))
    if not (math.isfinite(length) and length > 0):
        raise ConfigError(
            f"A line from {start[0]:g}, {start[1]:g} to {end[0]:g}, {end[1]:g} has no direction: give two different "
            "points."
        )
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    return np.asarray((places - start) @ np.stack([across, along], axis=1))


def _decimals(file: SegyFile) -> int:
    """Decimals of a metre that the headers can tell, one at least.

    A turned line adds others. Without them a receiver on a node would be a hair off it, or outside the model.
    """
    unit_m = float(_scaled(np.ones(file.traces, np.int64), file.field(71)).min()) * _metres(file)
    return min(4, max(1, math.ceil(-math.log10(unit_m) - 1e-9)))


def _depths_m(
    file: SegyFile, datum_m: float, source_depth_m: float | None, receiver_depth_m: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Depth of source and receiver below the datum, float64[trace] each, metres."""
    scalars, metres = file.field(69), _metres(file)
    surface, below, receiver = (_scaled(file.field(byte), scalars) * metres for byte in (45, 49, 41))
    return (
        datum_m - surface + below if source_depth_m is None else np.full(file.traces, source_depth_m),
        datum_m - receiver if receiver_depth_m is None else np.full(file.traces, receiver_depth_m),
    )


def _check_below(survey: Survey, datum_m: float) -> None:
    for name, positions in (("source", survey.sources_m), ("receiver", survey.receivers_m)):
        highest = float(np.nanmin(positions[..., 0]))
        if highest < 0:
            raise DataError(
                f"The headers put a {name} {-highest:g} m above the datum of {datum_m:g} m: raise the model's top with "
                f"--datum-m {datum_m - highest:g} or more, or give the depth with --{name}-depth-m."
            )


def _about_offsets(
    file: SegyFile, sources: NDArray[np.float64], receivers: NDArray[np.float64], kept: NDArray[np.float64]
) -> Iterator[str]:
    """Remarks on offsets that the line shortens, and on those of the headers where they differ."""
    true = np.hypot(*(sources - receivers).T)
    lost = float((true - kept).max())
    if lost >= 1:
        yield f"Projection onto the line shortens offsets by up to {lost:.3g} m."
    noted = np.abs(file.field(37)) * _metres(file)
    both = (noted > 0) & (true > 0)
    if both.any() and abs((ratio := float(np.median(noted[both] / true[both]))) - 1) > OFFSET_TOLERANCE:
        yield (
            f"The offsets in bytes 37-40 are {ratio:.3g} times those of the coordinates: look at the coordinate scalar "
            "in bytes 71-72."
        )


def _delays(file: SegyFile, dt_s: float) -> NDArray[np.int64]:
    """Samples from the shot to the first sample, int64[trace]; negative where the recording began before."""
    exact = _scaled(file.field(109), file.field(215)) * 1e-3 / dt_s
    whole = np.round(exact)
    if (np.abs(exact - whole) > 0.01).any():
        trace = int(np.argmax(np.abs(exact - whole)))
        raise DataError(
            f"Trace {trace} of {file.path} begins {exact[trace] * dt_s:g} s after its shot (bytes 109-110), no whole "
            f"number of samples of {dt_s:g} s: shift the traces to the time of the shot first."
        )
    return whole.astype(np.int64)


def _samples(file: SegyFile, dt_s: float, duration_s: float | None, latest: int) -> int:
    """Samples of the gathers: to the end of the trace that ends last, or to the duration."""
    there = file.samples + latest
    wanted = there if duration_s is None else math.floor(duration_s / dt_s + 1e-6) + 1
    if wanted < 2 or there < 2:
        raise ConfigError(f"{duration_s or 0:g} s leave {wanted} of {there} samples of {dt_s:g} s: keep two or more.")
    return min(wanted, there)


def _shots(file: SegyFile, kept: NDArray[np.int64], sources: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Trace numbers of every shot: of one field record and one source position, in the order of the file."""
    keys = np.column_stack([file.field(9)[kept], sources[kept]])
    _, first, shot, counts = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    by_shot = np.split(kept[np.argsort(shot.ravel(), kind="stable")], np.cumsum(counts)[:-1])
    return [by_shot[number] for number in np.argsort(first)]


def _shifted(table: NDArray[np.float32], delays: NDArray[np.int64], samples: int) -> NDArray[np.float32]:
    """Traces [trace, time] that begin at the shot: zeros before a late start, cut before an early one."""
    shifted = np.zeros((len(table), samples), dtype=np.float32)
    for row, delay in enumerate(delays.tolist()):
        source = table[row, max(0, -delay) : max(0, samples - delay)]
        first = max(0, delay)
        shifted[row, first : first + len(source)] = source
    return shifted
