"""The last checkpoint of an inversion: what a run goes back to, on disk and in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi import checkpoints
from hpfwi.checkpoints import Checkpoint, part_of
from hpfwi.parallel import State

_STATE = "state/"
_REFERENCE = "reference/"
_BEST = "best_model"


@dataclass(frozen=True)
class Saved:
    """What a run goes back to: the last checkpoint, as it is on disk.

    done        iterations that count
    exponent    of the group's sums
    seconds     of computing so far
    reference   the parameterisation's state when the inversion started
    best        score and model of the best diagnosed iteration so far
    """

    done: int
    exponent: int | None
    seconds: float
    state: State
    reference: State
    best: tuple[float, NDArray[np.float32]] | None


def write(folder: Path, saved: Saved, score: float | None) -> Path:
    """Write a checkpoint and return its path; raises as `hpfwi.checkpoints.save`.

    score   lower is better: decides which checkpoint is kept beside the latest; None never is
    """
    tensors = {f"{_STATE}{name}": value for name, value in saved.state.items()}
    tensors |= {f"{_REFERENCE}{name}": value for name, value in saved.reference.items()}
    meta: dict[str, Any] = {"exponent": saved.exponent, "seconds": saved.seconds}
    if score is not None:
        meta["score"] = score
    if saved.best is not None:
        meta["best_score"], tensors[_BEST] = saved.best
    return checkpoints.save(folder, saved.done, tensors, meta)


def saved_in(found: Checkpoint) -> Saved:
    """What `write` wrote."""
    best = found.tensors.get(_BEST)
    return Saved(
        found.iteration,
        found.meta["exponent"],
        float(found.meta["seconds"]),
        part_of(found.tensors, _STATE),
        part_of(found.tensors, _REFERENCE),
        None if best is None else (found.meta["best_score"], best),
    )
