"""What the commands of `hpfwi data` share: their options, progress, and how they say where to go on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hpfwi.errors import ConfigError, Stopped

Progress = Callable[[int, int], None]

LINE_EVERY_S = 5.0
"""Time between two lines of progress where there is no terminal."""


class Compress(StrEnum):
    """How shards are compressed."""

    none = "none"
    lz4 = "lz4"


Out = Annotated[Path, typer.Argument(metavar="OUT.ZARR", help="The store to write.")]
Float16 = Annotated[
    bool, typer.Option("--float16", help="Store the records in half the space; the error is measured and printed.")
]
Compression = Annotated[Compress, typer.Option("--compress", help="lz4 (lossless) pays on slow disks.")]
ShardSamples = Annotated[
    int | None, typer.Option("--shard-samples", metavar="N", min=1, help="Samples a file; without it, about 140 MB.")
]
ModelShape = Annotated[
    str | None, typer.Option("--model-shape", metavar="Z,X", help="Rows and columns of a model, where not the usual.")
]


def statistics_line(values: dict[str, float], unit: str) -> str:
    return f"{values['min']:.6g} to {values['max']:.6g}{unit}, mean {values['mean']:.6g}, std {values['std']:.6g}"


def shapes_of(records_shape: str | None, model_shape: str | None) -> dict[str, Any]:
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
                    f"--{option} {text} is no shape: give {count} whole numbers, such as "
                    f"{'5,1000,70' if count == 3 else '70,70'}."
                )
            shapes[name] = sizes
    return shapes


@contextmanager
def resumable() -> Iterator[str]:
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
def progress_of(what: str) -> Iterator[Progress]:
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
