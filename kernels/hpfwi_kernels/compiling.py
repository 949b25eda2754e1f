"""How hot loops are compiled with Numba: the two settings that Numba does not publish live here and nowhere else.

`hot` compiles a loop function that allocates nothing. Two private Numba settings make stencils fast: telling LLVM that
array arguments do not overlap (1.3-2 times on short rows) and dropping the reference counting of array arguments in
calls. Where a Numba release no longer has one of them, it is left out: same results, slower.
"""

from collections.abc import Callable
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


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of scalars, tuples and non-overlapping arrays that allocates nothing; it releases the GIL."""
    compiled: Callable[..., Any] = numba.njit(**_PUBLIC, **private_options())(function)
    return compiled


def hot_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    """`hot` for functions that add up many terms: the compiler may reorder a sum, which packing it needs.

    The order is fixed when the function is compiled, so the bits do not change from call to call.
    """
    options = _PUBLIC | {"fastmath": {"contract", "reassoc", "nsz"}}
    compiled: Callable[..., Any] = numba.njit(**options, **private_options())(function)
    return compiled
