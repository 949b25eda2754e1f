"""The work of `gpu.py`, one case at a time on one GPU: hpfwi's kernels and, where they are installed, its peers'.

A case is computed by hpfwi on GPU and CPU first, with fewer samples, and must agree to 1e-4. It needs NumPy, torch,
Numba and CuPy alone.
"""

import functools
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.acoustic import Memory, Scheme, on_grid, propagate

AGREEMENT = 1e-4
BACKWARDS = 1e-3
"""The same for a field that is run backwards: rounding where it was strong, at a source, is left where it was weak."""
SAME_LAYERS_ORDER = 2
"""The order at which every code's absorbing layers are the same to rounding: sweep-solver's first differences in them
have order 2 whatever the scheme's, which at order 4 and a width of 20 moves a record by 5e-4 (1000 samples: 7e-4)."""


@dataclass(frozen=True)
class Case:
    """One row of the table, and another for its gradient."""

    name: str
    family: str
    """acoustic, haar or dct_pool"""
    shape: tuple[int, ...]
    """Cells without layers; of a network's layer [sample, channel, row, column]."""
    shots: int = 0
    samples: int = 0
    checked: int = 0
    """Samples of the comparison with the CPU."""
    spacing_m: float = 10.0
    dt_s: float = 0.9e-3
    peak_hz: float = 15.0
    order: int = 4
    width: int = 20
    boundary: str = "cpml"
    models: int = 1
    memory: str = "store"
    store_every: int = 1
    gradient: bool = True
    side: int = 0
    """Side of what dct_pool pools to."""
    target: str = ""

    @property
    def updates(self) -> float:
        """Cells, layers included, times steps and shots."""
        return float(np.prod([size + 2 * self.width for size in self.shape])) * self.samples * self.shots


MARMOUSI = {"spacing_m": 30.0, "dt_s": 2.5e-3, "peak_hz": 5.0}
CASES: tuple[Case, ...] = (
    *(
        Case(f"openfwi {shots} shots", "acoustic", (70, 70), shots, 1000, 200, target=">= 5x, gradient >= 5x")
        for shots in (5, 132, 320)
    ),
    Case(
        "openfwi sponge 120, 64 models", "acoustic", (70, 70), 320, 1000, 100, width=120, boundary="sponge",
        models=64, gradient=False, target=">= 400 models/s",
    ),
    Case("marmousi 94 x 288", "acoustic", (94, 288), 13, 1000, 200, target=">= 3x, gradient >= 3x", **MARMOUSI),  # type: ignore[arg-type]
    Case(
        "marmousi 151 x 461", "acoustic", (151, 461), 16, 1000, 100, 20.0, 1.6e-3, 8.0, store_every=2,
        target=">= 3x, gradient >= 3x",
    ),
    Case("301 x 921", "acoustic", (301, 921), 32, 2000, 40, store_every=8, target=">= 2x, gradient >= 2x"),
    *(
        Case(
            f"256 cubed, order {order}", "acoustic", (256, 256, 256), 1, 200, 8, 10.0, 0.7e-3, 15.0, order,
            memory="boundary", store_every=4, target=f">= {least} Gcell/s, gradient <= 3.2x forward",
        )
        for order, least in ((4, 95), (8, 75))
    ),
    Case("2000 x 5000", "acoustic", (2000, 5000), 1, 400, 8, store_every=8),
    *(
        Case(f"wavelet convolution {' x '.join(map(str, shape))}", "haar", (64, *shape))
        for shape in ((8, 280, 70), (16, 140, 70), (32, 70, 70))
    ),
    *(
        Case(f"frequency pooling {' x '.join(map(str, shape))}", "dct_pool", (64, *shape), side=side)
        for shape, side in (((32, 70, 70), 56), ((128, 18, 18), 14))
    ),
)  # fmt: skip


def find(name: str) -> Case:
    """The case of a name."""
    return next(case for case in CASES if case.name == name)


@dataclass(frozen=True, eq=False)
class Work:
    """A case's input: velocity [z, x] or [shot, z, x] (3-D likewise), wavelet [shot, 1, time], cells, scheme."""

    velocity: NDArray[np.float32]
    wavelet: NDArray[np.float32]
    sources: NDArray[np.int64]
    receivers: NDArray[np.int64]
    scheme: Scheme
    memory: Memory

    @property
    def points(self) -> tuple[Any, Any]:
        """Sources and receivers as hpfwi takes them."""
        shape = self.velocity.shape[-self.scheme.dimensions :]
        return on_grid(self.sources, shape), on_grid(self.receivers, shape)


def work_of(case: Case, samples: int, shots: int) -> Work:
    """Folded layers from 1500 to 4500 m/s, shots along the second row, a receiver in every column of it."""
    dimensions, rng = len(case.shape), np.random.default_rng(2024)
    depth, *_, distance = np.meshgrid(*(np.linspace(0, 1, cells) for cells in case.shape), indexing="ij")
    folded = np.clip(depth + 0.06 * np.sin(2 * np.pi * (1.5 * distance + 0.3)), 0, 0.999)
    levels = np.linspace(1500.0, 4200.0, 12) + rng.uniform(0.0, 300.0, 12)
    velocity = levels[(folded * 12).astype(int)].astype(np.float32)
    models = min(case.models, shots)
    if models > 1:
        factors = np.repeat(np.linspace(0.9, 1.0, models), -(-shots // models))[:shots]
        velocity = (factors.reshape(-1, *[1] * dimensions) * velocity).astype(np.float32)
    line = [1, case.shape[1] // 2][: dimensions - 1]

    def along(columns: NDArray) -> NDArray[np.int64]:
        return np.stack([*(np.full_like(columns, cell) for cell in line), columns], axis=-1)

    columns = np.linspace(1, case.shape[-1] - 2, max(shots // models, 1)).astype(np.int64)
    sources = along(np.resize(columns, shots))[:, None, :]
    receivers = np.tile(along(np.arange(case.shape[-1])), (shots, 1, 1))
    phase = (np.pi * case.peak_hz * (np.arange(samples) * case.dt_s - 1.0 / case.peak_hz)) ** 2
    wavelet = np.tile((1 - 2 * phase) * np.exp(-phase), (shots, 1, 1)).astype(np.float32)
    scheme = Scheme(
        spacing_m=(case.spacing_m,) * dimensions,
        dt_s=case.dt_s,
        order=case.order,
        absorbing=(case.width,) * (2 * dimensions),
        boundary=case.boundary,  # type: ignore[arg-type]
        free_surface=False,
        pml_hz=case.peak_hz,
        max_velocity_mps=4500.0,
        min_velocity_mps=tuple(float(one.min()) for one in velocity) if models > 1 else 1500.0,
        store_every=case.store_every,
    )
    return Work(velocity, wavelet, sources, receivers, scheme, Memory(mode=case.memory))  # type: ignore[arg-type]


Runner = Callable[[bool], tuple[Tensor, Tensor | None]]


def hpfwi(work: Work, device: str) -> Runner:
    """Records, and the velocity's gradient of half their sum of squares where it is wanted."""
    velocity, wavelet = (torch.tensor(array, device=device) for array in (work.velocity, work.wavelet))
    points = work.points

    def run(gradient: bool) -> tuple[Tensor, Tensor | None]:
        leaf = velocity.detach().requires_grad_(gradient)
        records = propagate(leaf, wavelet, *points, work.scheme, memory=work.memory, threads=torch.get_num_threads())
        return records, _gradient(records, leaf) if gradient else None

    return run


def deepwave(work: Work, device: str) -> Runner:
    """The same by deepwave, whose wavelet has the opposite sign."""
    import deepwave as peer

    velocity = torch.tensor(work.velocity, device=device)
    wavelet = torch.tensor(-work.wavelet, device=device)
    places = {
        "source_locations": torch.tensor(work.sources, device=device),
        "receiver_locations": torch.tensor(work.receivers, device=device),
    }
    scheme = work.scheme

    def run(gradient: bool) -> tuple[Tensor, Tensor | None]:
        leaf = velocity.detach().requires_grad_(gradient)
        out = peer.scalar(
            leaf,
            list(scheme.spacing_m),
            scheme.dt_s,
            source_amplitudes=wavelet,
            accuracy=scheme.order,
            pml_width=list(scheme.absorbing),
            pml_freq=scheme.pml_hz,
            max_vel=scheme.max_velocity_mps,
            model_gradient_sampling_interval=scheme.store_every,
            **places,
        )
        records = out[-1]
        return records, _gradient(records, leaf) if gradient else None

    return run


def sweep(work: Work, device: str) -> Runner:
    """The same by sweep-solver 0.3.5, by its compiled kernels on a GPU and by its own torch code elsewhere.

    Its cells are (x, z). A source adds its wavelet without v² dt², which the wavelets bring here; records are [shot,
    step, receiver, field], of the field after each step. The gradient lacks what the wavelets have of the velocity, at
    the sources' cells, and what belongs to the layers, at the edges: `compared` leaves both out.
    """
    from sweep.equations import Acoustic, Acoustic3D  # type: ignore[import-not-found]
    from sweep.propagator.options import BoundarySaving, Full  # type: ignore[import-not-found]
    from sweep.propagator.torch import PropTorch  # type: ignore[import-not-found]

    scheme, shape = work.scheme, work.velocity.shape[-work.scheme.dimensions :]
    equation = (Acoustic if scheme.dimensions == 2 else Acoustic3D)(spatial_order=scheme.order, device=device)
    # It keeps every step or none.
    keeps = work.memory.mode == "store" and scheme.store_every == 1
    solver = PropTorch(
        equation, shape=shape, dh=scheme.spacing_m, dt=scheme.dt_s, device=torch.device(device),
        abcn=scheme.absorbing[0], memory=Full() if keeps else BoundarySaving(),
    )  # fmt: skip
    if device == "cuda" and solver.impl != "c":
        raise RuntimeError(
            f"sweep-solver runs its {solver.impl} code on this GPU; its compiled kernels were not loaded"
        )
    velocity = torch.tensor(work.velocity, device=device)
    cells = work.sources[:, 0]
    strength = (work.velocity[tuple(cells.T)].astype(np.float64) * scheme.dt_s) ** 2
    wavelet = torch.tensor(strength[:, None] * work.wavelet[:, 0], dtype=torch.float32, device=device)
    sources, receivers = cells[:, ::-1].copy(), work.receivers[:, :, ::-1].copy()

    def run(gradient: bool) -> tuple[Tensor, Tensor | None]:
        leaf = velocity.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            after = solver(
                wavelet, sources, receivers, models=[leaf], max_vel=scheme.max_velocity_mps, pml_freq=scheme.pml_hz
            )
            records = torch.nn.functional.pad(after[..., 0].transpose(1, 2)[..., :-1], (1, 0))
        return records, _gradient(records, leaf) if gradient else None

    return run


def _gradient(records: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(0.5 * records.square().sum(), [leaf])
    return gradient


def layers(case: Case, device: str) -> dict[str, Runner]:
    """hpfwi's layer of a network and torch's own operations for it, on the same tensors."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(case.shape, generator=generator).to(device)
    if case.family == "dct_pool":
        from hpfwi_kernels.dct_pool import eager_multi_frequency_pool, multi_frequency_pool, op, published_frequencies

        frequencies, side = published_frequencies(case.side), case.side
        found = {
            "hpfwi": _layer(lambda leaf: torch.stack(multi_frequency_pool(leaf, frequencies, side)), x),
            "torch": _layer(lambda leaf: torch.stack(eager_multi_frequency_pool(leaf, frequencies, side)), x),
        }
        if device != "cpu" and op.numba_is_usable():
            pool = op.numba_multi_frequency_pool
            found["numba"] = _layer(lambda leaf: torch.stack(pool(leaf, frequencies, side)), x)
        return found
    from hpfwi_kernels.haar import eager_wavelet_convolution, wavelet_convolution

    channels = case.shape[1]
    sizes = [(channels, 1, 5, 5), (channels,), (channels,), (4 * channels, 1, 5, 5), (4 * channels,)]
    base, bias, scale, bands, band_scale = (torch.randn(size, generator=generator).to(device) for size in sizes)
    return {
        "hpfwi": _layer(lambda leaf: wavelet_convolution(leaf, base, bias, scale, [bands], [band_scale]), x),
        "torch": _layer(lambda leaf: eager_wavelet_convolution(leaf, base, bias, scale, [bands], [band_scale]), x),
    }


def _made(run: Runner) -> Callable[[], Runner]:
    return lambda: run


def _layer(call: Callable[[Tensor], Tensor], x: Tensor) -> Runner:
    def run(gradient: bool) -> tuple[Tensor, Tensor | None]:
        leaf = x.detach().requires_grad_(gradient)
        y = call(leaf)
        return y, _gradient(y, leaf) if gradient else None

    return run


def gap(result: Tensor | None, right: Tensor | None) -> float:
    """Relative L2 distance over the whole tensor, in float64 on the CPU; 0 where there is nothing to compare."""
    if result is None or right is None:
        return 0.0
    one, other = result.detach().double().cpu(), right.detach().double().cpu()
    return float(torch.linalg.norm(one - other) / torch.linalg.norm(other))


def gaps(
    found: tuple[Tensor, Tensor | None], right: tuple[Tensor, Tensor | None], counted: NDArray[np.bool_] | None = None
) -> list[float]:
    """Of results and of gradients; of a gradient, in the cells that count."""
    cells = ... if counted is None else torch.as_tensor(counted)
    gradients = [None if one is None else one.detach().cpu()[cells] for one in (found[1], right[1])]
    return [gap(found[0], right[0]), gap(*gradients)]


def compared(work: Work) -> NDArray[np.bool_]:
    """Cells of a gradient that every code computes, and in every way of holding the wavefield: away from edges, where
    some fold the layers' part onto them and some do not, and not a source's."""
    inner = np.zeros(work.velocity.shape, bool)
    inner[(slice(work.scheme.order, -work.scheme.order),) * work.scheme.dimensions] = True
    inner[tuple(work.sources.reshape(-1, work.scheme.dimensions).T)] = False
    return inner


def peers_of(work: Work, device: str) -> dict[str, Callable[[], Runner]]:
    """What is installed of the codes that do a work too; making one's runner may fail."""
    makers: dict[str, Callable[[Work, str], Runner]] = {"sweep": sweep, "deepwave": deepwave}
    if work.scheme.boundary != "cpml" or work.velocity.ndim != work.scheme.dimensions:
        return {}
    installed = {name: make for name, make in makers.items() if importlib.util.find_spec(name) is not None}
    return {name: functools.partial(make, work, device) for name, make in installed.items()}


def milliseconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Of every run, by the GPU's own clock, after two runs that are not counted."""
    for _ in range(2):
        run()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return found


def measure(case: Case, repeats: int, ready: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Check a case, time it and what is there of its peers. Raises RuntimeError where hpfwi's results are wrong.

    ready   called when everything is checked, and what is timed is compiled
    """
    counted: NDArray[np.bool_] | None = None
    result: dict[str, Any] = {"kinds": {}, "gaps": {}, "errors": {}}
    if case.family != "acoustic":
        codes = {name: _made(run) for name, run in layers(case, "cuda").items()}
        check([codes[name]()(case.gradient) for name in ("hpfwi", "torch")])
    else:
        work = work_of(case, case.samples, case.shots)
        codes = {"hpfwi": lambda: hpfwi(work, "cuda")} | checked(case, result["errors"])
        counted = compared(work)
    answers: dict[str, tuple[Tensor, Tensor | None]] = {}
    torch.cuda.empty_cache()
    ready()
    for name, make in codes.items():
        try:
            run = make()
            answers[name] = run(case.gradient)
            if name != "hpfwi":
                result["gaps"][name] = gaps(answers[name], answers["hpfwi"], counted)
            for kind in ("forward", "gradient")[: 1 + case.gradient]:
                found = milliseconds(lambda run=run, kind=kind: run(kind == "gradient"), repeats)  # type: ignore[misc]
                result["kinds"].setdefault(kind, {})[name] = {"ms": found, "median_ms": statistics.median(found)}
        except Exception as error:
            if name == "hpfwi":
                raise
            result["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return result


def checked(case: Case, errors: dict[str, str]) -> dict[str, Callable[[], Runner]]:
    """Check a case with fewer samples, and that its peers compute the same where their layers are the same.

    returns     makers of the peers' runners; those that failed are in `errors`
    raises      RuntimeError where hpfwi's results on GPU and CPU differ
    """
    small = work_of(case, case.checked, min(case.shots, 2))
    kept = replace(small, memory=Memory())
    stored = hpfwi(kept, "cuda")(case.gradient)
    check([stored, hpfwi(kept, "cpu")(case.gradient)])
    if case.memory != "store":
        # Run backwards from its ring, a field says nothing of the layers nor of the cells next to them. The other cells
        # have a gradient when the waves have been there, which takes all samples.
        whole, inside = work_of(case, case.samples, 1), np.zeros(case.shape, bool)
        inside[(slice(case.order, -case.order),) * len(case.shape)] = True
        check([hpfwi(replace(whole, memory=one), "cuda")(True) for one in (whole.memory, Memory())], inside, BACKWARDS)
    # All shots take other kernels than a few.
    hpfwi(work_of(case, 2 * case.store_every, case.shots), "cuda")(case.gradient)
    same = replace(kept, scheme=replace(kept.scheme, order=SAME_LAYERS_ORDER))
    peers, wanted = {}, peers_of(work_of(case, case.samples, case.shots), "cuda")
    for name, make in peers_of(same, "cuda").items():
        try:
            check([make()(case.gradient), hpfwi(same, "cuda")(case.gradient)], compared(same))
            peers[name] = wanted[name]
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return peers


def check(
    answers: list[tuple[Tensor, Tensor | None]], counted: NDArray[np.bool_] | None = None, bound: float = AGREEMENT
) -> None:
    """Raise RuntimeError unless two answers agree to a bound, gradients in the cells that count."""
    found = gaps(answers[0], answers[1], counted)
    if not max(found) <= bound:
        raise RuntimeError(
            f"results differ by {found[0]:.1e} and gradients by {found[1]:.1e}, more than {bound:g}; no time counts"
        )
