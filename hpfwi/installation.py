"""Proof that an installation works: each part is used for something small whose answer is known."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpfwi.errors import DataError, NumericsError
from hpfwi.options import toml_value

TINY: dict[str, object] = {
    "model.shape": [24, 40],
    "model.smooth_sigma_cells": 3.0,
    "survey.shots": 2,
    "inversion.shots_per_iteration": None,
    "survey.samples": 150,
    "data.refine": 1,
    "inversion.iterations": 3,
    "inversion.diagnostics_every": 2,
    "inversion.snapshot_every": 1,
    "inversion.checkpoint_every": 2,
    "inversion.parameterisation.network.width": 16,
}
"""Options on top of the recipe `demo` for an inversion of a few seconds."""

ADJOINT_GAP = 1e-5
"""Largest gap between <F w, y> and <w, F' y>, relative to |F w| |y|: float32's 1e-7 times the root of some 1e4 sums."""


@dataclass(frozen=True)
class Result:
    """One check: whether it passed, how long it took, and what was found or what is wrong."""

    name: str
    ok: bool
    seconds: float
    detail: str


def checks(*, with_ray: bool) -> Iterator[Result]:
    """Run the checks one after the other, yielding each result as it comes."""
    parts: list[tuple[str, Callable[[], str]]] = [
        ("kernel", _kernel),
        ("files", _files),
        ("TensorBoard", _tensorboard),
        ("inversion", lambda: _inversion(workers=0)),
    ]
    if with_ray:
        parts.append(("inversion on a Ray worker", lambda: _inversion(workers=1)))
    for name, part in parts:
        start = time.perf_counter()
        try:
            ok, detail = True, part()
        # A check reports whatever a broken installation throws, from a missing library to a wrong number.
        except Exception as error:
            ok, detail = False, " ".join(f"{type(error).__name__}: {error}".split())
        yield Result(name, ok, time.perf_counter() - start, detail)


def _kernel() -> str:
    """The propagator is linear in the wavelet, so its backward pass there must be the exact adjoint."""
    import torch

    from hpfwi_kernels.acoustic import Scheme, on_grid, propagate

    generator = torch.Generator().manual_seed(0)
    sources, receivers = np.array([[[3, 8]]]), np.array([[[2, column] for column in range(2, 30, 3)]])
    shape = (20, 32)
    scheme = Scheme(
        spacing_m=(10.0, 10.0),
        dt_s=0.001,
        order=8,
        absorbing=(0, 8, 8, 8),
        boundary="cpml",
        free_surface=True,
        pml_hz=15.0,
        max_velocity_mps=3000.0,
    )
    velocity = 2000 + 1000 * torch.rand(shape, generator=generator)
    wavelet = torch.randn((1, 1, 120), generator=generator).requires_grad_()
    recorded = propagate(velocity, wavelet, on_grid(sources, shape), on_grid(receivers, shape), scheme)
    weights = torch.randn(recorded.shape, generator=generator)
    (adjoint,) = torch.autograd.grad(recorded, wavelet, weights)
    left = float((recorded.detach().double() * weights.double()).sum())
    right = float((wavelet.detach().double() * adjoint.double()).sum())
    scale = float(recorded.detach().double().norm() * weights.double().norm())
    gap = abs(left - right) / scale if scale > 0 else float("inf")
    if not gap <= ADJOINT_GAP:
        raise NumericsError(f"the adjoint misses by {gap:.1e} and may miss by {ADJOINT_GAP:g}")
    return f"adjoint exact to {gap:.0e}"


def _files() -> str:
    """What is written to a Zarr store and to a checkpoint comes back."""
    from hpfwi import checkpoints
    from hpfwi.results import Results

    model = np.linspace(1500, 4500, 200, dtype=np.float32).reshape(10, 20)
    with tempfile.TemporaryDirectory() as folder:
        import zarr

        Results(Path(folder) / "results.zarr").model("true", model)
        stored = np.asarray(zarr.open_array(str(Path(folder) / "results.zarr" / "model" / "true"), mode="r")[:])
        checkpoints.save(Path(folder) / "checkpoints", 1, {"model": model}, {})
        found = checkpoints.load_latest(Path(folder) / "checkpoints")
        if found is None or not (np.array_equal(stored, model) and np.array_equal(found.tensors["model"], model)):
            raise DataError("what was written is not what was read")
    return "results and checkpoints come back as written"


def _tensorboard() -> str:
    from hpfwi.tensorboard_view import FOLDER, TensorBoardView

    with tempfile.TemporaryDirectory() as folder:
        with TensorBoardView(Path(folder)) as view:
            view.event({"kind": "iteration", "time": time.time(), "iteration": 0, "misfit": 1.0})
        if not any(file.stat().st_size for file in (Path(folder) / FOLDER).iterdir()):
            raise DataError("the event file is empty")
    return "events written"


def _inversion(*, workers: int) -> str:
    """A few iterations from the configuration to done.json."""
    from hpfwi.config import load_config
    from hpfwi.environment import environment
    from hpfwi.inversion.invert import invert
    from hpfwi.run_folder import RunFolder
    from hpfwi.stop import Stop

    overrides = [f"{name}={toml_value(value)}" for name, value in TINY.items()]
    config, _ = load_config("demo", [*overrides, f"cluster.workers={workers}"])
    with tempfile.TemporaryDirectory() as parent:
        facts = environment()
        with RunFolder.create(config, "check", parent=Path(parent), environment=facts) as run:
            # The inversion shows its progress, which is not what a list of checks is for.
            with contextlib.redirect_stdout(io.StringIO()):
                outcome = invert(config, run, resume=False, stop=Stop())
            if not run.is_done:
                raise DataError("the run ended without done.json")
    if not outcome.misfit_last < outcome.misfit_first:
        raise NumericsError(f"the misfit went from {outcome.misfit_first:.3g} to {outcome.misfit_last:.3g}")
    return f"misfit {outcome.misfit_first:.3g} → {outcome.misfit_last:.3g} in {outcome.iterations} iterations"
