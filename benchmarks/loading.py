"""Time shuffled batches from a hpfwi store against .npy files, HDF5 and zarr-python: `python benchmarks/loading.py`.

Every code fills the same batches, float32[batch, 5, 1000, 70] with their models, and is checked to fill them with the
same values first. Runs alternate, so a disturbance of the machine meets all of them. Processor time is that of all
threads and says what a sample costs where other programs want the same cores.

hpfwi               `Batches` as training uses it, an epoch a run; the store is mapped where it fits into half of the
                    memory
hpfwi, preadv       the same with a store that is not mapped
memmap              numpy.load(mmap_mode="r") indexed by the samples of a batch, as it is mostly written: new memory
                    each time
memmap, reused      the same sample by sample into one batch of memory, on as many threads as hpfwi, after every page
                    was touched
h5py                one chunk a sample, read_direct sample by sample into memory that is there
h5py, contiguous    the same from data sets that are not cut into chunks
zarr                zarr-python on hpfwi's own store, sample by sample
zarr, indices       zarr-python on hpfwi's own store, a whole batch as an array of indices

The last four are timed on one thread only: each holds a lock, or has one event loop. h5py takes part where it is
installed.

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.store.openfwi import open_pairs

if TYPE_CHECKING:
    from benchmarks import loading_codes, peers
    from benchmarks.loading_codes import CODES, MOST
else:
    import loading_codes  # run as a script, this folder is where Python looks first
    import peers
    from loading_codes import CODES, MOST

RESULTS = Path(__file__).parent / "results"
FIRST_BATCHES = 5
"""New processes that are timed to their first batch, for each size."""

WARM_UPS = 3
"""Epochs that touch each buffer of hpfwi's ring once, also where an epoch is one batch."""

THREADED = ("hpfwi", "hpfwi, preadv", "memmap, reused")
"""Codes that use more than one thread; the others are timed once."""


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


FIRST_BATCH = {
    "hpfwi": """
import time
begin = time.perf_counter()
import sys
from hpfwi.store.openfwi import open_pairs
from hpfwi.training.batches import Batches
imported = time.perf_counter()
store = open_pairs(sys.argv[1] + "/pairs.zarr")
with Batches(store, range(store.samples), seed=1, batch=int(sys.argv[2])) as batches:
    batches.take(0, 0, 0)
    print(imported - begin, time.perf_counter() - imported)
""",
    "memmap": """
import time
begin = time.perf_counter()
import sys
import numpy as np
from hpfwi.training.order import batch_indices
imported = time.perf_counter()
folder, batch = sys.argv[1], int(sys.argv[2])
records, models = (np.load(f"{folder}/{kind}1.npy", mmap_mode="r") for kind in ("data", "model"))
indices = batch_indices(1, 0, 0, batch, len(records))
taken = records[indices], models[indices]
print(imported - begin, time.perf_counter() - imported)
""",
    "whole": """
import sys
import time
begin = time.perf_counter()
with open(sys.argv[1] + "/data1.npy", "rb", buffering=0) as file:
    into, done = memoryview(bytearray(1420000 * int(sys.argv[2]))), 0
    begin_reading = time.perf_counter()
    while done < len(into) and (got := file.readinto(into[done:])):
        done += got
    print(begin_reading - begin, time.perf_counter() - begin_reading)
""",
}
"""Programs that print the seconds of their imports and those until they have a batch; `whole` reads as many bytes in
one piece, into memory that is there: what the disk gives."""


def first_batch(folder: Path, batch: int) -> dict[str, Any]:
    """Seconds to the first batch in a new process, from the disk: for the imports, and from opening the store on."""
    imports: dict[str, list[float]] = {code: [] for code in FIRST_BATCH}
    rests: dict[str, list[float]] = {code: [] for code in FIRST_BATCH}
    for _ in range(FIRST_BATCHES):
        for code, program in FIRST_BATCH.items():
            loading_codes.forget(folder)
            command = [sys.executable, "-c", program, str(folder), str(batch)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            imports[code].append(float(told[0]))
            rests[code].append(float(told[1]))
    return {
        "batch": batch,
        "imports_s": statistics.median(imports["hpfwi"]),
        "open_to_batch_s": {code: statistics.median(values) for code, values in rests.items()},
        "all_s": rests,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The table's lines for one case: the ratio is hpfwi's rate over the code's, so above 1 hpfwi is faster."""
    for code, rate in result["median_samples_per_s"].items():
        spread = max(result["samples_per_s"][code]) - min(result["samples_per_s"][code])
        ratios = [result[kind].get(code) for kind in ("ratio", "ratio_of_fastest", "ratio_of_processor")]
        shown = "  ".join(f"{ratio:>7.2f}" if ratio else " " * 7 for ratio in ratios)
        spent = result["processor_ms_per_sample"][code]
        yield (
            f"{result['batch']:>5}  {result['threads']:>7}  {code:<17}{rate:>10.0f}  "
            f"{spread / 2:>7.0f}  {spent:>6.2f}  {shown}"
        )


HEADER = "batch  threads  code              samples/s        ±  cpu ms    ratio  fastest      cpu"  # of one sample


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
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[20, 64, 256], help="batch sizes, at most 500 (20 64 256)"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="reader threads (1 2)")
    parser.add_argument("--codes", nargs="+", choices=list(CODES), default=list(CODES))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (5)")
    parser.add_argument("--folder", type=Path, help="where the data go, and are deleted from (a temporary folder)")
    parser.add_argument("--json", type=Path, help="where to write (benchmarks/results/loading_<hardware>_<date>)")
    options = parser.parse_args()
    codes = ["hpfwi", *(code for code in options.codes if code != "hpfwi")]
    if loading_codes.optional("h5py") is None and any(code.startswith("h5py") for code in codes):
        print("h5py is not installed and is left out; the extra `bench` has it.")
        codes = [code for code in codes if not code.startswith("h5py")]
    about = conditions(options.threads, options.samples)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    results = []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="loading-", dir=options.folder))
        stack.callback(shutil.rmtree, folder)
        loading_codes.make_data(folder, options.samples)
        agree(folder, codes, 20)
        first = [first_batch(folder, batch) for batch in options.batches]
        for one in first:
            seconds = ", ".join(f"{code} {value:.2f} s" for code, value in one["open_to_batch_s"].items())
            print(f"first batch of {one['batch']} from the disk: {seconds}; {one['imports_s']:.1f} s of imports")
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
