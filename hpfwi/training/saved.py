"""The last checkpoint of a training run: what a run goes back to, on disk and in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpfwi import checkpoints
from hpfwi.checkpoints import Checkpoint, part_of
from hpfwi.parallel import State
from hpfwi.training.trained import STATE


@dataclass(frozen=True)
class Saved:
    """What a run goes back to: the last checkpoint, as it is on disk.

    done                        steps that count
    exponents                   of the group's sums
    seconds                     of computing so far
    state                       of network, optimiser and all that follows the steps
    epoch_sums, epoch_times     of the epoch so far, see `EpochMeans`
    told_skips                  steps left out that the log has told of
    best                        epoch, step and scores of the best validation so far
    judged                      validation losses that an early stop looks at
    """

    done: int
    exponents: tuple[int | None, ...]
    seconds: float
    state: State
    epoch_sums: dict[str, float]
    epoch_times: dict[str, float]
    told_skips: int
    best: dict[str, Any] | None
    judged: tuple[float, ...]


def write(folder: Path, saved: Saved, score: float | None) -> Path:
    """Write a checkpoint and return its path; raises as `hpfwi.checkpoints.save`.

    score   lower is better: decides which checkpoint is kept beside the latest; None never is
    """
    meta: dict[str, Any] = {
        "exponent": saved.exponents[-1] if saved.exponents else None,
        "exponents": list(saved.exponents),
        "seconds": saved.seconds,
        "epoch_sums": saved.epoch_sums,
        "epoch_times": saved.epoch_times,
        "told_skips": saved.told_skips,
        "best": saved.best,
        "judged": list(saved.judged),
    }
    if score is not None:
        meta["score"] = score
    tensors = {f"{STATE}{name}": value for name, value in saved.state.items()}
    return checkpoints.save(folder, saved.done, tensors, meta)


def saved_in(found: Checkpoint) -> Saved:
    """What `write` wrote."""
    meta = found.meta
    return Saved(
        found.iteration,
        tuple(meta["exponents"]) if "exponents" in meta else (meta["exponent"],),
        float(meta["seconds"]),
        part_of(found.tensors, STATE),
        meta["epoch_sums"],
        meta.get("epoch_times", {}),
        meta.get("told_skips", 0),
        meta["best"],
        tuple(meta.get("judged", ())),
    )
