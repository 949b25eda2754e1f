"""The one place that imports Ray: token authentication on, usage statistics off, unless set otherwise."""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "ray" not in sys.modules:
    # Ray reads the mode once, on import. Set later it would reach the processes Ray starts, but not this one.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray.exceptions import RayActorError, RayTaskError

__all__ = ["RayActorError", "RayTaskError", "ray"]
