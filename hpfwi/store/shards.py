"""Shards of a Zarr v3 array, written and read without zarr-python: one file a shard, one chunk a sample.

A shard file holds the chunks of its samples one after another, then an index of two little-endian uint64 per sample
(offset, bytes; twice 2^64 - 1 where a sample is absent) and the CRC-32C of that index: the `sharding_indexed` codec of
the Zarr v3 specification with its index at the end. zarr-python reads these files; hpfwi reads them itself, because a
sample is then one copy into memory that is there already, from any number of threads: a `preadv`, or a copy out of the
mapped file where that is expected to stay in the page cache (`benchmarks/loading.py` times both).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError

Compression = Literal["none", "lz4"]

ABSENT = 2**64 - 1
"""Offset and size of a chunk that was never written, in the index of a shard."""

OPEN_FILES = 256
"""Shard files kept open by a reader: two readers stay below the usual limit of 1024 open files a process."""

BLOSC_HEADER_BYTES = 16


@dataclass(frozen=True)
class Layout:
    """How an array is cut and stored.

    shape           of the array, samples first
    shard_samples   samples in a shard; the last shard may be shorter
    dtype           float32 or float16, little-endian on disk
    compression     "none", or "lz4": blosc with byte shuffle
    """

    shape: tuple[int, ...]
    shard_samples: int
    dtype: str = "float32"
    compression: Compression = "none"

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of a value on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample before compression."""
        size = self.stored.itemsize
        for length in self.shape[1:]:
            size *= length
        return size

    @property
    def shards(self) -> int:
        return -(-self.shape[0] // self.shard_samples)

    def samples_of(self, shard: int) -> range:
        """The samples that shard number `shard` holds.

        >>> Layout((250, 3), 100).samples_of(2)
        range(200, 250)
        """
        return range(shard * self.shard_samples, min((shard + 1) * self.shard_samples, self.shape[0]))

    def file_of(self, shard: int) -> str:
        """The file of a shard inside the array's folder.

        >>> Layout((250, 3, 4), 100).file_of(2)
        'c/2/0/0'
        """
        return "/".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])


def create_array(folder: Path, name: str, layout: Layout) -> None:
    """Write the zarr.json of an empty array into `folder/name`, by zarr-python itself."""
    import zarr
    from zarr.codecs import BloscCodec

    lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=layout.stored.itemsize)
    # A chunk that goes missing reads as the fill value elsewhere: NaN is noticed, zeros would pass for quiet records.
    zarr.create_array(
        str(folder / name),
        shape=layout.shape,
        chunks=(1, *layout.shape[1:]),
        shards=(layout.shard_samples, *layout.shape[1:]),
        dtype=layout.dtype,
        compressors=[lz4] if layout.compression == "lz4" else None,
        fill_value=float("nan"),
    )


def read_layout(folder: Path) -> Layout:
    """The layout of an array from its zarr.json.

    raises  DataError: no zarr.json, or an array that is cut, coded or ordered in another way than hpfwi writes
    """
    try:
        node = json.loads((folder / "zarr.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / 'zarr.json'} cannot be read ({error}): make the store again.") from error
    try:
        shape = tuple(int(length) for length in node["shape"])
        shard = tuple(int(length) for length in node["chunk_grid"]["configuration"]["chunk_shape"])
        (sharding,) = node["codecs"]
        configuration = sharding["configuration"]
        codecs = [codec["name"] for codec in configuration["codecs"]]
        known = (
            node["node_type"] == "array"
            and node["zarr_format"] == 3
            and node["data_type"] in ("float32", "float16")
            and node["chunk_grid"]["name"] == "regular"
            and node["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and sharding["name"] == "sharding_indexed"
            and tuple(configuration["chunk_shape"]) == (1, *shape[1:])
            and shard[1:] == shape[1:]
            and min(*shape, *shard) > 0
            and codecs in (["bytes"], ["bytes", "blosc"])
            and configuration["codecs"][0]["configuration"]["endian"] == "little"
            and [codec["name"] for codec in configuration["index_codecs"]] == ["bytes", "crc32c"]
            and configuration["index_location"] == "end"
        )
        found = Layout(shape, shard[0], str(node["data_type"]), "lz4" if "blosc" in codecs else "none")
    except (KeyError, TypeError, ValueError, IndexError):
        known = False
    if not known:
        raise DataError(
            f"{folder} is a Zarr array, but not one that hpfwi writes (v3, one sample a chunk, sharded, float32 or "
            "float16, uncompressed or blosc): make the store again with this program."
        )
    return found


def write_shard(file: Path, values: NDArray[Any], layout: Layout) -> tuple[int, str]:
    """Write one shard file whole, flushed and by rename; returns its bytes and its sha256.

    values  [sample, …] of the samples of this shard, in the order of the index

    raises  OSError: the disk refuses; nothing is then under the final name
    """
    values = np.ascontiguousarray(values, dtype=layout.stored)
    chunks: list[Any] = [memoryview(sample).cast("B") for sample in values]
    if layout.compression == "lz4":
        from numcodecs.blosc import Blosc  # type: ignore[import-untyped]

        codec = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)
        chunks = [codec.encode(sample) for sample in values]
    index = np.full((layout.shard_samples, 2), ABSENT, dtype="<u8")
    sizes = np.array([len(chunk) for chunk in chunks], dtype="<u8")
    index[: len(chunks), 0] = np.cumsum(sizes) - sizes
    index[: len(chunks), 1] = sizes
    table = index.tobytes()
    return write_flushed(file, [*chunks, table, google_crc32c.value(table).to_bytes(4, "little")])


def write_flushed(file: Path, pieces: list[Any]) -> tuple[int, str]:
    """Write bytes under a temporary name, flush them to the disk, rename; returns their number and sha256."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as handle:
            for piece in pieces:
                handle.write(piece)
                digest.update(piece)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(file.parent)
    return sum(len(piece) for piece in pieces), digest.hexdigest()


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        self._rows: NDArray[np.float32] | None = None
        if self._mapping is not None and self.index == [(row * size, size) for row in range(samples)]:
            self._rows = self._map[: samples * size].view(layout.stored).reshape(samples, *layout.shape[1:])

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

    def read_rows(self, places: Sequence[tuple[int, int]], out: NDArray[np.float32]) -> None:
        """Read samples into rows of `out`, C-contiguous float32[row, …]: `read_into` for many at a time.

        places  (row, sample), best in the order of the samples

        raises  DataError: as `read_into`
        """
        if not (self.mapped and self._direct):
            for row, sample in places:
                self.read_into(sample, out[row])
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

    def _unpack(self, packed: memoryview, values: memoryview, path: Path, row: int) -> None:
        from numcodecs.blosc import decompress

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
