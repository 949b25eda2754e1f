"""How a run is getting on: a bar that stays in place on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S = 5.0
"""Time between two lines where there is no terminal: often enough to see life, seldom enough for a log of days."""

RECENT = 20
"""Iterations that the estimate of the remaining time is made from: enough to be calm, few enough to follow a change."""


@dataclass(frozen=True)
class Step:
    """One iteration as the progress shows it.

    number      iterations done, counted from 1
    misfit      of this iteration's shots
    seconds     the group's time for it
    wait_share  share of the workers' time spent idle, 0 to 1
    """

    number: int
    misfit: float
    seconds: float
    shots: int
    wait_share: float

    @property
    def shots_per_s(self) -> float:
        return self.shots / self.seconds if self.seconds > 0 else 0.0


def clock(seconds: float) -> str:
    """A duration for people.

    >>> clock(0.4), clock(75), clock(3 * 3600 + 65), clock(50 * 3600)
    ('0:00', '1:15', '3:01:05', '50:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sentence(step: Step, iterations: int, remaining_s: float | None) -> str:
    """The facts of one step on one line.

    >>> sentence(Step(3, 1234.5, 0.5, 12, 0.1), 300, 148.0)
    'iteration 3/300  misfit 1234  24 shots/s  waiting 10 %  2:28 left'
    """
    left = "" if remaining_s is None else f"  {clock(remaining_s)} left"
    return (
        f"iteration {step.number}/{iterations}  misfit {step.misfit:.4g}  {step.shots_per_s:.3g} shots/s  "
        f"waiting {step.wait_share:.0%}{left}"
    ).replace("%", " %")


class Progress:
    """Show the progress of `iterations` iterations, of which `first` were done before; `unit` is what they are called.

    Use as a context manager; the first output comes on entering it.
    """

    def __init__(
        self,
        iterations: int,
        *,
        first: int = 0,
        console: Console | None = None,
        every_s: float = LINE_EVERY_S,
        unit: str = "iteration",
    ) -> None:
        from rich.console import Console

        self._iterations = iterations
        self._done = first
        self._console = console or Console()
        self._every_s = every_s
        self._unit = unit
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self._line_at = float("-inf")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._start_bar()
        else:
            self._print(f"{self._unit} {self._done}/{self._iterations}: starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        # The bar takes the room that the facts leave, so that neither wraps on a narrow terminal.
        columns = (SpinnerColumn(), BarColumn(bar_width=None), TextColumn("{task.fields[facts]}"))
        self._bar = Bar(*columns, console=self._console, expand=True, refresh_per_second=4)
        facts = f"{self._unit} {self._done}/{self._iterations}: starting"
        self._task = self._bar.add_task("", total=self._iterations, completed=self._done, facts=facts)
        self._bar.start()

    def update(self, *, iteration: int, misfit: float, seconds: float, shots: int, wait_share: float) -> None:
        """Show the iteration that just ended; `iteration` counts from 0, as events do."""
        step = Step(iteration + 1, misfit, seconds, shots, wait_share)
        self.show(step.number, lambda remaining_s: sentence(step, self._iterations, remaining_s))

    def show(self, done: int, say: Callable[[float | None], str]) -> None:
        """Show that `done` iterations are done, in the words that `say` finds for that and for the time left, s."""
        self._done = done
        now = time.monotonic()
        self._ends.append(now)
        facts = say(self.remaining_s())
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, facts=facts)
        elif now - self._line_at >= self._every_s or self._done >= self._iterations:
            self._line_at = now
            self._print(facts)

    def remaining_s(self) -> float | None:
        """Time to the end at the pace of the recent iterations.

        None until two have ended: the first one carries the start of the workers and whatever had to be compiled.
        """
        passed = len(self._ends) - 1
        if passed < 1:
            return None
        return (self._ends[-1] - self._ends[0]) / passed * max(self._iterations - self._done, 0)

    def went_back(self, iterations_done: int) -> None:
        """The run goes on from a checkpoint after which `iterations_done` iterations count."""
        self._done = iterations_done
        self._ends.clear()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def say(self, message: str) -> None:
        """Show a sentence without disturbing the bar."""
        self._print(message)

    def _print(self, message: str) -> None:
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
