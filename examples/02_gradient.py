"""The gradient of waveform inversion assembled by hand, on one process: propagate, compare, go back, add up.

A run takes the same road through four files: the op in `hpfwi_kernels/acoustic/op.py`, the misfit in
`hpfwi/inversion/misfit.py`, groups of shots as items in `hpfwi/parallel.py` and their exact sum in the cluster layer.
Here all of it is the function `misfit_and_gradient`. The table then compares the gradient g with finite differences of
the misfit J along a smooth random change p of the model: (J(m + h p) - J(m - h p)) / 2h must approach <g, p> as h².

    python examples/02_gradient.py
    python examples/02_gradient.py --shots 0 5 11 --set survey.samples=500 --out gradient.png
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from hpfwi.config import load_config
from hpfwi.errors import HpfwiError
from hpfwi.experiment import Experiment, build_experiment
from hpfwi.inversion.misfit import l2
from hpfwi_kernels.acoustic import off_grid, propagate

STEPS_MPS = (16.0, 8.0, 4.0, 2.0)
"""Largest change of a cell's velocity in the finite differences."""


def gather_of(experiment: Experiment, velocity: torch.Tensor, shot: int) -> torch.Tensor:
    """Pressure Tensor[1, receiver, time] of one shot in velocity[z, x], differentiable in the velocity."""
    grid, survey = experiment.models.initial.grid, experiment.survey
    # Every time step enters the gradient, which makes it the exact one of the discrete misfit.
    scheme = dataclasses.replace(experiment.simulator.scheme, store_every=1)
    sources = off_grid(grid.cells_of(survey.sources_m[[shot]]), grid.shape, free_surface=scheme.free_surface)
    receivers = off_grid(grid.cells_of(survey.receivers_m[[shot]]), grid.shape, free_surface=scheme.free_surface)
    # The kernel wants the source's strength per area: that of a point is spread over one cell.
    wavelet = torch.from_numpy(experiment.wavelet[[shot]] / grid.cell_area_m2).to(velocity.dtype)
    return propagate(velocity, wavelet, sources, receivers, scheme)


def misfit_and_gradient(
    experiment: Experiment, model: torch.Tensor, observed: dict[int, torch.Tensor]
) -> tuple[float, torch.Tensor]:
    """J = ½ Σ (predicted - observed)² over the shots of `observed`, and dJ/dm as Tensor[z, x] float64 per m/s."""
    total_misfit, total_gradient = 0.0, torch.zeros(model.shape, dtype=torch.float64)
    for shot, gather in observed.items():
        velocity = model.clone().requires_grad_()
        predicted = gather_of(experiment, velocity, shot)  # forward in time
        misfit = l2(predicted, gather)
        (gradient,) = torch.autograd.grad(misfit, velocity)  # the residuals, backward in time
        total_misfit += float(misfit.detach())
        total_gradient += gradient  # a run adds in fixed point, so that the order of shots cannot matter
    return total_misfit, total_gradient


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[3, 8], help="numbers of the shots, from 0")
    parser.add_argument("--seed", type=int, default=0, help="seed of the direction p")
    parser.add_argument("--out", type=Path, help="where a picture of the gradient goes; none without it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change an option of the recipe"
    )
    options = parser.parse_args(arguments)

    config, _ = load_config("demo", options.set)
    experiment = build_experiment(config)
    models = experiment.models
    assert models.true is not None
    experiment.survey.subset(options.shots)  # says which of them does not exist
    true = torch.tensor(models.true.velocity, dtype=torch.float64)
    initial = torch.tensor(models.initial.velocity, dtype=torch.float64)
    with torch.no_grad():
        observed = {shot: gather_of(experiment, true, shot) for shot in options.shots}
    misfit, gradient = misfit_and_gradient(experiment, initial, observed)
    print(f"misfit of {len(observed)} shots {misfit:.6g} Pa², largest |gradient| {float(gradient.abs().max()):.4g}")

    noise = np.random.default_rng(options.seed).standard_normal(initial.shape)
    direction = torch.from_numpy(gaussian_filter(noise, 3.0))
    direction /= direction.abs().max()
    slope = float((gradient * direction).sum())
    print(" h, m/s  finite difference           <g, p>  relative error")
    with torch.no_grad():
        for step in STEPS_MPS:
            ahead, behind = (
                sum(float(l2(gather_of(experiment, model, shot), gather)) for shot, gather in observed.items())
                for model in (initial + step * direction, initial - step * direction)
            )
            measured = (ahead - behind) / (2 * step)
            print(f"{step:7.2f}  {measured:17.9g}  {slope:15.9g}  {abs(measured - slope) / abs(slope):14.2e}")
    if options.out is not None:
        draw(experiment, gradient, options.out)
        print(f"Wrote {options.out}")
    return 0


def draw(experiment: Experiment, gradient: torch.Tensor, path: Path) -> None:
    """The gradient over distance and depth, clipped where it is largest: near sources and receivers."""
    from matplotlib.figure import Figure

    grid = experiment.models.initial.grid
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    limit = float(np.percentile(gradient.abs().numpy(), 97)) or 1.0
    image = axes.pcolormesh(
        grid.distances_m(), grid.depths_m(), gradient.numpy(), vmin=-limit, vmax=limit, cmap="RdBu_r", rasterized=True
    )
    axes.set(xlabel="distance, m", ylabel="depth, m", title="dJ/dm: the velocity should fall where it is positive")
    axes.invert_yaxis()
    figure.colorbar(image, ax=axes, label="Pa² per m/s", extend="both")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HpfwiError as error:
        sys.exit(str(error))
