"""`hpfwi data …`: pairs of records and velocity models for training, converted, inspected and verified.

`hpfwi.cli_generate` has the commands that make them, `hpfwi.cli_field` the one that reads field records.
"""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpfwi import cli_generate
from hpfwi.cli_pairs import (
    Compress,
    Compression,
    Float16,
    ModelShape,
    Out,
    ShardSamples,
    progress_of,
    resumable,
    shapes_of,
    statistics_line,
)
from hpfwi.errors import DataError
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from hpfwi.store.convert import PairSource
    from hpfwi.store.pair_check import Findings

app = typer.Typer(
    help="Read field records; make, convert and check training pairs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
convert = typer.Typer(
    help="Convert published sets to a store that training reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(convert, name="convert")
_verb = verb_of(app)
_set = verb_of(convert)
cli_generate.register(app)


class Split(StrEnum):
    """Which files train and which test."""

    openfwi = "openfwi"
    amfms = "amfms"


Source = Annotated[Path, typer.Argument(metavar="SRC", help="The folder with the published files.")]
Partial = Annotated[bool, typer.Option("--partial", help="Convert the files that are there; some may be missing.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Files worked on at once; without it, up to 4.")
]
RecordsShape = Annotated[
    str | None,
    typer.Option("--records-shape", metavar="S,T,R", help="Shots, times, receivers of a sample, where not the usual."),
]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="A store of pairs, such as flatvel_a.zarr.")]


@_set
def openfwi(
    source: Source,
    out: Out,
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Such as FlatVel-A; without it, the folder's name.")
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="OpenFWI's own split, or the one of the AMFMS release.")
    ] = Split.openfwi,
    partial: Partial = False,
    float16: Float16 = False,
    compress: Compression = Compress.none,
    shard_samples: ShardSamples = None,
    records_shape: RecordsShape = None,
    model_shape: ModelShape = None,
    threads: Threads = None,
) -> None:
    """Convert a 2-D family of OpenFWI, in its own naming or in that of the AMFMS release.

    A conversion that was interrupted goes on where it was when the same command is given again.
    """
    from hpfwi.store.openfwi_files import open_openfwi

    shapes = shapes_of(records_shape, model_shape)
    found = open_openfwi(source, family=family, split=split.value, partial=partial, **shapes)
    _convert(found, out, float16, compress, shard_samples, threads)


@_set
def seg(
    source: Source,
    out: Out,
    partial: Partial = False,
    float16: Float16 = False,
    compress: Compression = Compress.none,
    shard_samples: ShardSamples = None,
    records_shape: RecordsShape = None,
    model_shape: ModelShape = None,
    threads: Threads = None,
) -> None:
    """Convert the SEG salt or SEG simulation set from its MATLAB files.

    A conversion that was interrupted goes on where it was when the same command is given again.
    """
    from hpfwi.store.seg_files import open_seg

    found = open_seg(source, partial=partial, **shapes_of(records_shape, model_shape))
    _convert(found, out, float16, compress, shard_samples, threads)


@_verb
def inspect(
    source: Annotated[
        Path, typer.Argument(metavar="STORE|SRC", help="A store of pairs, or a folder with published files.")
    ],
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="PATH.png", help="Where the preview goes; without it, NAME.png.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Of a folder that is not named after its family.")
    ] = None,
    records_shape: RecordsShape = None,
    model_shape: ModelShape = None,
    threads: Threads = None,
) -> None:
    """Read every sample and print what is in them.

    Counts, ranges, missing files, NaN, constant models, repeated models, records that do not fit their models, and a
    picture of some pairs. Ends with exit code 3 where samples cannot be used.
    """
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.store.pair_check import inspect_pairs

    shapes = shapes_of(records_shape, model_shape)
    pairs = open_pairs(source) if _is_store(source) else _published(source, family, shapes)
    for line in _described(pairs):
        typer.echo(line)
    with progress_of("samples") as progress:
        findings = inspect_pairs(pairs, threads=_threads(threads), progress=progress)
    if missing := getattr(pairs, "missing", ()):
        findings.defects.append(
            f"{len(missing)} files are missing: {', '.join(missing[:4])}{', …' * (len(missing) > 4)}"
        )
    for line in _found(findings):
        typer.echo(line)
    if findings.statistics:
        path = figure or Path(f"{source.resolve().stem}.png")
        _preview(pairs, path, source.resolve().name)
        typer.echo(f"Preview      {path}")
    if findings.defects:
        kinds = len(findings.defects)
        raise DataError(f"{source} has {kinds} kind{'s' * (kinds > 1)} of defects, listed above: mend at the source.")


@_verb
def verify(source: Store, threads: Threads = None) -> None:
    """Compare every file of a store with its checksum.

    Names each file that fails and the samples in it, and ends with exit code 3 where there is one.
    """
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.store.pair_check import verify_pairs

    store = open_pairs(source)
    begin = time.monotonic()
    with progress_of("files") as progress:
        problems = verify_pairs(source, dict(store.manifest), threads=_threads(threads), progress=progress)
    for problem in problems:
        typer.echo(problem)
    files = len(store.manifest["files"])
    if problems:
        raise DataError(
            f"{len(problems)} of {files} files of {source} fail their checksum: fetch them again, or delete the store "
            "and make it again."
        )
    typer.echo(f"All {files} files of {source} match their checksums ({time.monotonic() - begin:.1f} s).")


def _convert(
    found: PairSource,
    out: Path,
    float16: bool,
    compress: Compress,
    shard_samples: int | None,
    threads: int | None,
) -> None:
    """Convert what was found, and say what came out."""
    from hpfwi.store.convert import convert as convert_pairs

    for line in _described(found):
        typer.echo(line)
    with resumable() as command, progress_of("samples") as progress:
        store = convert_pairs(
            found,
            out,
            dtype="float16" if float16 else "float32",
            compression=compress.value,
            shard_samples=shard_samples,
            threads=_threads(threads),
            made_by=command,
            progress=progress,
        )
    for name, unit in (("records", ""), ("models", " m/s")):
        typer.echo(f"{name.capitalize():<12} {statistics_line(store.statistics[name], unit)}")
    if float16:
        error = store.manifest["float16_error"]
        typer.echo(f"float16      largest error {error['max']:.3g}, relative {error['relative_l2']:.3g}")
    typer.echo(f"Wrote        {store.samples} pairs to {out}")


def _published(source: Path, family: str | None, shapes: dict[str, Any]) -> Any:
    """The published files in a folder, of whatever set; those that are missing are part of what is inspected."""
    from hpfwi.store.openfwi_files import open_openfwi
    from hpfwi.store.seg_files import open_seg

    if not source.is_dir():
        raise DataError(f"{source} is neither a store of pairs nor a folder with published files.")
    if next(source.glob("t*_data/vmodel/*.mat"), None):
        return open_seg(source, partial=True, **shapes)
    return open_openfwi(source, family=family, partial=True, **shapes)


def _is_store(path: Path) -> bool:
    return path.suffix in (".zarr", ".part") or (path / "zarr.json").exists()


def _described(pairs: Any) -> list[str]:
    """What pairs are, before a value is read."""
    shots, times, receivers = pairs.records_shape
    rows, columns = pairs.model_shape
    splits = ", ".join(f"{name} {len(split)}" for name, split in pairs.splits.items())
    gigabytes = 4 * pairs.samples * (shots * times * receivers + rows * columns) / 1e9
    return [
        f"{pairs.family}: {pairs.samples} samples ({splits}), {gigabytes:.3g} GB as float32",
        f"Records      {shots} shots x {times} times x {receivers} receivers",
        f"Models       {rows} x {columns} cells",
    ]


def _found(findings: Findings) -> list[str]:
    lines = [
        f"{name.capitalize():<12} {statistics_line(findings.statistics[name], unit)}"
        for name, unit in (("records", ""), ("models", " m/s"))
        if findings.statistics
    ]
    lines += [f"Remark       {remark}" for remark in findings.remarks]
    return [*lines, *(f"DEFECT       {defect}" for defect in findings.defects)]


def _preview(pairs: Any, path: Path, name: str) -> None:
    """Draw pairs from all over the set that is called so."""
    import numpy as np

    from hpfwi.figures.pairs import SAMPLES, draw_pairs

    samples = np.unique(np.linspace(0, pairs.samples - 1, SAMPLES).astype(int)).tolist()
    read = []
    for sample in samples:
        try:
            read.append((sample, *pairs.read(range(sample, sample + 1))))
        except DataError:
            continue  # the inspection has said so
    if read:
        records, models = (np.concatenate([one[part] for one in read]) for part in (1, 2))
        draw_pairs(path, records, models, [one[0] for one in read], pairs.physics, f"{pairs.family}, {name}")


def _threads(threads: int | None) -> int:
    return threads or min(4, len(os.sched_getaffinity(0)))
