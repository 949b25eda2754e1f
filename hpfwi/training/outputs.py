"""Names of files that a command may write to."""

from __future__ import annotations

from pathlib import Path

from hpfwi.errors import ConfigError


def require_free(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where a file to be written has the name of a folder, or of a file that is to stay.

    >>> require_free(Path("/"), overwrite=True)
    Traceback (most recent call last):
    hpfwi.errors.ConfigError: / is a folder; give the name of a file to write.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give the name of a file to write.")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another name, or replace it with --overwrite.")
