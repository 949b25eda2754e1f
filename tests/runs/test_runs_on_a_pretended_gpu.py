"""Whole inversions whose waves are computed on a GPU: nothing mixes devices, and they end where those on a CPU end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hpfwi.pretended_gpu import pretended_gpu, waves_too

SHORT: dict[str, object] = {"inversion__iterations": 3, "inversion__diagnostics_every": 2}
CASES: dict[str, dict[str, object]] = {
    "bands": {"inversion__bands_hz": "[8.0]", "data__mute__min_offset_m": 60.0},
    "lbfgs": {"inversion__parameterisation__kind": "pixel", "inversion__optimiser__kind": "lbfgs"},
    "normalised": {"inversion__misfit": "normalised", "inversion__parameterisation__kind": "a-denorm-moving-mean"},
}


@pytest.mark.parametrize("case", CASES)
def test_an_inversion_runs_on_a_gpu_as_on_a_cpu(
    case: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "cpu", **SHORT, **CASES[case])
    with pretended_gpu(monkeypatch):
        seen = waves_too(monkeypatch)
        found = run(tmp_path / "gpu", **SHORT, **CASES[case])
    assert seen
    (began,) = found.of_kind("start")
    assert began["device"] == "cuda"
    # The operators are the same, but torch adds some of them up in another way while they are looked at.
    for name in ("model/inverted", "gathers/predicted"):
        here, there = expected.array(name), found.array(name)
        assert np.linalg.norm(there - here) <= 1e-4 * np.linalg.norm(here)
