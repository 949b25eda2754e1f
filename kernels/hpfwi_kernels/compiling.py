"""How hot loops are compiled with Numba: what Numba does not publish is used here and nowhere else.

`hot` compiles a loop function that allocates nothing. Two private Numba settings make stencils fast: telling LLVM that
array arguments do not overlap (1.3-2 times on short rows) and dropping the reference counting of array arguments in
calls. Where a Numba release no longer has one of them, it is left out: same results, slower.

Numba keeps machine code on disk until the function's own file changes. What it calls is part of that code, so here it
is kept until a file changes that the function's module imports from this package, directly or not: an upgrade never
runs yesterday's stencil. Where a Numba release keeps its cache elsewhere, nothing is kept.
"""

import ast
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import Compiler, Flags
from numba.core.cpu import CPUTargetOptions


class _NoAliasCompiler(Compiler):
    """Numba's default pipelines with the promise that array arguments do not overlap."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state.flags.noalias = True


_PUBLIC: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}


def private_options() -> dict[str, Any]:
    """The private settings that this Numba release still has."""
    options: dict[str, Any] = {}
    if hasattr(Flags, "noalias"):
        options["pipeline_class"] = _NoAliasCompiler
    if hasattr(CPUTargetOptions, "_nrt"):
        options["_nrt"] = False
    return options


@functools.cache
def imported_files(file: Path) -> tuple[Path, ...]:
    """The modules of this package that a module imports at its top, as files, in alphabetical order."""
    package = Path(__file__).parent
    found = set()
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
            folder = package.joinpath(*node.module.split(".")[1:])
            candidates = [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
            found |= {candidate for candidate in candidates if candidate.is_file()}
    return tuple(sorted(found))


@functools.cache
def fingerprint(file: Path) -> str:
    """What the machine code of a module's functions depends on: its text and that of all it imports from here."""
    seen, waiting = {file}, [file]
    while waiting:
        for other in imported_files(waiting.pop()):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    texts = hashlib.sha256()
    for one in sorted(seen):
        texts.update(one.name.encode() + one.read_bytes())
    return texts.hexdigest()


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    compiled: Any = numba.njit(**options, **private_options())(function)
    cache_file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = (cache_file._source_stamp, fingerprint(Path(function.__code__.co_filename)))
    elif options["cache"]:
        compiled = numba.njit(**options | {"cache": False}, **private_options())(function)
    result: Callable[..., Any] = compiled
    return result


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of scalars, tuples and non-overlapping arrays that allocates nothing; it releases the GIL."""
    return _compiled(function, _PUBLIC)


def hot_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    """`hot` for functions that add up many terms: the compiler may reorder a sum, which packing it needs.

    The order is fixed when the function is compiled, so the bits do not change from call to call.
    """
    return _compiled(function, _PUBLIC | {"fastmath": {"contract", "reassoc", "nsz"}})
