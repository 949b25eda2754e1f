"""CUDA kernels run on the processor: their source compiled by g++ with cuda_on_cpu.h, their launches, their memory."""

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, cuda_call, cuda_on_chip, cuda_streaming, reference
from hpfwi_kernels.acoustic.cuda_streaming_layout import THREADS, Operation, Repeat, Zero
from hpfwi_kernels.acoustic.setup import Setup, fold_edges, prepare

HERE = Path(__file__).parent
# Every kernel as what it takes and a function of pointers to that, as the driver calls one.
HARNESS = """
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include "cuda_on_cpu.h"

static int add_in_turn(int* sum, int more) {
    const int before = *sum;
    *sum += more;
    return before;
}
#define atomicAdd add_in_turn
#include "source.cu"

// A letter for an address, an integer, a floating-point number or a structure, and its bytes.
template <class T> std::string kind_of() {
    const char* number = std::is_integral<T>() ? "i" : std::is_floating_point<T>() ? "f" : "s";
    return std::string(std::is_pointer<T>() ? "p" : number) + std::to_string(sizeof(T)) + " ";
}

struct Kernel {
    std::string takes;
    std::function<void(void**)> call;
};

template <class... T, size_t... N> Kernel wrapped(void (*kernel)(T...), std::index_sequence<N...>) {
    return {(std::string() + ... + kind_of<T>()), [kernel](void** told) { kernel(*(T*)told[N]...); }};
}

template <class... T> Kernel wrapped(void (*kernel)(T...)) { return wrapped(kernel, std::index_sequence_for<T...>()); }

static const std::map<std::string, Kernel> kernels = {
%s
};

extern "C" const char* takes(const char* name) { return kernels.at(name).takes.c_str(); }

extern "C" int run(
    const char* name, void** told, unsigned blocks, unsigned many, unsigned threads, unsigned together, int order,
    unsigned shared_bytes
) {
    const auto& kernel = kernels.at(name).call;
    gridDim.y = many;
    for (unsigned n = 0; n < many; ++n) {
        blockIdx.y = n;
        if (!fibers::launch(blocks, threads, order, [&] { kernel(told); }, together, shared_bytes)) return 0;
    }
    return 1;
}
"""


def library_of(harness: str, folder: Path) -> ctypes.CDLL:
    """C++ that includes cuda_on_cpu.h, or what lies in the folder, as a library; skips the test without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    (folder / "harness.cpp").write_text(harness)
    # Checked jumps would take another fiber's stack for a broken one.
    command = [compiler, "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
    subprocess.run([*command, f"-I{HERE}", "harness.cpp", "-o", "harness.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "harness.so"))


@dataclass
class Processor:
    """Runs kernels' launches; an instance of the acoustic ones that has not been compiled is, with its transpose."""

    folder: Path
    edit: Callable[[str], str] = str
    adjoint: bool = True
    libraries: dict[str, ctypes.CDLL] = field(default_factory=dict)

    def compile(self, kernels: set[str]) -> None:
        """Template instances of one of the acoustic sources, together."""
        on_chip = any(name.startswith("on_chip") for name in kernels)
        dimensions = 3 if any("_3d<" in name for name in kernels) else 2
        self.build(cuda_on_chip.source() if on_chip else cuda_streaming.source(dimensions), kernels)

    def build(self, code: str, kernels: set[str]) -> None:
        """Instances of a source, together."""
        place = self.folder / str(len(set(self.libraries.values())))
        place.mkdir()
        (place / "source.cu").write_text(self.edit(code))
        library = library_of(HARNESS % "\n".join(f'{{"{name}", wrapped({name})}},' for name in sorted(kernels)), place)
        library.takes.restype = ctypes.c_char_p
        self.libraries |= dict.fromkeys(kernels, library)

    def takes(self, name: str) -> list[str]:
        """A kernel's arguments in order: p, i, f or s and bytes, for an address, a number or a structure."""
        return str(self.libraries[name].takes(name.encode()).decode()).split()

    def run_on_chip(self, launch: cuda_on_chip.Launch, order: int = 0) -> bool:
        """Whether all threads came to the same barriers, and none wrote behind the shared memory."""
        self.require(launch.kernel)
        address, count = launch.zero
        ctypes.memset(address, 0, count)
        assert launch.shared_bytes <= 4 * (1 << 16)
        together = 1 if launch.team == "block" else launch.grid[0]
        return self.run(
            launch.kernel, (launch.call,), launch.grid, launch.threads, together, order, launch.shared_bytes
        )

    def require(self, kernel: str) -> None:
        """Compile an acoustic kernel on chip, if it is not."""
        if kernel not in self.libraries:
            kind = kernel.replace("ADJOINT", "FORWARD")
            self.compile({kernel, *([kind, kind.replace("FORWARD", "ADJOINT")] if self.adjoint else [])})

    def run_streaming(self, program: list[Operation], order: int = 0) -> None:
        """Operations in order, a repeated period launch by launch."""
        launches = [one for operation in program for one in cuda_streaming.launches_of(operation)]
        missing = {one.kernel for one in launches} - self.libraries.keys()
        if missing:
            self.compile(missing)
        for operation in program:
            if isinstance(operation, Zero):
                ctypes.memset(operation.address, 0, operation.count)
                continue
            for _ in range(operation.times if isinstance(operation, Repeat) else 1):
                for one in cuda_streaming.launches_of(operation):
                    arguments = one.params, *one.typed()
                    done = self.run(one.kernel, arguments, one.blocks, THREADS, 1, order, one.shared_bytes)
                    assert done, one.kernel

    def require_taken(self, name: str, arguments: Sequence[Any]) -> None:
        """Raise TypeError where NumPy numbers and structures are not what a compiled kernel takes."""
        wanted = self.takes(name)
        kinds = [f"{'s' if one.dtype.names else one.dtype.kind.replace('u', 'i')}{one.itemsize}" for one in arguments]
        if kinds != [kind.replace("p", "i") for kind in wanted]:
            raise TypeError(f"{name} takes {wanted} and is launched with {kinds}")

    def run(
        self, name: str, arguments: Sequence[Any], blocks: tuple[int, int], threads: int, together: int, order: int,
        shared_bytes: int,
    ) -> bool:  # fmt: skip
        """Launch a compiled kernel with what it takes; see `run_on_chip`."""
        self.require_taken(name, arguments)
        held = [np.asarray(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(one.ctypes.data for one in held))
        run = self.libraries[name].run
        return bool(run(name.encode(), pointers, *blocks, threads, together, order, shared_bytes))


def filled(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray:
    """Memory that shows a cell that no kernel wrote."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max, dtype)


@dataclass
class Survey:
    """A problem in memory of the processor, described as for a GPU."""

    scheme: Scheme
    velocity: NDArray
    wavelet: NDArray
    sources: Points
    receivers: Points
    held: list[NDArray] = field(default_factory=list)

    def hold(self, array: NDArray) -> int:
        """The address of a copy, a multiple of 256 as CUDA's allocations have; it lives as long as this."""
        return self.shared(array)[0]

    def shared(self, array: NDArray) -> tuple[int, NDArray]:
        """The copy too."""
        block = np.zeros(array.nbytes + 256, np.uint8)
        start = -block.ctypes.data % 256
        copy = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self.held.append(copy)
        return copy.ctypes.data, copy

    def space(self, count: int) -> int:
        """The address of so many bytes that nobody has written."""
        return self.hold(filled((-(-count // 4),)))

    @property
    def setup(self) -> Setup:
        return prepare(self.velocity, self.wavelet, self.sources, self.receivers, self.scheme)

    @functools.cached_property
    def problem(self) -> cuda_call.Problem:
        setup = self.setup
        return cuda_call.describe(
            self.scheme,
            self.sources,
            self.receivers,
            models=len(setup.factor),
            steps=self.wavelet.shape[-1],
            factor=self.hold(setup.factor.astype(np.float32)),
            drive=self.hold(self.wavelet.astype(np.float32)),
            place=self.hold,
        )

    def velocity_gradient(self, total: NDArray, product: NDArray) -> NDArray:
        """What an adjoint call leaves, every shot's total and the taps' product, put together as the operation does."""
        setup, scheme = self.setup, self.scheme
        per_shot = total.astype(np.float64).reshape(-1, *self.problem.shape) * scheme.store_every
        first = 0
        for shot, taps in enumerate(setup.sources):
            own = product[first : first + taps.weight.size].astype(np.float64) * self.wavelet[shot][taps.point]
            np.add.at(per_shot[shot], taps.cell, own.sum(axis=1))
            first += taps.weight.size
        per_model = per_shot if len(setup.velocity) > 1 else per_shot.sum(axis=0, keepdims=True)
        scale = np.divide(2.0, setup.velocity, out=np.zeros_like(setup.velocity), where=setup.velocity != 0)
        return fold_edges(per_model * scale, scheme).reshape(self.velocity.shape)


def right_answers(survey: Survey, residual: NDArray | None = None) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Records [shot, receiver, step], gradients of velocity and wavelet, and brackets, of the float64 reference.

    residual   [shot, receiver, step]; None: the records, so that the gradients are those of half their sum of squares
    """
    points = survey.sources, survey.receivers, survey.scheme
    records, stored = reference.forward(survey.velocity, survey.wavelet, *points, store=True)
    assert stored is not None
    back = records if residual is None else residual
    return records, *reference.gradient(survey.velocity, survey.wavelet, *points, stored, back), stored


def distance(found: Any, right: Any) -> float:
    """Relative L2 distance over the whole array, in float64."""
    one, other = (np.asarray(array, np.float64) for array in (found, right))
    assert one.shape == other.shape
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
