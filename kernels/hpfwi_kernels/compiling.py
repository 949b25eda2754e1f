"""How hot loops are compiled with Numba: the two settings that Numba does not publish live here and nowhere else.

`hot` compiles a loop function that allocates nothing. Two private Numba settings make stencils fast: telling LLVM that
array arguments do not overlap (1.3-2 times on short rows) and dropping the reference counting of array arguments in
calls. Should a Numba release refuse either, the plain compiler is used: same results, slower.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba.core.compiler import Compiler


class _NoAliasCompiler(Compiler):
    """Numba's default pipelines with the promise that array arguments do not overlap."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state.flags.noalias = True


_PUBLIC: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
_PRIVATE: dict[str, Any] = {"pipeline_class": _NoAliasCompiler, "_nrt": False}


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of scalars, tuples and non-overlapping arrays that allocates nothing; it releases the GIL."""
    try:
        compiled: Callable[..., Any] = numba.njit(**_PUBLIC, **_PRIVATE)(function)
    except (TypeError, KeyError):  # an unknown option: how Numba says that a private name is gone
        compiled = numba.njit(**_PUBLIC)(function)
    return compiled
