"""The commands of `hpfwi data`: what they print, what they leave, and how they end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner, Result

from hpfwi import cli
from hpfwi.store import pair_check
from hpfwi.store.openfwi import open_pairs

RECORDS, MODEL = (2, 20, 6), (5, 6)
SHAPES = ["--records-shape", "2,20,6", "--model-shape", "5,6"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["data", *arguments])


def refused(code: int, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (sentence,) = result.stderr.strip().splitlines()
    return sentence


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FlatVel-A with 3 samples in each of its 60 pairs of files; the working folder is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPFWI_DEBUG", raising=False)
    folder = tmp_path / "FlatVel_A"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(1, 61):
        np.save(folder / f"data{number}.npy", random.normal(size=(3, *RECORDS)).astype(np.float32))
        np.save(folder / f"model{number}.npy", random.uniform(1500, 4500, (3, 1, *MODEL)).astype(np.float32))
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file in place of the picture: drawing takes longer than everything else here."""
    monkeypatch.setattr("hpfwi.figures.pairs.draw_pairs", lambda path, *_: path.write_bytes(b""))


def test_convert_verify_inspect(source: Path) -> None:
    result = run("convert", "openfwi", str(source), "a.zarr", *SHAPES, "--shard-samples", "50", "--threads", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "FlatVel-A: 180 samples (train 144, test 36), 0.000194 GB as float32"
    assert re.match(r"Records +-\d\.\d+ to \d\.\d+, mean ", lines[3])
    assert re.match(r"Models +15\d\d\.\d+ to 44\d\d\.\d+ m/s, mean ", lines[4])
    assert lines[-1] == "Wrote        180 pairs to a.zarr"
    again = run("convert", "openfwi", str(source), "a.zarr", *SHAPES, "--shard-samples", "50")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    result = run("verify", "a.zarr")
    assert result.exit_code == 0
    assert re.fullmatch(r"All 10 files of a\.zarr match their checksums \(\d+\.\d s\)\.\n", result.stdout)
    result = run("inspect", "a.zarr")
    assert result.exit_code == 0, result.output
    assert "Remark       Records that tell a velocity under their sources" in result.stdout
    assert result.stdout.splitlines()[-1] == "Preview      a.png"
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_float16_and_lz4(source: Path) -> None:
    result = run("convert", "openfwi", str(source), "half.zarr", *SHAPES, "--float16", "--compress", "lz4")
    assert result.exit_code == 0, result.output
    assert re.search(r"float16 +largest error 0\.00\d+, relative 0\.0002\d*\n", result.stdout)
    manifest = open_pairs("half.zarr").manifest
    assert (manifest["dtype"], manifest["compression"]) == ("float16", "lz4")


def test_a_damaged_shard_is_named(source: Path, undrawn: None) -> None:
    assert run("convert", "openfwi", str(source), "a.zarr", *SHAPES, "--shard-samples", "50").exit_code == 0
    shard = Path("a.zarr/records/c/2/0/0/0")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 4
    shard.write_bytes(content)
    result = run("verify", "a.zarr")
    assert result.exit_code == 3
    assert result.stdout == (
        "a.zarr/records/c/2/0/0/0 (samples 100 to 149) does not match its sha256: it is damaged.\n"
    )
    assert result.stderr.startswith("1 of 10 files of a.zarr fail their checksum: fetch them again, or delete")
    shard.unlink()
    result = run("inspect", "a.zarr")
    assert result.exit_code == 3
    assert "DEFECT       50 samples (100, 101, 102, 103, …) cannot be read: Shard a.zarr/records/c/2" in result.stdout
    assert result.stderr.startswith("a.zarr has 1 kind of defects, listed above")


def test_what_cannot_be_converted_is_said_in_one_sentence(source: Path) -> None:
    assert "records must be float32[n, 5, 1000, 70]" in refused(3, "convert", "openfwi", str(source), "a.zarr")
    assert "is not a folder" in refused(3, "convert", "openfwi", "nowhere", "a.zarr")
    assert "give --family with one of" in refused(2, "convert", "openfwi", ".", "a.zarr")
    assert refused(2, "convert", "openfwi", str(source), "a.zarr", "--model-shape", "70") == (
        "--model-shape 70 is no shape: give 2 whole numbers, such as 70,70."
    )
    assert "holds no SEG set" in refused(3, "convert", "seg", str(source), "a.zarr")
    (source / "model7.npy").unlink()
    said = refused(3, "convert", "openfwi", str(source), "a.zarr", *SHAPES, "--partial")
    assert "data7.npy is there and" in said
    (source / "data7.npy").unlink()
    said = refused(3, "convert", "openfwi", str(source), "a.zarr", *SHAPES)
    assert "2 files of FlatVel-A are missing" in said
    assert "--partial" in said
    assert [path.name for path in Path().iterdir()] == ["FlatVel_A"]


def test_an_unfinished_conversion_is_named_and_resumed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = np.load(source / "data40.npy")
    kept = broken.copy()
    broken[0, 0, 0, 0] = np.nan
    np.save(source / "data40.npy", broken)
    command = ["convert", "openfwi", str(source), "a.zarr", *SHAPES, "--shard-samples", "10", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["hpfwi", "data", *command])
    assert "sample 117 (row 0 of data40.npy and model40.npy)" in refused(3, *command)
    for verb in ("verify", "inspect"):
        said = refused(3, verb, "a.zarr")
        assert re.match(
            r"a\.zarr\.part is unfinished, with 1\d of 18 shards whole: start `hpfwi data convert open", said
        )
    np.save(source / "data40.npy", kept)
    before = Path("a.zarr.part/records/c/3/0/0/0").stat().st_mtime_ns
    assert run(*command).exit_code == 0
    assert Path("a.zarr/records/c/3/0/0/0").stat().st_mtime_ns == before
    assert np.array_equal(open_pairs("a.zarr").read([117])[0][0], kept[0])
    assert "differs in shard_samples" in refused(3, *command[:-4], "--shard-samples", "20")


def test_a_conversion_that_is_stopped_says_how_to_go_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("hpfwi.store.convert.convert", stopped)
    monkeypatch.setattr("sys.argv", ["hpfwi", "data", "convert", "openfwi", "FlatVel A", "a.zarr"])
    before = signal.getsignal(signal.SIGTERM)
    said = refused(75, "convert", "openfwi", str(source), "a.zarr", *SHAPES)
    assert said == (
        "Stopped; start `hpfwi data convert openfwi 'FlatVel A' a.zarr` again, and it goes on from the last whole "
        "shard."
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_published_files_are_inspected_before_conversion(source: Path, undrawn: None) -> None:
    (source / "data60.npy").unlink()
    (source / "model60.npy").unlink()
    values = np.load(source / "data2.npy")
    values[1] = np.inf
    np.save(source / "data2.npy", values)
    result = run("inspect", str(source), *SHAPES, "--figure", "look.png")
    assert result.exit_code == 3
    assert "DEFECT       NaN or infinity in 1 sample (4).\n" in result.stdout
    assert "DEFECT       2 files are missing: data60.npy, model60.npy\n" in result.stdout
    assert Path("look.png").is_file()
    assert result.stderr.startswith(f"{source} has 2 kinds of defects")


def test_the_salt_set(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 130), ("test", 10)):
        for kind, name, shape in (("seismic", "Rec", (20, 6, 2)), ("vmodel", "svmodel", MODEL)):
            folder = Path(f"salt/{split}_data/{kind}")
            folder.mkdir(parents=True)
            for number in range(1, count + 1):
                file = folder / f"{'seismic' if kind == 'seismic' else 'svmodel'}{number}.mat"
                savemat(file, {name: np.full(shape, 2000.0 + number)})
    result = run("convert", "seg", "salt", "salt.zarr", *SHAPES)
    assert result.exit_code == 0, result.output
    assert open_pairs("salt.zarr").splits == {"train": range(130), "test": range(130, 140)}
    shutil.rmtree("salt/test_data")
    result = run("inspect", "salt", *SHAPES)
    assert result.exit_code == 3
    assert "Remark       A constant model in 130 samples" in result.stdout
    assert "DEFECT       10 files are missing: test_data/seismic/seismic1.mat" in result.stdout


def test_no_picture_is_no_reason_to_fail(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose every sample is damaged has nothing to show; the defects are still listed."""
    assert run("convert", "openfwi", str(source), "a.zarr", *SHAPES).exit_code == 0
    for shard in Path("a.zarr/records/c").rglob("0"):
        if shard.is_file():
            shard.write_bytes(b"")
    monkeypatch.setattr(pair_check, "BLOCK_BYTES", 1)
    result = run("inspect", "a.zarr")
    assert result.exit_code == 3
    assert "Preview" not in result.stdout


def test_help_says_what_everything_is_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arguments in ([], ["convert"], ["convert", "openfwi"], ["convert", "seg"], ["inspect"], ["verify"]):
            assert run(*arguments, "--help").exit_code == 0
