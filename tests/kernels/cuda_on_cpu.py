"""CUDA kernels run on the processor: their source compiled by g++ with cuda_on_cpu.h, their launches, their memory."""

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Memory, Points, Scheme, cuda, cuda_call, cuda_on_chip, cuda_streaming, reference
from hpfwi_kernels.acoustic.cuda_streaming_layout import PARAMS, THREADS, Operation, Repeat, Zero
from hpfwi_kernels.acoustic.device.op import Work, forward_on_device, gradient_on_device
from hpfwi_kernels.acoustic.setup import Setup, fold_edges, prepare

HERE = Path(__file__).parent
# Every kernel as a function of its description and the rest of its arguments as 64-bit numbers.
HARNESS = """
#include <map>
#include <string>
#include "cuda_on_cpu.h"

static int add_in_turn(int* sum, int more) {
    const int before = *sum;
    *sum += more;
    return before;
}
#define atomicAdd add_in_turn
#include "source.cu"

using Told = %(told)s;
using Rest = const long long*;
static float* at(long long address) { return (float*)address; }
static const std::map<std::string, void (*)(const Told&, Rest)> kernels = {
%(entries)s
};

extern "C" long size_of_told() { return sizeof(Told); }

extern "C" int run(
    const char* name, const Told* told, Rest rest, unsigned blocks, unsigned many, unsigned threads, unsigned together,
    int order
) {
    const auto kernel = kernels.at(name);
    for (unsigned n = 0; n < many; ++n) {
        blockIdx.y = n;
        if (!fibers::launch(blocks, threads, order, [&] { kernel(*told, rest); }, together)) return 0;
    }
    return 1;
}
"""
MOVE = "at(a[0]), a[1], at(a[2]), a[3], (int)a[4]"
ARGUMENTS = {
    **dict.fromkeys(("to_field", "from_field", "to_packed", "from_packed"), MOVE),
    **dict.fromkeys(("begin_call", "first_ring"), "at(a[0]), (int)a[1]"),
    **dict.fromkeys(("tile_count", "on_chip"), ""),
    "tile_fill": "(int*)a[0]",
}
"""After the description, by kernel; one number of all others."""


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
    """Runs the acoustic kernels' launches; an instance that has not been compiled is, with its transpose."""

    folder: Path
    edit: Callable[[str], str] = str
    adjoint: bool = True
    libraries: dict[str, ctypes.CDLL] = field(default_factory=dict)

    def compile(self, kernels: set[str]) -> None:
        """Template instances of one source, together."""
        on_chip = any(name.startswith("on_chip") for name in kernels)
        dimensions = 3 if any("_3d<" in name for name in kernels) else 2
        text = cuda_on_chip.source() if on_chip else cuda_streaming.source(dimensions)
        entries = []
        for name in sorted(kernels):
            rest = ARGUMENTS.get(name.split("<")[0], "(int)a[0]")
            entries.append(f'{{"{name}", [](const Told& told, Rest a) {{ {name}(told{", " * bool(rest)}{rest}); }}}},')
        place = self.folder / str(len(set(self.libraries.values())))
        place.mkdir()
        (place / "source.cu").write_text(self.edit(text))
        told = "Call" if on_chip else "Params"
        library = library_of(HARNESS % {"told": told, "entries": "\n".join(entries)}, place)
        assert library.size_of_told() == (cuda_on_chip.CALL if on_chip else PARAMS).itemsize
        self.libraries |= dict.fromkeys(kernels, library)

    def run_on_chip(self, launch: cuda_on_chip.Launch, order: int = 0) -> bool:
        """Whether all threads came to the same barriers."""
        if launch.kernel not in self.libraries:
            kind = launch.kernel.replace("ADJOINT", "FORWARD")
            self.compile({launch.kernel, *([kind, kind.replace("FORWARD", "ADJOINT")] if self.adjoint else [])})
        address, count = launch.zero
        ctypes.memset(address, 0, count)
        assert launch.shared_bytes <= 4 * (1 << 16)
        together = {"block": 1, "cluster": launch.cluster, "grid": launch.grid}[launch.team]
        return self._run(launch.kernel, launch.call, (), (launch.grid, 1), launch.threads, together, order)

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
                    rest = tuple(int(number) for number in one.typed())
                    assert self._run(one.kernel, one.params, rest, one.blocks, THREADS, 1, order), one.kernel

    def _run(
        self, name: str, told: NDArray, rest: tuple[int, ...], blocks: tuple[int, int], threads: int, together: int,
        order: int,
    ) -> bool:  # fmt: skip
        numbers = (ctypes.c_longlong * 8)(*rest)
        description = ctypes.c_void_p(told.ctypes.data)
        library = self.libraries[name]
        return bool(library.run(name.encode(), description, numbers, *blocks, threads, together, order))


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


def operation_on(
    processor: Processor,
    survey: Survey,
    memory: Memory,
    limits: cuda.Limits,
    *,
    order: int = 3,
    gradient: bool = True,
) -> tuple[NDArray, ...]:
    """Records [shot, receiver, step], and the gradients of velocity and wavelet of half their sum of squares, as the
    torch operation computes them on a GPU of these limits."""

    def on_chip(launch: cuda_on_chip.Launch, *_: int) -> None:
        assert processor.run_on_chip(launch, order)

    def streaming(program: list[Operation], *_: int) -> None:
        processor.run_streaming(program, order)

    velocity, wavelet = (torch.tensor(array, dtype=torch.float32) for array in (survey.velocity, survey.wavelet))
    work = Work(survey.scheme, memory, survey.sources, survey.receivers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_run", on_chip)
        patch.setattr(cuda_streaming, "_run", streaming)
        patch.setattr(cuda, "limits_of", lambda _: limits)
        patch.setattr(cuda_streaming, "ALIGNMENT_BYTES", 64)  # what torch gives on a processor
        torch.use_deterministic_algorithms(True)  # which fills memory that nobody has written with NaN
        try:
            records, kept = forward_on_device(velocity, wavelet, work, store=gradient)
            gradients = gradient_on_device(kept, records, velocity, wavelet, work) if gradient else ()
        finally:
            torch.use_deterministic_algorithms(False)
    return tuple(tensor.numpy() for tensor in (records, *gradients))
