"""When a run that gains nothing any more ends before its last epoch: a function of its validation losses alone.

The driver decides, from the one mean over all validation samples that is the same on any number of workers, and a
checkpoint keeps the losses, so that a resumed run ends where an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


class EarlyStopSettings(BaseModel):
    """How long a run goes on without a gain. The best weights are kept with or without it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int | None = Field(
        default=None,
        ge=1,
        description="Validations in a row without a gain that end a run; none: every run takes all its epochs. "
        "Validations before the last stage of a curriculum do not count.",
    )
    minimum_gain: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the validation loss at the last gain by which a loss must be lower to be a gain.",
    )


def without_gain(losses: Sequence[float], minimum_gain: float) -> int:
    """Validations since the last gain, of losses in the order in which they were found; the first one is a gain.

    >>> without_gain([4.0, 3.0, 2.99, 3.1], 0.0), without_gain([4.0, 3.0, 2.99, 3.1], 0.01)
    (1, 2)
    """
    gained: float | None = None
    since = 0
    for loss in losses:
        if gained is None or loss < gained - minimum_gain * abs(gained):
            gained, since = loss, 0
        else:
            since += 1
    return since
