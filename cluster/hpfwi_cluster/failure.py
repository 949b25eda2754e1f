"""Decisions about failures, as functions of values. They decide; the groups act."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Decision(Enum):
    """What to do about a failure."""

    RETRY = "retry"
    """Put the item back into the queue."""
    GIVE_UP = "give up"
    """End the iteration with an error; nothing is applied."""
    REPLACE = "replace"
    """Go on with the survivors and start a worker in place of the lost one."""
    GO_ON = "go on"
    """Go on with the survivors alone."""
    REBUILD = "rebuild"
    """Nobody holds the state: start fresh workers and ask for the last checkpoint."""


def after_exception(tries: int, limit: int, *, final: bool) -> Decision:
    """Decide about an item that has now failed `tries` times; `final` says that trying again cannot help."""
    return Decision.GIVE_UP if final or tries >= limit else Decision.RETRY


def after_item_death(deaths: int, limit: int) -> Decision:
    """Decide about an item that was being computed by each of `deaths` workers when it died."""
    return Decision.GIVE_UP if deaths >= limit else Decision.RETRY


def after_loss(survivors: int, replaced: int, limit: int) -> Decision:
    """Decide about a lost worker: `survivors` hold the state, `replaced` of at most `limit` replacements are spent."""
    if survivors == 0:
        return Decision.REBUILD if replaced < limit else Decision.GIVE_UP
    return Decision.REPLACE if replaced < limit else Decision.GO_ON


def loss_sentence(
    worker: str, why: str, doing: str, iteration: int, requeued: Sequence[int], decision: Decision
) -> str:
    """Return one line that says what was lost and what is being done about it."""
    named = ", ".join(str(item) for item in requeued[:8]) + (", …" if len(requeued) > 8 else "")
    noun = "item" if len(requeued) == 1 else "items"
    back = f"{noun} {named} back in the queue" if requeued else "no item affected"
    then = {
        Decision.REPLACE: "the others go on and a replacement joins at the start of an iteration",
        Decision.GO_ON: "the others go on without a replacement (restart_limit is spent)",
        Decision.REBUILD: "no worker holds the state any more, fresh ones are started",
        Decision.GIVE_UP: "no worker is left and restart_limit is spent",
        Decision.RETRY: "the others go on",
    }[decision]
    return f"{worker} was lost in iteration {iteration} while {doing} ({why}): {back}; {then}."
