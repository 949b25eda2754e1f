"""`hpfwi train`, `evaluate`, `predict`, `compare` and `export`: networks that map records to velocities."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpfwi.commands import command_on
from hpfwi.errors import ConfigError, Stopped
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from hpfwi.run_folder import RunFolder
    from hpfwi.training.settings import TrainConfig

LINE_EVERY_S = 5.0
"""Time between two lines of progress."""


class Which(StrEnum):
    """A checkpoint of a run."""

    best = "best"
    last = "last"


class Device(StrEnum):
    """Where a network computes."""

    cpu = "cpu"
    cuda = "cuda"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run, such as runs/train_amfms.")]
Network = Annotated[
    Path,
    typer.Argument(metavar="NETWORK", help="The folder of a training run, or a file that `hpfwi export` wrote."),
]
Checkpoint = Annotated[
    Which, typer.Option("--checkpoint", help="The one with the least validation loss, or the last one.")
]
On = Annotated[Device, typer.Option("--device", help="Where the network computes.")]
Split = Annotated[str, typer.Option("--split", help="Samples to score: a split of the store, or 'validation'.")]


def register(app: typer.Typer) -> None:
    """Make the functions of this file commands of `hpfwi`."""
    verb = verb_of(app)
    for function in (train, evaluate, predict, compare, export):
        verb(function)


def train(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN.TOML", help="A TOML file, or a recipe such as train_amfms or train_inversionnet."),
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH.zarr", help="Pairs to train on, made by `hpfwi data`.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="RUN|FILE", help="Begin with a run's best weights, or with exported ones."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change one option of the configuration; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run and of its folder.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers", metavar="N", help="Worker processes; 0 computes in this process, auto: a GPU or a core each."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
    resume: Annotated[bool, typer.Option("--resume", hidden=True)] = False,
) -> None:
    """Train a network on pairs of records and velocities.

    Ctrl-C and SIGTERM stop the run after a step, with a checkpoint and exit code 75; `hpfwi resume` goes on to the
    same result, on any number of workers.
    """
    from hpfwi.environment import environment
    from hpfwi.options import toml_value
    from hpfwi.run_folder import RunFolder, refuse_taken
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.training.settings import load_train_config, require_kind, require_pairs, require_trainable, resolved
    from hpfwi.training.train import cluster_of

    if resume:
        raise ConfigError("A training run is resumed like every other, by its folder: `hpfwi resume runs/NAME`.")
    require_kind(source, training=True)
    named = {"data.pairs": data, "training.initial_weights": weights, "name": name}
    texts = [f"{option}={toml_value(value)}" for option, value in named.items() if value is not None]
    texts += [] if workers is None else [f"cluster.workers={workers}"]
    config, _ = load_train_config(source, [*(overrides or []), *texts])
    require_pairs(config)
    # The folder says where its run computes, because a GPU's bits are others; the number of workers stays open.
    device = cluster_of(config).device
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": device})})
    parent = Path(config.output.folder)
    refuse_taken(parent / config.name, overwrite)
    store = open_pairs(config.data.pairs)
    config = resolved(config, store)
    require_trainable(config, store)
    _require_weights(config, parent / config.name)
    for line in _scales(config):
        typer.echo(line)
    facts = environment(["hpfwi", *sys.argv[1:]])
    with RunFolder.create(config, config.name, parent=parent, environment=facts, overwrite=overwrite) as run:
        _drive(config, run, going_on=False)


def _require_weights(config: TrainConfig, folder: Path) -> None:
    """Raise ConfigError or DataError, before a folder is made, where the run cannot begin with the weights it names."""
    from hpfwi.networks.build import build_network
    from hpfwi.training.weights import read_weights

    if config.training.initial_weights is None:
        return
    path = Path(config.training.initial_weights)
    if path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"The weights {path} would be deleted with the run that this one replaces; take another --name."
        )
    read_weights(path).put_into(build_network(config.network), config.network)


def resume_training(run: RunFolder, overrides: list[str], data: Path | None) -> None:
    """Go on with the training run in an open folder, whose pairs may be at `data` now; `hpfwi resume` calls this."""
    from hpfwi.training.moved import move_pairs
    from hpfwi.training.settings import load_train_config

    if data is not None:
        move_pairs(run, data)
    config, _ = load_train_config(run.config_path, overrides)
    _drive(config, run, going_on=True)


def _scales(config: TrainConfig) -> list[str]:
    """What was derived from the store, with the reason."""
    scale = config.training.normalisation
    lines, source = [], f"the extremes of split {config.data.train!r}, unless given"
    if scale.range_mps is not None and scale.normalisation == "range":
        low, high = scale.range_mps
        lines.append(f"Velocities   {low:g} to {high:g} m/s are scaled to the ends: {source}")
    if scale.normalisation == "per-sample":
        lines.append("Velocities   each sample's own range, as published: the network cannot predict m/s")
    if scale.amplitudes is not None:
        low, high = scale.amplitudes
        lines.append(f"Amplitudes   {low:g} to {high:g} are scaled to the ends: {source}")
    return lines


def _drive(config: TrainConfig, run: RunFolder, *, going_on: bool) -> None:
    """Train in an open run folder, stopping when asked to; then say what came out and where to look."""
    from hpfwi.stop import Stop, on_signals
    from hpfwi.training.train import train as train_in

    for notice in run.notices:
        typer.echo(notice)
    typer.echo(f"Run folder {run.path}")
    stop = Stop()
    try:
        with on_signals(stop, typer.echo):
            outcome = train_in(config, run, resume=going_on, stop=stop)
    except KeyboardInterrupt:
        raise Stopped(f"Stopped at once by a second signal; go on with `{command_on('resume', run.path)}`.") from None
    best = outcome.best_validation
    typer.echo(
        f"Best         epoch {outcome.best_epoch}: loss {best['loss']:.4g}, mean error {best['mae_mps']:.1f} m/s"
    )
    typer.echo(f"Speed        {outcome.samples_per_s:.3g} samples/s over {outcome.steps} steps")
    typer.echo(f"TensorBoard  tensorboard --logdir {run.path / 'tb'}")
    typer.echo(f"Next         {command_on('evaluate', run.path)}")


def evaluate(
    network: Network,
    split: Split = "test",
    checkpoint: Checkpoint = Which.best,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH.zarr", help="Another store than the run's own; a file needs one."),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option("--lpips", metavar="PATH.safetensors", help="Weights of AlexNet and of LPIPS 0.1, for its score."),
    ] = None,
    device: On = Device.cpu,
) -> None:
    """Score a trained network on samples it has not seen.

    Writes a table of every sample, means with 95 % confidence intervals, the best, median and worst sample and
    profiles through them to RUN/evaluation/SPLIT, for a file of weights to FILE-evaluation/SPLIT beside it.
    """
    from hpfwi.training.compare import said
    from hpfwi.training.evaluate import NOT_COMPUTED, PUBLISHED
    from hpfwi.training.evaluate import evaluate as evaluate_network

    found = evaluate_network(
        network,
        split,
        which=checkpoint.value,
        data=data,
        device=device.value,
        lpips=lpips,
        progress=_counted(),
        say=typer.echo,
    )
    typer.echo(f"Velocities   {found.scale}")
    width = max(len(name) for name in found.means)
    for name, mean in found.means.items():
        left_out = f"  ({mean.samples} of {len(found.samples)} samples)" if mean.samples < len(found.samples) else ""
        typer.echo(f"{name:<{width}}  {said(mean)}{left_out}")
    if lpips is None:
        typer.echo(f"{f'{PUBLISHED}lpips':<{width}}  {NOT_COMPUTED}: give its weights with --lpips")
    typer.echo(f"Wrote {found.folder}")


def predict(
    network: Network,
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS.NPY", help="Records [sample, shot, time, receiver], or one sample.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.NPY", help="Velocities to write, m/s.")],
    checkpoint: Checkpoint = Which.best,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Write the network's own scale in place of m/s.")
    ] = False,
    device: On = Device.cpu,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
) -> None:
    """Write the velocities that a trained network finds for records."""
    from hpfwi.training.predict import predict as predict_records

    shape = predict_records(
        network,
        records,
        out,
        which=checkpoint.value,
        normalised=normalised,
        device=device.value,
        overwrite=overwrite,
        progress=_counted(),
    )
    unit = "on the network's scale" if normalised else "in m/s"
    typer.echo(f"Wrote {' x '.join(str(count) for count in shape)} velocities {unit} to {out}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", help="Evaluated training runs, or files of weights.")
    ],
    split: Annotated[str, typer.Option("--split", help="The evaluation to compare.")] = "test",
    out: Annotated[Path, typer.Option("--out", metavar="PATH.png", help="The figure.")] = Path("comparison.png"),
) -> None:
    """Compare networks evaluated on the same samples.

    The result is one table and one figure.
    """
    from hpfwi.training.compare import as_text
    from hpfwi.training.compare import compare as compare_runs

    for line in as_text(compare_runs(runs, split, out=out)):
        typer.echo(line)
    typer.echo(f"Wrote {out}")


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT.SAFETENSORS", help="File to write.")],
    checkpoint: Checkpoint = Which.best,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
) -> None:
    """Write the weights of a trained network as one safetensors file.

    They are the network's torch state dict, with its name and scales in the header: to hand on, to load without
    hpfwi, to evaluate, predict and refine with, or to begin another run with (`hpfwi train --weights`).
    """
    from hpfwi.training.weights import export as export_weights

    written = export_weights(run, out, which=checkpoint.value, overwrite=overwrite)
    typer.echo(
        f"Wrote {written.config.network.name} after step {written.step} ({written.parameters:,} parameters) to {out}"
    )


def _counted() -> Callable[[int, int], None]:
    """What says how many samples are done, every few seconds."""
    last = time.monotonic()

    def say(done: int, samples: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S and done < samples:
            last = time.monotonic()
            typer.echo(f"{done} of {samples} samples")

    return say
