"""Windows cut out of a large model: which ones, that none trains and tests, and that a store holds them."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from hpfwi import cli
from hpfwi.errors import ConfigError
from hpfwi.physics.openfwi import OpenFwiSettings
from hpfwi.store.openfwi import open_pairs
from hpfwi.synthetic.slices import SliceSettings, cut_slices, windows, with_edges
from hpfwi.training.edges import edge_masks

SHARED_DATA = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
MARMOUSI = SHARED_DATA / "models" / "marmousi2_original_segy" / "MODEL_P-WAVE_VELOCITY_1.25m.segy.tar.gz"
SMALL = SliceSettings(shape=(8, 9), skip_rows=3, test_columns=(20, 40), train_stride=5, test_stride=9)
TOY = OpenFwiSettings(shots=2, steps=60, peak_hz=40.0, absorbing_cells=5)


def model() -> NDArray[np.float32]:
    """30 rows of 61 columns whose layers begin in row 17: the windows above them have no edge."""
    velocity = np.full((30, 61), 1500, np.float32)
    for number, row in enumerate((17, 21, 26)):
        velocity[row:] = 2000 + 500 * number
    return velocity


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "model.npy", model())
    return tmp_path / "model.npy"


def test_windows_lie_inside_and_no_cell_trains_and_tests() -> None:
    found = windows((30, 61), SMALL)
    seen = {}
    for split, cuts in found.items():
        cells = np.zeros((30, 61), bool)
        for row, column in cuts:
            assert 3 <= row <= 30 - 8
            assert 0 <= column <= 61 - 9
            cells[row : row + 8, column : column + 9] = True
        seen[split] = cells
    assert not (seen["train"] & seen["test"]).any()
    assert seen["train"][:, 40:].any()
    assert seen["train"][:, :20].any()
    # Rows 3, 8, 13 and 18; columns 0, 5, 10 and 40, 45, 50.
    assert len(found["train"]) == 4 * 3 + 4 * 3
    assert found["test"].tolist() == [[row, column] for row in (3, 12, 21) for column in (20, 29)]


def test_windows_without_an_edge_are_left_out() -> None:
    velocity, cuts = model(), windows((30, 61), SMALL)["train"]
    kept = with_edges(velocity, cuts, SMALL.shape).tolist()
    expected = [cut for cut in cuts.tolist() if edge_masks(velocity[None, cut[0] : cut[0] + 8, :9]).any()]
    assert kept == expected
    assert {row for row, _ in kept} == {13, 18}


def test_a_cut_is_the_same_in_every_process_and_reads_the_file_there(file: Path) -> None:
    found = cut_slices(file, SMALL, TOY)
    assert found.splits == {"train": range(12), "test": range(12, 16)}
    sent = pickle.dumps(found)
    assert len(sent) < 4000  # without the model
    there = pickle.loads(sent)
    for sample, (row, column) in enumerate(found.cuts):
        assert np.array_equal(there.velocity(sample), model()[row : row + 8, column : column + 9])
    assert there.provenance == found.provenance
    fewer = cut_slices(file, SMALL, TOY, limits=(4, 1))
    assert fewer.splits == {"train": range(4), "test": range(4, 5)}
    assert {tuple(cut) for cut in fewer.cuts} < {tuple(cut) for cut in found.cuts}


def test_the_command_makes_a_store_and_goes_on_with_it(file: Path, tmp_path: Path) -> None:
    words = ["data", "slices", str(file), str(tmp_path / "s.zarr"), "--workers", "0", "--shard-samples", "5"]
    words += ["--window", "8,9", "--skip-rows", "3", "--test-columns", "20,40", "--train-stride", "5"]
    words += ["--test-stride", "9", "--set", "shots=2", "--set", "steps=60", "--set", "peak_hz=40"]
    words += ["--set", "absorbing_cells=5"]
    first = CliRunner().invoke(cli.app, words)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("model.npy: 12 train, 4 test windows with edges, 0 of them whole\n")
    store = open_pairs(tmp_path / "s.zarr")
    found = cut_slices(file, SMALL, TOY)
    assert store.splits == found.splits
    records, models = store.read(range(store.samples))
    assert np.array_equal(models, np.stack([found.velocity(sample) for sample in range(16)]))
    assert np.abs(records).max() > 0
    assert "16 of them whole" in CliRunner().invoke(cli.app, words).stdout
    other = CliRunner().invoke(cli.app, [*words, "--set", "peak_hz=35"])
    assert (other.exit_code, "differs in physics" in other.stderr) == (3, True)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "Columns 7350 to 8049 cannot test: the model has 30 rows and 61 columns"),
        (("--test-columns", "20,25", "--skip-rows", "0"), 2, "has no window of 70 x 70 for split 'train'"),
        (("--window", "4,4"), 2, "a window of 4 x 4 cells is too small"),
        (("--window", "70"), 2, "--window 70 cannot be used: give two whole numbers"),
        (("--test-columns", "9,3"), 2, "test_columns=[9, 3] are no columns"),
        (("--unit", "mph"), 2, "--unit mph is no unit of velocity"),
        (("--unit", "km/s"), 3, "no rock is faster"),
        (("--set", "step=3"), 2, "step is not an option of the modelling"),
        (("--window", "8,9", "--test-columns", "20,40", "--skip-rows", "22"), 2, "has an edge"),
    ],
)
def test_what_cannot_be_cut_is_said_in_one_sentence(
    file: Path, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    if "22" in words:
        np.save(file, np.full((30, 61), 1500, np.float32))
    result = CliRunner().invoke(cli.app, ["data", "slices", str(file), str(tmp_path / "s.zarr"), *words])
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("s.zarr*"))


def test_a_model_without_windows_is_refused() -> None:
    with pytest.raises(ConfigError, match="for split 'test'"):
        windows((30, 61), SMALL.model_copy(update={"test_columns": (20, 25)}))


@pytest.mark.slow
@pytest.mark.skipif(not MARMOUSI.is_file(), reason="the shared Marmousi II is not on this machine")
def test_marmousi_has_the_published_numbers_of_windows(tmp_path: Path) -> None:
    with tarfile.open(MARMOUSI) as archive:
        (member,) = [name for name in archive.getnames() if name.endswith(".segy")]
        archive.extract(member, tmp_path, filter="data")
    found = cut_slices(tmp_path / member, SliceSettings(), OpenFwiSettings())
    assert {split: len(samples) for split, samples in found.splits.items()} == {"train": 30_926, "test": 328}
    first = found.velocity(0)
    assert (first.shape, float(first.min()) >= 1028, float(first.max()) <= 4700) == ((70, 70), True, True)
