"""Does an inversion remove local errors of its starting model, and does the way the start enters matter?

Five patches are planted in a smooth start: two checkerboards of ±10 % with a period of 4 cells, a false fast and a
false slow reflector of 15 %, and a block of the true geology that sits too low on one side of a made-up fault. Adding a
network to the start keeps the patches until the data remove them; fitting a network to it first may lose some of them
on the way. Both are run on the same data, with the same seeds, and the table gives for every run

    removed     1 - E(end) / E(start), E the mean squared error of the model inside or outside the patches
    stage 1     the same inside, before the first iteration: what was lost of the patches before a wave was sent
    left        share of each kind of patch that is still there, 1 in the start and 0 in the true model

    python examples/n2_local_errors.py --seeds 0 1 2 --figure patches.png
    python examples/n2_local_errors.py --recipe marmousi_smooth --model marmousi.npy --set inversion.iterations=400
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from hpfwi.config import RunConfig, load_config
from hpfwi.environment import environment
from hpfwi.errors import HpfwiError
from hpfwi.inversion.invert import invert
from hpfwi.physics.model import load_models
from hpfwi.run_folder import RunFolder, is_done
from hpfwi.stop import Stop

METHODS = ("pretrain", "s-denorm")
CENTRES = {
    "checkerboard": ((0.30, 0.20), (0.60, 0.35)),
    "reflector": ((0.35, 0.50), (0.60, 0.65)),
    "block": ((0.40, 0.82),),
}
"""Centres of the patches, as shares of depth and width."""
Field = NDArray[np.float64]


def plant(true: Field, smooth: Field, radius: float) -> tuple[Field, dict[str, Field], NDArray[np.bool_]]:
    """The start, [z, x] in m/s; by kind what tells its patches from the true model; cells within `radius` of a centre.

    Patches are seen through Gaussian windows that have fallen to 14 % at the radius, which is in cells.
    """
    rows, columns = np.indices(true.shape)
    start, patterns = smooth.copy(), {kind: np.zeros(true.shape) for kind in CENTRES}
    inside = np.zeros(true.shape, dtype=bool)
    throw = max(2, round(0.4 * radius))
    dropped = np.concatenate([np.repeat(true[:1], throw, axis=0), true[:-throw]])
    for kind, centres in CENTRES.items():
        for number, (depth, distance) in enumerate(centres):
            down, along = rows - round(depth * true.shape[0]), columns - round(distance * true.shape[1])
            if kind == "checkerboard":
                error = pattern = 0.10 * np.where((rows // 2 + columns // 2) % 2, -1.0, 1.0) * smooth
            elif kind == "reflector":  # three cells thick, dipping by one cell in five
                error = pattern = (0.15, -0.15)[number] * np.where(np.abs(down - along // 5) <= 1, smooth, 0.0)
            else:  # right geology at the wrong depth: wrong in the difference to what belongs there
                error, pattern = (np.where(along > 0, dropped - place, 0.0) for place in (smooth, true))
            window = np.exp(-2.0 * (down**2 + along**2) / radius**2)
            start += window * error
            patterns[kind] += window * pattern
            inside |= down**2 + along**2 < radius**2
    return start, patterns, inside


@dataclass(frozen=True)
class Outcome:
    """How one run went. Errors are mean squares in (km/s)², first of the start, then of every model that was kept."""

    method: str
    seed: int
    iterations: list[int]  # of the models that were kept
    inside: list[float]
    outside: list[float]
    left: list[float]  # by kind of patch

    def line(self) -> str:
        left = "  ".join(f"{share:{len(kind)}.2f}" for kind, share in zip(CENTRES, self.left, strict=True))
        return (
            f"{self.method:8s}  {self.seed:4d}  {self.inside[0]:8.5f}  {self.inside[-1]:8.5f}  "
            f"{removed(self.inside[:2]):7.1%}  {removed(self.inside):7.1%}  {removed(self.outside):7.1%}  {left}"
        )


def removed(errors: Sequence[float]) -> float:
    return 1.0 - errors[-1] / errors[0]


def invert_once(config: RunConfig) -> Path:
    """The folder of a run, which is made now unless it was finished with this very configuration before."""
    parent = Path(config.output.folder)
    folder = parent / config.name
    if not (is_done(folder) and load_config(folder / "config.toml")[0] == config):
        facts = environment(sys.argv)
        with RunFolder.create(config, config.name, parent=parent, environment=facts, overwrite=True) as opened:
            invert(config, opened, resume=False, stop=Stop())
    return folder


def judge(
    config: RunConfig, true: Field, start: Field, patterns: dict[str, Field], inside: NDArray[np.bool_]
) -> Outcome:
    """Run, and compare the models that were kept with the true one."""
    results = zarr.open_group(invert_once(config) / "results.zarr", mode="r")
    wrong = np.concatenate([start[None], results["model/history"][:]]) - true  # type: ignore[index]
    errors = [np.mean(wrong[:, where] ** 2, axis=1) * 1e-6 for where in (inside, ~inside)]
    left = [float(np.sum(wrong[-1] * pattern) / np.sum(wrong[0] * pattern)) for pattern in patterns.values()]
    iterations = results["model/history_iteration"][:].tolist()  # type: ignore[index, union-attr]
    kind, seed = config.inversion.parameterisation.kind, config.inversion.seed
    return Outcome(kind, seed, iterations, errors[0].tolist(), errors[1].tolist(), left)


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Errors inside and outside the patches against iterations, as shares of the start's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        colour = ("C3", "C0")[METHODS.index(outcome.method)]
        for name, errors, style in (("inside", outcome.inside, "-"), ("outside", outcome.outside, "--")):
            label = f"{outcome.method}, {name}" if outcome.seed == outcomes[0].seed else None
            shares = np.array(errors[1:]) / errors[0]
            axes.plot(outcome.iterations, shares, style, color=colour, linewidth=1.2, label=label)
    axes.set(xlabel="iteration", ylabel="squared error, share of the start's")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo", help="recipe or TOML file of the runs")
    parser.add_argument("--model", help="the true velocity model, a file; without it the recipe's own")
    parser.add_argument("--radius", type=float, default=10.0, help="radius of the patches in cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the networks")
    parser.add_argument("--runs", type=Path, default=Path("runs/n2"), help="where the run folders go")
    parser.add_argument("--figure", type=Path, help="where a picture of errors against iterations goes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change an option of the recipe"
    )
    options = parser.parse_args(arguments)
    if not options.radius > 0:
        parser.error(f"--radius {options.radius:g} holds no cell: give more than 0")

    common = ["cluster.workers=0", *options.set, f"output.folder={options.runs}"]
    common += [] if options.model is None else [f"model.true={options.model}"]
    config, _ = load_config(options.recipe, [*common, "model.initial=smooth"])
    models = load_models(config.model)
    if models.true is None:
        parser.error("patches are planted in a smoothed copy of the true model: name one with --model")
    true, smooth = models.true.velocity.astype(np.float64), models.initial.velocity.astype(np.float64)
    start, patterns, inside = plant(true, smooth, options.radius)
    start = np.clip(start, *(config.model.clip_mps or config.model.bounds_mps))
    options.runs.mkdir(parents=True, exist_ok=True)
    # A name of its own for every start, so that another start is another configuration.
    path = options.runs / f"start-{hashlib.sha256(start.tobytes()).hexdigest()[:8]}.npy"
    np.save(path, start.astype(np.float32))

    outcomes = []
    for seed in options.seeds:
        for method in METHODS:
            case = [f"name={method}-{seed}", f"inversion.seed={seed}", f"inversion.parameterisation.kind={method}"]
            config, _ = load_config(options.recipe, [*common, f"model.initial={path}", *case])
            outcomes.append(judge(config, true, start, patterns, inside))
    print("                error inside, (km/s)²  removed: inside, and outside  left of each kind")
    print("method    seed     start       end  stage 1      end      end  " + "  ".join(CENTRES))
    for outcome in outcomes:
        print(outcome.line())
    for method in METHODS:
        shares = [removed(outcome.inside) for outcome in outcomes if outcome.method == method]
        spread = f"{min(shares):.1%} to {max(shares):.1%} over {len(shares)} seed(s)"
        print(f"{method} removed {statistics.median(shares):.1%} of the error inside the patches ({spread}).")
    if options.figure is not None:
        draw(outcomes, options.figure)
        print(f"Wrote {options.figure}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HpfwiError as error:
        sys.exit(str(error))
