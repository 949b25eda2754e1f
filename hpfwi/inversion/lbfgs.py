"""L-BFGS whose line search takes one evaluation an iteration, so that a run can stop between any two of them.

An iteration evaluates the value that is minimised and its gradient g at a trial point x. Where the value has fallen by
at least `SUFFICIENT` of what the slope promised (Armijo), the trial is accepted: its step s and the change of the
gradient y are remembered, and the next trial lies along the quasi-Newton direction. Elsewhere the next trial lies on
the same line, nearer to the point accepted last. The direction is the two-loop recursion over the last pairs (s, y),
the length of a rejected step the minimum of the parabola through what is known. Nocedal and Wright 2006: algorithm 7.4,
equations 7.20, 3.4 and 3.57; bounds by projection of every trial (Bertsekas 1976), with what lies at a bound and is
pulled beyond it left out of the direction.

Sums are NumPy's over float64 in one thread, whose order is fixed; products of BLAS depend on processor and threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import DataError

SUFFICIENT = 1e-4
"""Share of the decrease that the slope promises which a step must bring (Nocedal and Wright, section 3.1)."""

SHORTEST, LONGEST = 0.1, 0.5
"""A rejected step is followed by one of at least and at most this share of its length."""

STRAIGHT = 1e-4
"""Pairs are remembered whose s and y enclose an angle of more than this cosine: others tell of no curvature."""

PATIENCE = 4
"""Rejected trials in a row after which what is remembered is taken for wrong and forgotten."""

_PAIRS = ("steps", "changes")
_VECTORS = ("point", "gradient", "direction")
_NUMBERS = ("value", "step_length", "rejected")

Vector = NDArray[np.float32]


class Lbfgs:
    """The optimiser over some parameters, taken as one vector in their order.

    parameters     hold the trial point, in float32, and after a backward pass its gradient
    first_step     largest change of a number in the first step
    memory         pairs (s, y) that are remembered
    movable        of a point and its gradient, flat: bool, False where a step against the gradient would leave bounds
    precondition   a linear, symmetric, positive operator on flat float64 vectors that steps are made of; None: identity
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        first_step: float,
        memory: int,
        movable: Callable[[Vector, Vector], NDArray[np.bool_]] | None = None,
        precondition: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._first_step = first_step
        self._memory = memory
        self._movable = movable
        self._precondition = precondition
        self._size = sum(parameter.numel() for parameter in self._parameters)
        self.forget()

    def forget(self) -> None:
        """Begin anew: the next evaluation is of a point that is accepted whatever its value."""
        self._accepted: dict[str, Vector] = {}  # point, gradient and direction; empty before the first evaluation
        self._steps: list[Vector] = []  # oldest first
        self._changes: list[Vector] = []
        self._value = 0.0
        self._step_length = 0.0
        self._rejected = 0

    @property
    def step_length(self) -> float | None:
        """Of the current trial, as a multiple of the direction; None where there is no trial."""
        return self._step_length if self._accepted else None

    @property
    def acceptable(self) -> float | None:
        """The highest value at which the current trial is accepted; None: at any."""
        return self._value + SUFFICIENT * min(self._promised(), 0.0) if self._accepted else None

    @contextlib.contextmanager
    def at_accepted(self) -> Iterator[None]:
        """Hold the parameters at the point accepted last, where there is one, until the context ends."""
        if not self._accepted:
            yield
            return
        trial = self._read()
        self._write(self._accepted["point"])
        try:
            yield
        finally:
            self._write(trial)

    def zero_grad(self) -> None:
        """Forget the gradients of the parameters."""
        for parameter in self._parameters:
            parameter.grad = None

    def advance(self, value: float, *, ends: bool = False) -> None:
        """Judge the current point by its value, with its gradient in the parameters, and write the next trial.

        ends    what is minimised ends here: the parameters come to the point accepted last, and all is forgotten
        """
        acceptable = self.acceptable
        if acceptable is None or value <= acceptable:
            self._accept(value)
        else:
            self._shorten(value)
        accepted = self._accepted
        if ends:
            self._write(accepted["point"])
            self.forget()
        else:
            trial = accepted["point"].astype(np.float64) + self._step_length * accepted["direction"].astype(np.float64)
            self._write(trial.astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that is remembered, by name; together with the parameters it continues a run bit for bit."""
        if not self._accepted:
            return {}
        found: dict[str, np.ndarray] = {name: vector.copy() for name, vector in self._accepted.items()}
        if self._steps:
            found |= dict(zip(_PAIRS, (np.stack(self._steps), np.stack(self._changes)), strict=True))
        numbers = (self._value, self._step_length, self._rejected)
        return found | {name: np.array(number, np.float64) for name, number in zip(_NUMBERS, numbers, strict=True)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `arrays` returned; raises DataError where it belongs to another optimiser or problem."""
        self.forget()
        if not arrays:
            return
        wanted: dict[str, Any] = dict.fromkeys(_VECTORS, (self._size,)) | dict.fromkeys(_NUMBERS, ())
        pairs = len(arrays["steps"]) if "steps" in arrays else 0
        if pairs:
            wanted |= dict.fromkeys(_PAIRS, (pairs, self._size))
        if {name: array.shape for name, array in arrays.items()} != wanted:
            raise DataError(
                f"The saved optimiser state holds {', '.join(sorted(arrays))}, which fits no L-BFGS over {self._size} "
                "numbers. Resume with the configuration that saved it."
            )
        self._accepted = {name: np.array(arrays[name], np.float32) for name in _VECTORS}
        if pairs:
            self._steps, self._changes = (list(np.array(arrays[name], np.float32)) for name in _PAIRS)
        self._value, self._step_length = float(arrays["value"]), float(arrays["step_length"])
        self._rejected = int(arrays["rejected"])

    def _accept(self, value: float) -> None:
        """Go on from the current point."""
        point, gradient = self._read(), self._read_gradient()
        if self._accepted:
            step = (point.astype(np.float64) - self._accepted["point"]).astype(np.float32)
            change = (gradient.astype(np.float64) - self._accepted["gradient"]).astype(np.float32)
            if _dot(step, change) > STRAIGHT * np.sqrt(_dot(step, step) * _dot(change, change)):
                self._steps = [*self._steps, step][-self._memory :]
                self._changes = [*self._changes, change][-self._memory :]
        self._value, self._rejected = value, 0
        self._aim(point, gradient)

    def _shorten(self, value: float) -> None:
        """Go back to the accepted point, for a shorter step along the same line, or another line from there."""
        self._rejected += 1
        if self._rejected % PATIENCE == 0 and self._steps:
            self._aim(self._accepted["point"], self._accepted["gradient"], downhill=True)
            return
        promised = self._promised()
        # Of a trial that bounds have bent so far that it promised nothing, the parabola knows nothing.
        share = -0.5 * promised / (value - self._value - promised) if promised < 0 else LONGEST
        self._step_length *= min(max(share, SHORTEST), LONGEST)

    def _aim(self, point: Vector, gradient: Vector, *, downhill: bool = False) -> None:
        """Lay the line of the next trials through a point that was accepted.

        downhill    forget the pairs and go down the slope, a step as long as the last one that is remembered
        """
        free = np.ones(self._size, np.bool_) if self._movable is None else self._movable(point, gradient)
        reach = float(np.abs(self._steps[-1]).max()) if self._steps else self._first_step
        direction = self._descent(gradient, free)
        # Rounding, or a filter that is not quite symmetric, may turn a direction uphill.
        if self._steps and (downhill or not _dot(gradient, direction) < 0):
            self._steps, self._changes = [], []
            direction = self._descent(gradient, free)
        if not self._steps:
            largest = float(np.abs(direction).max())
            direction *= reach / largest if largest > 0 else 0.0
        self._accepted = {"point": point, "gradient": gradient, "direction": direction.astype(np.float32)}
        self._step_length = 1.0

    def _descent(self, gradient: Vector, free: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Minus the inverse Hessian that the pairs tell of times the gradient, among the free numbers."""
        found = np.where(free, gradient.astype(np.float64), 0.0)
        shares = []
        for step, change in zip(reversed(self._steps), reversed(self._changes), strict=True):
            shares.append(_dot(step, found) / _dot(step, change))
            found -= shares[-1] * change
        found = self._preconditioned(found)
        if self._steps:
            last = self._changes[-1].astype(np.float64)
            found *= _dot(self._steps[-1], last) / _dot(last, self._preconditioned(last))
        for step, change, share in zip(self._steps, self._changes, reversed(shares), strict=True):
            found += (share - _dot(change, found) / _dot(step, change)) * step
        return np.where(free, -found, 0.0)

    def _preconditioned(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return vector if self._precondition is None else self._precondition(vector)

    def _promised(self) -> float:
        """The change of the value that the slope at the accepted point promises for the current trial, as projected."""
        return _dot(self._accepted["gradient"], self._read().astype(np.float64) - self._accepted["point"])

    def _read(self) -> Vector:
        with torch.no_grad():
            return np.concatenate([parameter.numpy().ravel() for parameter in self._parameters])

    def _read_gradient(self) -> Vector:
        return np.concatenate(
            [
                np.zeros(parameter.numel(), np.float32) if parameter.grad is None else parameter.grad.numpy().ravel()
                for parameter in self._parameters
            ]
        )

    def _write(self, vector: Vector) -> None:
        first = 0
        with torch.no_grad():
            for parameter in self._parameters:
                part = vector[first : first + parameter.numel()]
                parameter.copy_(torch.from_numpy(part.copy()).reshape(parameter.shape))
                first += parameter.numel()


def _dot(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.sum(np.multiply(first, second, dtype=np.float64)))
