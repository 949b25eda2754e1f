"""The documents tell the truth: Python blocks run, commands exist, files named in them are there."""

import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import typer

from hpfwi.cli import app
from hpfwi.config import load_config, recipe_names
from hpfwi.refinement.settings import load_refinement
from hpfwi.synthetic.dataset import modelling_with
from hpfwi.training.settings import load_train_config

ROOT = Path(__file__).parents[1]
Reader = Callable[[list[str]], object]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "kernels").rglob("README.md")), ROOT / "cluster" / "README.md", *GUIDES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {"__name__": "block"})


def test_the_readme_has_a_python_block() -> None:
    assert blocks(ROOT / "README.md", "python")


def test_commands_in_the_readme_exist() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    said = re.findall(r"^hpfwi (\w+)(?: (\w+))?", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert {verb for verb, _ in said} >= {"invert", "resume", "plan"}
    assert {verb for verb, _ in said} <= verbs
    recipes = {source for verb, source in said if verb in ("plan", "invert") and "marmousi" in source}
    assert recipes <= set(recipe_names())


@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDES], ids=lambda page: page.name)
def test_options_of_commands_exist(page: Path) -> None:
    words = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    commands = [line for line in words if line and line[0] == "hpfwi"]
    assert commands
    for line in commands:
        command, rest = typer.main.get_command(app), line[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, line


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_configurations_in_guides_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        (tmp_path / "line.toml").write_text(block)
        load_config(tmp_path / "line.toml")
    invert: Reader = partial(load_config, tmp_path / "line.toml")
    others: dict[str, Reader] = {
        "train": partial(load_train_config, None),
        "refine": load_refinement,
        "data": modelling_with,
    }
    for line in page.read_text().splitlines():
        read = others.get(line.removeprefix("hpfwi ").partition(" ")[0], invert)
        if options := re.findall(r"--set ([\w.]+=\S+)", line):
            read(options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_the_pages_exist(page: Path) -> None:
    text = page.read_text()
    linked: list[str] = re.findall(r"\]\(([^)#:]+)\)", text)
    named: list[str] = re.findall(r"`((?:hpfwi|kernels|cluster|tests|benchmarks|examples)/[\w./-]*)`", text)
    missing = [name for name in linked if not (page.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
