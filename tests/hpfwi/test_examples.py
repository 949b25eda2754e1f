"""The examples at toy size: each runs as a program would, and what it prints is true."""

from __future__ import annotations

import itertools
import math
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi.config import RunConfig, load_config
from hpfwi.experiment import build_experiment
from hpfwi.inversion.misfit import l2
from hpfwi.run_folder import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
TOY = (
    "modelling.absorbing_cells=6",
    "survey.shots=2",
    "inversion.shots_per_iteration=none",
    "survey.samples=200",
    "model.smooth_sigma_cells=3",
    "inversion.iterations=4",
    "inversion.diagnostics_every=2",
    "inversion.snapshot_every=2",
    "inversion.parameterisation.network.width=16",
    "inversion.parameterisation.pretrain.max_steps=20",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy networks gain nothing from threads, and on a busy machine lose much by waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def changes(*options: str) -> list[str]:
    return [word for option in options for word in ("--set", option)]


def numbers(line: str) -> list[float]:
    """The words of a line that are numbers; 34.3% counts as 0.343."""
    found = []
    for word in line.split():
        try:
            found.append(float(word.rstrip("%")) / (100 if word.endswith("%") else 1))
        except ValueError:
            continue
    return found


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_first_arrivals_come_later_and_faster_with_offset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "shot.png"
    sizes = changes(
        "model.shape=[30, 100]",
        "survey.shots=3",
        "inversion.shots_per_iteration=none",
        "survey.samples=600",
        "source.peak_hz=10",
    )
    assert example("01_shot")["main"](["--shot", "0", "--out", str(picture), *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("100 receivers x 600 samples")
    table = np.array([numbers(line) for line in lines[2:-1]])
    offsets_m, arrivals_s, speeds_mps = table.T
    assert len(table) >= 6
    assert (np.diff(offsets_m) > 0).all()
    assert (np.diff(arrivals_s) > 0).all()
    # The slowest rock is at 1500 m/s and at the surface, the fastest at 4700 m/s.
    assert (speeds_mps > 1400).all()
    assert (speeds_mps < 3000).all()
    assert speeds_mps[-1] > speeds_mps[0]
    assert is_picture(picture)


def test_the_gradient_by_hand_is_the_derivative_of_the_misfit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "gradient.png"
    arguments = ["--shots", "0", "1", "--out", str(picture), *changes("model.shape=[24, 40]", *TOY)]
    assert example("02_gradient")["main"](arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    errors = [numbers(line)[-1] for line in lines[2:6]]
    assert errors[-1] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4.0, rel=0.1)
    assert is_picture(picture)


def test_the_gradient_by_hand_is_that_of_the_library() -> None:
    config, _ = load_config("demo", ["model.shape=[24, 40]", *TOY, "modelling.store_every=1"])
    experiment = build_experiment(config)
    velocity = torch.tensor(experiment.models.initial.velocity)
    assert experiment.models.true is not None
    observed = experiment.simulator.predict(torch.tensor(experiment.models.true.velocity), [0, 1])
    misfit, gradient = example("02_gradient")["misfit_and_gradient"](
        experiment, velocity.double(), {shot: observed[[shot]].double() for shot in (0, 1)}
    )
    velocity.requires_grad_()
    expected = l2(experiment.simulator.predict(velocity, [0, 1]), observed)
    expected.backward()
    assert velocity.grad is not None
    assert misfit == pytest.approx(float(expected.detach()), rel=1e-4)
    difference = float((gradient - velocity.grad).norm() / velocity.grad.norm())
    assert difference < 1e-3


def write_run(
    parent: Path, kind: str, seed: int, errors: dict[str, list[float]], coherences: list[float], misfits: list[float]
) -> None:
    """A finished run of two shots, one at a time, with these scores at iterations 0, 2 and 4 in every band."""
    overrides = ["survey.shots=2", "inversion.shots_per_iteration=1", f"inversion.parameterisation.kind={kind}"]
    config: RunConfig = load_config(None, [*overrides, f"name={kind}-{seed}", f"inversion.seed={seed}"])[0]
    with RunFolder.create(config, config.name, parent=parent, environment={}) as folder:
        for iteration, misfit in enumerate(misfits):
            folder.event("iteration", iteration=iteration, misfit=misfit, shots=1)
        for number, iteration in enumerate((0, 2, 4)):
            scores = {
                f"spectra/{score}{half}_{band}": value
                for half, of_half in errors.items()
                for band in range(5)
                for score, value in (("error", of_half[number]), ("coherence", coherences[number]))
            }
            folder.event("diagnostics", iteration=iteration, **scores)
        folder.done({"iterations": 4})


def test_the_mechanism_claim_is_judged_by_half_lives_and_by_coherence_at_equal_misfit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Misfits over passes of two iterations: pretrain 0.9, 0.6 and 0.5 at iterations 0, 2 and 4; s-denorm 0.9, 0.4, 0.1.
    # All runs reach 0.5: pretrain at the end, s-denorm at iteration 2.
    slow = {"": [1.0, 0.8, 0.4], "_deep": [1.0, 0.4, 0.3]}
    quick = {"": [1.0, 0.3, 0.2], "_deep": [1.0, 0.9, 0.8]}
    for seed in (0, 1, 2):
        write_run(tmp_path, "pretrain", seed, slow, [0.0, 0.2, 0.5], [1.0, 0.8, 0.4, 0.3, 0.7])
        write_run(tmp_path, "s-denorm", seed, quick, [0.0, 0.6, 0.9], [1.0, 0.8, 0.0, 0.1, 0.1])
    write_run(tmp_path, "pixel", 0, slow, [0.0, 0.0, 0.0], [1.0] * 5)
    assert example("n1_frequency_validation")["main"]([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("runs: 3 of pretrain, 3 of s-denorm")
    assert [numbers(line) for line in lines[3:8]] == [[band, 4, 2, 0.4, 0.2, 0.5, 0.9] for band in range(5)]
    assert lines[8].startswith("Whole model: the claim stands. Band 3 halved its error at iteration: pretrain 4,")
    assert "misfit of 0.5," in lines[8]
    assert lines[8].endswith("pretrain 0.500, s-denorm 0.600.")
    assert lines[9].split()[:4] == ["deep", "0", "2", "never"]
    assert lines[14].startswith("Deep model: the claim stands in one of its two parts.")


def test_a_claim_without_any_halved_error_is_not_judged_by_half_lives() -> None:
    verdict = example("n1_frequency_validation")["verdict"]
    assert "cannot be judged by half-lives" in verdict("whole", (math.inf, math.inf), (0.5, 0.6), 0.1)
    assert "the claim falls" in verdict("deep", (10.0, 20.0), (0.6, 0.5), 0.1)


def test_runs_of_one_method_are_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "pretrain", 0, {"": [1.0, 0.8, 0.4], "_deep": [1.0, 0.8, 0.4]}, [0.0, 0.1, 0.2], [1.0] * 5)
    assert example("n1_frequency_validation")["main"]([str(tmp_path)]) == 2
    assert "Nothing to compare" in capsys.readouterr().err


def test_planted_errors_have_the_strength_the_place_and_the_period_they_are_said_to_have() -> None:
    true = np.repeat(np.linspace(1500.0, 4500.0, 60)[:, None], 120, axis=1)
    smooth = np.full(true.shape, 2000.0)
    start, patterns, inside = example("n2_local_errors")["plant"](true, smooth, 10.0)
    error = start - smooth
    checkerboard = patterns["checkerboard"]
    assert np.abs(checkerboard).max() == pytest.approx(200.0, rel=0.03)
    assert checkerboard[18, 24] * checkerboard[18, 26] < 0 < checkerboard[18, 24] * checkerboard[18, 28]
    assert patterns["reflector"].max() == pytest.approx(300.0, rel=0.03)
    assert patterns["reflector"].min() == pytest.approx(-300.0, rel=0.03)
    # The block holds what belongs 4 cells higher, on one side of its centre alone.
    assert start[24, 99] == pytest.approx(true[20, 99], rel=0.03)
    assert error[24, 97] == pytest.approx(0.0, abs=1.0)
    assert 4 * math.pi * 100 < inside.sum() < 5 * math.pi * 100 + 50
    assert np.square(error[inside]).sum() > 0.95 * np.square(error).sum()


@pytest.mark.slow
def test_local_errors_are_counted_inside_and_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runs", str(tmp_path / "runs"), "--radius", "5", "--figure", str(tmp_path / "patches.png")]
    arguments += changes("model.shape=[24, 48]", *TOY)
    main = example("n2_local_errors")["main"]
    assert main(arguments) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("pretrain  ", "s-denorm  "))]
    pretrain, denorm = (numbers(line) for line in table)
    assert pretrain[1] == denorm[1] > 0  # the same start
    for _, start, end, stage_1, inside, outside, *left in (pretrain, denorm):
        assert inside == pytest.approx(1 - end / start, abs=2e-3)
        assert math.isfinite(stage_1)
        assert math.isfinite(outside)
        assert outside != inside
        assert len(left) == 3
    # A network of 20 fitting steps cannot hold the checkerboard; one that is added to the start does not touch it.
    assert abs(pretrain[-3]) < 0.5
    assert abs(denorm[-3] - 1.0) < 0.2
    assert is_picture(tmp_path / "patches.png")

    # Finished runs are read, not made again; the example on frequencies reads them too.
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/events.jsonl")}
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert all(line in again for line in table)
    assert logs == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/events.jsonl")}
    assert len(logs) == 2
    assert example("n1_frequency_validation")["main"]([str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("whole ")]
    # The longest wavelengths, of band 0, have no room in so small a model.
    assert [line.split()[1] for line in rows] == ["1", "2", "3", "4"]
    assert all(math.isfinite(value) for line in rows for value in numbers(line))
    assert sum("model: the claim" in line for line in lines) == 2


@pytest.mark.parametrize(("geology", "shape", "shots"), [("overthrust", (94, 401), 20), ("salt", (75, 250), 24)])
def test_published_geologies_fit_their_surveys(
    tmp_path: Path, geology: str, shape: tuple[int, int], shots: int
) -> None:
    depth = np.linspace(1800.0, 5200.0, 110, dtype=np.float32)
    np.save(tmp_path / "model.npy", np.repeat(depth[:, None], 300, axis=1))
    recipe, settings = example("n3_other_geology")["settings_of"](geology, str(tmp_path / "model.npy"), 15.0, [])
    experiment = build_experiment(load_config(recipe, [*settings, "model.initial=linear"])[0])
    assert experiment.models.initial.grid.shape == shape
    assert experiment.survey.shots == shots
    assert experiment.models.true is not None
    # The true model is linear in depth, so the linear start is the true one but for the steps of resampling.
    difference = experiment.models.initial.velocity - experiment.models.true.velocity
    assert np.abs(difference).max() < 10.0


@pytest.mark.slow
def test_the_sign_is_that_of_the_errors_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, columns = np.indices((24, 40))
    np.save(tmp_path / "layers.npy", (2000.0 + 60.0 * rows + 200.0 * np.sin((rows + columns) / 4)).astype(np.float32))
    arguments = ["--model", f"layers={tmp_path / 'layers.npy'}", "--spacing", "20", "--runs", str(tmp_path / "runs")]
    arguments += ["--methods", "s-denorm", *changes(*TOY)]
    assert example("n3_other_geology")["main"](arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    errors = {line.split()[0]: numbers(line)[1] for line in lines if line.startswith("layers-")}
    signs = [line for line in lines if line.startswith("layers,")]
    assert len(errors) == 4
    for start, line in zip(("smooth", "linear"), signs, strict=True):
        gain = errors[f"layers-{start}-pretrain-0"] - errors[f"layers-{start}-s-denorm-0"]
        assert f"layers, {start} start: pretrain - s-denorm" in line
        assert numbers(line.split("=")[1])[0] == pytest.approx(gain, abs=2e-4)
        assert f"positive with {int(gain > 0)} of 1 seeds" in line


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("01_shot", ["--shot", "100"], "Shot 100 does not exist"),
        ("01_shot", ["--set", "survey.shot=3"], "did you mean survey.shots?"),
        ("02_gradient", ["--shots", "100"], "Shot 100 does not exist"),
        ("n2_local_errors", ["--radius", "-3"], "--radius -3 holds no cell"),
        ("n3_other_geology", ["--methods", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_a_slip_is_told_before_any_work(
    name: str, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert words in str(ended.value.code) + capsys.readouterr().err
