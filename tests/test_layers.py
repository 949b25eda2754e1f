"""The table of layers holds: what each layer imports and says is read from its source, file by file."""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"kernels": "hpfwi_kernels", "cluster": "hpfwi_cluster", "hpfwi": "hpfwi"}
CLUSTER_NEVER_SAYS = {"shot", "receiver", "wavelet", "misfit", "velocity", "survey", "seismic"}
DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}


def files_of(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert len(found) > 5
    return found


def package_of(path: Path) -> list[str]:
    """Return the dotted parts of the package that a file's relative imports start from."""
    parts = path.relative_to(ROOT).parts[:-1]
    return list(parts[1:] if parts[0] in ("kernels", "cluster") else parts)


@functools.cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(imported(path.read_text("utf-8"), package_of(path)))


def imported(code: str, package: list[str]) -> Iterator[str]:
    """Every module or name that code in this package imports, wherever it stands, with its full dotted name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            assert isinstance(argument, ast.Constant), f"{ast.unparse(node)} imports what cannot be read off"
            yield str(argument.value)


def importers(layer: str, *modules: str) -> set[str]:
    """Files of a layer that import one of these modules or something inside it."""
    return {
        str(path.relative_to(ROOT))
        for path in files_of(layer)
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    }


def words(code: str) -> Iterator[str]:
    """Every word of identifiers, strings and comments, in lower case and singular; snake_case and CamelCase split."""
    readers = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in readers or token.type == getattr(tokenize, "FSTRING_MIDDLE", None):
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string):
                yield word.lower()
                yield re.sub("ies$", "y", word.lower()) if word.lower().endswith("ies") else word.lower().rstrip("s")


def test_kernels_know_no_science_and_no_processes() -> None:
    assert importers("kernels", "hpfwi", "hpfwi_cluster", "ray", "zarr", "pydantic", "deepwave") == set()


def test_torch_in_kernels_is_for_ops_alone() -> None:
    users = importers("kernels", "torch")
    assert {Path(path).name for path in users} == {"op.py", "described.py"}  # the latter is what one op keeps on a GPU
    assert {Path(path).name for path in importers("kernels", "hpfwi_kernels.acoustic.device.described")} == {"op.py"}


def test_cluster_knows_no_science() -> None:
    assert importers("cluster", "hpfwi", "hpfwi_kernels", "zarr", "numba", "deepwave") == set()


def test_cluster_says_no_word_of_seismics() -> None:
    for path in files_of("cluster"):
        assert (path.name, CLUSTER_NEVER_SAYS & set(words(path.read_text("utf-8")))) == (path.name, set())


def test_cluster_never_names_the_science_layer() -> None:
    named = {path.name for path in files_of("cluster") if re.search(r"\bhpfwi\b(?!_)", path.read_text("utf-8"))}
    assert named == set()


def test_one_seam_to_the_workers() -> None:
    assert importers("hpfwi", "hpfwi_cluster") == {"hpfwi/parallel.py"}
    assert importers("hpfwi", "ray") == importers("kernels", "ray") == set()
    assert importers("cluster", "ray")


def test_one_caller_of_propagators() -> None:
    """One file calls the propagator. Three others ask the kernels what belongs to them, and compute no wave.

    discretisation.py writes down a run's scheme, memory.py asks which way to hold a wavefield fits, device.py whether
    a GPU will do.
    """
    proofs = {"hpfwi/installation.py"}  # `hpfwi check` proves that the kernel itself works
    physics = {f"hpfwi/physics/{name}.py" for name in ("simulator", "discretisation", "memory", "device")}
    assert importers("hpfwi", "hpfwi_kernels.acoustic.propagate") - proofs == {"hpfwi/physics/simulator.py"}
    assert importers("hpfwi", "hpfwi_kernels.acoustic") - proofs == physics
    assert importers("hpfwi", "hpfwi_kernels.stability") <= physics | {"hpfwi/physics/derived.py"}
    assert importers("hpfwi", "hpfwi_kernels.errors") <= physics | {"hpfwi/verbs.py"}


@pytest.mark.parametrize("module", ["hpfwi", "hpfwi.config", "hpfwi.parallel", "hpfwi.cli"])
def test_imports_are_quiet_and_light(module: str) -> None:
    heavy = ["ray", "tensorboard", "matplotlib", "deepwave", "torch.utils.tensorboard", "skimage"]
    code = (
        f"import sys, logging, {module}\n"
        f"print([name for name in {heavy!r} if name in sys.modules], logging.root.handlers, end='')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[] []", "", 0)


def test_import_of_the_package_alone_loads_no_torch() -> None:
    code = "import sys, hpfwi; print('torch' in sys.modules, 'numba' in sys.modules, end='')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False"


def test_every_file_has_an_idea_for_a_name() -> None:
    tests = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    product = [path for layer in LAYERS for path in files_of(layer)]
    assert {path.name for path in product + tests} & DRAWERS == set()


def test_source_roots_and_test_folders_are_no_packages() -> None:
    assert [layer for layer in ("kernels", "cluster") if (ROOT / layer / "__init__.py").exists()] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_nothing_read_can_run_code() -> None:
    """No pickle, no torch.load, no np.load of objects: files of strangers are data."""
    found = []
    for path in (path for layer in LAYERS for path in files_of(layer)):
        if {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & imports(path):
            found.append(f"{path.name} imports a pickler")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                allows = [word for word in node.keywords if word.arg == "allow_pickle"]
                if called in ("torch.load", "eval", "exec") or called.startswith("pickle."):
                    found.append(f"{path.name}:{node.lineno} {called}")
                if any(not (isinstance(word.value, ast.Constant) and word.value.value is False) for word in allows):
                    found.append(f"{path.name}:{node.lineno} {called} allows pickles")
    assert found == []


def test_the_readers_of_this_file_see() -> None:
    """What is hidden in functions, relative imports, f-strings, snake_case and CamelCase is found."""
    code = (
        "def f():\n    from .. import errors\n    from ..acoustic.op import x as y\n    import ray.util as r\n"
        "class BestVelocities:\n    text = f'{2} wavelets'  # of my_shots\n"
    )
    assert set(imported(code, ["a", "b", "c"])) == {
        "a.b",
        "a.b.errors",
        "a.b.acoustic.op",
        "a.b.acoustic.op.x",
        "ray.util",
    }
    assert CLUSTER_NEVER_SAYS & set(words(code)) == {"velocity", "wavelet", "shot"}
    assert package_of(ROOT / "cluster" / "hpfwi_cluster" / "group.py") == ["hpfwi_cluster"]
    assert package_of(ROOT / "hpfwi" / "physics" / "grid.py") == ["hpfwi", "physics"]
