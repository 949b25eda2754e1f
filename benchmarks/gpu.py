"""The kernels' GPU tests and benchmarks in one command, with one table at the end: `make gpu`.

Needs an NVIDIA GPU, and of Python NumPy, torch, Numba, CuPy and pytest; sweep-solver and deepwave are timed
where they are installed, and compute-sanitizer looks over small cases where it is. Every case and every test file runs
in a process of its own: what fails is said in the table, and the rest goes on. Cases get ready together, since most of
that is imports and compilers, and are timed one by one. What is known is printed and kept as it comes; with --minutes,
or when it is stopped, a run ends with the table of what it has.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu_processes import LEAST_S, ROOT, finished, finished_together, limited, run_cases
else:
    sys.path.append(str(Path(__file__).parent))  # where Python looks anyway for what it runs as a script
    from gpu_processes import LEAST_S, ROOT, finished, finished_together, limited, run_cases

RESULTS = ROOT / "benchmarks" / "results"
NEEDED = {"numba": "Numba", "cupy": "CuPy", "pytest": "pytest"}
PACKAGES = (
    "numpy", "torch", "numba", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc", "pytest", "sweep-solver",
    "deepwave",
)  # fmt: skip
TESTS = (
    "test_acoustic_cuda_op.py", "test_acoustic_cuda_streaming_gpu.py", "test_haar_cuda.py", "test_dct_pool_cuda.py",
    "test_dct_pool_numba.py",
)  # fmt: skip
SANITIZED = {
    "test_acoustic_cuda_op.py": "test_the_operation_on_a_gpu",
    "test_acoustic_cuda_streaming_gpu.py": "test_streaming_on_a_gpu",
    "test_haar_cuda.py": "test_the_op_on_a_gpu",
    "test_dct_pool_cuda.py": "test_the_op_on_a_gpu",
}
"""The tests of small cases, by file, that compute-sanitizer looks over: on chip, streaming, layers of a network."""
# Of calls that fail none is reported: torch asks drivers for functions that they may not have.
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
# Every tensor in an allocation of its own: in torch's large blocks what lies behind one is another's, and no error.
OWN_BLOCKS = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1")
TEST_S, SANITIZER_S = 900, 1200
MOST_REASONS, LAST_WORDS = 8, 15
MARGIN_S = 5
"""What the end of a run is given."""
MOST_GAP = 5e-3
HEADERS = ("case", "kind", "hpfwi ms", "±", "rate", "peer", "peer ms", "ratio", "gap", "wanted")


def missing() -> str | None:
    """One sentence about what a run needs and has not got; None where everything is there."""
    packages = "install NumPy, torch, Numba, CuPy and pytest"
    if importlib.util.find_spec("torch") is None:
        return f"No GPU can be looked for without torch; {packages}."
    import torch

    if not torch.cuda.is_available():
        return "No NVIDIA GPU was found on this machine; `make gpu` needs one."
    for name, title in NEEDED.items():
        if importlib.util.find_spec(name) is None:
            return f"No GPU kernel is run or checked without {title}; {packages}."
    import cupy

    if not cupy.cuda.is_available():
        cuda = torch.version.cuda
        return f"CuPy {cupy.__version__} finds no GPU where torch does; take the one for torch's CUDA {cuda}."
    return None


def conditions() -> dict[str, str]:
    """Hardware and versions."""
    import torch

    device = torch.cuda.get_device_properties(0)
    found = {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": str(device.multi_processor_count),
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
    }
    driver = shutil.which("nvidia-smi")
    if driver:
        command = [driver, "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
            found["driver, clock, power"] = asked[0] if asked else "unknown"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pytest_command(file: str, names: str, empty: Path) -> list[str]:
    """Run a file's tests with these names, without this project's pytest plugins, which a bare machine has not got."""
    where = f"tests/kernels/{file}"
    plain = ["-c", str(empty), "--rootdir", str(ROOT), "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    return [sys.executable, "-m", "pytest", *plain, "-k", names, where]


def run_tests(folder: Path, left_s: Callable[[], float]) -> list[dict[str, Any]]:
    """The GPU tests of every file, all files at the same time: most of it is compiling.

    left_s      time that may still be spent
    returns     of each file its exit status, None where it was left out, its last line and its output
    """
    commands = [pytest_command(file, "on_a_gpu", bare(folder)) for file in TESTS]
    print(f"tests {' '.join(TESTS)}", flush=True)
    limit_s = limited(TEST_S, left_s(), 1 / 2)
    return [told(file, *one) for file, one in zip(TESTS, finished_together(commands, limit_s), strict=True)]


def run_sanitizer(folder: Path, left_s: Callable[[], float]) -> list[dict[str, Any]]:
    """The tests of small cases once more under each of compute-sanitizer's tools."""
    sanitizer, results = shutil.which("compute-sanitizer"), []
    for tool, options in TOOLS.items():
        for file, names in SANITIZED.items():
            name, limit_s = f"{file} under {tool}", min(SANITIZER_S, left_s())
            if sanitizer is None or limit_s < LEAST_S:
                why = "no time is left" if sanitizer else "compute-sanitizer, of the CUDA toolkit, is not on PATH"
                results.append({"test": name, "status": None, "last": why, "output": ""})
                continue
            print(f"test {name}", flush=True)
            watched = [*OWN_BLOCKS, sanitizer, "--tool", tool, *options, "--error-exitcode", "9"]
            command = [*watched, *pytest_command(file, names, bare(folder)), "-x"]
            results.append(told(name, *finished(command, limit_s)))
            print(verdict(results[-1]), flush=True)
    return results


def bare(folder: Path) -> Path:
    """Settings of pytest in place of this project's."""
    path = folder / "pytest.ini"
    path.write_text("[pytest]\nmarkers =\n    slow: takes long\n")
    return path


def told(name: str, status: int, output: str) -> dict[str, Any]:
    """A test's result."""
    lines = [line for line in output.splitlines() if line.strip()]
    return {"test": name, "status": status, "last": lines[-1] if lines else "", "output": output[-20000:]}


def verdict(test: dict[str, Any]) -> str:
    """One line about a test, and what its first failures say."""
    ran = test["status"] is not None and (test["status"] or " passed" in test["last"])
    word = "skipped" if not ran else "passed" if test["status"] == 0 else "FAILED"
    why = [line for line in test["output"].splitlines() if line.startswith(("FAILED ", "ERROR ", "========= Error"))]
    return "\n".join([f"{word:7}  {test['test']}: {test['last']}", *(f"    {line}" for line in why[:MOST_REASONS])])


def rows(result: dict[str, Any], case: Any) -> list[list[str]]:
    """The table's rows of a case: a kind of work with each peer, or one that says why there are none."""
    for word in ("failed", "left out"):
        if word in result:
            return [[result["case"], f"{word.upper()}: {result[word]}"]]
    made = []
    for kind, codes in result["kinds"].items():
        own = codes["hpfwi"]
        middle, spread = own["median_ms"], (max(own["ms"]) - min(own["ms"])) / 2
        base = [case.name, kind, f"{middle:.3f}", f"{spread:.3f}", rate(case, kind, middle, result)]
        peers = [name for name in codes if name != "hpfwi"] or [""]
        for peer in peers:
            theirs = codes[peer]["median_ms"] if peer else None
            gaps = result["gaps"].get(peer)
            gap = max(gaps[: 2 if kind == "gradient" else 1]) if gaps else None
            # A peer has agreed where its layers are ours; a ratio is marked where they differ by more than layers do.
            ratio = "" if theirs is None else f"{theirs / middle:.2f}" + ("?" if gap is None or gap > MOST_GAP else "")
            shown = ["" if theirs is None else f"{theirs:.3f}", ratio, "" if gap is None else f"{gap:.1e}"]
            made.append([*base, peer, *shown, case.target])
    made += [[case.name, f"{peer} FAILED: {why}"] for peer, why in result["errors"].items()]
    return made


def rate(case: Any, kind: str, ms: float, result: dict[str, Any]) -> str:
    """What a case is judged by besides its ratio."""
    if case.family != "acoustic":
        return ""
    if kind == "gradient":
        return f"{ms / result['kinds']['forward']['hpfwi']['median_ms']:.2f}x forward"
    if case.models > 1:
        return f"{case.models / ms * 1e3:.0f} models/s"
    return f"{case.updates / ms / 1e6:.1f} Gcell/s"


def last_words(result: dict[str, Any]) -> str:
    """What a case that failed has launched and printed at last."""
    if "failed" not in result:
        return ""
    lines = result["output"].splitlines()
    launched = [line for line in lines[:-LAST_WORDS] if line.startswith("launch ")][-1:]
    lines = [f"FAILED   {result['case']}: {result['failed']}", *launched, *lines[-LAST_WORDS:]]
    return "".join(f"    {line}\n" for line in lines)


def table(lines: list[list[str]]) -> str:
    """Lines in columns; one that has fewer cells than there are columns ends with a sentence."""
    whole = [list(HEADERS), *lines]
    full = [line for line in whole if len(line) == len(HEADERS)]
    widths = [max(len(line[k]) for line in full) for k in range(len(HEADERS))]
    widths[0] = max(len(line[0]) for line in whole)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in whole
    )


def write(contents: dict[str, Any], folder: Path, gpu: str) -> Path:
    """The results as JSON under a name of the GPU and the day."""
    folder.mkdir(parents=True, exist_ok=True)
    hardware = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    path = folder / f"gpu_{hardware}_{date.today().isoformat()}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(contents, indent=1) + "\n", "utf-8")
    partial.replace(path)
    return path


def one(name: str, repeats: int, out: Path) -> None:
    """Measure a case in this process and leave the result in a file; time it when standard input ends."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # every code computes in float32, as hpfwi's kernels do
    gpu_cases = import_module("gpu_cases")
    say_launches()

    def ready() -> None:
        out.with_suffix(".ready").touch()
        sys.stdin.read()

    out.write_text(json.dumps(gpu_cases.measure(gpu_cases.find(name), repeats, ready)), "utf-8")


def say_launches() -> None:
    """Have the propagator print what it launches, each kind of launch once, and wait for it: where a kernel reads what
    is not there, or hangs, the last line says which."""
    import torch

    from hpfwi_kernels.acoustic import cuda, cuda_streaming

    said: set[str] = set()

    def saying(launch: Callable[..., None], line: Callable[..., str]) -> Callable[..., None]:
        def launched(*arguments: Any) -> None:
            text = line(*arguments)
            if text in said:
                launch(*arguments)
                return
            said.add(text)
            print(text, flush=True)
            launch(*arguments)
            torch.cuda.synchronize()

        return launched

    def on_chip(launch: Any, *_: Any) -> str:
        sizes = f"{launch.grid} blocks of {launch.threads} threads with {launch.shared_bytes} bytes"
        return f"launch {launch.kernel}: {sizes}, clusters of {launch.cluster}"

    def streaming(_: int, launch: Any) -> str:
        return f"launch {launch.kernel}: {launch.blocks} blocks with {launch.shared_bytes} bytes"

    cuda._run = saying(cuda._run, on_chip)
    cuda_streaming._enqueue = saying(cuda_streaming._enqueue, streaming)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests, cases, table, JSON. Returns 1 where there is no GPU, or where a test or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON (benchmarks/results)")
    parser.add_argument("--cases", nargs="+", help="names of cases, or parts of them (all)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each code (7)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time after which nothing runs (no limit)")
    parser.add_argument("--no-tests", action="store_true", help="benchmarks alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    ends = time.monotonic() + 60 * options.minutes - MARGIN_S
    sentence = missing()
    if sentence:
        print(sentence, file=sys.stderr)
        return 1
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "benchmarks")]
    if options.one:
        one(options.one, options.repeats, options.out)
        return 0
    gpu_cases = import_module("gpu_cases")
    wanted = [case for case in gpu_cases.CASES if not options.cases or any(part in case.name for part in options.cases)]
    here = conditions()
    print("  ".join(f"{key}: {value}" for key, value in here.items()), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return measured(options, wanted, here, lambda: ends - time.monotonic())


def measured(
    options: argparse.Namespace, wanted: Sequence[Any], here: dict[str, str], left_s: Callable[[], float]
) -> int:
    """Run everything, the checks that take longest last; the exit status."""
    tests: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    stopped = False
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            if not options.no_tests:
                tests += run_tests(folder, left_s)
                print("\n".join(map(verdict, tests)), flush=True)
            cases = {case.name: case for case in wanted}
            for result in run_cases(list(cases), options.repeats, folder, left_s):
                results.append(result)
                lines += rows(result, cases[result["case"]])
                print(last_words(result), end="", flush=True)
                write({"conditions": here, "tests": tests, "results": results}, options.out, here["gpu"])
            if not options.no_tests:
                tests += run_sanitizer(folder, left_s)
        except KeyboardInterrupt:
            stopped = True
    print("\n".join(map(verdict, tests)))
    print(table(lines))
    path = write({"conditions": here, "tests": tests, "results": results}, options.out, here["gpu"])
    print(f"{'stopped; ' if stopped else ''}written to {path}", flush=True)
    broken = [test for test in tests if test["status"]] + [result for result in results if "failed" in result]
    return 130 if stopped else 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
