"""A run's folder: the resolved configuration, the event log, the results, and the lock that gives them one writer.

config.toml    the resolved configuration           results.zarr   models and gathers (`hpfwi.results`)
env.json       versions, hardware, command          checkpoints/   what a resume needs (`hpfwi.checkpoints`)
events.jsonl   what happened, one JSON line each    done.json      written last: without it a run is unfinished
tb/            a TensorBoard view of the events     lock           held by the process that runs the folder
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import BaseModel

from hpfwi.commands import command_on
from hpfwi.errors import ConfigError, DataError, DiskError
from hpfwi.folder_lock import FolderLock
from hpfwi.options import as_toml
from hpfwi.results import Results

ABOUT_THE_MACHINE = frozenset({"worker_lost", "rewind", "resume", "stop"})
"""Kinds of event that record what happened to the run, not to the model: going back does not make them untrue."""


class RunFolder:
    """An open run folder. `create` makes a new one and `open` takes an existing one; both hold its lock until `close`.

    path        the folder
    notices     sentences that the user should see, such as that a dead process's lock was taken over
    """

    def __init__(self, path: Path, lock: FolderLock, replaced: Path | None = None) -> None:
        self.path = path
        self._replaced = replaced
        self.notices: list[str] = [lock.notice] if lock.notice else []
        self._lock = lock
        self._events = -1

    @classmethod
    def create(
        cls, config: BaseModel, name: str, *, parent: Path, environment: Mapping[str, Any], overwrite: bool = False
    ) -> RunFolder:
        """Make `parent/name` with the resolved configuration and the environment in it.

        A run that it replaces is set aside until `begun` or `close`, and comes back with `discard`.

        raises      ConfigError: the folder exists (and, with `overwrite`, is not a run or is being run), or the place
                    cannot be written to
        """
        path = parent / name
        refuse_taken(path, overwrite)
        replaced = _set_aside(path) if path.exists() else None
        # The folder is filled under a temporary name, so that one with this name always has its configuration.
        temporary = parent / f".{name}.{os.getpid()}.tmp"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            _write(temporary / "config.toml", as_toml(config))
            _write(temporary / "env.json", json.dumps(_plain(environment), indent=1) + "\n")
            _write(temporary / "events.jsonl", "")
            lock = FolderLock(temporary)
            os.rename(temporary, path)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if replaced is not None:
                os.rename(replaced, path)
            refused = error.__cause__ if isinstance(error, DiskError) else error  # the lock's words name the folder's
            if not isinstance(refused, OSError):
                raise
            raise ConfigError(
                f"The run folder {path} cannot be made ({refused.strerror or refused}); choose another place with "
                "--set output.folder=PATH."
            ) from error
        return cls(path, lock, replaced)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Take an existing run folder for writing; raises ConfigError where it is none or another process runs it."""
        require_run(path)
        return cls(path, FolderLock(path))

    def begun(self) -> None:
        """The run has something to go on with: what it replaced is deleted."""
        if self._replaced is not None:
            shutil.rmtree(self._replaced, ignore_errors=True)
            self._replaced = None

    def discard(self) -> bool:
        """Delete the folder, of a run that had not begun; returns whether the run that it replaced is there again."""
        shutil.rmtree(self.path, ignore_errors=True)
        replaced, self._replaced = self._replaced, None
        if replaced is not None:
            os.rename(replaced, self.path)
        self.close()
        return replaced is not None

    def close(self) -> None:
        """Release the lock; the folder can be read on, and run by somebody else."""
        self.begun()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Results:
        """The writer of results.zarr."""
        return Results(self.path / "results.zarr")

    @property
    def is_done(self) -> bool:
        return is_done(self.path)

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event to events.jsonl, handed to the operating system before this returns.

        Numbers that are not finite become null, because JSON has none; numpy values become plain ones.

        raises      DiskError when the disk refuses; the log then ends with the event before
        """
        event = {"kind": kind, "time": time.time(), **{key: _plain(value) for key, value in fields.items()}}
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        try:
            if self._events < 0:
                self._events = _open_for_append(self.path / "events.jsonl")
            end = os.fstat(self._events).st_size
            if os.write(self._events, line) != len(line):
                os.ftruncate(self._events, end)
                raise OSError(28, os.strerror(28))
        except OSError as error:
            raise DiskError(
                f"An event of kind {kind!r} cannot be written to {self.path / 'events.jsonl'} "
                f"({error.strerror or error}); make room there and resume the run."
            ) from error
        return event

    def events(self) -> list[dict[str, Any]]:
        """Every event so far, in order."""
        return read_events(self.path)

    def truncate_events_after(self, iteration: int) -> None:
        """Drop what the log says of the model after `iteration`, before the run goes on from there.

        Events about the machine (`ABOUT_THE_MACHINE`) stay, so that the log still tells of every lost worker.
        """
        kept = [
            event
            for event in self.events()
            if event["kind"] in ABOUT_THE_MACHINE or event.get("iteration") is None or event["iteration"] <= iteration
        ]
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
        _replace(self.path / "events.jsonl", "".join(json.dumps(event, allow_nan=False) + "\n" for event in kept))

    def configure(self, config: BaseModel) -> None:
        """Put another configuration in the place of the folder's; raises DiskError, and the old one is still there."""
        _replace(self.config_path, as_toml(config))

    def done(self, summary: Mapping[str, Any]) -> None:
        """Write done.json: from here on the run is finished."""
        _replace(self.path / "done.json", json.dumps(_plain(summary), indent=1, allow_nan=False) + "\n")


def require_run(path: Path) -> None:
    """Raise ConfigError where `path` is not the folder of a run."""
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"{path} is not a run folder (it has no config.toml); give the folder that a run printed, such as "
            "runs/demo."
        )


def is_done(path: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return (path / "done.json").is_file()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every whole event of the run folder `path`, in order; a last line that a killed writer left torn is passed over.

    raises      DataError: the log is missing, or a line before the last is not an event
    """
    file = path / "events.jsonl"
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); give the folder of a run, such as runs/demo."
        ) from error
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends in a newline, so the last part is torn
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "kind" not in event:
            raise DataError(
                f"Line {number} of {file} is damaged; delete that line, and the run can be read and resumed again."
            )
        events.append(event)
    return events


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Raise ConfigError where a new run cannot go to `path`: a run is there that may not be replaced, or a stranger."""
    if not path.exists():
        return
    if not (path / "config.toml").is_file():
        raise ConfigError(f"{path} exists and is not a run folder; choose another name with --name, or move it away.")
    if overwrite:
        return
    if is_done(path):
        raise ConfigError(
            f"{path} holds a finished run; choose another name with --name, or replace it with --overwrite."
        )
    raise ConfigError(
        f"{path} holds an unfinished run; go on with `{command_on('resume', path)}`, choose another name with --name, "
        "or replace it with --overwrite."
    )


def _set_aside(path: Path) -> Path:
    """Move a run folder that nobody runs out of the way; returns where it is now."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    lock = FolderLock(path)
    try:
        os.rename(path, aside)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be replaced ({error.strerror or error}); choose another name with --name."
        ) from error
    finally:
        lock.release()
    return aside


def _open_for_append(file: Path) -> int:
    """Open the log, cutting off the torn line that a killed writer may have left at its end."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
    return handle


def _write(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(file: Path, text: str) -> None:
    """Put a new content under `file` so that a reader, and a crash, see the old one or the new one whole."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        _write(temporary, text)
        os.replace(temporary, file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(
            f"{file} cannot be written ({error.strerror or error}); make room there and resume the run."
        ) from error


def _plain(value: Any) -> Any:
    """The value in JSON's own types: numpy scalars and arrays unpacked, numbers that are not finite as null."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
