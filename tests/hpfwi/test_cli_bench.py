"""`hpfwi bench` finds the source tree's benchmarks, hands options on and returns their exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpfwi.cli import app
from hpfwi.cli_bench import benchmarks, headline
from hpfwi.errors import ConfigError


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_name_it_lists_what_there_is(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 0
    assert {"acoustic", "amfms", "loading"} <= set(re.findall(r"^  (\w+) ", result.output, re.MULTILINE))
    assert "peers" not in result.output  # serves the others, is none


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["bench", "acustic"])
    assert result.exit_code == 2
    assert "'acustic'" in result.output
    assert "acoustic" in result.output


def test_options_and_exit_code_pass_through(capfd: pytest.CaptureFixture[str]) -> None:
    assert CliRunner().invoke(app, ["bench", "cluster", "--only", "7"]).exit_code == 2
    assert "invalid choice: '7'" in capfd.readouterr().err
    assert CliRunner().invoke(app, ["bench", "cluster", "--help"]).exit_code == 0
    assert "--repeats" in capfd.readouterr().out


def test_an_installation_without_the_source_tree_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not of a wheel"):
        benchmarks(tmp_path)


def test_a_headline_ends_before_the_command(tmp_path: Path) -> None:
    script = tmp_path / "speed.py"
    script.write_text('"""Time this: `python speed.py`.\n\nMore.\n"""\n')
    assert headline(script) == "Time this"
