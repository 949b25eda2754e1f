"""The streaming kernels: their source and their host code run on the processor against the reference."""

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
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, cuda_call, cuda_streaming, cuda_streaming_layout, off_grid, reference
from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall
from hpfwi_kernels.acoustic.cuda_streaming_layout import PARAMS, Launch, Operation, Zero
from hpfwi_kernels.acoustic.setup import fold_edges, prepare

HERE = Path(__file__).parent
FOLDER = Path(cuda_streaming.__file__).parent
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
#include "%(source)s"

using Rest = const long long*;
using Kernel = std::function<void(const Params&, Rest)>;
static float* at(long long address) { return (float*)address; }
static const std::map<std::string, Kernel> kernels = {
%(entries)s
};

extern "C" long size_of_params() { return sizeof(Params); }

extern "C" int run(const char* name, const Params* p, Rest rest, unsigned blocks, unsigned many, int order) {
    const Kernel& kernel = kernels.at(name);
    for (unsigned n = 0; n < many; ++n) {
        blockIdx.y = n;
        if (!fibers::launch(blocks, THREADS, order, [&] { kernel(*p, rest); })) return 0;
    }
    return 1;
}
"""
ARGUMENTS = {
    "to_field": "at(a[0]), a[1], at(a[2]), a[3], (int)a[4]",
    "from_field": "at(a[0]), a[1], at(a[2]), a[3], (int)a[4]",
    "to_packed": "at(a[0]), a[1], at(a[2]), a[3], (int)a[4]",
    "from_packed": "at(a[0]), a[1], at(a[2]), a[3], (int)a[4]",
    "begin_call": "at(a[0]), (int)a[1]",
    "tile_count": "",
    "tile_scan": "(int)a[0]",
    "tile_fill": "(int*)a[0]",
    "first_ring": "at(a[0]), (int)a[1]",
}


def library_of(kernels: frozenset[str], dimensions: int, folder: Path, edit: Callable[[str], str]) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    (folder / "source.cu").write_text(edit(cuda_streaming.source(dimensions)))
    entries = []
    for name in sorted(kernels):
        rest = ARGUMENTS.get(name.split("<")[0], "(int)a[0]")
        entries.append(f'{{"{name}", [](const Params& p, Rest a) {{ {name}(p{", " * bool(rest)}{rest}); }}}},')
    (folder / "harness.cpp").write_text(HARNESS % {"source": "source.cu", "entries": "\n".join(entries)})
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", f"-I{HERE}"]
    subprocess.run([*command, "harness.cpp", "-o", "harness.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "harness.so"))


@dataclass
class Machine:
    """Runs programs on the processor; compiles what a program needs the first time that it does."""

    folder: Path
    edit: Callable[[str], str] = str
    libraries: dict[tuple[int, frozenset[str]], ctypes.CDLL] = field(default_factory=dict)

    def library(self, kernels: frozenset[str], dimensions: int) -> ctypes.CDLL:
        for (known_dimensions, known), library in self.libraries.items():
            if dimensions == known_dimensions and kernels <= known:
                return library
        place = self.folder / str(len(self.libraries))
        place.mkdir()
        made = library_of(kernels, dimensions, place, self.edit)
        assert made.size_of_params() == PARAMS.itemsize
        return self.libraries.setdefault((dimensions, kernels), made)

    def run(self, program: list[Operation], dimensions: int, order: int = 0) -> None:
        launches = [one for operation in program for one in cuda_streaming.launches_of(operation)]
        library = self.library(frozenset(one.kernel for one in launches), dimensions)
        for operation in program:
            if isinstance(operation, Zero):
                ctypes.memset(operation.address, 0, operation.count)
                continue
            for _ in range(1 if isinstance(operation, Launch) else operation.times):
                for one in cuda_streaming.launches_of(operation):
                    rest = (ctypes.c_longlong * 8)(*(int(number) for number in one.typed()))
                    params = ctypes.c_void_p(one.params.ctypes.data)
                    assert library.run(one.kernel.encode(), params, rest, *one.blocks, order), one.kernel


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
        """The array's address; it is kept alive, and begins on a multiple of 256 as CUDA's allocations do."""
        block = np.zeros(array.nbytes + 256, np.uint8)
        start = -block.ctypes.data % 256
        copy = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self.held.append(copy)
        return copy.ctypes.data

    def shared(self, array: NDArray) -> tuple[int, NDArray]:
        address = self.hold(array)
        return address, self.held[-1]

    @functools.cached_property
    def problem(self) -> cuda_call.Problem:
        setup = prepare(self.velocity, self.wavelet, self.sources, self.receivers, self.scheme)
        return cuda_call.describe(
            self.scheme,
            self.sources,
            self.receivers,
            models=len(setup.factor),
            steps=self.wavelet.shape[2],
            factor=self.hold(setup.factor.astype(np.float32)),
            drive=self.hold(self.wavelet.astype(np.float32)),
            place=self.hold,
        )

    def space(self, count: int) -> int:
        return self.hold(filled((-(-count // 4),)))

    def forward(
        self, machine: Machine, *, keep: str = "", segments: int = 1, order: int = 0, ring: bool = False
    ) -> dict[str, Any]:
        """Records, the brackets of every segment and the states at their beginnings, and what ring mode keeps."""
        problem, steps = self.problem, self.wavelet.shape[2]
        unit = int(np.lcm(2, self.scheme.store_every))
        length = -(-steps // (segments * unit)) * unit
        address, records = self.shared(filled((problem.shots, steps, problem.receivers.points)))
        state = self.hold(filled((problem.shots, problem.state_fields, problem.cells)))
        rings, ring_array = self.shared(filled((problem.shots, steps, problem.ring_cells if ring else 1)))
        kept = []
        for begin in range(0, steps, length):
            end = min(begin + length, steps)
            slots = -(-(end - begin) // self.scheme.store_every)
            dtype = np.uint16 if keep == "bfloat16" else np.float32
            brackets, array = self.shared(filled((problem.shots, slots, problem.cells if keep else 1), dtype))
            call = ForwardCall(
                problem=problem,
                begin=begin,
                end=end,
                state_in=state if begin else 0,
                state_out=state,
                records=address,
                brackets=brackets if keep else 0,
                bracket_type="bfloat16" if keep == "bfloat16" else "float32",
                ring=rings if ring else 0,
                workspace=self.space(cuda_streaming.forward_workspace_bytes(problem)),
            )
            machine.run(cuda_streaming.forward_program(call), problem.dimensions, order)
            kept.append((begin, end, brackets, array))
        fields = self.held[[array.ctypes.data for array in self.held].index(state)]
        return {"records": records, "kept": kept, "state": fields, "ring": rings, "ring_array": ring_array}

    def gradient(
        self, machine: Machine, kept: dict[str, Any], residual: NDArray, *, keep: str = "", order: int = 0
    ) -> tuple[NDArray, NDArray]:
        """Gradients of velocity and wavelet from what the kernels leave, put together as the op does."""
        problem, (shots, points, steps) = self.problem, self.wavelet.shape
        products, product = self.shared(filled((problem.sources.taps, steps)))
        gradients, drive_gradient = self.shared(filled((shots, points, steps)))
        totals, total = self.shared(np.zeros((shots, problem.cells), np.float32))
        field_address, fields = self.shared(kept["state"][:, :2].copy())
        state = self.hold(filled((shots, problem.state_fields, problem.cells)))
        residuals = self.hold(residual.astype(np.float32))
        for number, (begin, end, brackets, _) in enumerate(reversed(kept["kept"])):
            call = AdjointCall(
                problem=problem,
                begin=begin,
                end=end,
                state_in=state if number else 0,
                state_out=state,
                residual=residuals,
                drive_gradient=gradients,
                product=products,
                total=totals,
                brackets=brackets if keep else 0,
                bracket_type="bfloat16" if keep == "bfloat16" else "float32",
                ring=0 if keep else kept["ring"],
                field=0 if keep else field_address,
                workspace=self.space(cuda_streaming.adjoint_workspace_bytes(problem, rewinds=not keep)),
            )
            machine.run(cuda_streaming.adjoint_program(call), problem.dimensions, order)
        setup = prepare(self.velocity, self.wavelet, self.sources, self.receivers, self.scheme)
        full = total.astype(np.float64).reshape(shots, *problem.shape) * self.scheme.store_every
        at = 0
        for shot, taps in enumerate(setup.sources):
            own = product[at : at + len(taps.point)].astype(np.float64)
            np.add.at(full[shot], taps.cell, (own * self.wavelet[shot][taps.point]).sum(axis=1))
            at += len(taps.point)
        summed = full if len(setup.factor) > 1 else full.sum(axis=0)[None]
        scale = np.divide(2.0, setup.velocity, out=np.zeros_like(setup.velocity), where=setup.velocity != 0)
        self.fields_left = fields
        return fold_edges(summed * scale, self.scheme).reshape(self.velocity.shape), drive_gradient


# In 2-D with one tile that no layer touches, in the middle.
SHAPES = {2: (70, 266), 3: (9, 17, 21)}
SMALL = (29, 45)
WIDTHS = (6, 5, 4, 7, 3, 6)
SAMPLES = 40


def survey_of(
    dimensions: int = 2,
    shots: int = 1,
    models: int = 1,
    shape: tuple[int, ...] = (),
    samples: int = SAMPLES,
    **options: Any,
) -> Survey:
    """Sources between cells all over the model and a receiver near each; the last receiver of shot 0 is absent."""
    shape = shape or SHAPES[dimensions]
    base: dict[str, Any] = {
        "spacing_m": (10.0, 11.0, 12.0)[:dimensions],
        "dt_s": 1.2e-3,
        "order": 4,
        "absorbing": WIDTHS,
        "boundary": "cpml",
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
    } | options
    scheme = Scheme(**(base | {"absorbing": base["absorbing"][: 2 * dimensions]}))
    rng, high = np.random.default_rng(32), np.array(shape) - 1
    spread = np.array([[0.02, 0.02, 0.05], [0.5, 0.48, 0.5], [0.97, 0.96, 0.98], [0.8, 0.93, 0.2], [0.05, 0.5, 0.9]])
    near = spread[:, :dimensions] * high + rng.uniform(-3.0, 3.0, (2, shots, len(spread), dimensions))
    places = np.clip(near, 0, high)
    places[1][0, -1] = np.nan
    sources, receivers = (off_grid(place, shape, free_surface=scheme.free_surface) for place in places)
    velocity = rng.uniform(1500.0, 2500.0, shape if models == 1 else (models, *shape))
    return Survey(scheme, velocity, rng.standard_normal((shots, len(spread), samples)), sources, receivers)


def truth(survey: Survey) -> tuple[NDArray, NDArray, NDArray]:
    """Records [shot, step, receiver] and both gradients of half their sum of squares, from the reference."""
    points = survey.sources, survey.receivers, survey.scheme
    records, stored = reference.forward(survey.velocity, survey.wavelet, *points, store=True)
    assert stored is not None
    gradients = reference.gradient(survey.velocity, survey.wavelet, *points, stored, records)
    return records.transpose(0, 2, 1), *gradients


def everything(survey: Survey, machine: Machine, residual: NDArray, **how: Any) -> tuple[NDArray, NDArray, NDArray]:
    """Records and both gradients from the kernels."""
    kept = survey.forward(machine, **({"keep": "float32"} | how))
    back = {"keep": how.get("keep", "float32"), "order": how.get("order", 0)}
    return kept["records"], *survey.gradient(machine, kept, residual, **back)


def distance(result: NDArray, expected: NDArray) -> float:
    """Relative L2 distance over the whole array, in float64."""
    assert result.shape == expected.shape
    return float(np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected))


def kernels_of(dimensions: int) -> frozenset[str]:
    """What most tests run, compiled at once."""
    names = {f"{way}_{dimensions}d<{r}, CPML, FULL>" for way in ("forward", "back") for r in (1, 2, 3, 4)}
    for way in ("forward", "back"):
        names |= {f"{way}_{dimensions}d<2, {kind}, FULL>" for kind in ("CPML", "SPONGE")}
        names |= {f"{way}_{dimensions}d<2, CPML, {keep}>" for keep in ("NOTHING", "HALF")}
    names |= {f"{move}<{r}>" for move in ("to_packed", "from_packed", "first_ring") for r in (1, 2, 3, 4)}
    names |= {f"rewind_{dimensions}d<2, {counts}>" for counts in ("true", "false")}
    return frozenset(names | {"to_field", "from_field", "begin_call", "tile_count", "tile_scan", "tile_fill"})


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("streaming"))
    for dimensions in (2, 3):
        made.library(kernels_of(dimensions), dimensions)
    return made


CASES: dict[str, dict[str, Any]] = {
    "order-2": {"order": 2},
    "order-4": {},
    "order-6": {"order": 6},
    "order-8": {"order": 8},
    "free-surface": {"free_surface": True, "absorbing": (0, *WIDTHS[1:])},
    "sponge": {"boundary": "sponge", "min_velocity_mps": 1500.0},
    "sponge-free-surface": {
        "boundary": "sponge", "min_velocity_mps": 1500.0, "free_surface": True, "absorbing": (0, *WIDTHS[1:]),
    },
    "no-layer": {"absorbing": (0,) * 6},
    "every-third-step": {"store_every": 3},
}  # fmt: skip


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, dimensions: int, machine: Machine) -> None:
    survey = survey_of(dimensions, **CASES[name])
    expected = truth(survey)
    for result, right in zip(everything(survey, machine, expected[0]), expected, strict=True):
        assert distance(result, right) < 1e-5


@pytest.mark.parametrize("shape", [SMALL, (1, 1), (5, 33), (33, 2), (3, 1, 2), (1, 20, 5)], ids=str)
def test_odd_sizes_and_several_shots_equal_the_reference(shape: tuple[int, ...], machine: Machine) -> None:
    """Layers that are wider than the model and overlap, and a layer of one cell."""
    survey = survey_of(len(shape), shots=2, models=2, shape=shape, absorbing=(12, 1, 0, 9, 10, 3))
    expected = truth(survey)
    for result, right in zip(everything(survey, machine, expected[0]), expected, strict=True):
        assert distance(result, right) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("order", [4, 8])
def test_blocks_that_no_layer_touches_in_3d(order: int, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_streaming_layout, "SHORTEST_RUN", 4)
    survey = survey_of(3, shape=(24, 36, 133), samples=14, order=order, absorbing=(2, 2, 4, 7, 3, 6), dt_s=1.9e-3)
    layout = cuda_streaming_layout.Layout(survey.problem, "adjoint", rewinds=False)
    assert layout.tile == (4, 16, 64)
    params = layout.params(0, 0, 14)[0]
    # The tile in the middle.
    assert all(params["inner_low"] <= (12, 16, 64))
    assert all(params["inner_high"] >= (16, 32, 128))
    expected = truth(survey)
    for result, right in zip(everything(survey, machine, expected[0]), expected, strict=True):
        assert distance(result, right) < 1e-5


def test_the_order_of_threads_and_segments_do_not_show(machine: Machine) -> None:
    """Forwards, backwards, and in segments that pass a state on: the same bits."""
    survey = survey_of(shots=2, shape=SMALL, store_every=2)
    residual = truth(survey)[0]
    first = everything(survey, machine, residual)
    for how in ({"order": 1}, {"segments": 3}):
        for one, other in zip(first, everything(survey, machine, residual, **how), strict=True):
            np.testing.assert_array_equal(one, other)


def test_brackets_in_sixteen_bits(machine: Machine) -> None:
    survey = survey_of(shots=2, shape=SMALL)
    residual = truth(survey)[0]
    exact, half = (everything(survey, machine, residual, keep=keep) for keep in ("float32", "bfloat16"))
    np.testing.assert_array_equal(exact[0], half[0])
    np.testing.assert_array_equal(exact[2], half[2])
    assert 0 < distance(half[1], exact[1]) < 5e-3


def test_the_field_run_backwards_from_its_ring(machine: Machine) -> None:
    """What the layer-free core contributes to the gradient; nothing from the layers and what they reach."""
    for options in ({}, {"store_every": 2}, {"free_surface": True, "absorbing": (0, *WIDTHS[1:])}):
        survey = survey_of(shape=SMALL, shots=2, **options)
        residual = truth(survey)[0]
        kept = survey.forward(machine, ring=True)
        result, wavelet_gradient = survey.gradient(machine, kept, residual)
        whole = survey.forward(machine, keep="float32")
        stored, same = survey.gradient(machine, whole, residual, keep="float32")
        np.testing.assert_array_equal(wavelet_gradient, same)
        core = tuple(
            slice(max(first - low, 1), last - low - 1)
            for (first, last), (low, _) in zip(survey.problem.core, survey.scheme.widths, strict=True)
        )
        assert distance(result[core], stored[core].astype(np.float64)) < 1e-5


BREAKS = {
    "no barrier between a plane's halo and its update": (
        3,
        "        __syncthreads();\n        if (z + 1 < end) {",
        "        if (z + 1 < end) {",
    ),
    "no barrier before what a source adds": (
        2,
        "    if (begin == end) return;\n    __syncthreads();",
        "    if (begin == end) return;",
    ),
    "a halo of one row less": (3, "halo.any = me < rows + 2 * SIDE;", "halo.any = me >= SIDE && me < rows + 2 * SIDE;"),
    "a block that takes itself for an inner one": (
        2,
        "from[axis] >= p.inner_low[axis]",
        "from[axis] + 32 > p.inner_low[axis]",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_seen(name: str, tmp_path: Path) -> None:
    dimensions, right, wrong = BREAKS[name]

    def edit(text: str) -> str:
        assert text.count(right) == 1
        return text.replace(right, wrong)

    survey = survey_of(dimensions, shape={2: (45, 150), 3: (4, 33, 6)}[dimensions], samples=20)
    expected = truth(survey)[0]
    broken = Machine(tmp_path, edit)
    with np.errstate(all="ignore"):
        results = [survey.forward(broken, order=order)["records"] for order in (0, 1)]
    assert max(distance(np.nan_to_num(result, nan=1e30), expected) for result in results) > 1e-3
