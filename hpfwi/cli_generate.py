"""`hpfwi data generate` and `hpfwi data slices`: pairs made here, from drawn maps or from windows of a model."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from hpfwi.errors import ConfigError
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from hpfwi.synthetic.dataset import MapSource

Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N",
        help="Worker processes; 0 computes in this process with threads, auto: one for each GPU, or for each core.",
    ),
]


class Processor(StrEnum):
    """What computes the records."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


On = Annotated[
    Processor, typer.Option("--device", help="Where the records are computed; auto: on GPUs where there are any.")
]
Modelling = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change one option of the modelling, such as steps=500."),
]


def register(app: typer.Typer) -> None:
    """Make the functions of this file commands of `hpfwi data`."""
    verb = verb_of(app)
    for function in (generate, slices):
        verb(function)


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
    workers: Workers = "auto",
    device: On = Processor.auto,
    model_shape: ModelShape = None,
    overrides: Modelling = None,
    float16: Float16 = False,
    compress: Compression = Compress.none,
    shard_samples: ShardSamples = None,
) -> None:
    """Make velocity maps of a family, with their records.

    These are modelled as OpenFWI's were. The same command goes on where it was interrupted, and its result does not
    depend on the workers. A sample is the same whatever the number of samples.
    """
    from hpfwi.synthetic.dataset import DatasetSettings, family_modelling
    from hpfwi.synthetic.families import default_shape

    cluster = cluster_for(workers, device)
    test_samples = samples // 10 if test is None else test
    if test_samples > samples:
        raise ConfigError(f"--test {test_samples} is more than the {samples} pairs there are: give at most {samples}.")
    settings = DatasetSettings(
        family=family,
        samples=samples,
        seed=seed,
        shape=shapes_of(None, model_shape).get("model_shape", default_shape(family)),
        test_samples=test_samples,
        modelling=family_modelling(family, overrides or []),
    )
    _make(out, settings, cluster, float16, compress, shard_samples, f"{family}: {samples} samples", f", seed {seed}")


def slices(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A large velocity model: .npy, .npz, .zarr, .segy or .sgy.")
    ],
    out: Out,
    velocity_unit: Annotated[
        str | None, typer.Option("--unit", metavar="UNIT", help="m/s or km/s, where the model's values leave a doubt.")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", metavar="Z,X", help="Rows and columns of a window.")] = None,
    skip_rows: Annotated[
        int | None, typer.Option("--skip-rows", metavar="N", min=0, help="Rows of water at the top that are left out.")
    ] = None,
    test_columns: Annotated[
        str | None,
        typer.Option("--test-columns", metavar="FIRST,BEHIND", help="Columns that test; those beside them train."),
    ] = None,
    train_stride: Annotated[
        int | None,
        typer.Option("--train-stride", metavar="N", min=1, help="Cells from a window that trains to the next."),
    ] = None,
    test_stride: Annotated[
        int | None, typer.Option("--test-stride", metavar="N", min=1, help="The same for windows that test.")
    ] = None,
    train: Annotated[
        int | None, typer.Option("--train", metavar="N", min=1, help="Train on so many windows, spread over all.")
    ] = None,
    test: Annotated[
        int | None, typer.Option("--test", metavar="N", min=1, help="Test on so many windows, spread over all.")
    ] = None,
    workers: Workers = "auto",
    device: On = Processor.auto,
    overrides: Modelling = None,
    float16: Float16 = False,
    compress: Compression = Compress.none,
    shard_samples: ShardSamples = None,
) -> None:
    """Cut windows out of a large velocity model, with their records.

    These are modelled as OpenFWI's were. Without options: the windows of Marmousi II at 1.25 m that AMFMS and its
    rivals are trained on, 30,926 to train and 328 to test, their cells taken as 10 m. The same command goes on
    where it was interrupted.
    """
    from hpfwi.synthetic.dataset import modelling_with
    from hpfwi.synthetic.slices import cut_slices, slice_settings

    given = {
        "shape": _two("--window", window),
        "test_columns": _two("--test-columns", test_columns),
        "skip_rows": skip_rows,
        "train_stride": train_stride,
        "test_stride": test_stride,
    }
    settings = slice_settings({name: value for name, value in given.items() if value is not None})
    if velocity_unit not in (None, "m/s", "km/s"):
        raise ConfigError(f"--unit {velocity_unit} is no unit of velocity; give m/s or km/s.")
    modelling = modelling_with(overrides or [])
    cluster = cluster_for(workers, device)
    found = cut_slices(model, settings, modelling, velocity_unit=velocity_unit, limits=(train, test))
    counts = ", ".join(f"{len(split)} {name}" for name, split in found.splits.items())
    _make(out, found, cluster, float16, compress, shard_samples, f"{model.name}: {counts} windows with edges", "")


def _make(
    out: Path,
    source: MapSource,
    cluster: Any,
    float16: bool,
    compress: Compress,
    shard_samples: int | None,
    what: str,
    more: str,
) -> None:
    """Make the pairs of a source of maps, and say what came out."""
    from hpfwi.parallel import placed
    from hpfwi.physics.device import usable_gpus
    from hpfwi.synthetic.dataset import begin_dataset
    from hpfwi.synthetic.dataset import generate as generate_pairs

    on_gpu = placed(cluster, usable_gpus()).device == "cuda"
    with resumable() as command:
        writer = begin_dataset(
            out,
            source,
            dtype="float16" if float16 else "float32",
            compression=compress.value,
            shard_samples=shard_samples,
            resume_with=command,
            on_gpu=on_gpu,
        )
        todo = sum(map(len, writer.missing()))
        typer.echo(f"{what}, {source.samples - todo} of them whole{more}{' on GPUs' * on_gpu}")
        begin = time.monotonic()
        with progress_of("samples") as progress:
            store = generate_pairs(writer, source, cluster, progress=progress, say=typer.echo)
    for name, unit in (("records", ""), ("models", " m/s")):
        typer.echo(f"{name.capitalize():<12} {statistics_line(store.statistics[name], unit)}")
    if todo:
        seconds = time.monotonic() - begin
        typer.echo(f"Speed        {todo / seconds:.3g} samples/s, {seconds:.1f} s for {todo}")
    typer.echo(f"Wrote        {store.samples} pairs to {out}")


def _two(option: str, text: str | None) -> tuple[int, int] | None:
    """Two whole numbers of an option; raises ConfigError for anything else."""
    if text is None:
        return None
    first, _, second = text.partition(",")
    if not (first.strip().isdecimal() and second.strip().isdecimal()):
        raise ConfigError(f"{option} {text} cannot be used: give two whole numbers from 0, such as 70,70.")
    return int(first), int(second)


def cluster_for(workers: str, device: Processor) -> Any:
    """Settings of so many workers there; raises ConfigError for what is no number of workers."""
    from hpfwi.parallel import ClusterSettings

    if workers != "auto" and not workers.isdecimal():
        raise ConfigError(f"--workers {workers} is no number of workers: give a whole number from 0, or auto.")
    return ClusterSettings(workers="auto" if workers == "auto" else int(workers), device=device.value)
