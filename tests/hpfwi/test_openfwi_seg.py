"""The SEG sets in MATLAB files: both names of everything, and files that are damaged, of HDF5 or of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hpfwi.errors import DataError
from hpfwi.store.convert import convert
from hpfwi.store.seg_files import MatPairs, open_seg, read_mat

RECORDS, MODEL = (2, 20, 6), (5, 6)


def write_seg(
    folder: Path, train: range, test: range, *, model: str = "svmodel", names: tuple[str, str] = ("Rec", "svmodel")
) -> None:
    """Records hold the number of their file + 0.1 shot + 0.01 receiver, velocities 1000 more."""
    shots, times, receivers = RECORDS
    gather = 0.01 * np.arange(receivers)[None, :, None] + 0.1 * np.arange(shots)[None, None, :]
    for split, numbers in (("train", train), ("test", test)):
        for kind in ("seismic", "vmodel"):
            (folder / f"{split}_data" / kind).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            values = np.broadcast_to(number + gather, (times, receivers, shots))
            savemat(folder / f"{split}_data/seismic/seismic{number}.mat", {names[0]: values})
            maps = np.full(MODEL, 1000.0 + number)
            savemat(folder / f"{split}_data/vmodel/{model}{number}.mat", {names[1]: maps}, do_compression=True)


def found(folder: Path, **options: Any) -> MatPairs:
    return open_seg(folder, records_shape=RECORDS, model_shape=MODEL, **options)


def test_the_salt_set_is_read_with_its_axes_turned(tmp_path: Path) -> None:
    write_seg(tmp_path, range(1, 131), range(1, 11))
    pairs = found(tmp_path)
    assert (pairs.family, pairs.samples) == ("SEG-salt", 140)
    assert pairs.splits == {"train": range(130), "test": range(130, 140)}
    assert (pairs.physics["dt_s"], pairs.physics["dx_m"], pairs.physics["peak_hz"]) == (0.005, 10.0, None)
    records, models = pairs.read(range(8, 132))
    numbers = np.array([*range(9, 131), 1, 2])
    shots, receivers = np.arange(2)[:, None, None], np.arange(6)[None, None, :]
    expected = numbers[:, None, None, None] + 0.1 * shots + 0.01 * receivers + np.zeros((1, 1, 20, 1))
    assert np.array_equal(records, expected.astype(np.float32))
    assert np.array_equal(models, np.broadcast_to(1000.0 + numbers[:, None, None], models.shape))
    store = convert(pairs, tmp_path / "salt.zarr", shard_samples=50)
    assert np.array_equal(store.read([8])[0][0], records[0])
    assert pairs.origin(9) == "seismic10.mat and svmodel10.mat"


@pytest.mark.parametrize("first_test", [1, 1601])
def test_the_simulation_set_with_either_numbering(tmp_path: Path, first_test: int) -> None:
    write_seg(tmp_path, range(1, 4), range(first_test, first_test + 2), model="vmodel", names=("data", "data"))
    pairs = found(tmp_path, partial=True)
    assert (pairs.family, pairs.samples) == ("SEG-simulation", 5)
    assert pairs.splits == {"train": range(3), "test": range(3, 5)}
    assert pairs.read(range(5))[1][:, 0, 0].tolist() == [1001, 1002, 1003, 1000 + first_test, 1001 + first_test]
    with pytest.raises(
        DataError, match=r"1695 samples of SEG-simulation are missing .*train_data/seismic/seismic4\.mat"
    ):
        found(tmp_path)


def test_halves_and_strangers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no SEG set: train_data/seismic/seismic1\.mat and"):
        found(tmp_path)
    write_seg(tmp_path, range(1, 4), range(1, 2))
    (tmp_path / "train_data/vmodel/svmodel2.mat").rename(tmp_path / "svmodel2.mat")
    with pytest.raises(DataError, match=r"seismic2\.mat has no partner in .*train_data/vmodel: half of a pair"):
        found(tmp_path, partial=True)
    (tmp_path / "train_data/seismic/seismic2.mat").rename(tmp_path / "train_data/seismic/seismic131.mat")
    (tmp_path / "svmodel2.mat").rename(tmp_path / "train_data/vmodel/svmodel131.mat")
    with pytest.raises(DataError, match=r"seismic131\.mat is none of the 130 train samples of SEG-salt, .* 1 to 130"):
        found(tmp_path, partial=True)


def test_files_that_are_no_matlab_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"

    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            read_mat(path, ("Rec", "data"), (20, 6, 2))
        assert str(path) in str(caught.value)

    refused("cannot be read as a MATLAB file")
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n")
    refused(r"is a MATLAB 7\.3 file \(HDF5\), which is not read: save it in MATLAB with '-v7'")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * 40)
    refused("HDF5")
    path.write_bytes(b"nonsense" * 40)
    refused("cannot be read as a MATLAB file")
    savemat(path, {"other": np.ones(3)})
    refused("holds other, and not Rec or data")
    savemat(path, {"Rec": np.ones((20, 6))})
    refused(r"holds Rec as double\[20, 6\]: it must be numbers\[20, 6, 2\]")
    savemat(path, {"Rec": np.ones((20, 6, 2)) * 1j})
    refused("no array of real numbers")
    savemat(path, {"Rec": np.full((20, 6, 2), "text", dtype=object)})
    refused(r"holds Rec as cell\[20, 6, 2\]")
    savemat(path, {"Rec": np.ones((20, 6, 2))})
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    refused("cannot be read as a MATLAB file")
    savemat(path, {"Rec": np.ones((20, 6, 2))}, do_compression=True)
    path.write_bytes(path.read_bytes()[:-20])
    refused("cannot be read as a MATLAB file")
