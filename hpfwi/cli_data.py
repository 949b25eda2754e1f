"""`hpfwi data …`: pairs of records and velocity models for training, converted, inspected and verified."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpfwi.errors import ConfigError, DataError, Stopped
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from hpfwi.store.convert import PairSource
    from hpfwi.store.pair_check import Findings

Progress = Callable[[int, int], None]

LINE_EVERY_S = 5.0
"""Time between two lines of progress where there is no terminal."""

app = typer.Typer(
    help="Convert, inspect and verify pairs of records and velocity models for training.",
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


class Split(StrEnum):
    """Which files train and which test."""

    openfwi = "openfwi"
    amfms = "amfms"


class Compress(StrEnum):
    """How shards are compressed."""

    none = "none"
    lz4 = "lz4"


Source = Annotated[Path, typer.Argument(metavar="SRC", help="The folder with the published files.")]
Out = Annotated[Path, typer.Argument(metavar="OUT.ZARR", help="The store to write.")]
Partial = Annotated[bool, typer.Option("--partial", help="Convert the files that are there; some may be missing.")]
Float16 = Annotated[
    bool, typer.Option("--float16", help="Store the records in half the space; the error is measured and printed.")
]
Compression = Annotated[Compress, typer.Option("--compress", help="lz4 (lossless) pays on slow disks.")]
ShardSamples = Annotated[
    int | None, typer.Option("--shard-samples", metavar="N", min=1, help="Samples a file; without it, about 140 MB.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Files worked on at once; without it, up to 4.")
]
RecordsShape = Annotated[
    str | None,
    typer.Option("--records-shape", metavar="S,T,R", help="Shots, times, receivers of a sample, where not the usual."),
]
ModelShape = Annotated[
    str | None, typer.Option("--model-shape", metavar="Z,X", help="Rows and columns of a model, where not the usual.")
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

    shapes = _shapes(records_shape, model_shape)
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

    found = open_seg(source, partial=partial, **_shapes(records_shape, model_shape))
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

    shapes = _shapes(records_shape, model_shape)
    pairs = open_pairs(source) if _is_store(source) else _published(source, family, shapes)
    for line in _described(pairs):
        typer.echo(line)
    with _progress("samples") as progress:
        findings = inspect_pairs(pairs, threads=_threads(threads), progress=progress)
    if missing := getattr(pairs, "missing", ()):
        findings.defects.append(
            f"{len(missing)} files are missing: {', '.join(missing[:4])}{', …' * (len(missing) > 4)}"
        )
    for line in _found(findings):
        typer.echo(line)
    if findings.statistics:
        path = figure or Path(f"{source.resolve().stem}.png")
        _preview(pairs, path)
        typer.echo(f"Preview      {path}")
    if findings.defects:
        raise DataError(
            f"{source} has {len(findings.defects)} kinds of defects, listed above: mend them at the source."
        )


@_verb
def verify(source: Store, threads: Threads = None) -> None:
    """Compare every file of a store with its checksum.

    Names each file that fails and the samples in it, and ends with exit code 3 where there is one.
    """
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.store.pair_check import verify_pairs

    store = open_pairs(source)
    begin = time.monotonic()
    with _progress("files") as progress:
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
    with _resumable() as command, _progress("samples") as progress:
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
        typer.echo(f"{name.capitalize():<12} {_statistics(store.statistics[name], unit)}")
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
        f"{name.capitalize():<12} {_statistics(findings.statistics[name], unit)}"
        for name, unit in (("records", ""), ("models", " m/s"))
        if findings.statistics
    ]
    lines += [f"Remark       {remark}" for remark in findings.remarks]
    return [*lines, *(f"DEFECT       {defect}" for defect in findings.defects)]


def _statistics(values: dict[str, float], unit: str) -> str:
    return f"{values['min']:.6g} to {values['max']:.6g}{unit}, mean {values['mean']:.6g}, std {values['std']:.6g}"


def _preview(pairs: Any, path: Path) -> None:
    """Draw pairs from all over the set."""
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
        draw_pairs(path, records, models, [one[0] for one in read], pairs.physics, f"{pairs.family}, {path.stem}")


def _shapes(records_shape: str | None, model_shape: str | None) -> dict[str, Any]:
    """The shapes that were given, as arguments of a reader."""
    shapes = {}
    for name, text, count in (("records_shape", records_shape, 3), ("model_shape", model_shape, 2)):
        if text is not None:
            try:
                sizes = tuple(int(size) for size in text.split(","))
            except ValueError:
                sizes = ()
            if len(sizes) != count or min(sizes) < 1:
                option = name.replace("_", "-")
                raise ConfigError(
                    f"--{option} {text} is no shape: give {count} whole numbers, such as {'70,' * count}".rstrip(",")
                    + "."
                )
            shapes[name] = sizes
    return shapes


def _threads(threads: int | None) -> int:
    return threads or min(4, len(os.sched_getaffinity(0)))


@contextmanager
def _resumable() -> Iterator[str]:
    """The command that goes on with this one; Ctrl-C and SIGTERM end the block with it, exit code 75."""
    import signal
    import sys

    command = shlex.join(["hpfwi", *sys.argv[1:]])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield command
    except KeyboardInterrupt:
        raise Stopped(f"Stopped; start `{command}` again, and it goes on from the last whole shard.") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on a terminal, a line every few seconds elsewhere; called with what is done and all of it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    begin = said = time.monotonic()
    first: int | None = None

    if console.is_terminal:
        with Bar(BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    def line(done: int, total: int) -> None:
        nonlocal said, first
        first = done if first is None else first
        now = time.monotonic()
        if now - said >= LINE_EVERY_S and done > first:
            said = now
            left = (now - begin) / (done - first) * (total - done)
            typer.echo(f"{done} of {total} {what}, {left:.0f} s left")

    yield line


@_verb
def generate(
    family: Annotated[
        str, typer.Argument(metavar="FAMILY", help="flatvel-a … curvefault-b, style-a, style-b or segsalt.")
    ],
    out: Out,
    samples: Annotated[int, typer.Option("-n", "--samples", metavar="N", min=1, help="Pairs to make.")],
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Another seed is another series.")] = 0,
    test: Annotated[
        int | None,
        typer.Option("--test", metavar="N", min=0, help="Pairs at the end that test; without it, one in ten."),
    ] = None,
    workers: Annotated[
        str, typer.Option("--workers", metavar="N", help="Worker processes; 0 computes in this process with threads.")
    ] = "auto",
    model_shape: ModelShape = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one option of the modelling, such as steps=500."),
    ] = None,
    float16: Float16 = False,
    compress: Compression = Compress.none,
    shard_samples: ShardSamples = None,
) -> None:
    """Make velocity maps of a family and model their records as OpenFWI's were.

    The same command goes on where it was interrupted, and its result does not depend on the workers. A sample is the
    same whatever the number of samples.
    """
    from hpfwi.synthetic.dataset import DatasetSettings, begin_dataset, family_modelling
    from hpfwi.synthetic.dataset import generate as generate_pairs
    from hpfwi.synthetic.families import default_shape

    cluster = _cluster(workers)
    test_samples = samples // 10 if test is None else test
    if test_samples > samples:
        raise ConfigError(f"--test {test_samples} is more than the {samples} pairs there are: give at most {samples}.")
    settings = DatasetSettings(
        family=family,
        samples=samples,
        seed=seed,
        shape=_shapes(None, model_shape).get("model_shape", default_shape(family)),
        test_samples=test_samples,
        modelling=family_modelling(family, overrides or []),
    )
    with _resumable() as command:
        writer = begin_dataset(
            out,
            settings,
            dtype="float16" if float16 else "float32",
            compression=compress.value,
            shard_samples=shard_samples,
            resume_with=command,
        )
        todo = sum(map(len, writer.missing()))
        typer.echo(f"{family}: {samples} samples, {samples - todo} of them whole, seed {seed}")
        begin = time.monotonic()
        with _progress("samples") as progress:
            store = generate_pairs(writer, settings, cluster, progress=progress, say=typer.echo)
    for name, unit in (("records", ""), ("models", " m/s")):
        typer.echo(f"{name.capitalize():<12} {_statistics(store.statistics[name], unit)}")
    if todo:
        seconds = time.monotonic() - begin
        typer.echo(f"Speed        {todo / seconds:.3g} samples/s, {seconds:.1f} s for {todo}")
    typer.echo(f"Wrote        {store.samples} pairs to {out}")


def _cluster(workers: str) -> Any:
    """Settings of so many workers; raises ConfigError for what is no number of workers."""
    from hpfwi.parallel import ClusterSettings

    if workers != "auto" and not workers.isdecimal():
        raise ConfigError(f"--workers {workers} is no number of workers: give a whole number from 0, or auto.")
    return ClusterSettings(workers="auto" if workers == "auto" else int(workers))
