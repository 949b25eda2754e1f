"""A file of TensorBoard events, written where it is asked for: no thread of its own, which could only say that a disk
is full by a stack trace.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from hpfwi.errors import DiskError

_NUMBERS = itertools.count()
"""Part of a file's name, so that two of one second are two files."""


class EventFile:
    """A new file in `folder`, which is made where there is none; the system has what is added at once.

    raises      DiskError: the disk refuses; so does `add`
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self._folder = folder
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter((folder / name).open("wb"))
        except OSError as error:
            raise self._refused(error) from error
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summary: Any, step: int, at: float | None = None) -> None:
        """Add a summary of `torch.utils.tensorboard.summary`.

        at      when it happened, s since the epoch; None is now
        """
        self._write(self._event(wall_time=time.time() if at is None else at, step=step, summary=summary))

    def close(self) -> None:
        """Close the file; of one that the disk refused, `add` has said so."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DiskError:
        return DiskError(
            f"TensorBoard's files cannot be written to {self._folder} ({error.strerror or error}); make room there and "
            "resume the run."
        )
