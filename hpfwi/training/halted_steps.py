"""The slices of a step that halt together (see `hpfwi.training.shared_norm`): where each is, and the sums so far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpfwi.training.shared_norm import HaltedSlice

_STEP = "step"
Start = Callable[[ExitStack], HaltedSlice]
"""Starts a slice; the stack takes what is to be called when it is over."""


@dataclass(eq=False)
class _Place:
    """A slice in this process, in the hands of one thread at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slice: HaltedSlice | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    over: bool = False

    def close(self) -> None:
        self.stack.close()
        self.slice = None

    def close_if_free(self) -> None:
        if self.over and self.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self.lock.release()


class HaltedStep:
    """What a rank knows of the step that is being computed: every rank has the same sums, and slices of its own."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._totals: list[NDArray[np.float64]] = []
        self._places: dict[int, _Place] = {}
        self._lock = threading.Lock()

    def begin(self, step: int | None) -> None:
        """Get ready for a step, or go on with it; None is no step."""
        if step != self._step:
            self.clear()
            self._step = step

    def take(self, total: NDArray[np.floating]) -> None:
        """Add the sum over all slices of what they halted with."""
        self._totals = [*self._totals, np.array(total, np.float64)]

    def clear(self) -> None:
        """End the step: nothing is known of the next one, and no slice has begun."""
        with self._lock:
            places, self._places, self._totals = self._places, {}, []
        for place in places.values():
            place.over = True
            place.close_if_free()  # else by the call that is still at it, whose result nobody wants

    @contextmanager
    def reached(self, slot: int, start: Start) -> Iterator[HaltedSlice]:
        """A slice where all known sums were given to it, begun anew where this process has not got it."""
        with self._lock:
            place, totals = self._places.setdefault(slot, _Place()), self._totals
        try:
            with place.lock:
                try:
                    if place.slice is None:
                        place.slice = start(place.stack)
                    for total in totals[place.slice.phase :]:
                        place.slice.give(total)
                    yield place.slice
                except BaseException:
                    place.close()
                    raise
        finally:
            place.close_if_free()

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The step and its sums so far, for a rank that joins in the middle; nothing between steps."""
        if self._step is None or not self._totals:
            return {}
        sums = {f"{phase:04d}": total for phase, total in enumerate(self._totals)}
        return sums | {_STEP: np.array(float(self._step))}

    def load_state(self, state: Mapping[str, NDArray[np.floating]]) -> None:
        """Take over what `state` returned."""
        self.clear()
        self._step = int(state[_STEP]) if state else None
        for name in sorted(state.keys() - {_STEP}):
            self.take(state[name])
