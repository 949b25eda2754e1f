"""One writer for a run folder: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from hpfwi.errors import ConfigError, DiskError

FILE_NAME = "lock"


class FolderLock:
    """Hold the lock of `folder` from construction to `release`.

    The file `lock` is held by flock, which ends with the process however it dies, and says who holds it. A name left in
    it by a dead process of this machine is taken over. One left by another machine is not: where a file system does not
    share locks between machines, that process may be alive.

    notice      a sentence when a dead process's lock was taken over, else ""
    raises      ConfigError when another process holds the lock, or may hold it; DiskError when the disk is full
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self.notice = ""
        try:
            self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written to ({error.strerror}); a run needs write permission in its folder."
            ) from error
        try:
            self._take(folder)
        except BaseException:
            os.close(self._handle)
            raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        holder = self._holder()
        here = socket.gethostname()
        who = f"process {holder.get('pid', '?')} on {holder.get('host', here)}"
        if not free:
            raise ConfigError(f"{folder} is being run by {who}; wait until it ends, or stop it, before going on.")
        if holder and holder.get("host") != here:
            raise ConfigError(
                f"{folder} may still be run by {who}; when that process is gone, delete {self._file} and try again."
            )
        if holder:
            self.notice = f"Took over {folder} from {who}, which ended without finishing."
        content = json.dumps({"pid": os.getpid(), "host": here}).encode()
        os.ftruncate(self._handle, 0)
        try:
            os.pwrite(self._handle, content, 0)
        except OSError as error:
            raise DiskError(
                f"{self._file} cannot be written ({error.strerror}); make room there and resume the run."
            ) from error

    def _holder(self) -> dict[str, Any]:
        """Who the file names; nobody where it is empty, someone unknown where it is torn."""
        content = os.pread(self._handle, 4096, 0)
        if not content:
            return {}
        try:
            holder = json.loads(content)
        except ValueError:
            return {"pid": "?", "host": socket.gethostname()}
        return holder if isinstance(holder, dict) else {}

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        if self._handle >= 0:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1
