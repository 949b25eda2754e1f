"""`hpfwi refine`: the same store whoever refined it, in whatever pieces; what it says, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpfwi import checkpoints, cli
from hpfwi.networks.build import build_network
from hpfwi.parallel import ClusterSettings
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.refinement import pairs as refined_pairs
from hpfwi.refinement.pairs import begin_refined, refine_pairs
from hpfwi.refinement.settings import load_refinement
from hpfwi.refinement.source import open_source
from hpfwi.refinement.table import read_rows
from hpfwi.run_folder import RunFolder
from hpfwi.store.openfwi import open_pairs
from hpfwi.store.pair_writer import create_pairs
from hpfwi.synthetic.families import velocity_map
from hpfwi.training.replicas import weights_of
from hpfwi.training.settings import load_train_config
from hpfwi.training.trained import NETWORK, STATE
from hpfwi.training.weights import export

SHAPE = (12, 20)
TOY = OpenFwiSettings(shots=2, steps=64, peak_hz=40.0, absorbing_cells=5)
SAMPLES = 5
OPTIONS = [
    *("iterations=2", "parameterisation.network.width=8", "parameterisation.network.hidden_layers=1"),
    *("parameterisation.lr_network=1e-3", "records=modelled"),
]
ALONE = ("--workers", "0", "--device", "cpu")
SET = [word for option in OPTIONS for word in ("--set", option)]


def write_store(path: Path, physics: dict[str, Any] | None = None, silent: int | None = None) -> Path:
    """Write toy pairs of curvefault-b that may say other physics than they were made with; "nothing" is not said.

    silent  sample whose records are zeros
    """
    simulator = OpenFwiSimulator(SHAPE, TOY, device="cpu")
    writer = create_pairs(
        path,
        samples=SAMPLES,
        records_shape=(2, 64, 20),
        model_shape=SHAPE,
        family="toy",
        physics={name: value for name, value in (simulator.physics | (physics or {})).items() if value != "nothing"},
        splits={"train": range(4), "test": range(4, 5)},
    )
    models = np.stack([velocity_map("curvefault-b", SHAPE, 0, sample) for sample in range(SAMPLES)])
    records = simulator.records_of(models)
    if silent is not None:
        records[silent] = 0.0
    models[1] = 1500.0  # what stands where a model is not known
    writer.write(0, records, models)
    writer.finish()
    return path


def make_run(parent: Path, store: Path, *changes: str, seed: int = 5, notes: bool = True) -> Path:
    """Make the folder of a training run with the weights of an untrained network, predicting about 3000 m/s.

    notes   it says how the records of its store were made
    """
    options = [
        *("name=toy", "network.name=inversionnet", "network.width=0.05", "network.records_shape=[2, 64, 20]"),
        *(
            "network.model_shape=[12, 20]",
            "training.loss.name=mse",
            "training.normalisation.range_mps=[1500.0, 4500.0]",
        ),
        *("training.normalisation.signed=true", f"network.seed={seed}", "training.epochs=1", "training.batch=3"),
        *("training.slices=1", "cluster.workers=0", "training.shown_samples=0"),
        *(f"data.pairs={store}", f"output.folder={parent}", "training.schedule.kind=constant"),
    ]
    config, _ = load_train_config(None, [*options, *changes])
    with RunFolder.create(config, "toy", parent=parent, environment={}) as folder:
        pairs = open_pairs(store)
        noted = {"physics": pairs.physics} if notes else {}
        folder.event("data", pairs=str(store), sha256=pairs.manifest["sha256"], train=4, validation=1, **noted)
        save_weights(folder, seed)
    return folder.path


def save_weights(folder: RunFolder, seed: int) -> None:
    config, _ = load_train_config(folder.path / "config.toml")
    network = build_network(config.network.model_copy(update={"seed": seed}))
    tensors = {f"{STATE}{NETWORK}{name}": value.detach().numpy() for name, value in weights_of(network).items()}
    path = checkpoints.save(folder.checkpoints, 7 + seed, tensors, {"score": 1.0 / seed})
    folder.event("checkpoint", iteration=6 + seed, path=str(path.relative_to(folder.path)), score=1.0 / seed)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def files_of(store: Path) -> dict[str, str]:
    """sha256 of every file of a store, by name, but for the figure that the command alone draws."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.suffix != ".png"
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with toy pairs, a run, and the pairs that the command refines with one thread."""
    folder = tmp_path_factory.mktemp("refine")
    make_run(folder, write_store(folder / "records.zarr"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpfwi.parallel.local_threads", lambda settings: 1)
        result = run("refine", folder / "toy", "--data", folder / "records.zarr", folder / "out.zarr", *SET, *ALONE)
    assert result.exit_code == 0, result.output
    (folder / "said").write_text(result.stdout)
    return folder


@pytest.fixture(autouse=True)
def _no_figure(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare these tests most of their time: the toy store has its figure."""
    monkeypatch.setattr("hpfwi.refinement.shown.draw_some", lambda *arguments: None)


def test_the_store_holds_refined_models_and_their_records(toy: Path) -> None:
    store, observed = open_pairs(toy / "out.zarr"), open_pairs(toy / "records.zarr")
    assert (store.samples, store.splits, store.family) == (4, {"train": range(4)}, "toy refined")
    assert store.physics == observed.physics
    records, models = store.read(range(4))
    assert np.array_equal(records, OpenFwiSimulator(SHAPE, TOY, device="cpu").records_of(models))
    rows = read_rows(toy / "out.zarr" / "refinement.csv")
    assert [row.sample for row in rows] == [0, 1, 2, 3]
    assert all(row.misfit_refined < row.misfit_proposed for row in rows)
    true = observed.read(range(4))[1]
    for row, model, known in zip(rows, models, true, strict=True):
        if row.sample == 1:
            assert row.mae_refined_mps is None
        else:
            assert row.mae_refined_mps == pytest.approx(np.abs(model - known).mean(), rel=1e-5)
    said = (toy / "said").read_text().splitlines()
    assert said[0].endswith("records.zarr, 0 of them whole: 2 iterations each of s-denorm from what toy proposes")
    assert any(line.startswith("Model error") and line.endswith("of 3 lower") for line in said)
    assert (toy / "out.zarr" / "refinement.png").read_bytes()[:4] == b"\x89PNG"


def test_true_models_have_no_say(toy: Path, tmp_path: Path) -> None:
    """Refine the same records beside other models: only errors may change."""
    observed = open_pairs(toy / "records.zarr")
    writer = create_pairs(
        tmp_path / "other.zarr",
        samples=SAMPLES,
        records_shape=(2, 64, 20),
        model_shape=SHAPE,
        family="toy",
        physics=observed.physics,
    )
    writer.write(0, observed.read(range(SAMPLES))[0], np.full((SAMPLES, *SHAPE), 3210.0, np.float32))
    writer.finish()
    arguments = ("-n", "4", *SET, "--set", "records=observed", *ALONE)
    result = run("refine", toy / "toy", "--data", tmp_path / "other.zarr", tmp_path / "out.zarr", *arguments)
    assert result.exit_code == 0, result.output
    assert "Model error" not in result.stdout
    records, models = open_pairs(tmp_path / "out.zarr").read(range(4))
    assert np.array_equal(models, open_pairs(toy / "out.zarr").read(range(4))[1])
    assert np.array_equal(records, observed.read(range(4))[0])


def test_it_goes_on_where_it_was_interrupted(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("refine", toy / "toy", "--data", toy / "records.zarr", tmp_path / "out.zarr", *SET, *ALONE)
    refine, calls = refined_pairs.refine, []

    def interrupted(*inputs: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return refine(*inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(refined_pairs, "refine", interrupted)
        patch.setattr("hpfwi.parallel.local_threads", lambda settings: 1)
        result = run(*arguments)
    assert result.exit_code == 75, result.output
    assert "again, and it goes on from the last whole shard." in result.stderr
    assert not (tmp_path / "out.zarr").exists()
    other = run(*arguments, "--set", "iterations=3")
    assert other.exit_code == 3
    assert "differs in provenance" in other.stderr
    result = run(*arguments)  # with as many threads as there are cores
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("4 samples of ")
    assert ", 2 of them whole: " in result.stdout.splitlines()[0]
    assert files_of(tmp_path / "out.zarr") == files_of(toy / "out.zarr")
    again = run(*arguments)
    assert again.exit_code == 0
    assert "Speed" not in again.stdout
    assert files_of(tmp_path / "out.zarr") == files_of(toy / "out.zarr")


def test_threads_end_within_an_iteration_when_a_signal_comes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine, ended = refined_pairs.refine, []

    def interrupted(*inputs: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                refine(*inputs, **options)
        except Exception as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(refined_pairs, "refine", interrupted)
    monkeypatch.setattr("hpfwi.parallel.local_threads", lambda settings: 2)
    result = run("refine", toy / "toy", "--data", toy / "records.zarr", tmp_path / "out.zarr", *SET, *ALONE)
    assert result.exit_code == 75, result.output
    assert set(ended) == {"Stopped in the middle of a sample."}


def test_refined_pairs_train_the_network_on(toy: Path, tmp_path: Path) -> None:
    words = next(line for line in (toy / "said").read_text().splitlines() if line.startswith("Next")).split()
    assert words[1:3] == ["hpfwi", "train"]
    result = run(*words[2:], "--set", f"output.folder={tmp_path}")
    assert result.exit_code == 0, result.output
    assert "Beginning with the weights of" in result.output
    config, _ = load_train_config(tmp_path / "toy-refined" / "config.toml")
    assert config.training.normalisation.range_mps == (1500.0, 4500.0)  # the scale of the weights, not of the new pairs
    refined = ("refine", toy / "toy", "--data", toy / "out.zarr", tmp_path / "twice.zarr", *SET, *ALONE)
    result = run(*refined, "-n", "1", "--set", "iterations=0")
    assert result.exit_code == 0, result.output
    assert "Model error" not in result.stdout  # the models of refined pairs are no truth


@pytest.mark.ray
def test_workers_refine_the_same_store(toy: Path, tmp_path: Path) -> None:
    settings, _ = load_refinement(OPTIONS)
    source = open_source(toy / "toy", toy / "records.zarr", settings)
    writer = begin_refined(tmp_path / "out.zarr", source)
    refine_pairs(writer, source, ClusterSettings(device="cpu", workers=2))
    assert files_of(tmp_path / "out.zarr") == files_of(toy / "out.zarr")


def test_other_weights_are_not_gone_on_with(toy: Path, tmp_path: Path) -> None:
    path = make_run(tmp_path, toy / "records.zarr")
    settings, _ = load_refinement(OPTIONS)
    source = open_source(path, toy / "records.zarr", settings)
    assert source.weights_sha256 == open_source(toy / "toy", toy / "records.zarr", settings).weights_sha256
    writer = begin_refined(tmp_path / "out.zarr", source)
    with RunFolder.open(path) as folder:
        save_weights(folder, 9)  # the run went on and has a better checkpoint
    assert run("refine", path, "--data", toy / "records.zarr", tmp_path / "out.zarr", *SET, *ALONE).exit_code == 3
    with pytest.raises(Exception, match=r"weights of .* are others than those this refinement began with"):
        refine_pairs(writer, source, ClusterSettings(device="cpu", workers=0))


def test_records_that_cannot_be_refined_are_refused(toy: Path, tmp_path: Path) -> None:
    store = toy / "records.zarr"
    moved = [[10.0, 20.0], [10.0, 170.0]]
    cases = {
        ("--data", write_store(tmp_path / "moved.zarr", {"sources_m": moved})): (3, "does not give its sources_m"),
        ("--data", write_store(tmp_path / "unknown.zarr", {"scheme": "nothing"})): (
            3,
            "cannot be modelled: the store does not say how",
        ),
        ("--data", write_store_of(tmp_path / "hz.zarr", peak_hz=30.0)): (3, "has peak_hz = 30 and the pairs that"),
        ("--data", write_store_of(tmp_path / "long.zarr", steps=70)): (3, "was trained on [2, 64, 20] and [12, 20]"),
        ("--data", store, "--split", "tests"): (2, "has no split 'tests'; it has train, test."),
        ("--data", store, "-n", "5"): (2, "-n 5 is more than the 4 samples of split 'train'"),
        ("--data", store, "--set", "iteration=3"): (2, "iteration is not an option; did you mean iterations?"),
        ("--data", store, "--set", "bounds_mps=[1500,9000]"): (3, "is unstable"),
        ("--data", tmp_path / "none.zarr"): (3, "none.zarr does not exist"),
    }
    for arguments, (code, sentence) in cases.items():
        result = run("refine", toy / "toy", *arguments, tmp_path / "out.zarr", *ALONE)
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.output
        assert sentence in result.stderr
    silent = write_store(tmp_path / "silent.zarr", silent=2)
    result = run("refine", toy / "toy", "--data", silent, tmp_path / "silent_out.zarr", *SET, *ALONE)
    assert result.exit_code == 3
    assert "Sample 2 of " in result.stderr
    assert "hold no signal, or NaN or infinity; leave them out." in result.stderr
    shapes = make_run(tmp_path, store, "training.normalisation.normalisation=per-sample")
    result = run("refine", shapes, "--data", store, tmp_path / "out.zarr", *ALONE)
    assert result.exit_code == 2
    assert "proposes shapes, not m/s" in result.stderr
    assert not (tmp_path / "out.zarr.part").exists()


def write_store_of(path: Path, **changes: Any) -> Path:
    """Write one toy pair that was made otherwise."""
    toy = TOY.model_copy(update=changes)
    simulator = OpenFwiSimulator(SHAPE, toy, device="cpu")
    writer = create_pairs(
        path,
        samples=1,
        records_shape=simulator.records_shape,
        model_shape=SHAPE,
        family="toy",
        physics=simulator.physics,
    )
    models = velocity_map("curvefault-b", SHAPE, 0, 0)[None]
    writer.write(0, simulator.records_of(models), models)
    writer.finish()
    return path


def test_a_geometry_that_cannot_be_compared_is_told(toy: Path, tmp_path: Path) -> None:
    path = make_run(tmp_path, toy / "records.zarr", notes=False)
    result = run("refine", path, "--data", toy / "records.zarr", tmp_path / "out.zarr", "-n", "1", *SET, *ALONE)
    assert result.exit_code == 0, result.output
    assert "toy does not say how the records that trained it were made; only shapes could" in result.stdout


def test_a_file_of_weights_refines_as_its_run_does(toy: Path, tmp_path: Path) -> None:
    weights = tmp_path / "toy.safetensors"
    export(toy / "toy", weights)
    result = run("refine", weights, "--data", toy / "records.zarr", tmp_path / "out.zarr", *SET, *ALONE)
    assert result.exit_code == 0, result.output
    assert files_of(tmp_path / "out.zarr") == files_of(toy / "out.zarr")
    following = result.stdout.splitlines()[-1]
    assert f"hpfwi train RUN.TOML --data {tmp_path / 'out.zarr'} --weights {weights}, " in following
    assert following.endswith("velocities on range: 1500 to 4500 m/s on [-1, 1]")
    hz = write_store_of(tmp_path / "hz.zarr", peak_hz=30.0)
    result = run("refine", weights, "--data", hz, tmp_path / "none.zarr", *ALONE)
    assert result.exit_code == 3
    assert "has peak_hz = 30 and the pairs that trained" in result.stderr
    told = run("evaluate", weights, "--data", hz, "--split", "train").stdout
    assert "hz.zarr has peak_hz = 30 and the pairs that trained this network had 40: the scores say" in told
    words = ("--data", toy / "records.zarr", tmp_path / "none.zarr", "--checkpoint", "last", *ALONE)
    assert "leave --checkpoint last out" in run("refine", weights, *words).stderr


def test_bounds_that_cut_off_what_the_network_knows_are_told(toy: Path) -> None:
    said: list[str] = []
    for bounds in ("[1500,4500]", "[1600,5000]"):
        settings, _ = load_refinement([f"bounds_mps={bounds}"])
        open_source(toy / "toy", toy / "records.zarr", settings, say=said.append)
    assert [sentence.rpartition(" ")[2] for sentence in said] == ["bounds_mps=[1500,5000]."]


def test_the_options_are_printed() -> None:
    result = run("config", "refine", "--set", "iterations=7")
    assert result.exit_code == 0
    assert "iterations = 7  # --set; default " in result.stdout
