"""Exceptions of the cluster layer.

Every class is constructed from one finished sentence and nothing else, so that it survives pickling between processes.
"""


class ClusterError(Exception):
    """Something about workers, items or their sum went wrong; the message says what, and the remedy."""


class StartFailed(ClusterError):
    """The workers asked for could not be started: too few resources, too little time, no task."""


class ItemFailed(ClusterError):
    """One item cannot be computed: it raises, is not finite, or takes its workers down. Nothing was applied."""


class TaskFailed(ClusterError):
    """A task raised in `begin`, `finish`, `state` or `load_state`; replicas may differ until `load_state` succeeds."""


class GroupLost(ClusterError):
    """No worker with state is left. Fresh workers stand ready: give them the last checkpoint with `load_state`."""


class RestartsExhausted(ClusterError):
    """No worker is left and the limit on replacements is spent."""


class ReplicasDiverged(ClusterError):
    """Replicas that must hold the same bits do not."""


class CollectiveBroken(ClusterError):
    """An all-reduce failed, was abandoned or could not be set up; local sums are untouched."""
