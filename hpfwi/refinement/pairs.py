"""Refined pairs as a store that training reads, shard by shard, on any number of workers.

A sample is a pure function of the network's weights, the settings and its records, and shards are fixed by the number
of samples, so a store has the same bytes whoever refined which part of it, and however often it was interrupted.

OUT.zarr/refinement.csv   a row for each sample, see `hpfwi.refinement.table`
OUT.zarr/refinement.png   some of them, see `hpfwi.figures.refinement`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hpfwi import __version__
from hpfwi.errors import DataError
from hpfwi.parallel import ClusterError, ClusterSettings
from hpfwi.physics.device import Device
from hpfwi.refinement.refine import refine
from hpfwi.refinement.source import RefinementSource
from hpfwi.refinement.table import Row, finish_rows, write_rows
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import PairsWriter, create_pairs
from hpfwi.synthetic.dataset import FEWEST_SHARDS, ShardWriter, write_shards
from hpfwi.training.forward import in_mps

MOST_PER_SHARD = 8
"""Samples a shard at most: what an interruption costs, minutes on a core."""


def begin_refined(
    path: str | Path, source: RefinementSource, *, resume_with: str = "", on_gpu: bool = False
) -> PairsWriter:
    """Begin the store of refined pairs, or take up the one that was begun with the same weights, records and settings.

    resume_with, on_gpu  as in `begin_dataset`

    raises  DataError: another store in the way, or one begun with other weights or settings
    """
    store = source.store()
    return create_pairs(
        Path(path).absolute(),  # workers may start in another folder
        samples=len(source.samples),
        records_shape=store.records_shape,
        model_shape=store.model_shape,
        family=f"{store.family} refined",
        physics=store.physics,
        splits={"train": range(len(source.samples))},
        shard_samples=min(MOST_PER_SHARD, max(1, len(source.samples) // FEWEST_SHARDS)),
        provenance={"made_by": f"hpfwi {__version__}", **source.provenance}
        | ({"computed_on": "cuda"} if on_gpu else {}),
        resume_with=resume_with,
    )


def refine_pairs(
    writer: PairsWriter,
    source: RefinementSource,
    cluster: ClusterSettings,
    *,
    progress: Callable[[int, int], None] = lambda done, samples: None,
    say: Callable[[str], None] = lambda sentence: None,
    look: Callable[[], None] | None = None,
) -> tuple[PairStore, list[Row]]:
    """Refine what is missing of a store, finish it, and return it with what became of each sample.

    writer    from `begin_refined` with the same source
    cluster, progress, say   as in `hpfwi.synthetic.dataset.generate`
    look      called before every iteration where this process refines itself (`workers = 0`); what it raises ends that
              sample

    raises  DataError: a sample that cannot be refined or written, a network or records that were replaced
            hpfwi_cluster.errors.ClusterError: no workers; ConfigError: more GPUs asked for than there are
    """
    here = look if cluster.workers == 0 else None  # other processes are ended from outside
    try:
        store = write_shards(writer, partial(RefinementTask, writer, source, here), cluster, progress, say)
    except ClusterError as error:
        if DataError.__name__ in str(error):
            raise DataError(f"Refining cannot go on: {error}") from error
        raise
    return store, finish_rows(store.path)


class RefinementTask(ShardWriter):
    """A rank's part: an item is the number of a shard's first sample, its work is to refine and write the shard."""

    def __init__(
        self,
        writer: PairsWriter,
        source: RefinementSource,
        look: Callable[[], None] | None = None,
        device: Device = "auto",
    ) -> None:
        self.writer = writer
        self._source = source
        self._look = look or (lambda: None)
        self._store = source.store()
        self._trained = source.trained("cuda" if device == "cuda" else "cpu")
        shape = self._store.model_shape
        self._simulator = source.simulator(shape, device, exact=False)
        self._exact = source.simulator(shape, device, exact=True)

    def pairs(self, samples: range) -> tuple[np.ndarray, np.ndarray]:
        """Records float32[n, shot, time, receiver] and refined models float32[n, z, x] of some samples."""
        settings = self._source.settings
        records, true = self._store.read([self._source.samples[sample] for sample in samples])
        models = np.empty_like(true)
        rows = []
        for row, sample in enumerate(samples):
            # One at a time: in a batch, the others could change last bits.
            number = self._source.samples[sample]
            try:
                proposed = self._trained.predict(records[row : row + 1], first=number)
                proposal = in_mps(self._trained.config.training, proposed)[0]
                found = refine(proposal, records[row], self._simulator, settings, look=self._look)
            except DataError as error:
                raise DataError(f"Sample {number} of {self._store.path}: {error}") from error
            models[row] = found.velocity
            known = self._source.known and bool(np.ptp(true[row]) > 0)  # a constant stands for what nobody knows
            rows.append(Row.of(number, found, proposal, true[row] if known else None))
        if settings.records == "modelled":
            records = self._exact.records_of(models)
        write_rows(self.writer, samples.start, rows)
        return records, models
