"""`hpfwi bench`: the benchmarks of the source tree as commands, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import hpfwi
from hpfwi.errors import ConfigError
from hpfwi.verbs import verb_of


def register(app: typer.Typer) -> None:
    """Add the verb to the command's app."""
    verb_of(app, context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
        bench
    )


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="acoustic, amfms, …; without it, a list.")] = None,
) -> None:
    """Run a benchmark of the source tree; its options follow its name.

    `hpfwi bench` lists them, `hpfwi bench acoustic --help` prints one's options. Results are JSON with hardware and
    versions in benchmarks/results.
    """
    scripts = benchmarks()
    if name is None or name in ("-h", "--help"):
        typer.echo("Usage: hpfwi bench NAME [OPTIONS]\n")
        width = max(map(len, scripts))
        for script in scripts.values():
            typer.echo(f"  {script.stem:{width}}  {headline(script)}")
        return
    if name not in scripts:
        raise ConfigError(f"There is no benchmark {name!r}; there are {', '.join(scripts)}.")
    done = subprocess.run([sys.executable, str(scripts[name]), *context.args], check=False)
    raise typer.Exit(done.returncode)


def benchmarks(root: Path | None = None) -> dict[str, Path]:
    """The scripts in benchmarks/ that can be run, by name; a module that only serves others is none.

    root        of the source tree; None takes the one this package was imported from
    raises      ConfigError: an installation without the source tree
    """
    folder = (root or Path(hpfwi.__file__).parents[1]) / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if "\ndef main(" in path.read_text("utf-8")}
    if not scripts:
        raise ConfigError(
            f"{folder} holds no benchmarks, which are part of the source tree and not of a wheel; clone the source, "
            "install it with `make demo` and run its .venv/bin/hpfwi."
        )
    return scripts


def headline(script: Path) -> str:
    """The first sentence of a script's docstring, without the command that it may end with."""
    text = script.read_text("utf-8").split('"""')[1].split("\n\n")[0]
    return " ".join(text.split()).split(": `")[0].rstrip(".")
