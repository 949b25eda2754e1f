"""A disk that fills up, and files that vanish, in the middle of a run: one sentence, the right code, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi import checkpoints
from hpfwi.config import OutputSettings, load_config
from hpfwi.errors import ConfigError, DataError, DiskError
from hpfwi.inversion.invert import invert
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop
from hpfwi.store.npy_files import write_npy
from hpfwi.tensorboard_view import TensorBoardView


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 3 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    small_disk: Path, run: Any, resume: Any, reference: Any
) -> None:
    stopped = run(small_disk, stop_after=3)
    before = stopped.checkpoint.iteration
    ballast = small_disk / "ballast"
    room = os.statvfs(small_disk)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize))
    with pytest.raises(DataError, match="No space left on device") as caught:
        RunFolder.open(stopped.path)
    assert "\n" not in str(caught.value)
    ballast.write_bytes(ballast.read_bytes()[: -6 * 4096])  # enough for the lock, not for a checkpoint
    with RunFolder.open(stopped.path) as folder:
        config, _ = load_config(folder.config_path, [])
        with pytest.raises(DataError, match="No space left on device") as caught:
            invert(config, folder, resume=True, stop=Stop())
    assert "\n" not in str(caught.value)
    assert "resume" in str(caught.value)
    found = checkpoints.load_latest(stopped.path / "checkpoints")
    assert found is not None
    assert found.iteration >= before
    ballast.unlink()
    assert resume(stopped).bits == reference.bits


def test_there_is_no_room_for_a_run_folder_or_for_predictions(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    (small_disk / "runs").mkdir()  # a folder of this disk takes no room, and a file none until it is written
    with pytest.raises(ConfigError, match=r"run folder .*/runs/a cannot be made \(No space left on device\)"):
        RunFolder.create(OutputSettings(), "a", parent=small_disk / "runs", environment={})
    parts = (np.zeros((64, 70, 70), np.float32) for _ in range(2))
    with pytest.raises(DiskError, match=r"out\.npy cannot be written \(No space left on device\)"):
        write_npy(small_disk / "out.npy", (128, 70, 70), parts, overwrite=False)
    assert sorted(path.name for path in small_disk.rglob("*")) == ["ballast", "runs"]


def test_a_view_that_cannot_be_written_is_one_sentence(small_disk: Path) -> None:
    view = TensorBoardView(small_disk)
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    numbers = {f"number {place}": 1.0 for place in range(1000)}  # more than the block that the file has already
    with pytest.raises(DiskError, match=r"files cannot be written to .*/tb \(No space left on device\); make room"):
        view.event({"kind": "diagnostics", "time": 0.0, "iteration": 0} | numbers)
    view.close()


def test_a_run_folder_that_vanishes_is_one_sentence(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoints.save

    def vanish_then_save(folder: Path, iteration: int, *rest: Any) -> Path:
        if iteration == 3:
            shutil.rmtree(folder.parent)
        return save(folder, iteration, *rest)

    monkeypatch.setattr(checkpoints, "save", vanish_then_save)
    with pytest.raises(DataError, match="cannot be") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
