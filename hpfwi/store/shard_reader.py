"""Samples of a sharded Zarr array, read without zarr-python: each is one copy into memory that is there already.

Any number of threads may read: with `preadv`, or out of the mapped file where that is expected to stay in the page
cache (`benchmarks/loading.py` times both). The checksum of a shard's index is always checked, once, when the shard is
opened.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.shards import ABSENT, Layout

OPEN_FILES = 256
"""Shard files kept open by a reader: two readers stay below the usual limit of 1024 open files a process."""

BLOSC_HEADER_BYTES = 16

LARGE_BYTES = 1 << 18
"""Mapped samples of this size and more are copied past the caches where many are read: they would push out what a
training step works on, and be pushed out themselves before it comes to them."""


class _ShardFile:
    """An open shard file and its checked index; closed when nobody reads from it any more."""

    def __init__(self, path: Path, layout: Layout, samples: int, mapped: bool) -> None:
        self.path = path
        self._handle = -1
        self._mapping: mmap.mmap | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY)
            size = os.fstat(self._handle).st_size
            if mapped and size:
                self._mapping = mmap.mmap(self._handle, size, access=mmap.ACCESS_READ)
                self._map = np.frombuffer(self._mapping, dtype=np.uint8)
                os.close(self._handle)  # the mapping has one of its own
                self._handle = -1
        except OSError as error:
            raise DataError(f"Shard {path} cannot be opened ({error.strerror}): make the store again.") from error
        room = size - 16 * layout.shard_samples - 4
        if room < 0:
            raise DataError(f"Shard {path} has {size} bytes, fewer than its index alone: it is truncated.")
        table = bytearray(size - room)
        self.read(memoryview(table), room)
        if google_crc32c.value(bytes(table[:-4])) != int.from_bytes(table[-4:], "little"):
            raise DataError(
                f"The index of shard {path} does not match its checksum: the file is damaged; `hpfwi data verify` "
                "finds every such file."
            )
        index = np.frombuffer(table, dtype="<u8", count=2 * layout.shard_samples).reshape(-1, 2)
        self.index: list[tuple[int, int]] = [(offset, length) for offset, length in index[:samples].tolist()]
        for row, (offset, length) in enumerate(self.index):
            if offset == ABSENT:
                raise DataError(f"Shard {path} does not hold its sample {row}: make the store again.")
            wrong = layout.compression == "none" and length != layout.sample_bytes
            if wrong or offset + length > room:
                raise DataError(
                    f"Sample {row} of shard {path} claims bytes {offset} to {offset + length} of a file with {room}, "
                    f"and a sample has {layout.sample_bytes} before compression: the file is damaged."
                )
        size = layout.sample_bytes
        self.address = 0
        """Of the mapped samples, where `rows` has them."""
        self._rows: NDArray[np.float32] | None = None
        if self._mapping is not None and self.index == [(row * size, size) for row in range(samples)]:
            self._rows = self._map[: samples * size].view(layout.stored).reshape(samples, *layout.shape[1:])
            self.address = self._rows.ctypes.data

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def expect(self, offset: int, length: int) -> None:
        """Have the system fetch bytes that will be read soon; a wish that it may ignore."""
        if self._mapping is None:
            # Where they are in memory already, the wish alone would cost most of what reading them does.
            if not self._in_memory(offset + length // 2):
                os.posix_fadvise(self._handle, offset, length, os.POSIX_FADV_WILLNEED)
            return
        start = offset - offset % mmap.PAGESIZE
        if offset + length <= len(self._mapping):
            self._mapping.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def _in_memory(self, offset: int) -> bool:
        """Whether a byte can be read without the disk; False where the file system does not tell."""
        try:
            return os.preadv(self._handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:
            return False

    def rows(self) -> NDArray[np.float32] | None:
        """The mapped samples, [sample, …], where they lie one after another; to be used at once.

        raises  DataError: the file is shorter than it was
        """
        if self._rows is not None:
            self._require(self._rows.nbytes)
        return self._rows

    def _require(self, size: int) -> None:
        # A page beyond the end of a file that was cut since would end the process.
        assert self._mapping is not None
        if self._mapping.size() < size:
            raise DataError(f"Shard {self.path} became shorter since it was opened: it was overwritten or damaged.")

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` from byte `offset` on."""
        if self._mapping is not None:
            self._require(offset + len(into))
            np.copyto(np.frombuffer(into, dtype=np.uint8), self._map[offset : offset + len(into)])
            return
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._handle, [into[done:]], offset + done)
            except OSError as error:
                raise DataError(f"Shard {self.path} cannot be read ({error.strerror}).") from error
            if got == 0:
                raise DataError(f"Shard {self.path} ends in the middle of a sample: the file is truncated.")
            done += got


class ShardReader:
    """Read samples of one array, from any thread; it can be pickled, and opens its files anew in the other process.

    mapped  files are mapped into memory, which pays for those that stay in the page cache
    """

    def __init__(self, folder: Path, layout: Layout, mapped: bool = False) -> None:
        self.folder = folder
        self.layout = layout
        self.mapped = mapped
        self._start()

    def _start(self) -> None:
        # Looked up for every sample: properties that build a dtype would take as long as a small sample's copy.
        self._shard_samples = self.layout.shard_samples
        self._direct = self.layout.compression == "none" and self.layout.stored == np.float32
        self._sample_bytes = self.layout.sample_bytes
        self._copy_rows: Callable[[list[int], list[int], NDArray[np.float32]], None] | None = None
        self._files: OrderedDict[int, _ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        self._scratch = threading.local()
        self._expected = bytearray(self.layout.shape[0])
        self._unexpected = self.layout.shape[0]

    def __getstate__(self) -> tuple[Path, Layout, bool]:
        return (self.folder, self.layout, self.mapped)

    def __setstate__(self, state: tuple[Path, Layout, bool]) -> None:
        self.folder, self.layout, self.mapped = state
        self._start()

    def expect(self, samples: Sequence[int]) -> None:
        """Have the system fetch samples that will be read soon, unless they should be in memory since the last time.

        raises  DataError: a shard that is missing or damaged
        """
        if self._unexpected <= 0:
            return
        for sample in samples:
            if self._expected[sample]:
                continue
            if self.mapped:  # and expected to stay in the page cache
                self._expected[sample] = 1
                self._unexpected -= 1
            shard, row = divmod(sample, self._shard_samples)
            file = self._file(shard)
            file.expect(*file.index[row])

    def read_into(self, sample: int, out: NDArray[np.float32]) -> None:
        """Read one sample into `out`, a C-contiguous float32 array of the sample's shape.

        raises  DataError: the shard is missing, truncated or damaged, or the chunk does not hold what it claims
        """
        shard, row = divmod(sample, self._shard_samples)
        file = self._file(shard)
        offset, length = file.index[row]
        if self._direct:
            file.read(out.data.cast("B"), offset)
            return
        layout = self.layout
        values = self._room("values", layout.sample_bytes)
        if layout.compression == "none":
            file.read(values, offset)
        else:
            packed = self._room("packed", length)
            file.read(packed, offset)
            self._unpack(packed, values, file.path, row)
        out[...] = np.frombuffer(values, dtype=layout.stored).reshape(out.shape)

    def prepare(self) -> None:
        """Load the loop that copies large mapped samples past the caches, which takes half a second.

        Until then, and where it is not called, they are copied as all others are.
        """
        if self.mapped and self._direct and self._sample_bytes >= LARGE_BYTES and self._copy_rows is None:
            from hpfwi.store.past_caches import copy_rows

            two = np.zeros((2, 1), np.float32)
            copy_rows([two[1:].ctypes.data], [0], two)
            self._copy_rows = copy_rows

    def read_rows(self, places: Sequence[tuple[int, int]], out: NDArray[np.float32]) -> None:
        """Read samples into rows of `out`, C-contiguous float32[row, …]: `read_into` for many at a time.

        places  (row, sample), best in the order of the samples

        raises  DataError: as `read_into`
        """
        if not (self.mapped and self._direct):
            for row, sample in places:
                self.read_into(sample, out[row])
            return
        if self._copy_rows is not None:
            self._read_large(places, out, self._copy_rows)
            return
        opened, rows = -1, None
        for row, sample in places:
            shard, place = divmod(sample, self._shard_samples)
            if shard != opened:
                opened, rows = shard, self._file(shard).rows()
            if rows is None:
                self.read_into(sample, out[row])
            else:
                out[row] = rows[place]

    def _read_large(
        self,
        places: Sequence[tuple[int, int]],
        out: NDArray[np.float32],
        copy_rows: Callable[[list[int], list[int], NDArray[np.float32]], None],
    ) -> None:
        """`read_rows` by one call that copies them all."""
        files: dict[int, _ShardFile] = {}  # keeps them mapped until everything is copied
        sources, rows = [], []
        for row, sample in places:
            shard, place = divmod(sample, self._shard_samples)
            file = files.get(shard)
            if file is None:
                file = files[shard] = self._file(shard)
                file.rows()
            if file.address:
                sources.append(file.address + place * self._sample_bytes)
                rows.append(row)
            else:
                self.read_into(sample, out[row])
        copy_rows(sources, rows, out)

    def _unpack(self, packed: memoryview, values: memoryview, path: Path, row: int) -> None:
        from numcodecs.blosc import decompress  # type: ignore[import-untyped]

        # Checked before blosc sees it: bytes 4 to 8 of its header claim the unpacked size, 12 to 16 the packed one.
        claimed = int.from_bytes(packed[4:8], "little"), int.from_bytes(packed[12:16], "little")
        if len(packed) < BLOSC_HEADER_BYTES or claimed != (len(values), len(packed)):
            raise DataError(
                f"Sample {row} of shard {path} claims to unpack {claimed[1]} bytes to {claimed[0]}, but it has "
                f"{len(packed)} and a sample {len(values)}: the file is damaged."
            )
        try:
            decompress(packed, values)
        except (ValueError, RuntimeError) as error:
            raise DataError(f"Sample {row} of shard {path} cannot be unpacked ({error}): it is damaged.") from error

    def _room(self, name: str, size: int) -> memoryview:
        """Memory of this thread that is used again for the next sample."""
        held: bytearray | None = getattr(self._scratch, name, None)
        if held is None or len(held) < size:
            held = bytearray(size)
            setattr(self._scratch, name, held)
        return memoryview(held)[:size]

    def _file(self, shard: int) -> _ShardFile:
        with self._lock:
            found = self._files.get(shard)
            if found is not None:
                self._files.move_to_end(shard)
                return found
        layout = self.layout
        samples = len(layout.samples_of(shard))
        opened = _ShardFile(self.folder / layout.file_of(shard), layout, samples, self.mapped)
        with self._lock:
            self._files[shard] = opened
            while len(self._files) > OPEN_FILES:
                # Another thread may still read from it: it is closed when that thread lets go.
                self._files.popitem(last=False)
        return opened
