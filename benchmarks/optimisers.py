"""L-BFGS against Adam at equal numbers of evaluations: misfit and model error of pixel and of s-denorm inversions.

    python benchmarks/optimisers.py --runs runs/optimisers --model marmousi_vp_dz12m.npy

The earths are the demo's, with all shots in every iteration, and Marmousi on cells of 30 m with a peak of 4 Hz, from a
smooth start and from one that knows nothing but depth; without --model the demo's alone. An iteration is one evaluation
of misfit and gradient for both optimisers. Adam is shown at every rate of `RATES`, for its best is not known before.
Runs that are finished are left alone; the table is printed, and written as JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpfwi.environment import environment
from hpfwi.run_folder import is_done, read_events

RESULTS = Path(__file__).parent / "results"
PIXEL = ("inversion.parameterisation.kind=pixel",)
DEMO = ("data.refine=1", "inversion.shots_per_iteration=none", "inversion.iterations=60")
MARMOUSI = (
    "model.spacing_m=[30.0,30.0]",
    "model.resample=[47,144]",
    "model.relabel_spacing_m=[30.0,30.0]",
    "model.smooth_sigma_cells=5.0",
    "model.bounds_mps=[1400.0,5500.0]",
    "survey.dt_s=0.003",
    "survey.samples=634",
    "survey.source_depth_m=90.0",
    "source.peak_hz=4.0",
    "inversion.iterations=100",
)
ALWAYS = ("cluster.workers=0", "inversion.diagnostics_every=10")
EARTHS = {
    "demo": ("demo", (*DEMO, *PIXEL)),
    "demo-noise": ("demo", (*DEMO, *PIXEL, "data.noise_std_share=0.5")),
    "demo-s-denorm": ("demo", DEMO),
    "marmousi-smooth": ("marmousi_smooth", (*MARMOUSI, *PIXEL)),
    "marmousi-linear": ("marmousi_linear", (*MARMOUSI, *PIXEL)),
}
"""By name: the recipe and what is changed in it."""
RATES = {"pixel": ("lr_pixel_mps", (5.0, 10.0, 20.0, 40.0)), "s-denorm": ("lr_network", (2e-4, 5e-4, 1e-3))}


def optimisers_of(earth: str) -> dict[str, tuple[str, ...]]:
    """The options of every optimiser that an earth is inverted with, by name.

    >>> list(optimisers_of("demo"))
    ['lbfgs', 'adam-5', 'adam-10', 'adam-20', 'adam-40']
    """
    option, rates = RATES["s-denorm" if "s-denorm" in earth else "pixel"]
    found: dict[str, tuple[str, ...]] = {"lbfgs": ("inversion.optimiser.kind=lbfgs",)}
    return found | {f"adam-{rate:g}": (f"inversion.parameterisation.{option}={rate}",) for rate in rates}


def run(runs: Path, earth: str, optimiser: str, model: Path | None) -> Path:
    """The folder of a run, computed unless it is there."""
    folder = runs / f"{earth}-{optimiser}"
    if is_done(folder):
        return folder
    recipe, changes = EARTHS[earth]
    command = [sys.executable, "-m", "hpfwi", "invert", recipe, "--name", folder.name, "--overwrite"]
    if recipe != "demo":
        command += ["--model", str(model)]
    for option in (*ALWAYS, *changes, *optimisers_of(earth)[optimiser], f"output.folder={runs}"):
        command += ["--set", option]
    with (runs / f"{folder.name}.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return folder


def facts_of(folder: Path) -> dict[str, Any]:
    """What a run came to on its way: misfit and model error against evaluations, and what its line search took."""
    events = read_events(folder)
    steps = [event for event in events if event["kind"] == "iteration"]
    errors = [event for event in events if event["kind"] == "diagnostics"]
    return {
        "misfit": [event["misfit"] for event in steps],
        "mse_kmps2": {event["iteration"]: event["mse_kmps2"] for event in errors},
        "rejected": sum(event.get("rejected", 0) for event in steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/optimisers"), help="where the run folders go")
    parser.add_argument("--model", type=Path, help="the whole Marmousi velocity model; without it, the demo alone")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    print(
        f"{'earth':16s} {'optimiser':11s} {'evaluations':>11s} {'misfit':>9s} {'error, (km/s)²':>14s} {'rejected':>8s}"
    )
    for earth, (recipe, _) in EARTHS.items():
        if recipe != "demo" and arguments.model is None:
            continue
        for optimiser in optimisers_of(earth):
            facts = facts_of(run(arguments.runs, earth, optimiser, arguments.model))
            found.setdefault(earth, {})[optimiser] = facts
            total = len(facts["misfit"])
            for done in (0, 20, 40, total):
                misfit = facts["misfit"][min(done, total - 1)]
                rejected = str(facts["rejected"]) if optimiser == "lbfgs" and done == total else ""
                print(
                    f"{earth:16s} {optimiser:11s} {done:11d} {misfit:9.5f} {facts['mse_kmps2'][done]:14.5f} "
                    f"{rejected:>8s}",
                    flush=True,
                )
    facts = environment()
    table = {
        "command": "python benchmarks/optimisers.py --runs RUNS --model PATH",
        "environment": {name: facts[name] for name in ("python", "packages", "platform", "processor", "cores")},
        "runs": found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "optimisers.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
