"""Exceptions of the cluster layer.

Every class is constructed from one finished sentence and nothing else, so that it survives pickling between processes.
"""

from __future__ import annotations

from typing import Self


class ClusterError(Exception):
    """Something about workers, items or their sum went wrong; the message says what, and the remedy."""


class StartFailed(ClusterError):
    """The workers asked for could not be started: too few resources, too little time, no task."""


class ItemFailed(ClusterError):
    """One item cannot be computed: it raises, is not finite, or takes its workers down. Nothing was applied."""

    item: int | None = None
    """Which one, for those who know what it stands for."""

    @classmethod
    def of(cls, item: int, sentence: str) -> Self:
        """Return the error about this item."""
        error = cls(sentence)
        error.item = item
        return error


class TaskFailed(ClusterError):
    """A task raised in `begin`, `finish`, `state` or `load_state`; replicas may differ until `load_state` succeeds."""


class Abandoned(ClusterError):
    """The group was asked to stop in the middle of an iteration. Nothing was applied; the state is the one before."""


class GroupLost(ClusterError):
    """No worker with state is left. Fresh workers stand ready: give them the last checkpoint with `load_state`."""


class RestartsExhausted(ClusterError):
    """No worker is left and the limit on replacements is spent."""


class WorkersMissing(ClusterError):
    """Fewer workers than the least number were left for longer than the limit. The state is the one before."""


class ReplicasDiverged(ClusterError):
    """Replicas that must hold the same bits do not."""


class CollectiveBroken(ClusterError):
    """An all-reduce failed, was abandoned or could not be set up; local sums are untouched."""
