"""Does the order of the methods on one model hold on others? Pretraining and denormalisation on several geologies.

Every model is inverted from a smooth start and from one linear in depth, whose ends come from a straight line fitted to
the true model, by every method and with every seed. The last lines give the sign of pretrain - method in the error of
the model: positive where denormalisation ended nearer to the truth.

`overthrust` and `salt` have the sizes, surveys and wavelets of the benchmarks in arXiv 2603.22362 (the Overthrust model
is meant without added water). Any other name takes the recipe `demo` on the file's own cells, of --spacing metres.

    python examples/n3_other_geology.py --seeds 0 1 2
    python examples/n3_other_geology.py --model overthrust=overthrust.npy --model salt=salt.npy --seeds 0 1 2 3 4
    python examples/n3_other_geology.py --model mine=line.npy --spacing 12.5 --set survey.shots=20
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from hpfwi.config import RunConfig, load_config
from hpfwi.environment import environment
from hpfwi.errors import HpfwiError
from hpfwi.inversion.invert import invert
from hpfwi.inversion.parameterisation import Kind
from hpfwi.physics.model import load_models
from hpfwi.run_folder import RunFolder, is_done, read_events
from hpfwi.stop import Stop

STARTS = ("smooth", "linear")
PRETRAIN = "pretrain"
GEOLOGIES = {
    "marmousi": "",
    "overthrust": "model.resample=[94,401] model.relabel_spacing_m=15 survey.shots=20 survey.source_spacing_m=270 "
    "survey.first_source_m=none survey.dt_s=0.004 survey.samples=1200 source.peak_hz=10",
    "salt": "model.resample=[75,250] model.relabel_spacing_m=10 survey.shots=24 survey.source_spacing_m=100 "
    "survey.first_source_m=none survey.dt_s=0.0015 survey.samples=2500 source.peak_hz=10",
}
"""What a published benchmark changes in the recipe `marmousi_smooth`; networks, rates and edges stay."""


def settings_of(geology: str, path: str, spacing_m: float, changes: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe of a geology and the overrides for its model, `changes` last."""
    if geology in GEOLOGIES:
        recipe, settings = "marmousi_smooth", [*GEOLOGIES[geology].split(), f"model.true={path}"]
    elif path:
        recipe, settings = "demo", [f"model.true={path}", f"model.spacing_m={spacing_m}"]
    else:
        recipe, settings = "demo", []
    true = load_models(load_config(recipe, [*settings, *changes])[0].model).true
    assert true is not None
    # Twice the same line for every model would suit some by chance: each gets the one nearest to its velocities.
    slope, top = np.polyfit(np.arange(true.grid.shape[0]), true.velocity.mean(axis=1, dtype=np.float64), 1)
    ends = np.clip([top, top + slope * (true.grid.shape[0] - 1)], true.slowest_mps, true.fastest_mps).round()
    return recipe, [*settings, f"model.linear_mps={ends.tolist()}", "cluster.workers=0", *changes]


def invert_once(config: RunConfig) -> Path:
    """The folder of a run, which is made now unless it was finished with this very configuration before."""
    parent = Path(config.output.folder)
    folder = parent / config.name
    if not (is_done(folder) and load_config(folder / "config.toml")[0] == config):
        facts = environment(sys.argv)
        with RunFolder.create(config, config.name, parent=parent, environment=facts, overwrite=True) as opened:
            invert(config, opened, resume=False, stop=Stop())
    return folder


def line_of(config: RunConfig, folder: Path) -> tuple[str, float]:
    """The line of a run in the table, and the error of its last model in (km/s)²."""
    done = json.loads((folder / "done.json").read_text())
    last = [event for event in read_events(folder) if event["kind"] == "diagnostics"][-1]
    error = float(done["mse_last_kmps2"])
    numbers = (
        f"{done['mse_first_kmps2']:9.4f}  {error:7.4f}  {last.get('ssim', math.nan):8.3f}  {done['misfit_last']:10.4g}"
    )
    return f"{config.name:36s}  {numbers}  {done['seconds']:7.0f}", error


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        action="append",
        metavar="GEOLOGY=PATH",
        help=f"a true velocity model; {', '.join(GEOLOGIES)} have settings of their own; without one, that of `demo`",
    )
    parser.add_argument("--spacing", type=float, default=15.0, help="cell size in m of models of other names")
    kinds = [kind for kind in get_args(Kind) if kind != PRETRAIN]
    parser.add_argument(
        "--methods", nargs="+", choices=kinds, default=["s-denorm", "a-denorm-joint"], help="compared with pretrain"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the networks")
    parser.add_argument("--runs", type=Path, default=Path("runs/n3"), help="where the run folders go")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change an option of all runs")
    options = parser.parse_args(arguments)

    signs, lines = [], []
    for geology, _, path in (model.partition("=") for model in options.model or ["procedural"]):
        recipe, settings = settings_of(geology, path, options.spacing, [*options.set, f"output.folder={options.runs}"])
        for start in STARTS:
            errors: dict[str, list[float]] = {method: [] for method in (PRETRAIN, *options.methods)}
            for seed in options.seeds:
                for method, found in errors.items():
                    case = [f"inversion.parameterisation.kind={method}", f"inversion.seed={seed}"]
                    case += [f"model.initial={start}", f"name={geology}-{start}-{method}-{seed}"]
                    config, _ = load_config(recipe, [*settings, *case])
                    line, error = line_of(config, invert_once(config))
                    lines.append(line)
                    found.append(error)
            for method in options.methods:
                gains = [before - after for before, after in zip(errors[PRETRAIN], errors[method], strict=True)]
                count = f"positive with {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
                gain = f"{PRETRAIN} - {method} = {statistics.median(gains):+.4f} (km/s)²"
                signs.append(f"{geology}, {start} start: {gain}, {count}.")
    print(f"{'run':36s}  MSE start  MSE end  SSIM end  misfit end  seconds")
    print("\n".join([*lines, *signs]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HpfwiError as error:
        sys.exit(str(error))
