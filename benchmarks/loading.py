"""Time shuffled batches from a hpfwi store against .npy files, HDF5 and zarr-python: `python benchmarks/loading.py`.

Every code fills the same batches, float32[batch, 5, 1000, 70] with their models, and is checked to fill them with the
same values first. Runs alternate, so a disturbance of the machine meets all of them. Processor time is that of all
threads and says what a sample costs where other programs want the same cores.

hpfwi           `Batches` as training uses it, an epoch a run; the store is mapped where it fits into half of the memory
hpfwi, preadv   the same with a store that is not mapped
memmap          numpy.load(mmap_mode="r") indexed by the samples of a batch, as it is mostly written: new memory each
                time
memmap, reused  the same sample by sample into one batch of memory, on as many threads as hpfwi, after every page was
                touched
h5py            one chunk a sample, read_direct sample by sample into memory that is there
zarr            zarr-python on hpfwi's own store, sample by sample
zarr, indices   zarr-python on hpfwi's own store, a whole batch as an array of indices

The last three are timed on one thread only: each holds a lock, or has one event loop.

The page cache is filled by reading: pages that were just written lie together in it and are read faster than the same
file on any other day.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.store.openfwi import open_pairs
from hpfwi.store.openfwi_families import FAMILIES, MODEL_SHAPE, RECORDS_SHAPE, physics_of
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.batches import Batches, LoaderSettings, batch_indices

if TYPE_CHECKING:
    from benchmarks import peers
else:
    import peers  # run as a script, this folder is where Python looks first

RESULTS = Path(__file__).parent / "results"
SEED = 1
FILE_SAMPLES = 500
"""Samples in a published .npy file."""

FIRST_BATCHES = 5
"""New processes that are timed to their first batch, for each size."""

WARM_UPS = 3
"""Epochs that touch each buffer of hpfwi's ring once, also where an epoch is one batch."""

# Samples that a run reads at most, and the largest batch: zarr-python takes up to 70 ms for a sample.
MOST = {"zarr": 64, "zarr, indices": 20}
THREADED = ("hpfwi", "hpfwi, preadv", "memmap, reused")

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
        with h5py.File(folder / "pairs.h5", "w") as file:
            for name, shape in (("records", RECORDS_SHAPE), ("models", MODEL_SHAPE)):
                file.create_dataset(name, (samples, *shape), "f4", chunks=(1, *shape))
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
def open_h5py(folder: Path, batch: int, threads: int) -> Iterator[Run]:
    """read_direct of each sample."""
    with optional("h5py").File(folder / "pairs.h5", "r") as file:
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
    "h5py": open_h5py,
    "zarr": open_zarr,
    "zarr, indices": open_zarr_indices,
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    batch: int
    threads: int


def agree(folder: Path, codes: Sequence[str], batch: int) -> None:
    """Raise RuntimeError unless every code fills the first batches with what the store holds, bit for bit."""
    store = open_pairs(folder / "pairs.zarr")

    def compare(indices: NDArray[np.int64], records: NDArray[np.float32], models: NDArray[np.float32]) -> None:
        expected = store.read(indices)
        if not (np.array_equal(records, expected[0]) and np.array_equal(models, expected[1])):
            raise RuntimeError("A batch differs from the store's own samples: no ratio is worth printing.")

    for code in codes:
        with CODES[code](folder, batch, 2) as run:
            run(2 * batch, compare)


def look(indices: NDArray[np.int64], records: NDArray[np.float32], models: NDArray[np.float32]) -> None:
    """What a consumer does at least: touch the batch."""
    float(records[0, 0, 0, 0] + models[-1, -1, -1])


def bench(folder: Path, case: Case, codes: Sequence[str], samples: int, repeats: int) -> dict[str, Any]:
    """Samples per second of every run, wall clock and processor, codes alternating."""
    wall: dict[str, list[float]] = {code: [] for code in codes}
    processor: dict[str, list[float]] = {code: [] for code in codes}
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        runs = {code: stack.enter_context(CODES[code](folder, case.batch, case.threads)) for code in codes}
        for code, run in runs.items():
            for _ in range(WARM_UPS if code.startswith("hpfwi") else 1):
                run(min(samples, MOST.get(code, samples)), look)
        for repeat in range(repeats):
            for code in list(codes) if repeat % 2 == 0 else list(codes)[::-1]:
                begin, begin_processor = time.perf_counter(), time.process_time()
                read = runs[code](min(samples, MOST.get(code, samples)), look)
                seconds, used = time.perf_counter() - begin, time.process_time() - begin_processor
                wall[code].append(read / seconds)
                processor[code].append(1e3 * used / read)
    middle = {code: statistics.median(values) for code, values in wall.items()}
    spent = {code: statistics.median(values) for code, values in processor.items()}
    return {
        "batch": case.batch,
        "threads": case.threads,
        "load": load,
        "samples_per_s": wall,
        "median_samples_per_s": middle,
        "fastest_samples_per_s": {code: max(values) for code, values in wall.items()},
        "processor_ms_per_sample": spent,
        "ratio": {code: middle["hpfwi"] / middle[code] for code in codes if code != "hpfwi"},
        "ratio_of_fastest": {code: max(wall["hpfwi"]) / max(wall[code]) for code in codes if code != "hpfwi"},
        "ratio_of_processor": {code: spent[code] / spent["hpfwi"] for code in codes if code != "hpfwi"},
    }


FIRST_BATCH = """
import time
begin = time.perf_counter()
import sys
from hpfwi.store.openfwi import open_pairs
from hpfwi.training.batches import Batches
imported = time.perf_counter()
store = open_pairs(sys.argv[1])
with Batches(store, range(store.samples), seed=1, batch=int(sys.argv[2])) as batches:
    batches.take(0, 0, 0)
    print(imported - begin, time.perf_counter() - imported)
"""


def first_batch(folder: Path, batch: int) -> dict[str, Any]:
    """Seconds to the first batch in a new process, from the disk: for the imports, and from opening the store on."""
    command = [sys.executable, "-c", FIRST_BATCH, str(folder / "pairs.zarr"), str(batch)]
    imports, rests = [], []
    for _ in range(FIRST_BATCHES):
        forget(folder)
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        imports.append(float(told[0]))
        rests.append(float(told[1]))
    middle = statistics.median(rests)
    return {"batch": batch, "imports_s": statistics.median(imports), "open_to_batch_s": middle, "all_s": rests}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The table's lines for one case: the ratio is hpfwi's rate over the code's, so above 1 hpfwi is faster."""
    for code, rate in result["median_samples_per_s"].items():
        spread = max(result["samples_per_s"][code]) - min(result["samples_per_s"][code])
        ratios = [result[kind].get(code) for kind in ("ratio", "ratio_of_fastest", "ratio_of_processor")]
        shown = "  ".join(f"{ratio:>7.2f}" if ratio else " " * 7 for ratio in ratios)
        spent = result["processor_ms_per_sample"][code]
        yield (
            f"{result['batch']:>5}  {result['threads']:>7}  {code:<15}{rate:>10.0f}  "
            f"{spread / 2:>7.0f}  {spent:>6.2f}  {shown}"
        )


HEADER = "batch  threads  code            samples/s        ±  cpu ms    ratio  fastest      cpu"  # of one sample


def conditions(threads: Sequence[int], samples: int) -> dict[str, str]:
    """Hardware, load, versions and the amount of data."""
    found = peers.conditions(max(threads)) | {"samples": str(samples), "bytes": f"{samples * 1.4196e6:.3g}"}
    for package in ("zarr", "numcodecs", "h5py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Read the options, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400, help="pairs of 1.42 MB, each format holds them all (400)")
    parser.add_argument("--batches", nargs="+", type=int, default=[20, 64, 256], help="batch sizes (20 64 256)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="reader threads (1 2)")
    parser.add_argument("--codes", nargs="+", choices=list(CODES), default=list(CODES))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (5)")
    parser.add_argument("--folder", type=Path, help="where the data go, and are deleted from (a temporary folder)")
    parser.add_argument("--json", type=Path, help="where to write (benchmarks/results/loading_<hardware>_<date>)")
    options = parser.parse_args()
    codes = ["hpfwi", *(code for code in options.codes if code != "hpfwi")]
    if "h5py" in codes and optional("h5py") is None:
        print("h5py is not installed and is left out; `pip install h5py` lets it take part.")
        codes.remove("h5py")
    about = conditions(options.threads, options.samples)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    results = []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="loading-", dir=options.folder))
        stack.callback(shutil.rmtree, folder)
        make_data(folder, options.samples)
        agree(folder, codes, 20)
        first = [first_batch(folder, batch) for batch in options.batches]
        for one in first:
            print(
                f"first batch of {one['batch']} from the disk: {one['open_to_batch_s']:.2f} s (fastest "
                f"{min(one['all_s']):.2f}) and {one['imports_s']:.1f} s of imports"
            )
        print(HEADER)
        for threads in options.threads:
            for batch in options.batches:
                timed = [
                    code
                    for code in codes
                    if batch <= MOST.get(code, batch) and (threads == options.threads[0] or code in THREADED)
                ]
                result = bench(folder, Case(batch, threads), timed, options.samples, options.repeats)
                print(*lines(result), sep="\n", flush=True)
                results.append(result)
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{about['cpu']} {about['cores']} cores".lower()).strip("-")
    path = options.json or RESULTS / f"loading_{hardware}_{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": about, "first_batch": first, "results": results}, indent=1) + "\n")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
