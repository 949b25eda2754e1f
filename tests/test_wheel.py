"""The wheel holds the three import packages and the recipes, and nothing that would land beside them."""

from __future__ import annotations

import contextlib
import io
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"hpfwi": "hpfwi", "hpfwi_kernels": "kernels/hpfwi_kernels", "hpfwi_cluster": "cluster/hpfwi_cluster"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the wheel, built by the backend that pyproject.toml names."""
    from hatchling.builders.wheel import WheelBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return zipfile.ZipFile(path)


def project() -> dict[str, str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_backend_is_the_one_tested() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert table["build-system"]["build-backend"] == "hatchling.build"


def test_three_packages_and_nothing_else_on_top(wheel: zipfile.ZipFile) -> None:
    info = f"{project()['name']}-{project()['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {*PACKAGES, info}
    assert {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")} == {
        name for name in wheel.namelist() if name.startswith(info)
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_source_file_is_in(package: str, wheel: zipfile.ZipFile) -> None:
    folder = ROOT / PACKAGES[package]
    wanted = {f"{package}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
    found = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    assert wanted <= found
    assert {Path(name).suffix for name in found} <= {".py", ".toml", ".md", ".typed", ".cu", ".cuh"}


def test_recipes_are_in(wheel: zipfile.ZipFile) -> None:
    recipes = {f"hpfwi/recipes/{path.name}" for path in (ROOT / "hpfwi" / "recipes").glob("*.toml")}
    assert len(recipes) >= 3
    assert recipes <= set(wheel.namelist())


def test_no_tests_and_no_benchmarks(wheel: zipfile.ZipFile) -> None:
    folders = {part for name in wheel.namelist() for part in Path(name).parts[:-1]}
    assert not folders & {"tests", "benchmarks", "examples", "kernels", "cluster", "__pycache__"}
    assert not [name for name in wheel.namelist() if Path(name).name.startswith(("test_", "conftest"))]


def test_the_command_is_installed_and_the_licence_named(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "hpfwi = hpfwi.cli:main" in wheel.read(entry).decode()
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    text = wheel.read(metadata).decode()
    assert f"Version: {project()['version']}" in text
    assert "License-Expression: MIT" in text
