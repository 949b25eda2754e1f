"""What a group runs and what it returns.

An iteration is a set of items. Every rank holds a replica of the task; ranks compute items, the items' arrays are added
exactly, and every replica advances by the same total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class ItemResult:
    """What one item contributes.

    array       float32 or float64, finite, below 2^960, the same shape for every item of an iteration
    scalars     finite numbers reported by item, never added
    """

    array: np.ndarray
    scalars: dict[str, float]


@dataclass(frozen=True)
class IterationResult:
    """What one iteration came to.

    total       float64, the shape of an item's array: the exact sum, the same bits for any number of workers; of a
                task that is not exact, float32, and from workers without elements, because nobody but they need it
    scalars     by item
    seconds     wall time of the iteration, s
    wait_share  share of the ranks' seconds in which a rank computed no item, 0 to 1
    lost        one sentence for every worker lost on the way
    """

    total: np.ndarray
    scalars: dict[int, dict[str, float]]
    seconds: float
    wait_share: float
    lost: tuple[str, ...]


class Task(Protocol):
    """A replicated state that advances by sums over items. The same code runs inline and in a worker process.

    A task may have an attribute `exact`, read once, which stays True where it has none. False adds and all-reduces in
    float32: half the bytes and a tenth of the work, and a last digit that depends on who computed what. Set
    `Group.exponent` to 0 then, or the first item of every iteration is computed before all others.
    """

    def begin(self, iteration: int) -> None:
        """Get ready to compute items of this iteration. Must not advance the state: it may be called again."""

    def compute(self, item: int) -> ItemResult:
        """Compute one item: a pure function of the state at `begin` and of the item; called from several threads.

        A call whose result is no longer wanted may go on during `finish`, `state`, `load_state` and the next `begin`:
        whatever it reads meanwhile, and raises, does no harm, but it must not write into the state.
        """

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        """Advance the state by the total (float64, or float32 if not exact; the same bits on every rank)."""

    def state(self) -> State:
        """Return the complete replicated state between iterations."""

    def load_state(self, state: State) -> None:
        """Take over a state that `state` returned; the arrays belong to the task from then on."""


class Group(Protocol):
    """Ranks that run one task together."""

    exponent: int | None
    """Scale of the fixed point in the next iteration, None before the first. A checkpoint keeps it with the state."""
    tell: Callable[[str], None]
    """Called with one sentence when a worker is lost, and when workers are waited for."""
    stop: Callable[[], object]
    """Asked several times a second while items are computed: anything true abandons the iteration."""

    def run(self, iteration: int, items: Sequence[int], costs: Sequence[float]) -> IterationResult:
        """Run one iteration: begin, every item once, exact sum, finish on every rank.

        items   distinct ids; their set, not their order or the number of workers, fixes the result
        costs   one relative cost >= 0 per item, on one scale for all iterations; decides the order of work, and what
                counts as late
        raises  Abandoned, ItemFailed, WorkersMissing: nothing was applied, the state is the one before
                GroupLost: set `exponent` and call `load_state` with the last checkpoint, then run on from there
                TaskFailed, ReplicasDiverged, RestartsExhausted
        """

    def state(self) -> State:
        """Return the replicated state between iterations (copies)."""

    def load_state(self, state: State) -> None:
        """Put every rank into this state."""

    def close(self) -> None:
        """End the workers this group started. Closing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def nobody_listens(sentence: str) -> None:
    """What a group tells its sentences until somebody listens."""


def nobody_asks() -> None:
    """What a group asks whether to stop until somebody may say so."""
