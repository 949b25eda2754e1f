"""Invert or train in a run folder, anew or going on, with items that take long enough to be disturbed.

python slow_run.py invert|train FOLDER [NAME=VALUE ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from hpfwi import parallel
from hpfwi.config import load_config
from hpfwi.errors import HpfwiError
from hpfwi.inversion.invert import invert
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop, on_signals
from hpfwi.store.openfwi import open_pairs
from hpfwi.training.settings import load_train_config, resolved
from hpfwi.training.train import train

ITEM_S = 0.15
"""Time that an item takes beside its own."""


class Slow:
    """A replica whose items take their time."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def compute(self, item: int) -> Any:
        time.sleep(ITEM_S)
        return self._task.compute(item)


class SlowFactory:
    """Build such a replica; travels to the workers by value, as everything in the file that is run."""

    def __init__(self, build: Any) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Slow:
        return Slow(self._build(*arguments))


def main(verb: str, folder: Path, options: list[str]) -> int:
    """Return the exit code of the command."""
    parallel._build = SlowFactory(parallel._build)  # type: ignore[assignment]
    parallel._build_training = SlowFactory(parallel._build_training)  # type: ignore[assignment]
    load: Any = load_config if verb == "invert" else load_train_config
    go: Any = invert if verb == "invert" else train
    resume = (folder / "config.toml").is_file()
    config, _ = load(folder / "config.toml" if resume else "demo" if verb == "invert" else None, options)
    if verb == "train":
        config = resolved(config, open_pairs(config.data.pairs))
    stop = Stop()
    try:
        with (
            on_signals(stop, print),
            RunFolder.open(folder)
            if resume
            else RunFolder.create(config, folder.name, parent=folder.parent, environment={}) as run,
        ):
            go(config, run, resume=resume, stop=stop)
    except HpfwiError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
