"""`hpfwi refine`: a network's proposals refined against the waveforms, as pairs that train the network again."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from hpfwi.cli_generate import On, Processor, Workers, cluster_for
from hpfwi.cli_pairs import Out, progress_of, resumable
from hpfwi.cli_train import Checkpoint, Network, Which
from hpfwi.errors import Stopped
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from hpfwi.refinement.table import Row


def register(app: typer.Typer) -> None:
    """Make the function of this file a command of `hpfwi`."""
    verb_of(app)(refine)


def refine(
    network: Network,
    out: Out,
    data: Annotated[
        Path, typer.Option("--data", metavar="RECORDS.ZARR", help="A store of pairs; its models decide nothing.")
    ],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Samples of that store to refine.")] = "train",
    samples: Annotated[
        int | None, typer.Option("-n", "--samples", metavar="N", min=1, help="So many of them, from the first.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change one option, such as iterations=100 or parameterisation.kind=pixel; `hpfwi config refine` "
            "prints them.",
        ),
    ] = None,
    workers: Workers = "auto",
    device: On = Processor.auto,
    checkpoint: Checkpoint = Which.best,
) -> None:
    """Refine what a trained network proposes against the waveforms.

    For every sample the network proposes a velocity, and a full waveform inversion refines it until it explains that
    sample's records. OUT.ZARR holds the refined pairs, ready for `hpfwi train`, and a table with the misfit of each
    before and after; where the store has true models, with the error too, which decides nothing. The same command goes
    on where it was interrupted, and its result does not depend on the workers.
    """
    from hpfwi.parallel import placed
    from hpfwi.physics.device import usable_gpus
    from hpfwi.refinement.pairs import begin_refined, refine_pairs
    from hpfwi.refinement.settings import load_refinement
    from hpfwi.refinement.shown import FIGURE, draw_some
    from hpfwi.refinement.source import open_source
    from hpfwi.training.normalise import scale_in_words

    settings, _ = load_refinement(overrides or [])
    source = open_source(network, data, settings, split=split, samples=samples, which=checkpoint.value, say=typer.echo)
    cluster = cluster_for(workers, device)
    on_gpu = placed(cluster, usable_gpus()).device == "cuda"
    with resumable() as command, _noticed() as look:
        writer = begin_refined(out, source, resume_with=command, on_gpu=on_gpu)
        todo = sum(map(len, writer.missing()))
        count = len(source.samples)
        typer.echo(
            f"{count} samples of {data}, {count - todo} of them whole: {settings.iterations} iterations each of "
            f"{settings.parameterisation.kind} from what {network.name} proposes"
        )
        begin = time.monotonic()
        with progress_of("samples") as progress:
            store, rows = refine_pairs(writer, source, cluster, progress=progress, say=typer.echo, look=look)
        if rows and not (store.path / FIGURE).exists():
            draw_some(store.path / FIGURE, source, store, rows)
    if todo:
        seconds = time.monotonic() - begin
        typer.echo(f"Speed        {seconds / todo:.3g} s a sample, {seconds:.1f} s for {todo}")
    for line in _summary(rows):
        typer.echo(line)
    typer.echo(f"Wrote        {store.samples} pairs to {out}, with refinement.csv and refinement.png")
    again = ["--data", str(out), "--weights", str(network)]
    if network.is_dir():
        words = ["hpfwi", "train", str(network / "config.toml"), *again, "--name", f"{network.resolve().name}-refined"]
        typer.echo(f"Next         {shlex.join(words)}")
    else:
        scale = scale_in_words(source.trained().config.training.normalisation)
        typer.echo(
            f"Next         {shlex.join(['hpfwi', 'train', 'RUN.TOML', *again])}, RUN.TOML with the same network and "
            f"velocities on {scale}"
        )


def _summary(rows: Sequence[Row]) -> list[str]:
    """What changed, over all samples."""
    import numpy as np

    if not rows:
        return []
    before, after = (np.array([getattr(row, f"misfit_{name}") for row in rows]) for name in ("proposed", "refined"))
    lines = [
        f"Misfit       {np.median(before):.4g} → {np.median(after):.4g} of the observed energy, in the median; "
        f"{int((after < before).sum())} of {len(rows)} lower"
    ]
    known = [row for row in rows if row.mae_proposed_mps is not None and row.mae_refined_mps is not None]
    if known:
        errors = np.array([(row.mae_proposed_mps, row.mae_refined_mps) for row in known])
        lines.append(
            f"Model error  {errors[:, 0].mean():.1f} → {errors[:, 1].mean():.1f} m/s, mean absolute; "
            f"{int((errors[:, 1] < errors[:, 0]).sum())} of {len(known)} lower"
        )
    return lines


@contextmanager
def _noticed() -> Iterator[Callable[[], None]]:
    """What raises once Ctrl-C or SIGTERM came: threads that refine in this process would go on for minutes."""
    over = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(number: int, frame: FrameType | None) -> None:
        over.set()
        raise KeyboardInterrupt

    def look() -> None:
        if over.is_set():
            raise Stopped("Stopped in the middle of a sample.")

    for number in before:
        signal.signal(number, asked)
    try:
        yield look
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
