"""What fills the batches of `loading.py`: hpfwi's reader and its peers, each on data that hold the same values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.store.openfwi import open_pairs
from hpfwi.store.openfwi_families import FAMILIES, MODEL_SHAPE, RECORDS_SHAPE, physics_of
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.batches import Batches, LoaderSettings, batch_indices

SEED = 1
FILE_SAMPLES = 500
"""Samples in a published .npy file."""

HDF5 = {"pairs.h5": True, "contiguous.h5": False}
"""HDF5 files, and whether each has one chunk a sample."""

# Samples that a run reads at most, and the largest batch: zarr-python takes up to 70 ms for a sample.
MOST = {"zarr": 64, "zarr, indices": 20}

Check = Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]], None]
Run = Callable[[int, Check], int]
"""(samples at most, check) -> samples that were read; `check` is called with every batch."""
Open = Callable[[Path, int, int], AbstractContextManager[Run]]
"""(folder, batch, threads) -> what reads, ready for any number of runs."""


def make_data(folder: Path, samples: int) -> None:
    """Write the same pairs as a hpfwi store, as .npy files and, where h5py is there, as HDF5."""
    random = np.random.default_rng(SEED)
    writer = create_pairs(
        folder / "pairs.zarr",
        samples=samples,
        records_shape=RECORDS_SHAPE,
        model_shape=MODEL_SHAPE,
        family="FlatVel-A",
        physics=physics_of(FAMILIES[0], RECORDS_SHAPE, MODEL_SHAPE),
    )
    shards = []
    for some in writer.missing():
        records = random.standard_normal((len(some), *RECORDS_SHAPE), dtype=np.float32)
        models = random.uniform(1500, 4500, (len(some), *MODEL_SHAPE)).astype(np.float32)
        writer.write(some.start, records, models)
        shards.append(some)
    store = writer.finish()
    for number, first in enumerate(range(0, samples, FILE_SAMPLES), start=1):
        records, models = store.read(range(first, min(first + FILE_SAMPLES, samples)))
        np.save(folder / f"data{number}.npy", records)
        np.save(folder / f"model{number}.npy", models[:, None])
    h5py = optional("h5py")
    if h5py is not None:
        for file_name, chunked in HDF5.items():
            with h5py.File(folder / file_name, "w") as file:
                for name, shape in (("records", RECORDS_SHAPE), ("models", MODEL_SHAPE)):
                    file.create_dataset(name, (samples, *shape), "f4", chunks=(1, *shape) if chunked else None)
                for some in shards:
                    file["records"][some.start : some.stop], file["models"][some.start : some.stop] = store.read(some)
    os.sync()
    forget(folder)


def forget(folder: Path) -> None:
    """Take every file of the folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def optional(package: str) -> Any:
    """A module, or None where it is not installed."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        return None


@contextmanager
def open_hpfwi(folder: Path, batch: int, threads: int, mapped: bool | None = None) -> Iterator[Run]:
    """Batches read ahead by threads, a whole epoch in each run, so that nothing is read ahead for the next one."""
    store, settings = open_pairs(folder / "pairs.zarr", mapped=mapped), LoaderSettings(threads=threads)
    store.prepare()  # as a training run does after its first batch
    with Batches(store, range(store.samples), seed=SEED, batch=batch, settings=settings) as batches:

        def run(samples: int, check: Check) -> int:
            for taken in batches.iterate(0, 0, epochs=1):
                check(taken.indices, taken.records.numpy(), taken.models.numpy()[:, 0])
            return batches.steps_per_epoch * batch

        yield run


@contextmanager
def one_by_one(folder: Path, batch: int, threads: int, read: Callable[[int, Any, Any], None]) -> Iterator[Run]:
    """Batches whose samples `read` puts in their place, one after another on each thread, in the order of hpfwi's."""
    total = open_pairs(folder / "pairs.zarr").samples
    records, models = np.empty((batch, *RECORDS_SHAPE), np.float32), np.empty((batch, *MODEL_SHAPE), np.float32)
    with ThreadPoolExecutor(threads) as pool:

        def run(samples: int, check: Check) -> int:
            steps = max(1, min(samples, total) // batch)
            for step in range(steps):
                indices = batch_indices(SEED, 0, step, batch, total)

                def part(rows: NDArray[np.int64], indices: NDArray[np.int64] = indices) -> None:
                    for row in rows:
                        read(int(indices[row]), records[row], models[row])

                parts = np.array_split(np.argsort(indices).astype(np.int64), threads)
                if threads == 1:
                    part(parts[0])
                else:
                    list(pool.map(part, parts))
                check(indices, records, models)
            return steps * batch

        yield run


def mapped(folder: Path, kind: str) -> list[NDArray[np.float32]]:
    """The memory-mapped .npy files of one kind, in order."""
    files = range(1, 1 + len(list(folder.glob(f"{kind}*.npy"))))
    return [np.load(folder / f"{kind}{number}.npy", mmap_mode="r", allow_pickle=False) for number in files]


@contextmanager
def open_memmap(folder: Path, batch: int, threads: int) -> Iterator[Run]:
    """Batches as new arrays; where they come from one file, by numpy's own indexing."""
    records, models = mapped(folder, "data"), mapped(folder, "model")
    total = sum(len(file) for file in records)

    def pick(files: list[NDArray[np.float32]], indices: NDArray[np.int64]) -> NDArray[np.float32]:
        if len(files) == 1:
            return files[0][indices]
        return np.stack([files[sample // FILE_SAMPLES][sample % FILE_SAMPLES] for sample in indices])

    def run(samples: int, check: Check) -> int:
        steps = max(1, min(samples, total) // batch)
        for step in range(steps):
            indices = batch_indices(SEED, 0, step, batch, total)
            check(indices, pick(records, indices), pick(models, indices)[:, 0])
        return steps * batch

    yield run


@contextmanager
def open_memmap_reused(folder: Path, batch: int, threads: int) -> Iterator[Run]:
    """Copies out of memory-mapped .npy files."""
    records, models = mapped(folder, "data"), mapped(folder, "model")

    def read(sample: int, record: Any, model: Any) -> None:
        file, row = divmod(sample, FILE_SAMPLES)
        record[...], model[...] = records[file][row], models[file][row, 0]

    with one_by_one(folder, batch, threads, read) as run:
        yield run


@contextmanager
def open_h5py(folder: Path, batch: int, threads: int, name: str) -> Iterator[Run]:
    """read_direct of each sample."""
    with optional("h5py").File(folder / name, "r") as file:
        all_records, all_models = file["records"], file["models"]

        def read(sample: int, record: Any, model: Any) -> None:
            all_records.read_direct(record, np.s_[sample])
            all_models.read_direct(model, np.s_[sample])

        with one_by_one(folder, batch, 1, read) as run:
            yield run


@contextmanager
def open_zarr(folder: Path, batch: int, threads: int) -> Iterator[Run]:
    """zarr-python's array[sample]."""
    import zarr

    group: Any = zarr.open_group(str(folder / "pairs.zarr"), mode="r")
    all_records, all_models = group["records"], group["models"]

    def read(sample: int, record: Any, model: Any) -> None:
        record[...], model[...] = all_records[sample], all_models[sample]

    with one_by_one(folder, batch, 1, read) as run:
        yield run


@contextmanager
def open_zarr_indices(folder: Path, batch: int, threads: int) -> Iterator[Run]:
    """zarr-python's array.oindex[samples]."""
    import zarr

    group: Any = zarr.open_group(str(folder / "pairs.zarr"), mode="r")
    all_records, all_models = group["records"], group["models"]

    def run(samples: int, check: Check) -> int:
        steps = max(1, min(samples, all_records.shape[0]) // batch)
        for step in range(steps):
            indices = batch_indices(SEED, 0, step, batch, all_records.shape[0])
            check(indices, all_records.oindex[indices], all_models.oindex[indices])
        return steps * batch

    yield run


CODES: dict[str, Open] = {
    "hpfwi": open_hpfwi,
    "hpfwi, preadv": partial(open_hpfwi, mapped=False),
    "memmap": open_memmap,
    "memmap, reused": open_memmap_reused,
    "h5py": partial(open_h5py, name="pairs.h5"),
    "h5py, contiguous": partial(open_h5py, name="contiguous.h5"),
    "zarr": open_zarr,
    "zarr, indices": open_zarr_indices,
}
