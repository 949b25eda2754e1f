"""The environment report says what decides a run and keeps secrets; the checks of an installation can fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from hpfwi import environment, installation


def test_the_report_is_json_with_versions_and_hardware() -> None:
    facts = environment.environment(["hpfwi", "invert", "my line.toml"])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["command"] == "hpfwi invert 'my line.toml'"
    assert facts["packages"].keys() >= {"hpfwi", "numpy", "torch", "ray", "zarr"}
    assert facts["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert 1 <= facts["cores_usable"] <= facts["cores"]
    assert facts["memory_gib"] > 0.1


def test_secrets_of_the_environment_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    facts = environment.environment()
    assert facts["variables"]["OMP_NUM_THREADS"] == "3"
    assert "s3cret-value" not in json.dumps(facts)


def test_the_text_has_a_line_per_fact() -> None:
    text = environment.environment_text({"command": None, "cores": 2, "packages": {"numpy": "2.0"}, "gpus": []})
    assert text.splitlines() == ["cores           2", "packages.numpy  2.0", "gpus            none"]


def test_a_broken_part_of_an_installation_fails_and_the_others_are_still_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> str:
        raise ImportError("no such\nlibrary")

    passing: Callable[[], str] = lambda: "fine"  # noqa: E731
    monkeypatch.setattr(installation, "_kernel", broken)
    monkeypatch.setattr(installation, "_tensorboard", passing)
    monkeypatch.setattr(installation, "_inversion", lambda *, workers: f"{workers} workers")
    results = list(installation.checks(with_ray=True))
    assert [(result.ok, result.detail) for result in results] == [
        (False, "ImportError: no such library"),
        (True, "results and checkpoints come back as written"),
        (True, "fine"),
        (True, "0 workers"),
        (True, "1 workers"),
    ]
    assert len(list(installation.checks(with_ray=False))) == 4


def test_the_adjoint_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation._kernel().startswith("adjoint exact")
    monkeypatch.setattr(installation, "ADJOINT_GAP", 0.0)
    with pytest.raises(Exception, match="the adjoint misses by"):
        installation._kernel()


@pytest.mark.slow
def test_this_installation_works() -> None:
    failed = [result for result in installation.checks(with_ray=False) if not result.ok]
    assert failed == []
