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


def test_deepwave_is_given_the_same_problem() -> None:
    work = gpu_cases.work_of(small(), 20, 2)
    pairs = zip(gpu_cases.deepwave(work, "cpu")(True), gpu_cases.hpfwi(work, "cpu")(True), strict=True)
    assert max(gpu_cases.gap(*pair) for pair in pairs) < 1e-4


def test_a_peer_may_have_other_units_and_axes() -> None:
    records = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    assert gpu_cases.fitted_gap(7.0 * records.transpose(1, 2).unsqueeze(-1), records) < 1e-6
    assert gpu_cases.fitted_gap(records.flip(0), records) > 0.1


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
