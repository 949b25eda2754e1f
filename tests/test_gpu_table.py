"""What `make gpu` does before and after it has a GPU: the refusal, the cases, the table and the JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cupy" else name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "without CuPy" in str(gpu.missing())
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
    text = gpu.table(lines).splitlines()
    assert len(text) == 5
    assert "FAILED: illegal address" in text[-1]
    assert text[0].split()[:2] == ["case", "kind"]


def test_a_case_that_dies_leaves_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "finished", lambda command, limit_s: (139, "compiling\nsegmentation fault\n\n"))
    assert gpu.run_case("toy", 1, tmp_path)["failed"] == "segmentation fault"


def test_a_command_that_hangs_is_stopped() -> None:
    status, output = gpu.finished([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1)
    assert status == 124
    assert output.endswith("stopped after 1 s")


def test_results_are_written_where_asked(tmp_path: Path) -> None:
    path = gpu.write({"results": [measured(0.0)]}, tmp_path / "new", "NVIDIA H100 80GB HBM3")
    assert path.name.startswith("gpu_nvidia-h100-80gb-hbm3_")
    assert json.loads(path.read_text())["results"][0]["case"] == "toy"
    assert list(path.parent.iterdir()) == [path]


def test_every_test_file_is_there() -> None:
    assert all((ROOT / "tests" / "kernels" / file).exists() for file in gpu.TESTS)
    for file, names in gpu.SANITIZED.items():
        assert f"def {names}" in (ROOT / "tests" / "kernels" / file).read_text("utf-8")


def test_the_sanitizer_watches_small_cases_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def ran(command: list[str], limit_s: int) -> tuple[int, str]:
        commands.append(command)
        return 9, "========= ERROR SUMMARY: 1 error\n"

    monkeypatch.setattr(gpu, "finished", ran)
    monkeypatch.setattr("shutil.which", lambda name: None)
    left_out = [test for test in gpu.run_tests(tmp_path) if test["status"] is None]
    assert len(commands) == len(gpu.TESTS)
    assert len(left_out) == len(gpu.TOOLS) * len(gpu.SANITIZED)
    assert gpu.verdict(left_out[0]) == (
        "skipped  test_acoustic_cuda_op.py under memcheck: compute-sanitizer, of the CUDA toolkit, is not on PATH"
    )
    monkeypatch.setattr("shutil.which", lambda name: f"/cuda/{name}")
    watched = gpu.run_tests(tmp_path)[len(gpu.TESTS) :]
    last = commands[-1]
    assert last[:5] == ["/cuda/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    assert last[last.index("-k") + 1] == gpu.SANITIZED["test_haar_cuda.py"]
    assert gpu.verdict(watched[0]).startswith("FAILED   test_acoustic_cuda_op.py under memcheck: ")
