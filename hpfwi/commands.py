"""The commands that messages name, written so that a shell takes them as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_on(verb: str, folder: Path) -> str:
    """A command on a run folder.

    >>> command_on("resume", Path("runs of June/demo"))
    "hpfwi resume 'runs of June/demo'"
    """
    return f"hpfwi {verb} {shlex.quote(str(folder))}"
