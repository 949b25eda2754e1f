"""A run whose store of pairs lies elsewhere by now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpfwi.errors import DataError
from hpfwi.store.openfwi import open_pairs
from hpfwi.training.trained import load_train_config_of, require_same_pairs, trained_on

if TYPE_CHECKING:
    from hpfwi.run_folder import RunFolder


def move_pairs(folder: RunFolder, data: Path) -> None:
    """Write into a run's configuration where its pairs lie now; nothing is written where they are others.

    raises      DataError: other pairs than the run began with, or a copy without all files; a run that does not say
                which it began with
    """
    run, place = folder.path, data.expanduser().resolve()
    config, _ = load_train_config_of(run)
    store = open_pairs(place)
    if trained_on(run).sha256 is None:
        raise DataError(
            f"{run} does not say which pairs it began with, so that {data} may hold others: put its own back at "
            f"{config.data.pairs}, or train anew."
        )
    require_same_pairs(run, store)
    absent = sorted(name for name in store.manifest["files"] if not (place / name).is_file())
    if absent:
        raise DataError(
            f"{data} lacks {len(absent)} of the store's {len(store.manifest['files'])} files, such as {absent[0]}: "
            "copy it whole."
        )
    if config.data.pairs != str(place):
        folder.configure(config.model_copy(update={"data": config.data.model_copy(update={"pairs": str(place)})}))
        folder.event("moved", pairs=str(place))
