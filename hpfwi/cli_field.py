"""Commands around field records: gathers out of SEG-Y, the wavelet in them, the inverted model as a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpfwi.cli_pairs import progress_of
from hpfwi.errors import ConfigError, DataError
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hpfwi.inversion.wavelet_estimate import Estimate
    from hpfwi.physics.model import EarthModel
    from hpfwi.physics.survey import Survey
    from hpfwi.store.segy_records import Records

SHOTS = 12
"""Shots that the wavelet of all is estimated from: their noise averages out, and a minute is enough."""

LISTED = 20
"""Shots whose own wavelets are told one by one; of more, only those that are explained worst."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


class Which(StrEnum):
    """Models of a run."""

    inverted = "inverted"
    best = "best"
    initial = "initial"
    true = "true"


def gathers(
    source: Annotated[Path, typer.Argument(metavar="LINE.SEGY", help="Shot records, .segy, .sgy or .su.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Where the gathers go.")],
    band_hz: Annotated[
        str | None,
        typer.Option("--band-hz", metavar="LOW,HIGH", help="Keep these frequencies; 0,8 keeps all up to 8 Hz."),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option(
            "--line",
            metavar="X0,Y0,X1,Y1",
            help="Map coordinates of distance 0 and of another point; without it, the best straight line, of an area "
            "one along X from the lowest X and Y.",
        ),
    ] = None,
    areal: Annotated[
        bool,
        typer.Option("--areal", help="For a 3-D model: the line is its x axis, what lies to the left of it is y."),
    ] = False,
    datum_m: Annotated[float, typer.Option("--datum-m", metavar="M", help="Elevation of the model's top.")] = 0.0,
    source_depth_m: Annotated[
        float | None, typer.Option("--source-depth-m", metavar="M", min=0, help="In place of the headers' depths.")
    ] = None,
    receiver_depth_m: Annotated[
        float | None, typer.Option("--receiver-depth-m", metavar="M", min=0, help="In place of the headers' depths.")
    ] = None,
    min_offset_m: Annotated[
        float, typer.Option("--min-offset-m", metavar="M", min=0, help="Leave out receivers nearer than this.")
    ] = 0.0,
    max_offset_m: Annotated[
        float | None, typer.Option("--max-offset-m", metavar="M", min=0, help="Leave out receivers beyond this.")
    ] = None,
    every: Annotated[int, typer.Option("--every", metavar="N", min=1, help="Keep every N-th shot.")] = 1,
    duration_s: Annotated[
        float | None, typer.Option("--duration-s", metavar="S", min=0, help="Cut the records at this time.")
    ] = None,
    trace_code: Annotated[
        list[int] | None,
        typer.Option("--trace-code", metavar="N", help="Trace codes to keep; without it, 0, 1 and 11 (pressure)."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Read shot gathers and their geometry from SEG-Y.

    Shots, positions and depths come from the trace headers, and are laid on a straight line, or over an area. The
    result is inverted with --set data.observed=OUT.zarr.
    """
    from hpfwi import __version__
    from hpfwi.store.atomic import refuse_unwritable
    from hpfwi.store.gathers import require_zarr, write_shots
    from hpfwi.store.segy import open_segy
    from hpfwi.store.segy_records import PRESSURE_CODES, open_records

    band = _numbers(band_hz, "--band-hz", 2)
    require_zarr(out)
    refuse_unwritable(out, overwrite=overwrite)
    with open_segy(source) as file:
        records = open_records(
            file,
            line_m=_numbers(line, "--line", 4),
            areal=areal,
            datum_m=datum_m,
            source_depth_m=source_depth_m,
            receiver_depth_m=receiver_depth_m,
            min_offset_m=min_offset_m,
            max_offset_m=float("inf") if max_offset_m is None else max_offset_m,
            every=every,
            duration_s=duration_s,
            band_hz=band,
            codes=trace_code or PRESSURE_CODES,
        )
        for text in _described(records):
            typer.echo(text)
        attrs: dict[str, Any] = {
            "made_by": f"hpfwi {__version__} data gathers",
            "source": source.name,
            "line_m": list(records.line_m),
            "datum_m": datum_m,
            "band_hz": None if band is None else list(band),
        }
        write_shots(out, records.gathers(), records.survey, None, attrs, overwrite=overwrite)
    typer.echo(f"Wrote        {records.survey.shots} gathers to {out}")


def wavelet(
    source: Annotated[
        str, typer.Argument(metavar="RUN.TOML", help="The run whose data.observed and initial model are used.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH.npy", help="Where the wavelet goes.")] = Path(
        "wavelet.npy"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change one option of the configuration; may be repeated."),
    ] = None,
    per_shot: Annotated[
        bool, typer.Option("--per-shot", help="A wavelet for each shot, from its own gather alone.")
    ] = False,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            metavar="N",
            min=1,
            help=f"Shots that the wavelet of all is estimated from, spread over the line; without it, {SHOTS}.",
        ),
    ] = None,
    length_s: Annotated[
        float | None,
        typer.Option("--length-s", metavar="S", min=0, help="Its length; without it, 6 periods of source.peak_hz."),
    ] = None,
    max_offset_m: Annotated[
        float | None,
        typer.Option("--max-offset-m", metavar="M", min=0, help="Use receivers this near to their source only."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate the wavelet of observed gathers.

    The one wavelet that explains them best in the initial model, strength included; or one for each shot. Option
    source.peak_hz says about which frequency to look. It is used with --set source.wavelet=PATH.npy.
    """
    import numpy as np

    from hpfwi.config import load_config
    from hpfwi.experiment import build_experiment
    from hpfwi.inversion.wavelet_estimate import estimate_each, estimate_wavelet
    from hpfwi.store.atomic import new_file, refuse_unwritable
    from hpfwi.store.gathers import open_gathers

    if out.suffix != ".npy":
        raise ConfigError(f"{out} has the suffix {out.suffix!r}: a wavelet is written as .npy.")
    if per_shot and shots is not None:
        raise ConfigError(f"--per-shot takes every shot, so --shots {shots} has no say: leave one of the two out.")
    refuse_unwritable(out, overwrite=overwrite)
    config, _ = load_config(source, overrides or [])
    if config.data.observed is None:
        raise ConfigError("There are no gathers to find a wavelet in; name them with --set data.observed=PATH.zarr.")
    experiment, store = build_experiment(config), open_gathers(config.data.observed)
    options: dict[str, Any] = {
        "length_s": length_s,
        "max_offset_m": float("inf") if max_offset_m is None else max_offset_m,
        "threads": len(os.sched_getaffinity(0)),
    }

    def observed(shot: int) -> NDArray[np.float32]:
        gather: NDArray[np.float32] = store.read([shot])[0]
        return gather

    there = store.survey.shots
    chosen = np.unique(np.linspace(0, there - 1, min(there, shots or SHOTS)).round().astype(int)).tolist()
    with progress_of("shots") as progress:
        common = estimate_wavelet(experiment, observed, chosen, **options, progress=progress)
    each = []
    if per_shot:
        with progress_of("shots of their own") as progress:
            each = estimate_each(experiment, observed, common, **options, progress=progress)
    wavelet = np.stack([one.wavelet for one in each]) if each else common.wavelet
    with new_file(out, overwrite=overwrite) as temporary:
        np.save(temporary, wavelet)
    for text in _estimated(common, chosen, each, store.survey):
        typer.echo(text)
    typer.echo(f"Wrote        {out}; invert with --set source.wavelet={out}")


def _estimated(common: Estimate, shots: Sequence[int], each: Sequence[Estimate], survey: Survey) -> list[str]:
    """What was found: the wavelet of some shots together, or those of all shots and how they compare with it."""
    import numpy as np

    from hpfwi.inversion.silent_shots import named
    from hpfwi.physics.source import peak_frequency_hz, unit_of

    dt_s, unit = survey.dt_s, unit_of(survey)
    length = f"{len(common.wavelet)} samples of {dt_s:g} s"
    of_some = f"{len(shots)} shot{'s' * (len(shots) > 1)}"
    if not each:
        return [
            f"Explains     {100 * common.explained:.1f} % of the energy of {common.traces} traces of {of_some} in the "
            "initial model",
            f"Wavelet      {length}, peak at {peak_frequency_hz(common.wavelet, dt_s):.3g} Hz, largest amplitude "
            f"{np.abs(common.wavelet).max():.3g} {unit}",
        ]

    def share(chosen: Sequence[Estimate]) -> float:
        return sum(one.explained * one.energy for one in chosen) / sum(one.energy for one in chosen)

    silent = [shot for shot, one in enumerate(each) if one.energy == 0]
    worst = sorted(set(range(len(each))) - set(silent), key=lambda shot: each[shot].explained)
    listed = sorted(worst) if len(worst) <= LISTED else worst[:LISTED]
    peaks = [peak_frequency_hz(one.wavelet, dt_s) for one in each]
    largest = [float(np.abs(one.wavelet).max()) for one in each]
    return [
        f"Explains     {100 * share(each):.1f} % of the energy of {sum(one.traces for one in each)} traces of "
        f"{len(each)} shots in the initial model",
        f"In common    {100 * common.explained:.1f} % of that of {of_some} by one wavelet for all, against "
        f"{100 * share([each[shot] for shot in shots]):.1f} %",
        f"Wavelets     {len(each)} of {length}, peaks at {min(peaks):.3g} to {max(peaks):.3g} Hz, largest amplitudes "
        f"{min(largest):.3g} to {max(largest):.3g} {unit}",
        *([f"Silent       {named(silent)}: the wavelet in common stands in for theirs"] if silent else []),
        *([f"Of {len(worst)} shots the {len(listed)} that are explained worst:"] if len(listed) < len(worst) else []),
        *(
            f"Shot {shot:<7} {100 * each[shot].explained:.1f} % of {each[shot].traces} traces, peak at "
            f"{peaks[shot]:.3g} Hz, largest amplitude {largest[shot]:.3g} {unit}"
            for shot in listed
        ),
    ]


def velocity(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run, such as runs/demo.")],
    out: Annotated[Path, typer.Argument(metavar="PATH", help="Where the model goes: .segy, .sgy, .npy or .zarr.")],
    which: Annotated[Which, typer.Option("--which", help="The model of the run.")] = Which.inverted,
    overwrite: Overwrite = False,
) -> None:
    """Write a model of a run as a file for other programs.

    Of a run that is not finished the last model that it kept is the inverted one. SEG-Y holds depth steps in
    millimetres, as velocity models in depth do by habit.
    """
    import numpy as np

    from hpfwi.physics.grid import in_cells
    from hpfwi.store.atomic import new_file
    from hpfwi.store.models import write_model_zarr
    from hpfwi.store.segy_write import write_segy_model

    model, about = _model_of(folder, which)
    suffix = out.suffix.lower()
    if suffix in (".segy", ".sgy"):
        write_segy_model(out, model, overwrite=overwrite)
    elif suffix == ".zarr":
        write_model_zarr(out, model, {"run": folder.name, "model": about}, overwrite=overwrite)
    elif suffix == ".npy":
        with new_file(out, overwrite=overwrite) as temporary:
            np.save(temporary, model.velocity)
    else:
        raise ConfigError(f"{out} has the suffix {out.suffix!r}: a model is written as .segy, .sgy, .npy or .zarr.")
    steps = " x ".join(f"{step:g}" for step in model.grid.spacing_m)
    typer.echo(f"Wrote        the {about}, {in_cells(model.grid.shape)} cells of {steps} m, to {out}")


def _model_of(folder: Path, which: Which) -> tuple[EarthModel, str]:
    """A model of a run, and what it is."""
    import zarr

    from hpfwi.physics.grid import Grid
    from hpfwi.physics.model import EarthModel

    try:
        root: Any = zarr.open_group(folder / "results.zarr", mode="r")
        names = set(root["model"].array_keys())
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{folder} holds no models: give the folder of a run, such as runs/demo.") from error
    about = f"{which.value} model"
    if which.value in names:
        velocity = root[f"model/{which.value}"][:]
    elif which is Which.inverted and "history" in names and root["model/history_iteration"].shape[0]:
        last = root["model/history_iteration"].shape[0] - 1
        velocity = root["model/history"][last]
        about = f"model after iteration {int(root['model/history_iteration'][last])}"
    else:
        raise DataError(f"{folder} has no {about}; it holds {', '.join(sorted(names - {'history_iteration'}))}.")
    grid = Grid(velocity.shape, tuple(root.attrs["spacing_m"]), tuple(root.attrs["origin_m"]))
    return EarthModel(velocity, grid), about


def _described(records: Records) -> list[str]:
    """What was found in a SEG-Y file."""
    import numpy as np

    from hpfwi.physics.survey import horizontal_m

    survey, (x0, y0, x1, y1) = records.survey, records.line_m
    receivers = survey.live_receivers().sum(axis=1)
    offsets = horizontal_m(survey.receivers_m, survey.sources_m)

    def extent(positions: NDArray[np.float64]) -> str:
        *across, along = (_range(values) for values in positions[:, 1:].T)
        places = [f"{along} along the line", *(f"{one} to its left" for one in across)]
        return f"{', '.join(places)}, {_range(positions[:, 0])} deep"

    return [
        f"Shots        {survey.shots}, of {_range(receivers, '')} receivers",
        f"Records      {survey.samples} samples of {1000 * survey.dt_s:g} ms, {survey.duration_s:g} s",
        f"Line         from X, Y = {x0:.10g}, {y0:.10g} towards {x1:.10g}, {y1:.10g}",
        f"Sources      {extent(survey.sources_m[:, 0])}",
        f"Receivers    {extent(survey.receivers_m[survey.live_receivers()])}",
        f"Offsets      {_range(offsets[np.isfinite(offsets)])}",
        *(f"Remark       {remark}" for remark in records.remarks),
    ]


def _range(values: Any, unit: str = " m") -> str:
    """Lowest and highest of some numbers, one of them where they are the same.

    >>> _range([3.0, 1.0]), _range([2, 2], "")
    ('1 to 3 m', '2')
    """
    low, high = float(min(values)), float(max(values))
    return f"{low:.7g}{unit}" if low == high else f"{low:.7g} to {high:.7g}{unit}"


def _numbers(text: str | None, option: str, count: int) -> Any:
    """The numbers of an option such as 2,10, None without it; raises ConfigError where they are not so many."""
    if text is None:
        return None
    parts: Sequence[str] = text.split(",")
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        such = ",".join(("0", "0", "2500", "0") if count == 4 else ("2", "10"))
        raise ConfigError(f'{option} "{text}" is not {count} numbers with commas between them, such as {such}.')
    return numbers


def register(app: typer.Typer, data: typer.Typer) -> None:
    """Make the functions of this file commands of `hpfwi` and of `hpfwi data`."""
    verb_of(data)(gathers)
    verb = verb_of(app)
    for function in (wavelet, velocity):
        verb(function)
