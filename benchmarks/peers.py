"""The same acoustic problem handed to hpfwi's kernels and to deepwave, and the conditions a measurement was made in."""

import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Scheme, on_grid, propagate
from hpfwi_kernels.buffers import Pool

PACKAGES = ("deepwave", "torch", "numba", "numpy")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Problem:
    """A survey on a model, in float64: both codes are given it in float32 when they are timed.

    velocity [z, x] or [z, y, x], or [shot, ...] where every shot has its own, in m/s; wavelet [shot, 1, time];
    cells [shot, point, axis].
    """

    velocity: NDArray[np.float64]
    wavelet: NDArray[np.float64]
    sources: NDArray[np.int64]
    receivers: NDArray[np.int64]
    scheme: Scheme

    @property
    def model_per_shot(self) -> bool:
        """Whether every shot has a velocity model of its own."""
        return self.velocity.ndim > self.scheme.dimensions

    def shots(self, count: int | None) -> "Problem":
        """The problem of the first shots alone."""
        return self._of(slice(0, count))

    def shot(self, index: int) -> "Problem":
        """The problem of one shot alone."""
        return self._of(slice(index, index + 1))

    def _of(self, one: slice) -> "Problem":
        velocity = self.velocity[one] if self.model_per_shot else self.velocity
        return Problem(velocity, self.wavelet[one], self.sources[one], self.receivers[one], self.scheme)


@dataclass(frozen=True)
class Answer:
    """Records [shot, receiver, time], and the velocity gradient, in velocity's shape, where one was asked for."""

    records: NDArray
    gradient: NDArray | None


Run = Callable[[Problem, torch.dtype, bool, int], Answer]


def misfit(records: torch.Tensor) -> torch.Tensor:
    """Half the sum of squares of the records: its gradient needs nothing but the records themselves."""
    return 0.5 * records.square().sum()


def _answer(velocity: torch.Tensor, records: torch.Tensor, gradient: bool) -> Answer:
    if gradient:
        misfit(records).backward()
    return Answer(records.detach().numpy(), velocity.grad.numpy() if velocity.grad is not None else None)


# What a caller that propagates again and again keeps: the wavefields of one call serve the next.
POOL = Pool()
COPIES: list[Pool] = []


def hpfwi(problem: Problem, dtype: torch.dtype, gradient: bool, threads: int, pool: Pool = POOL) -> Answer:
    """Run hpfwi's kernels from torch tensors to records, and to the velocity gradient of `misfit`."""
    velocity = torch.tensor(problem.velocity, dtype=dtype, requires_grad=gradient)
    wavelet = torch.tensor(problem.wavelet, dtype=dtype)
    shape = problem.velocity.shape[-problem.scheme.dimensions :]
    sources, receivers = on_grid(problem.sources, shape), on_grid(problem.receivers, shape)
    records = propagate(velocity, wavelet, sources, receivers, problem.scheme, threads=threads, pool=pool)
    return _answer(velocity, records, gradient)


def hpfwi_in_copies(problem: Problem, dtype: torch.dtype, gradient: bool, threads: int) -> Answer:
    """The whole problem once on each thread at the same time, sharing nothing: what the cores can give."""
    while len(COPIES) < threads:
        COPIES.append(Pool())
    with ThreadPoolExecutor(threads) as each:
        return next(iter(each.map(lambda pool: hpfwi(problem, dtype, gradient, 1, pool), COPIES[:threads])))


def deepwave(problem: Problem, dtype: torch.dtype, gradient: bool, threads: int) -> Answer:
    """Run deepwave's scalar propagator on the same problem; its wavelet has the opposite sign."""
    import deepwave as peer

    torch.set_num_threads(threads)
    scheme = problem.scheme
    velocity = torch.tensor(problem.velocity, dtype=dtype, requires_grad=gradient)
    out = peer.scalar(
        velocity,
        scheme.spacing_m,
        scheme.dt_s,
        source_amplitudes=torch.tensor(-problem.wavelet, dtype=dtype),
        source_locations=torch.tensor(problem.sources),
        receiver_locations=torch.tensor(problem.receivers),
        accuracy=scheme.order,
        pml_width=list(scheme.absorbing),
        pml_freq=scheme.pml_hz,
        max_vel=scheme.max_velocity_mps,
        model_gradient_sampling_interval=scheme.store_every,
    )
    if out.info.step_ratio != scheme.substeps:
        raise RuntimeError(f"deepwave takes {out.info.step_ratio} inner steps where hpfwi takes {scheme.substeps}.")
    return _answer(velocity, out.receiver_amplitudes, gradient)


def truth(problem: Problem, threads: int) -> Answer:
    """deepwave in float64, one shot at a time so that its stored wavefields fit in memory."""
    answers = [deepwave(problem.shot(shot), torch.float64, True, threads) for shot in range(len(problem.wavelet))]
    gradients = [answer.gradient for answer in answers if answer.gradient is not None]
    records = np.concatenate([answer.records for answer in answers])
    return Answer(records, np.concatenate(gradients) if problem.model_per_shot else np.sum(gradients, axis=0))


def gap(answer: Answer, reference: Answer) -> tuple[float, float]:
    """Relative L2 distance of records and gradient to the reference, over the whole arrays."""

    def distance(result: NDArray, expected: NDArray) -> float:
        return float(np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected))

    if answer.gradient is None or reference.gradient is None:
        raise ValueError("A gap is taken between answers that hold a gradient.")
    return distance(answer.records, reference.records), distance(answer.gradient, reference.gradient)


def conditions(threads: int) -> dict[str, str]:
    """Hardware, load and versions: the header of every table."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return {
        "cpu": found.group(1).strip() if found else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "vector instructions": " ".join(name for name in ("avx2", "fma", "avx512f") if f" {name} " in text),
        "threads": str(threads),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
    } | {name: version(name) for name in PACKAGES}


def result_path(benchmark: str, conditions: dict[str, str]) -> Path:
    """Where a result is kept: its name says the benchmark, the hardware and the day."""
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{conditions['cpu']} {conditions['cores']} cores".lower()).strip("-")
    return RESULTS / f"{benchmark}_{hardware}_{date.today().isoformat()}.json"
