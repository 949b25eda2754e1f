"""The capacity example at toy size: runs as a program would, and the fit improves."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "e1_network_capacity.py"


def toy(path: Path) -> Path:
    depth = np.linspace(1500.0, 4000.0, 16)[:, None]
    blocks = 300.0 * np.sign(np.sin(np.arange(20) * 0.7))[None, :]
    np.save(path, (depth + blocks).astype(np.float32))
    return path


@pytest.mark.parametrize("extra", [[], ["--whole-model"]])
def test_the_example_prints_falling_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    main: Callable[[list[str]], int] = runpy.run_path(str(EXAMPLE))["main"]
    model = toy(tmp_path / "model.npy")
    sizes = ["--steps", "60", "--every", "30", "--width", "32", "--lr", "2e-3", "--smooth", "4", "--seeds", "0", "1"]
    assert main(["--model", str(model), *sizes, *extra]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[2], row[3]) for row in rows] == [(seed, step) for seed in "01" for step in ("0", "30", "60")]
    for first, last in ((rows[0], rows[2]), (rows[3], rows[5])):
        assert float(last[4]) < 0.7 * float(first[4])
