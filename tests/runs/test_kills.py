"""One kill of the campaign that `make kills` runs for longer: no hang, no wrong bit, no lost sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("kill_campaign.py")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_driver_is_killed_ends_with_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    """Deaths of workers, which are dearer, have tests of their own."""
    out = tmp_path / "kills.json"
    command = [sys.executable, str(TOOL), "--kills=1", "--seed=8", f"--folder={tmp_path / 'runs'}", f"--out={out}"]
    done = subprocess.run(
        [*command, "--kinds", "line search"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    account = json.loads(out.read_text())
    assert [account[name] for name in ("kills", "driver killed")] == [1, 1]
    assert [account[name] for name in ("hangs", "failures", "wrong bits", "lost or doubled iterations")] == [0] * 4
