"""What `make gpu` does before and after it has a GPU: the refusal, the cases, the table and the JSON."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpfwi_kernels.acoustic import cuda, cuda_streaming

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for a pytest that is not started with `python -m`

from benchmarks import gpu, gpu_cases  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = subprocess.run([sys.executable, "benchmarks/gpu.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence == "No NVIDIA GPU was found on this machine; `make gpu` needs one."


def test_a_missing_gpu_is_told_from_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for lacking, title in gpu.NEEDED.items():
        monkeypatch.setattr("importlib.util.find_spec", lambda name, lacking=lacking: None if name == lacking else name)
        assert f"without {title};" in str(gpu.missing())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    blind = SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", blind)
    assert str(gpu.missing()).startswith("CuPy 14.2.0 finds no GPU where torch does; take the one for torch's CUDA")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "No NVIDIA GPU" in str(gpu.missing())


def test_cases_are_stable_problems_with_names_of_their_own() -> None:
    names = [case.name for case in gpu_cases.CASES]
    assert len(set(names)) == len(names)
    assert {case.family for case in gpu_cases.CASES} == {"acoustic", "haar", "dct_pool"}
    for case in gpu_cases.CASES:
        if case.family == "acoustic":
            courant = 4500.0 * case.dt_s / case.spacing_m * len(case.shape) ** 0.5
            assert courant < 0.6  # where deepwave takes more than one inner step
            assert case.shots % case.models == 0
            # deepwave takes whole blocks of steps
            assert case.samples % case.store_every == case.checked % case.store_every == 0


def small(**changes: Any) -> gpu_cases.Case:
    base: dict[str, Any] = {"shots": 2, "samples": 20, "checked": 20, "width": 6, "memory": "store"}
    return gpu_cases.Case("toy", "acoustic", **(base | {"shape": (14, 18)} | changes))


@pytest.mark.parametrize("changes", [{}, {"boundary": "sponge", "models": 2}])
def test_a_case_runs_on_the_processor(changes: dict[str, Any]) -> None:
    case = small(**changes)
    work = gpu_cases.work_of(case, case.samples, case.shots)
    assert work.velocity.ndim == len(case.shape) + (case.models > 1)
    answers = [gpu_cases.hpfwi(work, "cpu")(True) for _ in range(2)]
    gpu_cases.check(answers)
    records, gradient = answers[0]
    assert records.shape == (2, case.shape[-1], 20)
    with pytest.raises(RuntimeError, match="no time counts"):
        gpu_cases.check([answers[0], (1.001 * records, gradient)])


def test_a_case_in_3d_has_points_in_its_model() -> None:
    work = gpu_cases.work_of(small(shape=(8, 9, 10), dt_s=0.7e-3), 20, 2)
    assert (work.velocity.shape, work.sources.shape, work.receivers.shape) == ((8, 9, 10), (2, 1, 3), (2, 10, 3))
    assert all(points.per_shot in (1, 10) for points in work.points)


@pytest.mark.filterwarnings("ignore")  # a peer's own
@pytest.mark.parametrize("order", [gpu_cases.SAME_LAYERS_ORDER, 8])
@pytest.mark.parametrize("peer", ["deepwave", "sweep"])
@pytest.mark.parametrize("changes", [{}, {"shape": (18, 19, 20), "dt_s": 0.7e-3}], ids=["2-D", "3-D"])
def test_a_peer_is_given_the_same_problem(peer: str, changes: dict[str, Any], order: int) -> None:
    """Records and gradients, unfitted; sweep where it is installed, by its torch code."""
    pytest.importorskip(peer)
    work = gpu_cases.work_of(small(samples=60, order=order, **({"shape": (24, 26)} | changes)), 60, 2)
    own = gpu_cases.hpfwi(work, "cpu")(True)
    with torch.compiler.set_stance("force_eager"):  # sweep would compile its torch code for minutes
        theirs = gpu_cases.peers_of(work, "cpu")[peer]()(True)
    counted = gpu_cases.compared(work)
    assert counted.any()
    bound = gpu_cases.AGREEMENT if peer == "deepwave" or order == gpu_cases.SAME_LAYERS_ORDER else 2e-2
    assert max(gpu_cases.gaps(theirs, own, counted)) < bound
    earlier = (torch.roll(theirs[0], 1, -1), theirs[1])
    assert gpu_cases.gaps(earlier, own, counted)[0] > 2e-2


def test_a_source_and_the_edges_do_not_count() -> None:
    work = gpu_cases.work_of(small(), 20, 2)
    counted = gpu_cases.compared(work)
    assert counted.sum() == 6 * 10
    assert not counted[tuple(work.sources[:, 0].T)].any()


def measured(peer_gap: float) -> dict[str, Any]:
    def times(ms: float) -> dict[str, Any]:
        return {"ms": [ms, ms + 0.2], "median_ms": ms + 0.1}

    return {
        "case": "toy",
        "kinds": {"forward": {"hpfwi": times(2.0), "deepwave": times(6.2)}, "gradient": {"hpfwi": times(6.2)}},
        "gaps": {"deepwave": [peer_gap, 2.0]},
        "errors": {"sweep": "RuntimeError: no"},
    }


def test_the_table_marks_what_failed_and_what_cannot_be_compared() -> None:
    case = small(target=">= 2x")
    lines = gpu.rows(measured(1e-6), case)
    assert [line[:2] for line in lines] == [
        ["toy", "forward"],
        ["toy", "gradient"],
        ["toy", "sweep FAILED: RuntimeError: no"],
    ]
    assert lines[0][7] == "3.00"
    assert lines[1][4] == "3.00x forward"
    assert gpu.rows(measured(1e-2), case)[0][7] == "3.00?"
    lines += gpu.rows({"case": "other", "failed": "illegal address"}, case)
    lines += gpu.rows({"case": "late", "left out": "no time is left"}, case)
    text = gpu.table(lines).splitlines()
    assert len(text) == 6
    assert "FAILED: illegal address" in text[-2]
    assert "LEFT OUT: no time is left" in text[-1]
    assert text[0].split()[:2] == ["case", "kind"]


# On the processor a field is run backwards in whole vectors of columns: these widths and shapes leave no others.
BACKWARDS = {"memory": "boundary", "shape": (32, 52), "width": 14, "samples": 120}


@pytest.mark.parametrize("changes", [{}, BACKWARDS], ids=["store", "boundary"])
def test_a_case_is_checked_then_ready_then_timed(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, whose kernels stand for the GPU's; one peer agrees, one does not."""
    events: list[str] = []
    own = gpu_cases.hpfwi

    def on_cpu(work: gpu_cases.Work, device: str) -> gpu_cases.Runner:
        events.append(f"{work.wavelet.shape[-1]} samples, {len(work.wavelet)} shots, {device}")
        return own(work, "cpu")

    def wrong(work: gpu_cases.Work) -> gpu_cases.Runner:
        return lambda gradient: (0.9 * own(work, "cpu")(gradient)[0], None)

    peers = {"right": lambda work: own(work, "cpu"), "wrong": wrong}
    monkeypatch.setattr(gpu_cases, "hpfwi", on_cpu)
    monkeypatch.setattr(
        gpu_cases, "peers_of", lambda work, device: {name: partial(make, work) for name, make in peers.items()}
    )
    monkeypatch.setattr(gpu_cases, "milliseconds", lambda run, repeats: [float(run() is None)] * repeats)
    case = small(shots=3, store_every=2, **({"samples": 30} | changes))
    result = gpu_cases.measure(case, 2, lambda: events.append("ready"))
    first, *_, last = events
    assert (first, last) == ("20 samples, 2 shots, cuda", f"{case.samples} samples, 3 shots, cuda")
    assert events.index("ready") == len(events) - 2
    assert "4 samples, 3 shots, cuda" in events
    assert set(result["kinds"]["forward"]) == set(result["kinds"]["gradient"]) == {"hpfwi", "right"}
    assert result["gaps"] == {"right": [0.0, 0.0]} or case.memory == "boundary"
    assert result["errors"]["wrong"].startswith("RuntimeError: results differ by 1.0e-01")


CASE = """
import json, os, pathlib, sys, time
name, out = sys.argv[2], pathlib.Path(sys.argv[-1])
print("launch on_chip<4>: (8, 5) blocks", flush=True)
if name == "dies":
    os._exit(3)
if name == "waits":
    time.sleep(60)
out.with_suffix(".ready").touch()
sys.stdin.read()
begun = time.monotonic()
time.sleep(60 if name == "hangs" else 0.3)
out.write_text(json.dumps({"from": begun, "to": time.monotonic()}))
"""


def test_cases_get_ready_together_and_are_timed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One dies, one never gets ready, one hangs when it is timed: each leaves its last words, and the others go on."""
    (tmp_path / "case.py").write_text(CASE)
    limits = {"SCRIPT": tmp_path / "case.py", "AT_ONCE": 8, "READY_S": 3.0, "CASE_S": 1.0, "LEAST_S": 0.5}
    for name, value in limits.items():
        monkeypatch.setattr(f"gpu_processes.{name}", value)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    names = ["good", "dies", "waits", "hangs", "better"]
    begin = time.monotonic()
    found = {result["case"]: result for result in gpu.run_cases(names, 1, tmp_path, lambda: 600.0)}
    assert time.monotonic() - begin < 30
    assert list(found) == names
    assert found["dies"]["failed"] == "launch on_chip<4>: (8, 5) blocks"
    assert found["waits"]["failed"] == "not ready after 3 s"
    assert found["hangs"]["failed"] == "stopped after 1 s"
    assert gpu.last_words(found["hangs"]).splitlines()[-1] == "    launch on_chip<4>: (8, 5) blocks"
    assert gpu.last_words(found["good"]) == ""
    traceback = {"case": "long", "failed": "Error", "output": "launch one\nlaunch two\n" + "File\n" * 40 + "Error"}
    assert gpu.last_words(traceback).splitlines()[:2] == ["    FAILED   long: Error", "    launch two"]
    assert found["good"]["to"] <= found["better"]["from"]
    assert [one["left out"] for one in gpu.run_cases(names, 1, tmp_path, lambda: 0.1)] == 5 * ["no time is left"]


def test_launches_are_said_before_they_happen(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Each kind once, and then it is waited for."""
    happened: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: happened.append("wait"))
    monkeypatch.setattr(cuda, "_run", lambda *_: happened.append(capfd.readouterr().out))
    monkeypatch.setattr(cuda_streaming, "_enqueue", lambda *_: happened.append(capfd.readouterr().out))
    gpu.say_launches()
    first, second = (
        SimpleNamespace(kernel="on_chip<4>", grid=(8, teams), threads=256, shared_bytes=9, cluster=8)
        for teams in (5, 6)
    )
    run: Any = cuda._run
    for launch in (first, first, second):
        run(launch, 0, 0)
    step: Any = cuda_streaming._enqueue
    step(0, SimpleNamespace(kernel="back_2d<2>", blocks=(7, 1), shared_bytes=0))
    said = [f"launch on_chip<4>: (8, {n}) blocks of 256 threads with 9 bytes, clusters of 8\n" for n in (5, 6)]
    step_said = "launch back_2d<2>: (7, 1) blocks with 0 bytes\n"
    assert happened == [said[0], "wait", "", said[1], "wait", step_said, "wait"]


def test_a_command_that_hangs_is_stopped_with_what_it_started() -> None:
    """Beside one that ends by itself. What it started holds its output, which must not be waited for."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    starts = [sys.executable, "-c", f"import subprocess; print('on', flush=True); subprocess.run({sleep!r})"]
    begin = time.monotonic()
    (quick, words), (status, output) = gpu.finished_together([[sys.executable, "-c", "print('done')"], starts], 2)
    assert time.monotonic() - begin < 30
    assert (quick, words) == (0, "done\n")
    assert status == 124
    assert output == "on\n\nstopped after 2 s"


def test_results_are_written_where_asked(tmp_path: Path) -> None:
    path = gpu.write({"results": [measured(0.0)]}, tmp_path / "new", "NVIDIA H100 80GB HBM3")
    assert path.name.startswith("gpu_nvidia-h100-80gb-hbm3_")
    assert json.loads(path.read_text())["results"][0]["case"] == "toy"
    assert list(path.parent.iterdir()) == [path]


def test_every_test_file_is_there() -> None:
    assert all("_on_a_gpu(" in (ROOT / "tests" / "kernels" / file).read_text("utf-8") for file in gpu.TESTS)
    for file, names in gpu.SANITIZED.items():
        assert f"def {names}" in (ROOT / "tests" / "kernels" / file).read_text("utf-8")


def test_the_sanitizer_watches_small_cases_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def ran(command: list[str], limit_s: float) -> tuple[int, str]:
        commands.append(command)
        return 9, "========= ERROR SUMMARY: 1 error\n"

    monkeypatch.setattr(gpu, "finished", ran)
    monkeypatch.setattr("shutil.which", lambda name: None)
    left_out = gpu.run_sanitizer(tmp_path, lambda: 600.0)
    assert len(left_out) == len(gpu.TOOLS) * len(gpu.SANITIZED)
    assert gpu.verdict(left_out[0]) == (
        "skipped  test_acoustic_cuda_op.py under memcheck: compute-sanitizer, of the CUDA toolkit, is not on PATH"
    )
    monkeypatch.setattr("shutil.which", lambda name: f"/cuda/{name}")
    assert {test["last"] for test in gpu.run_sanitizer(tmp_path, lambda: 1.0)} == {"no time is left"}
    assert not commands
    watched = gpu.run_sanitizer(tmp_path, lambda: 600.0)
    assert all(tuple(command[:2]) == gpu.OWN_BLOCKS for command in commands)
    assert commands[0][2:7] == ["/cuda/compute-sanitizer", "--tool", "memcheck", "--report-api-errors", "no"]
    last = commands[-1]
    assert last[2:7] == ["/cuda/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    assert last[last.index("-k") + 1] == gpu.SANITIZED["test_dct_pool_cuda.py"]
    assert gpu.verdict(watched[0]).startswith("FAILED   test_acoustic_cuda_op.py under memcheck: ")


def test_a_run_that_is_stopped_shows_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file of tests has failed and the rest went on; Ctrl-C comes in the second case."""
    found = [
        (1, "FAILED test_toy - OSError: no\n1 failed\n"),
        (0, "3 passed\n"),
        *[(0, "3 skipped\n")] * (len(gpu.TESTS) - 2),
    ]
    monkeypatch.setattr(gpu, "finished_together", lambda commands, limit_s: found)
    cases = [small(target=">= 2x"), replace(small(), name="slow")]

    def ran(*_: Any) -> Iterator[dict[str, Any]]:
        yield measured(1e-6)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run_cases", ran)
    options = argparse.Namespace(no_tests=False, out=tmp_path, repeats=1)
    assert gpu.measured(options, cases, {"gpu": "H100"}, lambda: 600.0) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index(f"FAILED   {gpu.TESTS[0]}: 1 failed") + 1] == "    FAILED test_toy - OSError: no"
    assert f"passed   {gpu.TESTS[1]}: 3 passed" in lines
    assert f"skipped  {gpu.TESTS[2]}: 3 skipped" in lines
    assert any(line.startswith("toy ") and " 3.00 " in line for line in lines)
    assert lines[-1].startswith("stopped; written to ")
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    assert (len(kept["tests"]), [one["case"] for one in kept["results"]]) == (len(gpu.TESTS), ["toy"])
