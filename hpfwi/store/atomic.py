"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from hpfwi.errors import ConfigError, DiskError


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write into, renamed to `path` when the block ends without an exception.

    Its files are flushed to the disk before that. After an exception the temporary folder is removed; after a kill it
    stays behind under its own name (a dot, the final name, a random part), and nothing is under the final name.

    raises  ConfigError: something is under the final name already and overwrite is False; DiskError: the disk refuses
    """
    final = Path(path)
    with _in_place_of(final, overwrite) as temporary:
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in (*names, "."):
                    _flush(Path(folder, name))
            if final.exists():
                # Two renames, because a folder that is not empty cannot be replaced in one.
                old = final.parent / f".{final.name}.{uuid4().hex[:8]}.old"
                os.rename(final, old)
                os.rename(temporary, final)
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            else:
                os.rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` with the same suffix to write, flushed and renamed as `new_folder` does.

    raises  ConfigError: something is under the final name already and overwrite is False; DiskError: a folder is; the
            disk refuses
    """
    final = Path(path)
    with _in_place_of(final, overwrite) as temporary:
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_unwritable(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise what `new_folder` would raise at its end because of the place, before the work that leads there."""
    with _in_place_of(Path(path), overwrite) as temporary:
        temporary.mkdir()
        temporary.rmdir()


@contextmanager
def _in_place_of(final: Path, overwrite: bool) -> Iterator[Path]:
    """A name beside `final`, whose folder is made, and whose flush follows; the disk's refusals in one sentence."""
    if final.exists() and not overwrite:
        raise ConfigError(f"{final} exists already: choose another name, or replace it with --overwrite.")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield final.parent / f".{final.stem}.{uuid4().hex[:8]}.part{final.suffix}"
        _flush(final.parent)
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)  # "File exists" says nothing about which
        reason = "a file stands where its folder should be" if blocked else error.strerror or error
        raise DiskError(f"{final} cannot be written ({reason}); make room there or choose another place.") from error


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
