"""The run folder: made whole, written by one process, and readable after a kill at any moment."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from pydantic import BaseModel

from hpfwi.errors import ConfigError, DataError
from hpfwi.folder_lock import FolderLock
from hpfwi.run_folder import RunFolder, is_done, read_events


class Settings(BaseModel):
    name: str = "toy"
    limit: float | None = None


def create(parent: Path, **options: Any) -> RunFolder:
    return RunFolder.create(Settings(), "toy", parent=parent / "runs", environment={"python": "3"}, **options)


def test_a_new_folder_holds_its_configuration_and_environment(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        assert folder.path == tmp_path / "runs" / "toy"
        assert tomllib.loads((folder.path / "config.toml").read_text()) == {"name": "toy", "limit": "none"}
        assert json.loads((folder.path / "env.json").read_text()) == {"python": "3"}
        assert folder.events() == []
        assert not folder.is_done
    assert sorted(entry.name for entry in (tmp_path / "runs").iterdir()) == ["toy"]


def test_an_unfinished_run_is_not_overwritten_silently(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(ConfigError, match=r"unfinished run; go on with `hpfwi resume .*toy`, choose another name"):
        create(tmp_path)


def test_a_finished_run_is_not_overwritten_silently(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.done({"misfit": 1.0})
    assert is_done(folder.path)
    with pytest.raises(ConfigError, match="holds a finished run; choose another name with --name"):
        create(tmp_path)


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.done({})
    with create(tmp_path, overwrite=True) as folder:
        assert not folder.is_done
        with pytest.raises(ConfigError, match="is being run by process"):
            create(tmp_path, overwrite=True)
    stranger = tmp_path / "stranger" / "runs" / "toy"
    stranger.mkdir(parents=True)
    (stranger / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a run folder"):
        create(tmp_path / "stranger", overwrite=True)
    assert (stranger / "thesis.tex").exists()


def test_what_is_replaced_comes_back_where_nothing_was_begun(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.done({})
        assert not folder.discard()
    assert not folder.path.exists()
    with create(tmp_path) as folder:
        folder.done({"misfit": 1.0})
    with create(tmp_path, overwrite=True) as folder:
        assert folder.discard()
    assert folder.is_done
    with create(tmp_path, overwrite=True) as folder:
        folder.begun()
        assert not folder.discard()
    with create(tmp_path) as folder:
        folder.done({})
    create(tmp_path, overwrite=True).close()
    assert not folder.is_done
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]


def test_opening_something_else_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should go")
    with pytest.raises(ConfigError, match=r"cannot be made \(.*\); choose another place with --set output.folder"):
        create(tmp_path)


def test_events_come_back_with_numbers_that_json_knows(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.event("iteration", iteration=np.int64(3), misfit=np.float32(0.5), rates=np.array([1.0, np.inf]))
        folder.event("diagnostics", iteration=3, mse=float("nan"), path=Path("a"), nested={"x": (1, float("-inf"))})
        first, second = folder.events()
    assert first["kind"] == "iteration"
    assert (first["iteration"], first["misfit"], first["rates"]) == (3, 0.5, [1.0, None])
    assert (second["mse"], second["path"], second["nested"]) == (None, "a", {"x": [1, None]})
    assert first["time"] <= second["time"]


@pytest.mark.parametrize("tail", [b'{"kind": "iter', b'{"kind": "iteration", "iteration": 2}', b"\x00\xff"])
def test_a_torn_last_line_is_passed_over_and_cut_by_the_next_writer(tmp_path: Path, tail: bytes) -> None:
    with create(tmp_path) as folder:
        folder.event("iteration", iteration=1)
    with (folder.path / "events.jsonl").open("ab") as stream:
        stream.write(tail)
    assert [event["iteration"] for event in read_events(folder.path)] == [1]
    with RunFolder.open(folder.path) as again:
        again.event("iteration", iteration=2)
        assert [event["iteration"] for event in again.events()] == [1, 2]


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.event("start")
    log = folder.path / "events.jsonl"
    log.write_bytes(log.read_bytes() + b"garbage\n" + log.read_bytes())
    with pytest.raises(DataError, match=r"Line 2 of .*events.jsonl is damaged"):
        read_events(folder.path)


def test_going_back_drops_what_was_said_of_later_iterations(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        folder.event("start")
        for iteration in range(1, 6):
            folder.event("iteration", iteration=iteration)
        folder.event("worker_lost", iteration=5, sentence="Worker 2 was lost.")
        folder.event("stop", reason="Ctrl-C")
        folder.truncate_events_after(3)
        folder.event("iteration", iteration=4)
        kept = [(event["kind"], event.get("iteration")) for event in folder.events()]
    assert kept == [
        ("start", None),
        *(("iteration", iteration) for iteration in (1, 2, 3)),
        ("worker_lost", 5),
        ("stop", None),
        ("iteration", 4),
    ]


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path) as folder:
        folder.event("start")
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, line: write(handle, line[:7]))
            with pytest.raises(DataError, match=r"events.jsonl \(No space left on device\); make room"):
                folder.event("iteration", iteration=1)
        folder.event("iteration", iteration=2)
        assert [event["kind"] for event in folder.events()] == ["start", "iteration"]


def test_done_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path) as folder:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(DataError, match=r"done.json cannot be written \(No space left"):
                folder.done({"misfit": 1.0})
        assert not folder.is_done
        folder.done({"misfit": float("nan")})
        assert json.loads((folder.path / "done.json").read_text()) == {"misfit": None}


HOLDER = """
import sys, time
from pathlib import Path
from hpfwi.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_living_holder_is_respected_and_a_killed_one_replaced(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"is being run by process {holder.pid} on "):
            FolderLock(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    lock = FolderLock(tmp_path)
    assert f"process {holder.pid} on {socket.gethostname()}, which ended without finishing" in lock.notice
    lock.release()
    lock.release()
    assert FolderLock(tmp_path).notice == ""


def test_the_name_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "another.machine"}))
    with pytest.raises(ConfigError, match=r"may still be run by process 1 on another.machine; .* delete .*lock"):
        FolderLock(tmp_path)


def test_results_hold_models_gathers_and_a_history_that_can_go_back(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        results = folder.results
        results.describe(name="toy", spacing_m=(10.0, 12.0), origin_m=(0.0, 5.0), dt_s=0.002)
        results.truncate_history_after(0)
        results.model("true", np.full((4, 5), 2000.0))
        results.model("true", np.full((4, 5), 2500.0))
        results.shots([0, 7])
        results.gathers("observed", np.ones((2, 3, 6)))
        for iteration in (0, 10, 20, 30):
            results.append_history(iteration, np.full((4, 5), float(iteration)))
        results.truncate_history_after(20)
        stored: Any = zarr.open_array(folder.path / "results.zarr" / "model" / "history_iteration", mode="r")
        assert stored[:].tolist() == [0, 10, 20]
        results.append_history(20, np.full((4, 5), 21.0))
        results.append_history(25, np.full((4, 5), 25.0))
    root: Any = zarr.open_group(folder.path / "results.zarr", mode="r")
    assert dict(root.attrs) == {"name": "toy", "spacing_m": [10, 12], "origin_m": [0, 5], "dt_s": 0.002}
    np.testing.assert_array_equal(root["model/true"][:], np.full((4, 5), 2500, np.float32))
    assert root["gathers/observed"].shape == (2, 3, 6)
    assert root["gathers/shots"][:].tolist() == [0, 7]
    assert root["model/history_iteration"][:].tolist() == [0, 10, 20, 25]
    assert root["model/history"][:, 0, 0].tolist() == [0, 10, 21, 25]
    assert root["model/history"].shape == (4, 4, 5)


def test_results_on_a_full_disk_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path) as folder:
        folder.results.model("true", np.ones((2, 2)))

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(zarr, "open_group", full)
        with pytest.raises(DataError, match=r"results.zarr cannot be written \(No space left"):
            folder.results.model("best", np.ones((2, 2)))
