"""A disk that fills up, and files that vanish, in the middle of a run: one sentence, the right code, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpfwi import checkpoints
from hpfwi.config import load_config
from hpfwi.errors import DataError
from hpfwi.inversion.invert import invert
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop


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
