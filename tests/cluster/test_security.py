"""Tokens: always there, in files of their owner alone, in no argument of any process; nothing without one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpfwi_cluster import connection, security
from hpfwi_cluster.addresses import free_port, is_loopback, own_address
from hpfwi_cluster.errors import StartFailed

NOBODY = 65534


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder of a user who has set nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (security.TOKEN, security.TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_secret_from_its_first_moment(tmp_path: Path) -> None:
    """Whatever the umask; complete or not there; never written over."""
    before = os.umask(0)
    try:
        security.write_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert mode(tmp_path / "token") == 0o600
    text = (tmp_path / "token").read_text()
    assert len(text) == 64
    with pytest.raises(FileExistsError):
        security.write_token(tmp_path / "token")
    assert (tmp_path / "token").read_text() == text
    security.write_token(tmp_path / "other")
    assert (tmp_path / "other").read_text() != text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "token"]


def test_the_users_own_token_is_made_or_made_private(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / ".ray" / "auth_token"
    security.keep_own_token_private()
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    text = file.read_text()
    file.chmod(0o644)  # as Ray itself leaves it
    security.keep_own_token_private()
    assert (mode(file), file.read_text()) == (0o600, text)
    monkeypatch.setenv(security.TOKEN_FILE, str(home / "named"))
    security.keep_own_token_private()
    assert mode(home / "named") == 0o600
    monkeypatch.setenv(security.TOKEN_FILE, str(file / "below"))
    with pytest.raises(StartFailed, match=r"cannot be kept private in .* \(File exists\): name a file of your own"):
        security.keep_own_token_private()
    monkeypatch.setenv(security.TOKEN, "in memory alone")
    security.keep_own_token_private()


def test_a_token_that_others_read_or_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    security.write_token(file)
    security.require_private(file)
    file.chmod(0o640)
    with pytest.raises(StartFailed, match=r"can be read by others \(mode 640\)"):
        security.require_private(file)
    if os.geteuid() == 0:
        file.chmod(0o600)
        os.chown(file, NOBODY, -1)
        with pytest.raises(StartFailed, match=f"belongs to user {NOBODY}, not to you"):
            security.require_private(file)


def test_no_cluster_is_started_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one of this machine alone: Ray listens on all its addresses."""
    from hpfwi_cluster import ClusterSettings

    started: list[object] = []
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "init", lambda **options: started.append(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(StartFailed, match="RAY_AUTH_MODE=disabled asks for a Ray cluster without a token"):
        connection.connect(ClusterSettings(), 1)
    assert started == []


def test_one_node_of_many_does_not_compute_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi_cluster import ClusterSettings

    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "8")
    with pytest.raises(StartFailed, match="has 8 nodes and no Ray cluster over them"):
        connection.connect(ClusterSettings(), 1)


def test_a_cluster_that_exists_is_joined_and_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the address in the settings before RAY_ADDRESS; its nodes may arrive one by one; only the visit is ended."""
    from hpfwi_cluster import ClusterSettings

    joined: list[str] = []
    cores = iter([1.0, 2.0, 4.0])
    left: list[bool] = []
    ray = connection.ray
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(joined) and not left)
    monkeypatch.setattr(ray, "init", lambda address, **options: joined.append(address))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": next(cores)})
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    monkeypatch.setattr(connection, "_mute_death_notices", lambda: None)
    monkeypatch.setattr(connection, "_POLL_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:2")
    with connection.connect(ClusterSettings(workers=4, address="10.0.0.1:1"), 4) as found:
        assert (found.owned, found.joined, found.host) == (False, True, "10.0.0.7")
    assert (joined, left, next(cores, None)) == (["10.0.0.1:1"], [True], None)
    left.clear()
    joined.clear()
    impatient = ClusterSettings(workers=4, start_timeout_s=1e-9)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    connection.connect(impatient, 4)
    assert joined == ["10.0.0.2:2"]

    def unreachable(**options: object) -> None:
        raise ConnectionError("no")

    left.append(True)
    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(StartFailed, match=r"Ray cluster at 10.0.0.2:2 cannot be joined .*RAY_AUTH_TOKEN"):
        connection.connect(impatient, 4)


def test_the_environment_of_a_cluster_holds_the_name_of_the_file_alone(tmp_path: Path) -> None:
    found = security.with_token({"A": "b", security.TOKEN: "of another cluster"}, tmp_path / "token")
    assert found == {"A": "b", "RAY_AUTH_MODE": "token", security.TOKEN_FILE: str(tmp_path / "token")}


@pytest.mark.ray
def test_a_cluster_of_this_machine(tmp_path: Path) -> None:
    """Started for a user without a token: one is made, private, in no process' arguments, and asked for at the door."""
    code = """
        import os, pathlib, subprocess, sys
        from hpfwi_cluster import ClusterSettings
        from hpfwi_cluster.connection import connect
        from hpfwi_cluster.ray_library import ray
        with connect(ClusterSettings(), 1):
            file = pathlib.Path.home() / ".ray" / "auth_token"
            secret = file.read_bytes()
            print(oct(file.stat().st_mode & 0o777), len(secret))
            told = [p for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if secret in p.read_bytes()]
            print("told:", told)
            ask = "from hpfwi_cluster.ray_library import ray; import sys; from ray._raylet import GcsClient; "
            ask += "print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)))"
            for token in (secret.decode(), "f" * 64):
                environment = os.environ | {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
                command = [sys.executable, "-c", ask, ray.get_runtime_context().gcs_address]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                print(done.returncode, done.stdout.strip(), "Auth" in done.stderr)
    """
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["0o600 64", "told: []", "0 1 False"], done.stdout + done.stderr
    assert lines[3] == "1  True", done.stdout + done.stderr


def test_addresses() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("10.0.0.1")
    assert own_address("lo") == own_address(toward="127.0.0.1") == "127.0.0.1"
    with pytest.raises(StartFailed, match=r"Network interface no0 has no IPv4 address here; this node has .*lo"):
        own_address("no0")
    port = free_port("127.0.0.1", 5)
    import socket

    with socket.create_server(("127.0.0.1", port)):
        assert free_port("127.0.0.1", 5) != port
