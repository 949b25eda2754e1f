"""Can a sine network carry a known velocity perturbation? A fit without waves, for every scale, omega0 and seed asked.

The target is true - initial, with the initial model a Gaussian smoothing of the true one; the loss is the mean square
of scale * network - target, divided by scale². With --whole-model the target is true - 3000 m/s instead. One line is
printed per report: step, relative L2 error, and the error that is left in each of five wavenumber bands, from the
longest wavelengths to the shortest. Below 1 a band has begun to be found.

    python examples/e1_network_capacity.py --steps 5000 --scales 100 300 1000 3000 --omegas 10 30 60 --seeds 0 1 2
    python examples/e1_network_capacity.py --model marmousi.npy --spacing 15
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpfwi.inversion.spectra import band_scores
from hpfwi.networks.siren import NetworkSettings, build_siren, coordinates


@dataclass(frozen=True)
class Fit:
    """State of one fit at one step."""

    scale_mps: float
    omega0: float
    seed: int
    step: int
    relative_error: float
    band_errors: tuple[float, ...]

    def line(self) -> str:
        bands = " ".join(f"{error:8.3f}" for error in self.band_errors)
        return (
            f"{self.scale_mps:6.0f} {self.omega0:6.0f} {self.seed:4d} {self.step:6d} {self.relative_error:8.3f} {bands}"
        )


def fit(
    true: NDArray[np.floating],
    background: NDArray[np.floating],
    *,
    spacing_m: tuple[float, float],
    wavelength_m: float,
    scale_mps: float,
    network: NetworkSettings,
    seed: int,
    steps: int,
    report_every: int,
    lr: float,
) -> Iterator[Fit]:
    """Fit background + scale * network to true (both [z, x] in m/s); yields at step 0, every report and the end."""
    carrier = build_siren(network, torch.Generator().manual_seed(seed))
    where = coordinates(true.shape, spacing_m, network.coordinates)
    wanted = np.asarray(true, dtype=np.float64) - background
    target = torch.from_numpy((wanted / scale_mps).astype(np.float32)).reshape(-1)
    optimiser = torch.optim.Adam(carrier.parameters(), lr=lr, foreach=False)
    for step in range(steps + 1):
        optimiser.zero_grad()
        output = carrier(where)
        if step % report_every == 0 or step == steps:
            found = scale_mps * output.detach().double().reshape(true.shape).numpy()
            error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            scores = band_scores(background + found, background, true, spacing_m, wavelength_m)
            yield Fit(scale_mps, network.omega0, seed, step, error, scores.error)
        if step < steps:
            (output - target).square().mean().backward()
            optimiser.step()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="true model, .npy [z, x] in m/s; without it a procedural one")
    parser.add_argument("--shape", type=int, nargs=2, default=(94, 288), help="cells of the procedural model, z and x")
    parser.add_argument("--spacing", type=float, default=15.0, help="cell size in m")
    parser.add_argument("--smooth", type=float, default=20.0, help="standard deviation of the smoothing in cells")
    parser.add_argument("--whole-model", action="store_true", help="fit the departure from 3000 m/s instead")
    parser.add_argument("--peak", type=float, default=8.0, help="peak frequency in Hz that defines the bands")
    parser.add_argument("--steps", type=int, default=5000, help="Adam steps of every fit")
    parser.add_argument("--every", type=int, default=500, help="steps between two printed lines")
    parser.add_argument("--lr", type=float, default=1e-4, help="Adam rate")
    parser.add_argument("--width", type=int, default=128, help="units in each hidden layer")
    parser.add_argument("--scales", type=float, nargs="+", default=[1000.0], help="scales in m/s")
    parser.add_argument("--omegas", type=float, nargs="+", default=[30.0], help="omega0 in rad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the first weights")
    options = parser.parse_args(arguments)
    if options.model is None:
        from hpfwi.synthetic.velocity import procedural_marmousi_like

        true = procedural_marmousi_like(tuple(options.shape), (options.spacing, options.spacing), seed=0)
    else:
        true = np.load(options.model)
    background = gaussian_filter(true.astype(np.float64), options.smooth, mode="nearest")
    if options.whole_model:
        background = np.full(true.shape, 3000.0)
    wavelength_m = float(true.mean()) / options.peak
    print(" scale omega0 seed   step rel. L2   " + " ".join(f"band {band}  " for band in range(5)))
    for scale_mps in options.scales:
        for omega0 in options.omegas:
            for seed in options.seeds:
                for report in fit(
                    true,
                    background,
                    spacing_m=(options.spacing, options.spacing),
                    wavelength_m=wavelength_m,
                    scale_mps=scale_mps,
                    network=NetworkSettings(width=options.width, omega0=omega0),
                    seed=seed,
                    steps=options.steps,
                    report_every=options.every,
                    lr=options.lr,
                ):
                    print(report.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
