"""Shards of a Zarr v3 array, written without zarr-python: one file a shard, one chunk a sample.

A shard file holds the chunks of its samples one after another, then an index of two little-endian uint64 per sample
(offset, bytes; twice 2^64 - 1 where a sample is absent) and the CRC-32C of that index: the `sharding_indexed` codec of
the Zarr v3 specification with its index at the end. zarr-python reads these files; hpfwi reads them itself (see
`hpfwi.store.shard_reader`).
"""

from __future__ import annotations

import hashlib
import json
import os
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
