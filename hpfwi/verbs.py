"""How a function becomes a command whose errors end it with one sentence on stderr and the exit code of their kind."""

from __future__ import annotations

import functools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from hpfwi.errors import EXIT_CLUSTER, EXIT_DATA, EXIT_STOPPED, ConfigError, DataError, DiskError, HpfwiError

EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""The output's reader went away: what a shell reports of a command that SIGPIPE ended."""

_TOO_MUCH = ("can't allocate memory", "Maximum allowed size exceeded", "array is too big", "out of memory")
"""What PyTorch and NumPy say in errors of other kinds when memory for an array cannot be had."""


def verb_of(
    app: typer.Typer, *, context_settings: dict[str, Any] | None = None, hidden: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that registers a function with `app` as the command of its name, guarded against its errors.

    context_settings    what the command's parser is to do differently; None: what the app's others do
    hidden              leave the command out of the app's help
    """

    def verb(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> None:
            try:
                _refuse_no_numbers(options)
                with _sigterm_as_ctrl_c():
                    function(*arguments, **options)
            except (typer.Exit, typer.Abort):
                raise
            except BrokenPipeError:
                # Whoever read the output, `head` say, has had enough; Python's flush at exit would complain again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise typer.Exit(EXIT_UNREAD) from None
            except BaseException as error:
                if isinstance(error, SystemExit | GeneratorExit) or os.environ.get("HPFWI_DEBUG", "0") not in ("", "0"):
                    raise
                sentence, code = _said(error)
                typer.echo(sentence, err=True)
                raise typer.Exit(code) from None

        return app.command(function.__name__, context_settings=context_settings, hidden=hidden)(guarded)

    return verb


def _refuse_no_numbers(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option of a command that is NaN or infinite, which every limit lets pass."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name.replace('_', '-')} {value} cannot be used; give a finite number.")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt("SIGTERM"): what is half written is cleared away, and something is said."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return

    def asked(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuses_input(error: Exception) -> bool:
    """Whether an error says that what a run was given cannot be used, rather than what happened to the run."""
    from hpfwi_kernels.errors import KernelError

    return isinstance(error, ConfigError | DataError | KernelError) and not isinstance(error, DiskError)


def _said(error: BaseException) -> tuple[str, int]:
    """What to print for an error, and the exit code of its kind."""
    from hpfwi.parallel import ClusterError
    from hpfwi_kernels.errors import KernelError

    text = " ".join(str(error).split())
    if isinstance(error, HpfwiError):
        return text, error.exit_code
    if isinstance(error, KernelError):
        return text, EXIT_DATA
    if isinstance(error, ClusterError):
        return text, EXIT_CLUSTER
    if isinstance(error, KeyboardInterrupt):
        if text == "SIGTERM":  # of a batch system, which starts a job with this code again
            return "Ended by SIGTERM before there was anything to go on with; start it again.", EXIT_STOPPED
        return "Interrupted.", EXIT_INTERRUPTED
    if isinstance(error, MemoryError) or any(words in text for words in _TOO_MUCH):
        return (
            f"There is too little memory ({text.rstrip('.') or 'none is left'}); make the model, the records or the "
            "batch smaller, or take a machine with more."
        ), EXIT_DATA
    return (
        f"hpfwi failed in a way it does not know ({type(error).__name__}: {text or 'no message'}); run it with --debug "
        "and report what it shows together with the output of `hpfwi env`."
    ), 1
