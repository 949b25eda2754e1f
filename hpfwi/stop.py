"""Stopping a run soon when somebody asks for it, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Stop:
    """A flag that a run polls several times a second; whoever wants the run to end raises it.

    >>> stop = Stop()
    >>> stop.requested
    False
    >>> stop.request("the time limit is near")
    >>> stop.requested, stop.reason, stop()
    (True, 'the time limit is near', 'the time limit is near')

    Called, it returns the reason, or None while nobody asked.
    """

    def __init__(self) -> None:
        self.reason = ""

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    def __call__(self) -> str | None:
        return self.reason or None

    def request(self, reason: str) -> None:
        """Ask the run to end; the first reason counts."""
        self.reason = self.reason or reason


@contextlib.contextmanager
def on_signals(stop: Stop, say: Callable[[str], None]) -> Iterator[None]:
    """Raise `stop` on Ctrl-C, SIGTERM and SIGUSR1 while the block runs; the handlers before come back after it.

    SIGUSR1 is a batch system's warning that the time limit is near. After any of them, Ctrl-C or SIGTERM raises
    KeyboardInterrupt at once; a second warning changes nothing, because some systems warn every process of a job. That
    end loses the iterations since the last checkpoint and nothing else: every file of a run folder appears whole or not
    at all.
    """
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}

    def asked(number: int, frame: FrameType | None) -> None:
        name = names[signal.Signals(number)]
        if stop.requested and number == signal.SIGUSR1:
            return
        if stop.requested:
            raise KeyboardInterrupt(name)
        stop.request(name)
        again = "SIGTERM" if number == signal.SIGUSR1 else "once more"
        say(f"{name}: stopping soon, with a checkpoint; {again} stops at once.")

    before = {number: signal.signal(number, asked) for number in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
