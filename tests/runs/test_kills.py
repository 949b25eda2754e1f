"""Two kills of the campaign that `make kills` runs for longer: no hang, no wrong bit, no lost sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("kill_campaign.py")


@pytest.mark.ray
@pytest.mark.slow
def test_runs_that_are_killed_end_with_the_bits_of_those_that_are_not(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, str(TOOL), "--kills=2", "--per-run=1", "--seed=2", f"--folder={tmp_path / 'runs'}"]
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    account = json.loads(out.read_text())
    assert [account[name] for name in ("kills", "worker killed", "driver killed")] == [2, 1, 1]
    assert [account[name] for name in ("hangs", "failures", "wrong bits", "lost or doubled iterations")] == [0] * 4
