"""A data set of pairs made here: velocity maps and their records, shard by shard, on any number of workers.

Maps are drawn (`DatasetSettings`, a family of `families`) or cut out of a large model (`slices`). Sample i is a pure
function of the source of maps, of i and of how records are made, and shards are fixed by the settings, so a store has
the same bytes whoever wrote which part of it, and however often it was interrupted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpfwi import __version__
from hpfwi.errors import ConfigError
from hpfwi.options import options_of
from hpfwi.parallel import ClusterSettings, GroupLost, ItemResult, State, placed, start_generation
from hpfwi.physics.device import Device, usable_gpus
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import PairsWriter, create_pairs, shard_samples_for
from hpfwi.store.shards import Compression
from hpfwi.synthetic.families import SEG_SHAPE, default_shape, velocity_map

FEWEST_SHARDS = 50
"""Shards of a data set of at least so many samples: enough for some workers to share evenly."""

SEG_MODELLING = OpenFwiSettings(shots=29, steps=2000, keep_every=5)
"""The SEG salt sets' geometry: 29 shots, 2 s stored as every fifth of 2000 samples."""

POLL_S = 0.5
"""Time between two looks at how many shards are whole."""


class MapSource(Protocol):
    """Numbered velocity maps, and how their records are made; can be pickled."""

    @property
    def family(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def splits(self) -> dict[str, range]: ...
    @property
    def modelling(self) -> OpenFwiSettings: ...
    @property
    def provenance(self) -> dict[str, Any]:
        """Plain JSON values that tell these maps from all others."""

    def velocity(self, sample: int) -> NDArray[np.float32]:
        """Map of a sample, float32[z, x], m/s; the same whoever asks."""


class DatasetSettings(BaseModel):
    """What a generated data set holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(description="Family of the velocity maps, such as curvefault-b.")
    samples: int = Field(ge=1, description="Pairs in the whole set.")
    seed: int = Field(default=0, ge=0, description="Chooses another series of maps.")
    shape: tuple[int, int] = Field(description="Rows and columns of the maps.")
    test_samples: int = Field(default=0, ge=0, description="Pairs at the end that make up the split `test`.")
    modelling: OpenFwiSettings = Field(default=OpenFwiSettings(), description="How records are made.")

    @property
    def splits(self) -> dict[str, range]:
        """Samples of each split by name."""
        train = max(self.samples - self.test_samples, 0)
        splits = {"train": range(train), "test": range(train, self.samples)}
        return {name: split for name, split in splits.items() if split}

    @property
    def provenance(self) -> dict[str, Any]:
        """What the maps are a function of."""
        return {"family": self.family, "seed": self.seed}

    def velocity(self, sample: int) -> NDArray[np.float32]:
        """Map of a sample, float32[z, x], m/s; raises ConfigError where it cannot be drawn."""
        return velocity_map(self.family, self.shape, self.seed, sample)


def family_modelling(family: str, overrides: Sequence[str] = ()) -> OpenFwiSettings:
    """How the records of a family's published sets were made, with some options changed; see `modelling_with`.

    >>> family_modelling("curvevel-a", ["steps=500"]).steps
    500
    """
    preset = SEG_MODELLING if default_shape(family) == SEG_SHAPE else OpenFwiSettings()
    return modelling_with(overrides, preset)


def modelling_with(overrides: Sequence[str], preset: OpenFwiSettings | None = None) -> OpenFwiSettings:
    """How records are made, with some options changed.

    overrides  "name=value" of an option of `OpenFwiSettings`
    preset     what the others are; None takes those of OpenFWI
    raises     ConfigError: no such option, a value that it cannot take
    """
    preset = OpenFwiSettings() if preset is None else preset
    known = options_of(preset)
    values = preset.model_dump()
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in known:
            raise ConfigError(f"{override}: {name} is not an option of the modelling; there are {', '.join(known)}.")
        try:
            values = OpenFwiSettings.model_validate(values | {name: text}).model_dump()
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            about = known[name].description.rstrip(".")
            raise ConfigError(f"{override} cannot be used ({about}): {reason}.") from None
    return OpenFwiSettings.model_validate(values)


def begin_dataset(
    path: str | Path,
    settings: MapSource,
    *,
    dtype: str = "float32",
    compression: Compression = "none",
    shard_samples: int | None = None,
    resume_with: str = "",
    on_gpu: bool = False,
) -> PairsWriter:
    """Begin the store of a data set, or take up the one that was begun with the same settings.

    dtype, compression, resume_with  as in `create_pairs`
    shard_samples                    samples a shard; None takes as many as `create_pairs`, or fewer for 50 shards
    on_gpu                           whether GPUs will compute it: their last digits are others, so a store that was
                                     begun on the one is not gone on with on the other

    raises  ConfigError, DataError: no such family, settings that cannot be modelled, another store in the way
            hpfwi_kernels.errors.StabilityError: a time step too long for such cells
    """
    simulator = OpenFwiSimulator(settings.shape, settings.modelling)
    settings.velocity(0)  # refuses what cannot be drawn
    shots, times, receivers = simulator.records_shape
    if shard_samples is None:
        largest = shard_samples_for(settings.samples, 4 * shots * times * receivers)
        shard_samples = min(largest, max(1, settings.samples // FEWEST_SHARDS))
    return create_pairs(
        # Workers may start in another folder.
        Path(path).absolute(),
        samples=settings.samples,
        records_shape=simulator.records_shape,
        model_shape=settings.shape,
        family=settings.family,
        physics=simulator.physics,
        splits=settings.splits,
        dtype=dtype,
        compression=compression,
        shard_samples=shard_samples,
        provenance={"made_by": f"hpfwi {__version__}", **settings.provenance}
        | ({"computed_on": "cuda"} if on_gpu else {}),
        resume_with=resume_with,
    )


def generate(
    writer: PairsWriter,
    settings: MapSource,
    cluster: ClusterSettings,
    *,
    progress: Callable[[int, int], None] = lambda done, samples: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> PairStore:
    """Write what is missing of a data set and finish its store.

    writer    from `begin_dataset` with the same settings
    cluster   who computes; "auto" counts this machine's GPUs
    progress  called now and then, from another thread too, with the samples that are whole and all of them
    say       called with a sentence for every worker that was lost

    raises  hpfwi_cluster.errors.ClusterError: no workers, or a shard that cannot be computed or written
            ConfigError: more GPUs asked for than there are
    """
    return write_shards(writer, partial(ShardTask, writer, settings), cluster, progress, say)


def write_shards(
    writer: PairsWriter,
    task: Callable[[Device], ShardWriter],
    cluster: ClusterSettings,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> PairStore:
    """Have workers write the shards that a store misses, and finish it.

    task      builds what a rank does on such a device; picklable where there are workers
    cluster, progress, say, raises   as `generate`
    """
    missing = writer.missing()
    cluster = placed(cluster, usable_gpus(), busy=len(missing))
    factory = partial(task, cluster.device)
    if missing:
        with start_generation(factory, cluster) as group, _watched(writer, progress):
            while missing:
                costs = [float(len(shard)) for shard in missing]
                try:
                    result = group.run(0, [shard.start for shard in missing], costs)
                except GroupLost as error:
                    say(str(error))
                    group.load_state({})
                else:
                    for sentence in result.lost:
                        say(sentence)
                missing = writer.missing()
    return writer.finish()


class ShardWriter:
    """A rank's part in a store: an item is the number of a shard's first sample, its work is to write the shard."""

    writer: PairsWriter

    def begin(self, iteration: int) -> None:
        """Nothing to get ready."""

    def compute(self, item: int) -> ItemResult:
        """Make the samples of a shard and write it."""
        # The items of a lost worker come back, but what it had written is there.
        for shard in self.writer.missing():
            if shard.start == item:
                self.writer.write(item, *self.pairs(shard))
        return ItemResult(np.zeros(1), {})

    def pairs(self, samples: range) -> tuple[np.ndarray, np.ndarray]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x] of some samples."""
        raise NotImplementedError

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        """Nothing to advance."""

    def state(self) -> State:
        """Nothing but what is on the disk."""
        return {}

    def load_state(self, state: State) -> None:
        """Nothing to take over."""


class ShardTask(ShardWriter):
    """A rank's part in a generated data set: maps of a source, and their records."""

    def __init__(self, writer: PairsWriter, settings: MapSource, device: Device = "auto") -> None:
        self.writer = writer
        self._settings = settings
        self._simulator = OpenFwiSimulator(settings.shape, settings.modelling, device=device)

    def pairs(self, samples: range) -> tuple[np.ndarray, np.ndarray]:
        settings = self._settings
        models = np.empty((len(samples), *settings.shape), np.float32)
        for row, sample in enumerate(samples):
            models[row] = settings.velocity(sample)
        return self._simulator.records_of(models), models


@contextmanager
def _watched(writer: PairsWriter, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Report how many samples are whole on the disk while the block runs, whoever wrote them."""
    samples = int(writer.plan["samples"])
    over = threading.Event()

    def watch() -> None:
        while True:
            begin = time.monotonic()
            progress(samples - sum(map(len, writer.missing())), samples)
            # A look costs more the more shards there are; it must stay a small share of the time.
            if over.wait(max(POLL_S, 20.0 * (time.monotonic() - begin))):
                return

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        progress(samples - sum(map(len, writer.missing())), samples)
