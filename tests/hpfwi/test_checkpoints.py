"""Checkpoints survive a kill at any step, say what is damaged, and never lose the one before."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpfwi import checkpoints
from hpfwi.errors import CheckpointError


def tensors_of(iteration: int) -> dict[str, np.ndarray]:
    return {
        "network.weight": np.random.default_rng(iteration).standard_normal((7, 5)).astype(np.float32),
        "adam.step": np.array(iteration, np.int64),
        "total": np.full(3, iteration / 3.0),
    }


def write(folder: Path, iteration: int, **meta: Any) -> Path:
    return checkpoints.save(folder, iteration, tensors_of(iteration), {"note": "n", **meta})


def latest(folder: Path) -> checkpoints.Checkpoint:
    found = checkpoints.load_latest(folder)
    assert found is not None
    return found


def assert_is(found: checkpoints.Checkpoint, iteration: int) -> None:
    assert found.iteration == iteration
    expected = tensors_of(iteration)
    assert found.tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        np.testing.assert_array_equal(found.tensors[name], array)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 12, exponent=-7, losses=[0.5, 0.25])
    found = latest(tmp_path / "checkpoints")
    assert_is(found, 12)
    assert found.meta == {"note": "n", "exponent": -7, "losses": [0.5, 0.25]}
    assert found.skipped == ()
    found.tensors["total"][0] = 5.0  # a loaded array can be written into


@settings(max_examples=25, deadline=None)
@given(
    array=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )
)
def test_every_array_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints.save(folder, 1, {"a": array, "transposed": array.T}, {})
    found = latest(folder).tensors
    assert found["a"].shape == array.shape
    assert found["a"].dtype == array.dtype
    assert found["a"].tobytes() == array.tobytes()
    assert found["transposed"].tobytes() == array.T.tobytes()


def test_no_folder_and_an_empty_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.load_latest(tmp_path / "absent") is None
    assert checkpoints.load_latest(tmp_path) is None


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for iteration, score in [(10, 5.0), (20, 1.0), (30, 4.0), (40, float("nan")), (50, 2.0)]:
        write(tmp_path, iteration, score=score)
    assert names(tmp_path) == ["iteration-00000020", "iteration-00000040", "iteration-00000050"]


def test_saving_after_going_back_drops_the_course_that_was_left(tmp_path: Path) -> None:
    for iteration in (10, 20, 30):
        write(tmp_path, iteration)
    write(tmp_path, 25)
    assert names(tmp_path) == ["iteration-00000020", "iteration-00000025"]
    assert_is(latest(tmp_path), 25)


def test_the_same_iteration_can_be_saved_again(tmp_path: Path) -> None:
    write(tmp_path, 10, attempt=1)
    write(tmp_path, 10, attempt=2)
    assert latest(tmp_path).meta["attempt"] == 2
    write(tmp_path, 10, attempt=3)
    assert latest(tmp_path).meta["attempt"] == 3
    assert len(names(tmp_path)) == 1


def truncate(path: Path) -> None:
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def flip_tensor_bit(path: Path) -> None:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def change_meta(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"note": "n"', '"note": "m"'))


def cut_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:40])


def list_for_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def lose_tensors(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


DAMAGES = [
    (truncate, "bytes instead of"),
    (flip_tensor_bit, "tensors.safetensors does not match its sha256"),
    (change_meta, "manifest.json does not match its own sha256"),
    (cut_manifest, "manifest.json is not JSON"),
    (list_for_manifest, "not a JSON object"),
    (lose_tensors, "tensors.safetensors is missing"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    damage(newest)
    found = latest(tmp_path)
    assert_is(found, 10)
    (sentence,) = found.skipped
    assert str(newest) in sentence
    assert reason in sentence


def test_only_damaged_checkpoints_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    for iteration in (10, 20):
        truncate(write(tmp_path, iteration))
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints .* start the run again") as caught:
        checkpoints.load_latest(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_format_version_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["format_version"] = 99
    manifest["sha256"] = checkpoints._manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format version 99 and this hpfwi reads version 1"):
        checkpoints.load(path)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the writer catches it."""


def dying_after(calls: int, original: Callable[..., Any]) -> Callable[..., Any]:
    done = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done > calls:
            raise Killed
        return original(*arguments, **options)

    return call


@pytest.mark.parametrize("again", [False, True], ids=["new iteration", "same iteration"])
@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "os.open", "shutil.rmtree", "pathlib.Path.open"])
def test_a_kill_at_any_step_leaves_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, again: bool
) -> None:
    """Kill before the n-th call of each function that touches the disk, for every n that the writer reaches."""
    owner, name = function.rsplit(".", 1)
    target: Any = {"os": os, "shutil": shutil, "pathlib.Path": Path}[owner]
    original = getattr(target, name)
    kills = 0
    while True:
        folder = tmp_path / f"{kills}"
        for iteration in [20] if again else [10, 20]:
            write(folder, iteration)
        with monkeypatch.context() as patch:
            patch.setattr(target, name, dying_after(kills, original))
            try:
                write(folder, 20 if again else 30)
                finished = True
            except Killed:
                finished = False
        found = latest(folder)
        assert found.iteration in {20, 30}
        assert found.skipped == ()  # half a checkpoint never has the name of a whole one
        assert_is(found, found.iteration)
        write(folder, 40)  # and the next save clears what the killed one left
        assert_is(latest(folder), 40)
        assert all(entry.startswith("iteration-") for entry in names(folder))
        if finished:
            assert kills > 0
            return
        kills += 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    write(tmp_path, 10)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(CheckpointError, match=r"iteration 20 cannot be written .*No space left") as caught:
            write(tmp_path, 20)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["iteration-00000010"]
    assert_is(latest(tmp_path), 10)


def test_a_folder_without_permission_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:  # root may write anywhere, so the refusal is made up
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(CheckpointError, match=r"Permission denied\); make room or give write permission"):
        write(tmp_path, 1)
