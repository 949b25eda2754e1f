"""The one place that imports Ray: token authentication on, usage statistics off, unless set otherwise."""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "ray" not in sys.modules:
    # Ray reads the mode once, on import. Set later it would reach the processes Ray starts, but not this one.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

LOST = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
"""What Ray raises for a call to a process that is no more."""

__all__ = ["LOST", "RayError", "RayTaskError", "ray"]


def why_lost(error: Exception) -> str:
    """Return a clause that says what became of the process, from what Ray raised."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return "its node ran out of memory"
    if isinstance(error, NodeDiedError) or "node has died" in text or "node was terminated" in text:
        return "its node was lost"
    return "its process died"
