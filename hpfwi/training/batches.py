"""Batches of pairs, read ahead by threads into memory that is used again and again.

A batch is cut into slots, and a slice is what one slot computes in one step. Which samples are in a slice is told by
`hpfwi.training.order` from (seed, epoch, step, slot) alone, so ranks need not agree on anything, may come and go
between steps, and a run is resumed in the middle of an epoch by naming where it was. The samples left over at the end
of an epoch are dropped on every rank alike.

Nothing is copied between processes and no memory is allocated on the way: threads read samples straight into a ring of
buffers, which are pinned where a GPU takes them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hpfwi.errors import ConfigError
from hpfwi.store.openfwi import PairStore
from hpfwi.training.order import batch_indices, order, slice_of, steps_per_epoch

__all__ = ["Batches", "LoaderSettings", "Slice", "batch_indices", "order", "slice_of", "steps_per_epoch"]

CACHE_LINE_BYTES = 64
MOST_AT_ONCE = 16
"""Samples that a thread reads before it looks for other work: enough that asking for them together pays on a disk."""

Key = tuple[int, int, int]
"""(epoch, step, slot)."""


class LoaderSettings(BaseModel):
    """How a rank reads its samples; none of it changes which samples it gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=2, ge=1, description="Threads that read samples, in each rank.")
    buffers: int = Field(
        default=3, ge=2, description="Slices held in memory by each rank: one in use, the others read ahead."
    )


@dataclass(eq=False)
class Slice:
    """What one slot computes in one step; on a CPU its tensors are overwritten once it is released.

    indices     int64[sample], numbers of the samples in the store
    records     float32[sample, shot, time, receiver]
    models      float32[sample, 1, z, x], m/s
    """

    epoch: int
    step: int
    slot: int
    indices: NDArray[np.int64]
    records: torch.Tensor
    models: torch.Tensor
    _buffer: _Buffer | None = field(repr=False, default=None)


class _Buffer:
    """Memory for the largest slice."""

    def __init__(self, samples: int, store: PairStore, pinned: bool) -> None:
        self.records = _memory((samples, *store.records_shape), pinned)
        self.models = _memory((samples, 1, *store.model_shape), pinned)
        self.copied: torch.cuda.Event | None = None
        """Set when a GPU took the last content: until it happened the memory must not change."""


def _memory(shape: tuple[int, ...], pinned: bool) -> torch.Tensor:
    """Memory for float32 values, page-locked or else in pages as large as the system gives."""
    if pinned:
        return torch.empty(shape, pin_memory=True)
    size = 4 * math.prod(shape)
    # numpy asks for huge pages, torch does not; a copy by the kernel is a third slower where lines are not aligned.
    raw = np.empty(size + CACHE_LINE_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    return torch.from_numpy(raw[start : start + size].view(np.float32).reshape(shape))


@dataclass(frozen=True, eq=False)
class _Reading:
    """A slice on its way into a buffer."""

    buffer: _Buffer
    indices: NDArray[np.int64]
    parts: list[_Part]

    def wait(self) -> None:
        """Until no thread works on it."""
        for part in self.parts:
            if not part.future.cancelled():
                part.future.exception()


@dataclass(frozen=True, eq=False)
class _Part:
    """Some (row, sample) of a slice, which one thread reads."""

    places: list[tuple[int, int]]
    future: Future[None]


class Batches:
    """The slices of a set of pairs; may be used from several threads, and is closed in the end.

    store       the pairs
    samples     which of them, such as store.splits["train"]
    seed        of the order, from 0
    batch       samples of a step, over all slots
    slots       parts of a batch, fixed by the configuration and never by the number of ranks
    device      where slices are handed out: on a GPU by an asynchronous copy from pinned memory

    raises  ConfigError: samples outside the store, a batch larger than the set, more slots than samples in a batch
    """

    def __init__(
        self,
        store: PairStore,
        samples: range,
        *,
        seed: int,
        batch: int,
        slots: int = 1,
        settings: LoaderSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if samples.step != 1 or samples.start < 0 or samples.stop > store.samples:
            raise ConfigError(f"Samples {samples} are not all in {store.path}, which has 0 to {store.samples - 1}.")
        self.steps_per_epoch = steps_per_epoch(len(samples), batch)
        slice_of(np.arange(batch), slots - 1, slots)
        self._settings = settings or LoaderSettings()
        self._store, self._samples = store, samples
        self._seed, self._batch, self._slots = seed, batch, slots
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="hpfwi-reader")
        self._lock = threading.Lock()
        self._free: deque[_Buffer] = deque()
        self._buffers = 0
        self._readings: OrderedDict[Key, _Reading] = OrderedDict()
        self._waited_s = 0.0
        self._since: float | None = None
        self._prepared = False

    def indices(self, epoch: int, step: int, slot: int) -> NDArray[np.int64]:
        """Numbers in the store of the samples of a slice, int64[sample].

        raises  ConfigError: a step or a slot that does not exist
        """
        chosen = batch_indices(self._seed, epoch, step, self._batch, len(self._samples))
        return slice_of(chosen, slot, self._slots) + self._samples.start

    def iterate(self, epoch: int, step: int, *, epochs: int, slots: Sequence[int] | None = None) -> Iterator[Slice]:
        """Slices from (epoch, step) to the end of epoch number epochs - 1, step by step, read ahead.

        epoch, step     where to begin, both counted from 0; step may equal steps_per_epoch, the end of an epoch
        slots           those of this rank, in the order they are wanted; None means all

        A slice is released when the next one is asked for.

        raises  ConfigError: a step or slot that does not exist; DataError: a sample that cannot be read
        """
        wanted = range(self._slots) if slots is None else slots
        if not 0 <= step <= self.steps_per_epoch or not all(0 <= slot < self._slots for slot in wanted):
            raise ConfigError(
                f"Step {step} and slots {list(wanted)} are not all there: an epoch has {self.steps_per_epoch} steps of "
                f"{self._slots} slots."
            )
        keys = (
            (one, number, slot)
            for one in range(epoch, epochs)
            for number in range(step if one == epoch else 0, self.steps_per_epoch)
            for slot in wanted
        )
        ahead: OrderedDict[Key, None] = OrderedDict()
        try:
            while True:
                while len(ahead) < self._settings.buffers and (key := next(keys, None)) is not None:
                    ahead[key] = None
                for key in ahead:
                    self.request(*key)
                if not ahead:
                    return
                taken = self.take(*ahead.popitem(last=False)[0])
                try:
                    yield taken
                finally:
                    self.release(taken)
        finally:
            for key in ahead:
                self._forget(key)

    def request(self, epoch: int, step: int, slot: int) -> bool:
        """Begin to read a slice that will be taken; returns False where every buffer is in use.

        raises  ConfigError: a step or a slot that does not exist
        """
        key = (epoch, step, slot)
        with self._lock:
            if key in self._readings:
                return True
            if not self._free and self._buffers >= self._settings.buffers:
                return False
            self._readings[key] = self._begin(key, self._spare())
            return True

    def take(self, epoch: int, step: int, slot: int) -> Slice:
        """A slice, at once if it was requested in time, else after reading it; to be released after use.

        Where every buffer is in use, the oldest slice that was requested and not taken gives up its own.

        raises  ConfigError: a step or a slot that does not exist; DataError: a sample that cannot be read
        """
        key, begin = (epoch, step, slot), time.perf_counter()
        with self._lock:
            self._since = begin if self._since is None else self._since
            reading = self._readings.pop(key, None)
            crowded = self._buffers >= self._settings.buffers and not self._free
        if reading is None:
            if crowded:
                self._forget(None)
            with self._lock:
                reading = self._begin(key, self._spare())
        try:
            self._finish(reading)
        except BaseException:
            self._give_back(reading.buffer)
            raise
        finally:
            with self._lock:
                self._waited_s += time.perf_counter() - begin
        self._prepare_once()
        return self._hand_out(key, reading)

    def release(self, taken: Slice) -> None:
        """Let the memory of a slice be used again; a second call does nothing."""
        buffer, taken._buffer = taken._buffer, None
        if buffer is not None:
            self._give_back(buffer)

    @property
    def waited_s(self) -> float:
        """Seconds that callers of `take` waited for samples so far, summed over threads."""
        return self._waited_s

    @property
    def wait_share(self) -> float:
        """Share of the time since the first `take` in which a single caller waited for samples, 0 to 1."""
        passed = 0.0 if self._since is None else time.perf_counter() - self._since
        return min(self._waited_s / passed, 1.0) if passed > 0 else 0.0

    def close(self) -> None:
        """End the threads; what is being read is finished first, and a second call does nothing."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare_once(self) -> None:
        """Have a thread make the store ready for many samples, when the first slice no longer waits for it."""
        with self._lock:
            prepared, self._prepared = self._prepared, True
        if not prepared:
            self._pool.submit(self._store.prepare)

    def _spare(self) -> _Buffer:
        """A buffer that nobody uses; the caller holds the lock."""
        if self._free:
            return self._free.popleft()  # the one whose last copy to a GPU is the longest ago
        self._buffers += 1
        return _Buffer(-(-self._batch // self._slots), self._store, self._stream is not None)

    def _give_back(self, buffer: _Buffer) -> None:
        with self._lock:
            self._free.append(buffer)

    def _begin(self, key: Key, buffer: _Buffer) -> _Reading:
        """Start the threads on a slice; the caller holds the lock."""
        try:
            indices = self.indices(*key)
        except ConfigError:
            self._free.append(buffer)
            raise
        # Neighbours on the disk are read one after another, whatever their place in the batch. Lists, because numpy
        # lets go of the interpreter on the way and would queue for it behind the readers.
        samples = indices.tolist()
        rows = sorted(range(len(samples)), key=samples.__getitem__)
        pieces = min(max(self._settings.threads, -(-len(rows) // MOST_AT_ONCE)), len(rows))
        cuts = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        parts = []
        for first, last in pairwise(cuts):
            places = [(row, samples[row]) for row in rows[first:last]]
            parts.append(_Part(places, self._pool.submit(self._read, buffer, places)))
        return _Reading(buffer, indices, parts)

    def _finish(self, reading: _Reading) -> None:
        """Have a slice read to its end; who waits for it reads what no thread has begun.

        raises  DataError: a sample that cannot be read
        """
        try:
            for part in reversed(reading.parts):
                if part.future.cancel():
                    self._read(reading.buffer, part.places)
        finally:
            reading.wait()
        for part in reading.parts:
            if not part.future.cancelled():
                part.future.result()  # its error, if it has one

    def _read(self, buffer: _Buffer, places: Sequence[tuple[int, int]]) -> None:
        """Read some (row, sample) of a slice; runs in a thread of the pool."""
        if buffer.copied is not None:
            buffer.copied.synchronize()
        self._store.read_rows(places, buffer.records.numpy(), buffer.models.numpy()[:, 0])

    def _forget(self, key: Key | None) -> None:
        """Give up a slice that was requested and not taken; None means the oldest one."""
        with self._lock:
            if not self._readings:
                return
            if key is None:
                key = next(iter(self._readings))
            reading = self._readings.pop(key, None)
        if reading is not None:
            for part in reading.parts:
                part.future.cancel()
            reading.wait()
            self._give_back(reading.buffer)

    def _hand_out(self, key: Key, reading: _Reading) -> Slice:
        size = len(reading.indices)
        records, models = reading.buffer.records[:size], reading.buffer.models[:size]
        if self._stream is None:
            return Slice(*key, reading.indices, records, models, reading.buffer)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            records = records.to(self._device, non_blocking=True)
            models = models.to(self._device, non_blocking=True)
            reading.buffer.copied = self._stream.record_event()
        current.wait_stream(self._stream)
        for tensor in (records, models):
            tensor.record_stream(current)
        self._give_back(reading.buffer)
        return Slice(*key, reading.indices, records, models)
