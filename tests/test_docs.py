"""The documents tell the truth: Python blocks run, commands exist, files named in them are there."""

import re
from pathlib import Path

import pytest
import typer

from hpfwi.cli import app
from hpfwi.config import recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "kernels").rglob("README.md")), ROOT / "cluster" / "README.md"]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_the_pages_exist(page: Path) -> None:
    text = page.read_text()
    linked: list[str] = re.findall(r"\]\(([^)#:]+)\)", text)
    named: list[str] = re.findall(r"`((?:hpfwi|kernels|cluster|tests|benchmarks|examples)/[\w./-]*)`", text)
    missing = [name for name in linked if not (page.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
