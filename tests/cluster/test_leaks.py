"""Memory of driver and workers stays flat over many iterations, and a group leaves nothing on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi_cluster import ClusterSettings

ITEMS = range(6)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process alone has to itself: what is shared with others grows without it."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.mark.ray
@pytest.mark.slow
def test_two_hundred_iterations_leave_nothing_behind(
    toy_travels: None, chaotic: Callable[[Path], Callable[[], Any]], tmp_path: Path
) -> None:
    from hpfwi_cluster.group import RayGroup

    settings = ClusterSettings(workers=2)
    with RayGroup(chaotic(tmp_path), workers=2, threads_per_worker=1, settings=settings) as group:
        pids = [os.getpid(), *(member.hello.pid for member in group._crew.members if member.hello is not None)]
        session = group._connection.session
        assert session is not None
        assert session.is_dir()
        sizes = []
        for iteration in range(250):
            group.run(iteration, ITEMS, [1.0] * len(ITEMS))
            if iteration >= 49:  # what is made once is there by then
                sizes.append([resident_bytes(pid) for pid in pids])
        found = np.array(sizes, np.float64)
    assert not session.exists()
    early, late = found[:20].mean(axis=0), found[-20:].mean(axis=0)
    assert len(found) == 201
    assert np.abs(late / early - 1.0).max() <= 0.02, (early / 1e6, late / 1e6)


def test_a_session_goes_when_no_process_of_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpfwi_cluster import connection

    session, other, link = tmp_path / f"session_{os.getpid()}", tmp_path / "other", tmp_path / "session_link"
    session.mkdir()
    other.mkdir()
    link.symlink_to(other)
    monkeypatch.setattr(connection, "_SESSION_ENDS_S", 0.0)
    with subprocess.Popen([sys.executable, "-c", "input()", session.name], stdin=subprocess.PIPE) as process:
        connection._remove_session(session)
        assert session.is_dir()
        process.kill()
    for folder in (session, other, link):
        connection._remove_session(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "session_link"]
