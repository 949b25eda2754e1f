"""From published files to a store of pairs, shard by shard, on threads; what is whole is never written twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_check import Pairs
from hpfwi.store.pair_writer import create_pairs
from hpfwi.store.shards import Compression


class PairSource(Pairs, Protocol):
    """Numbered samples that any thread can read; `store.openfwi_files` and `store.seg_files` have one each."""

    @property
    def provenance(self) -> dict[str, Any]: ...

    def origin(self, sample: int) -> str:
        """Where a sample comes from, for messages."""


def convert(
    source: PairSource,
    path: Path,
    *,
    dtype: str = "float32",
    compression: Compression = "none",
    shard_samples: int | None = None,
    threads: int = 2,
    made_by: str = "",
    progress: Callable[[int, int], None] = lambda done, samples: None,
) -> PairStore:
    """Write every sample of a source into a store, or those that are missing in one that was begun before.

    dtype, compression, shard_samples   as in `create_pairs`
    threads                             shards that are read, checked and written at the same time, each in memory
    made_by                             the command, for the message about an unfinished store
    progress                            called with the samples that are written and all of them

    raises  DataError: a source that cannot be read, samples that no store should hold, another store in the way
    """
    writer = create_pairs(
        path,
        samples=source.samples,
        records_shape=source.records_shape,
        model_shape=source.model_shape,
        family=source.family,
        physics=source.physics,
        splits=source.splits,
        dtype=dtype,
        compression=compression,
        shard_samples=shard_samples,
        provenance=source.provenance,
        resume_with=made_by,
    )

    def one(samples: range) -> int:
        records, models = source.read(samples)
        writer.write(samples.start, records, models, origin=source.origin)
        return len(samples)

    missing = writer.missing()
    done = source.samples - sum(map(len, missing))
    progress(done, source.samples)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        running = {pool.submit(one, samples) for samples in missing}
        try:
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    done += future.result()
                    progress(done, source.samples)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return writer.finish()
