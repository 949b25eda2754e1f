"""`hpfwi data generate`: the same store whoever made it, in whatever pieces, and after any number of kills."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpfwi import cli
from hpfwi.errors import DataError
from hpfwi.parallel import ClusterSettings
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.store.openfwi import open_pairs
from hpfwi.synthetic import dataset
from hpfwi.synthetic.dataset import DatasetSettings, ShardTask, begin_dataset
from hpfwi.synthetic.families import velocity_map

SHAPE = (12, 15)
TOY = OpenFwiSettings(shots=2, steps=60, peak_hz=40.0, absorbing_cells=5)
SAMPLES = 18
SETTINGS = DatasetSettings(family="curvefault-b", samples=SAMPLES, seed=4, shape=SHAPE, test_samples=3, modelling=TOY)
ARGUMENTS = [
    *("data", "generate", "curvefault-b", "-n", str(SAMPLES), "--seed", "4", "--test", "3", "--shard-samples", "2"),
    *("--model-shape", "12,15", "--set", "shots=2", "--set", "steps=60", "--set", "peak_hz=40"),
    *("--set", "absorbing_cells=5", "--device", "cpu"),
]

Files = dict[str, str]


def files_of(store: Path) -> Files:
    """sha256 of every file of a store, by name."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def made(path: Path, cluster: ClusterSettings, settings: DatasetSettings = SETTINGS, shard_samples: int = 2) -> Files:
    writer = begin_dataset(path, settings, shard_samples=shard_samples)
    dataset.generate(writer, settings, cluster)
    return files_of(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the toy store, made by one thread of this process."""
    path = tmp_path_factory.mktemp("reference") / "toy.zarr"
    local = ClusterSettings(device="cpu", workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpfwi.parallel.local_threads", lambda settings: 1)
        made(path, local)
    return path


def test_the_command_makes_the_store_of_the_library(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    first = run(*ARGUMENTS, str(path), "--workers", "0")
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0] == "curvefault-b: 18 samples, 0 of them whole, seed 4"
    assert lines[-1] == f"Wrote        18 pairs to {path}"
    assert files_of(path) == files_of(reference)
    again = run(*ARGUMENTS, str(path), "--workers", "0")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[0] == "curvefault-b: 18 samples, 18 of them whole, seed 4"
    assert files_of(path) == files_of(reference)


def test_samples_are_maps_of_the_family_and_their_records(reference: Path) -> None:
    store = open_pairs(reference)
    assert (store.samples, store.records_shape, store.model_shape) == (SAMPLES, (2, 60, 15), SHAPE)
    assert (store.family, store.splits) == ("curvefault-b", {"train": range(15), "test": range(15, 18)})
    assert store.physics["scheme"] == TOY.model_dump()
    records, models = store.read([11, 0])
    simulator = OpenFwiSimulator(SHAPE, TOY)
    for row, sample in enumerate((11, 0)):
        assert np.array_equal(models[row], velocity_map("curvefault-b", SHAPE, 4, sample))
        assert np.array_equal(records[row], simulator.records(models[row]))


def test_threads_shards_and_the_number_of_samples_change_no_sample(reference: Path, tmp_path: Path) -> None:
    three = ClusterSettings(device="cpu", workers=0, threads_per_worker=3)
    assert made(tmp_path / "threads.zarr", three) == files_of(reference)
    fewer = SETTINGS.model_copy(update={"samples": 7, "test_samples": 0})
    made(tmp_path / "fewer.zarr", three, fewer, shard_samples=5)
    for found, expected in zip(
        open_pairs(tmp_path / "fewer.zarr").read(range(7)), open_pairs(reference).read(range(7)), strict=True
    ):
        assert np.array_equal(found, expected)


KILLED = """
import os, random, signal, sys
import numpy as np
import hpfwi_cluster.local, rich.progress, zarr.codecs
from typer.testing import CliRunner
from hpfwi import cli
from hpfwi.errors import DataError
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.synthetic import dataset

arguments = sys.argv[2:]
draw = random.Random(int(sys.argv[1]))
toy = OpenFwiSettings(shots=2, steps=60, peak_hz=40.0, absorbing_cells=5)
OpenFwiSimulator((12, 15), toy).records(np.full((12, 15), 2000.0, np.float32))

def deadly(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0 and draw.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

kills = 0
while True:
    calls = draw.randrange(1, 45 + 5 * kills)  # more and more, so that it ends whatever a resumed run has to do first
    child = os.fork()
    if child == 0:
        left = [calls]
        draw.seed(kills)
        for name in ("fsync", "replace", "rename", "mkdir", "open", "unlink"):
            setattr(os, name, deadly(getattr(os, name), left))
        result = CliRunner().invoke(cli.app, arguments)
        sys.stderr.write(result.output if result.exit_code else "")
        os._exit(result.exit_code)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    kills += 1
print(kills, os.WEXITSTATUS(status))
"""
"""Runs a command again and again, each time killed by SIGKILL before or after some call that changes the disk, until
it ends by itself; prints how often it was killed and how it ended."""


@pytest.mark.slow
def test_killed_at_random_points_and_started_again(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    arguments = [*ARGUMENTS, str(path), "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "1", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )
    assert done.stdout, done.stderr
    kills, code = map(int, done.stdout.split())
    assert (code, done.stderr) == (0, "")
    assert kills >= 5
    assert files_of(path) == files_of(reference)
    assert not (tmp_path / "toy.zarr.part").exists()


class Mortal(ShardTask):
    """A rank that dies as by kill -9 in one of its items, half done, where a file tells it to."""

    orders = Path()

    def pairs(self, samples: range) -> tuple[np.ndarray, np.ndarray]:
        made = super().pairs(samples)
        try:
            (self.orders / str(samples.start)).unlink()
        except FileNotFoundError:
            return made
        os.kill(os.getpid(), signal.SIGKILL)
        return made


@pytest.mark.ray
def test_workers_make_the_same_store_also_when_they_die(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpfwi_cluster.ray_library import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(Mortal, "orders", tmp_path)
    monkeypatch.setattr(dataset, "ShardTask", Mortal)
    (tmp_path / "6").touch()
    said: list[str] = []
    path = tmp_path / "toy.zarr"
    writer = begin_dataset(path, SETTINGS, shard_samples=2)
    dataset.generate(writer, SETTINGS, ClusterSettings(device="cpu", workers=2), say=said.append)
    assert len(said) == 1
    assert not (tmp_path / "6").exists()
    assert files_of(path) == files_of(reference)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["curvfault-b", "-n", "4"], 2, 'There is no family "curvfault-b": '),
        (["style-a", "-n", "4", "--workers", "-1"], 2, "--workers -1 is no number of workers: give a whole number"),
        (
            ["style-a", "-n", "4", "--device", "cuda", "--workers", "99"],
            2,
            "cluster.device = 'cuda' needs 99 GPUs for ",
        ),
        (["style-a", "-n", "4", "--test", "5"], 2, "--test 5 is more than the 4 pairs there are: give at most 4."),
        (["style-a", "-n", "4", "--set", "step=5"], 2, "step=5: step is not an option of the modelling; there are "),
        (["style-a", "-n", "4", "--set", "steps"], 2, "steps cannot be used (Time steps): input should be a valid"),
        (["style-a", "-n", "4", "--set", "steps=1"], 2, "steps=1 cannot be used (Time steps): input should be great"),
        (["style-a", "-n", "4", "--set", "dt_s=0.002"], 3, "dt_s=0.002 with substeps=1 is unstable"),
        (["style-a", "-n", "4", "--model-shape", "4,70"], 2, "A map of 4 x 70 cells is too small for style-a"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_sentence(
    arguments: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    result = run("data", "generate", *arguments, str(tmp_path / "out.zarr"))
    assert result.exit_code == code
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_data_set_under_the_name_is_left_alone(reference: Path, tmp_path: Path) -> None:
    before = files_of(reference)
    other = [argument if argument != "4" else "5" for argument in ARGUMENTS]
    result = run(*other, str(reference), "--workers", "0")
    assert result.exit_code == 3
    assert "is there already" in result.stderr
    assert "provenance" in result.stderr
    assert files_of(reference) == before


def test_a_store_begun_on_processors_is_not_gone_on_with_on_gpus(tmp_path: Path) -> None:
    begin_dataset(tmp_path / "toy.zarr", SETTINGS)
    begin_dataset(tmp_path / "toy.zarr", SETTINGS)
    with pytest.raises(DataError, match="provenance"):
        begin_dataset(tmp_path / "toy.zarr", SETTINGS, on_gpu=True)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Callable[..., None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "generate", interrupted)
    result = run(*ARGUMENTS, str(tmp_path / "toy.zarr"), "--workers", "0")
    assert result.exit_code == 75
    assert "again, and it goes on from the last whole shard." in result.stderr
