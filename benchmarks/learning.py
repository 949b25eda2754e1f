"""Does training work? AMFMS and InversionNet on generated CurveVel-A pairs, against predicting the mean.

    hpfwi data generate curvevel-a -n 1000 pairs.zarr --test 100
    python benchmarks/learning.py run --pairs pairs.zarr --runs runs/learning
    python benchmarks/learning.py collect --pairs pairs.zarr --runs runs/learning

Every run is a recipe with the changes that `AFFORDABLE` lists, which bring it to half an hour to an hour on one core;
the published recipes take 140 epochs of 24,000 pairs. `run` trains one network after another and leaves alone what is
there; `collect` scores the networks and the mean of the training models on the test split, prints the table, and writes
JSON and figures to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpfwi.run_folder import is_done, read_events
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.training.evaluate import evaluate, mean_of
from hpfwi.training.metrics import scores_in_mps

NETWORKS = ("amfms", "inversionnet")
AFFORDABLE = (
    "training.epochs=10",
    "training.batch=10",
    "training.slices=1",
    "data.validation_share=0.05",
    "cluster.workers=0",
    "cluster.threads_per_worker=1",
)
"""Fewer epochs; half the batch for twice the steps, and batch norm over all of it."""
OWN: dict[str, tuple[str, ...]] = {
    "amfms": (),
    "inversionnet": (
        "training.channels_last=true",
        'training.loss.name="mae"',
        "training.normalisation.signed=true",
        'training.normalisation.records="log"',
        'training.schedule.kind="warm-up-cosine"',
        "training.schedule.peak=1e-3",
        "training.schedule.floor=2e-5",
    ),
}
"""InversionNet scales records and velocities and takes the loss of OpenFWI's benchmark, which trained it best; with its
recipe's constant 1e-4 it was no better than the mean after the steps there are here."""
SHOWN = ("mae_mps", "rmse_mps", "ssim", "boundary_mae_mps")
RESULTS = Path(__file__).parent / "results"


def run(arguments: argparse.Namespace) -> None:
    """Train every network that has no run yet."""
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        if (arguments.runs / name).exists():
            state = "finished" if is_done(arguments.runs / name) else "unfinished: `hpfwi resume` goes on with it"
            print(f"{arguments.runs / name} is there, {state}")
            continue
        changes = [f"--set={change}" for change in (*AFFORDABLE, *OWN[name], f'output.folder="{arguments.runs}"')]
        command = [sys.executable, "-m", "hpfwi", "train", f"train_{name}", "--data", str(arguments.pairs)]
        subprocess.run([*command, "--name", name, *changes], check=True)


def collect(arguments: argparse.Namespace) -> None:
    """Score networks and mean on the test split, print the table, write JSON and figures."""
    store = open_pairs(arguments.pairs)
    rows: dict[str, dict[str, Any]] = {"mean of training models": {"means": mean_predictor(store), "epochs": None}}
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.networks:
        folder = arguments.runs / name
        found = evaluate(folder)
        epochs = [event for event in read_events(folder) if event["kind"] == "epoch"]
        steps = [event for event in read_events(folder) if event["kind"] == "step"]
        curves[name] = [{"epoch": event["epoch"], "loss": event["loss"], **event["validation"]} for event in epochs]
        rows[name] = {
            "means": {score: (found.means[score].mean, found.means[score].half_width) for score in SHOWN},
            "epochs": len(epochs),
            "finished": is_done(folder),
            "samples_per_s": float(np.median([event["samples_per_s"] for event in steps])),
        }
    print(f"{'':26s} {'epochs':>6s}" + "".join(f"{score:>20s}" for score in SHOWN))
    for name, row in rows.items():
        cells = "".join(f"{mean:12.4g} ± {half:<5.2g}" for mean, half in row["means"].values())
        print(f"{name:26s} {row['epochs'] or '':>6}{cells}")
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "family": store.family,
        "samples": {split: len(samples) for split, samples in store.splits.items()},
        "sha256": store.manifest["sha256"],
        "changes": {name: [*AFFORDABLE, *OWN[name]] for name in arguments.networks},
    }
    text = json.dumps({"pairs": facts, "scores": rows, "curves": curves}, indent=1)
    (RESULTS / "learning.json").write_text(text + "\n")
    draw_curves(curves, rows["mean of training models"]["means"]["mae_mps"][0], RESULTS / "learning_curves.png")
    draw_maps(store, arguments.runs, arguments.networks, RESULTS / "learning_maps.png")
    print(f"written to {RESULTS / 'learning.json'}, learning_curves.png and learning_maps.png")


def mean_predictor(store: PairStore) -> dict[str, tuple[float, float]]:
    """Scores on the test split, mean and half the 95 % interval, of the mean of the models that train."""
    mean = training_mean(store)
    _, true = store.read(list(store.splits["test"]))
    scores = scores_in_mps(np.broadcast_to(mean, true.shape).copy(), true)
    found = {score: mean_of(scores[score]) for score in SHOWN}
    return {score: (one.mean, one.half_width) for score, one in found.items()}


def training_mean(store: PairStore) -> NDArray[np.float32]:
    """float32[z, x], m/s."""
    train = store.splits["train"]
    total = np.zeros(store.model_shape)
    for first in range(train.start, train.stop, 50):
        _, models = store.read(list(range(first, min(first + 50, train.stop))))
        total += models.astype(np.float64).sum(axis=0)
    mean: NDArray[np.float32] = (total / len(train)).astype(np.float32)
    return mean


def draw_curves(curves: dict[str, list[dict[str, Any]]], mean_mae_mps: float, path: Path) -> None:
    """Validation error over epochs, with the mean predictor's test error as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, points in curves.items():
        axes.plot(
            [point["epoch"] + 1 for point in points], [point["mae_mps"] for point in points], marker="o", label=name
        )
    axes.axhline(mean_mae_mps, color="grey", linestyle="--", label="mean of training models (test)")
    axes.set(xlabel="epochs", ylabel="mean absolute error, m/s (validation)", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_maps(store: PairStore, runs: Path, networks: list[str], path: Path, shown: int = 4) -> None:
    """The first test models, true and as each network finds them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from hpfwi.training.forward import in_mps
    from hpfwi.training.trained import open_trained

    samples = list(store.splits["test"])[:shown]
    records, true = store.read(samples)
    rows = {"true": true}
    for name in networks:
        trained = open_trained(runs / name)
        rows[name] = in_mps(trained.config.training, trained.predict(records), true)
    figure, axes = plt.subplots(len(rows), shown, figsize=(2.0 * shown, 2.0 * len(rows)), layout="constrained")
    for line, (name, models) in zip(axes, rows.items(), strict=True):
        for axis, model in zip(line, models, strict=True):
            image = axis.imshow(model, vmin=1500, vmax=4500, cmap="viridis")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.colorbar(image, ax=axes, label="m/s", shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for call, words in ((run, "train every network"), (collect, "print the table, write JSON and figures")):
        verb = verbs.add_parser(call.__name__, help=words)
        verb.add_argument("--pairs", type=Path, required=True, help="store that `hpfwi data generate` wrote")
        verb.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
        verb.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
        verb.set_defaults(call=call)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
