"""Who may use a cluster: only holders of its token, which lies in files that nobody else can read.

Ray's processes listen on every address of a node and run whatever code they are sent, so a cluster without a token is
an open door, also one meant for this machine alone. A cluster started here therefore always has one. The token is
handed on as the name of a file: never as an argument of a process, which everybody on the machine can read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from hpfwi_cluster.errors import StartFailed

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Names that Ray reads; the second holds a token, the third the name of a file that does."""

_TOKEN_BYTES = 32


def require_token_mode(environment: Mapping[str, str]) -> None:
    """Raise StartFailed if the environment asks for clusters without a token."""
    mode = environment.get(MODE, "token")
    if mode.lower() != "token":
        raise StartFailed(
            f"{MODE}={mode} asks for a Ray cluster without a token; Ray listens on every address of this machine, so "
            f"anybody who reaches it could run programs as you: unset {MODE}, or set it to token."
        )


def keep_own_token_private() -> None:
    """See to it that the token which a cluster of this machine is about to use exists and that only its owner reads it.

    Ray makes one for each user in ~/.ray/auth_token and lets everybody read it.

    raises  StartFailed: the file belongs to somebody else, or cannot be made private
    """
    if os.environ.get(TOKEN):
        return
    file = Path(os.environ.get(TOKEN_FILE) or Path.home() / ".ray" / "auth_token")
    try:
        if not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process of this user was faster
                write_token(file)
        elif stat.S_IMODE(file.stat().st_mode) & 0o077:
            file.chmod(0o600)
    except OSError as error:
        raise StartFailed(
            f"The token of the Ray cluster cannot be kept private in {file} ({error.strerror or error}): name a file "
            f"of your own in {TOKEN_FILE}."
        ) from error


def write_token(file: Path) -> None:
    """Write a fresh token into a new file that only its owner reads; FileExistsError if there is such a file."""
    # Complete under another name first: whoever waits for this file must not read half a token.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_hex(_TOKEN_BYTES).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(temporary, file)
    finally:
        temporary.unlink()


def require_private(file: Path) -> None:
    """Raise StartFailed if others than the owner may read the file, or if it is somebody else's."""
    found = file.stat()
    if found.st_uid != os.getuid():
        raise StartFailed(
            f"{file} belongs to user {found.st_uid}, not to you: a token is made by the job that uses it."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise StartFailed(
            f"{file} holds a token and can be read by others (mode {stat.S_IMODE(found.st_mode):o}): use a folder on a "
            "file system that keeps permissions."
        )


def with_token(environment: Mapping[str, str], file: Path) -> dict[str, str]:
    """Return the environment of a process that uses the cluster whose token is in `file`."""
    rest = {name: value for name, value in environment.items() if name != TOKEN}
    return rest | {MODE: "token", TOKEN_FILE: str(file)}
