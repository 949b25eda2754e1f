"""What kernels ask CuPy for: whether there is a GPU, another library's stream to launch in, and compiled instances.

CuPy is imported when a GPU is looked for, not before.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpfwi_kernels.errors import KernelError


@functools.cache
def available() -> bool:
    """Whether CuPy is installed and finds a GPU; KernelError where it has no place for what it compiles."""
    try:
        import cupy
    except ImportError:
        return False
    except OSError as error:  # CuPy makes its folder when it is imported
        raise KernelError(
            f"CuPy cannot make its folder of kernels ({error}); name one that can be written in CUPY_CACHE_DIR."
        ) from error
    return bool(cupy.cuda.is_available())


@contextlib.contextmanager
def launching_on(device: int, stream: int) -> Iterator[Any]:
    """CuPy launches on this GPU, in the stream with this handle (0: the default one), yielded as CuPy's own."""
    import cupy

    with cupy.cuda.Device(device), cupy.cuda.Stream.from_external(_Handle(stream)) as queue:
        yield queue


def compiled(code: str, names: tuple[str, ...], options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Template instances of CUDA C++ by name, on the current GPU; CuPy keeps their machine code on disk.

    A block may have all the shared memory that the GPU gives one. That is set here, once: the limit belongs to the
    instance, of which CuPy hands out the same one again, and a limit for one launch would be too low for the next.
    """
    import cupy

    module = cupy.RawModule(code=code, options=("--std=c++17", *options), name_expressions=names)
    functions = {name: module.get_function(name) for name in names}
    most = int(cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])
    for function in functions.values():
        function.max_dynamic_shared_size_bytes = most - function.shared_size_bytes
    return functions


@dataclass(frozen=True)
class _Handle:
    """A CUDA stream in the form in which libraries hand each other theirs."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address
