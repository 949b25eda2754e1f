"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from hpfwi.errors import DataError


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write into, renamed to `path` when the block ends without an exception.

    After an exception the temporary folder is removed; after a kill it stays behind under its own name (a dot, the
    final name, a random part), and nothing is under the final name.

    raises  DataError: something is under the final name already and overwrite is False
    """
    final = Path(path)
    if final.exists() and not overwrite:
        raise DataError(f"{final} exists already: remove it, choose another name or allow overwriting.")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid4().hex[:8]}.part"
    try:
        yield temporary
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
