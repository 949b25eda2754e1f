"""Does the loop help? Proposals refined against unlabelled records of another family: `python benchmarks/loop.py`.

A network is trained on pairs of one family (flatvel-a) and meets records of another (curvevel-a), whose models nobody
tells it. On held-out samples of the second family are compared

    trained      the network as it is
    refined      its proposals for the held-out records, refined against them by `hpfwi refine`
    fine-tuned   the network trained on with pairs refined from unlabelled records: with the records as observed, and
                 with records modelled in the refined models
    proposals    the control: trained on in the same way with its own unrefined proposals
    labelled     what the true models of the same records would have given

and what each cost. Maps are of 40 x 40 cells with 3 shots of 0.5 s, and the network is InversionNet at a quarter of
its width, so that all of it takes twenty minutes of processor time. Every stage is a command of hpfwi; a stage that is
done is left alone when the benchmark is started again. Whether a C-PML may take the sponge's place is measured too:
by what it changes in records of the published size (70 x 70, 5 shots of 1 s), and by refining some held-out samples
with either.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpfwi.physics.openfwi import OpenFwiSimulator, modelling_of
from hpfwi.refinement.table import read_rows
from hpfwi.run_folder import is_done
from hpfwi.store.openfwi import open_pairs
from hpfwi.store.pair_writer import create_pairs
from hpfwi.synthetic.families import velocity_map
from hpfwi.training.evaluate import evaluate, mean_of
from hpfwi.training.metrics import scores_in_mps

if TYPE_CHECKING:
    from benchmarks import peers
else:
    import peers  # run as a script, this folder is where Python looks first

SOURCE, TARGET = "flatvel-a", "curvevel-a"
TRAINED, UNLABELLED, HELD_OUT = 1000, 200, 30
ITERATIONS = 60
MAPS = (
    *("--model-shape", "40,40", "--set", "shots=3", "--set", "steps=500", "--set", "keep_every=4"),
    *("--set", "peak_hz=20"),
)
TRAINING = (
    "network.width=0.25",
    "training.epochs=12",
    "training.batch=10",
    "training.slices=1",
    "training.channels_last=true",
    "training.loss.name=mae",
    "training.normalisation.signed=true",
    "training.normalisation.records=log",
    "training.normalisation.range_mps=[1500,4500]",
    "training.normalisation.amplitudes=[-30,60]",
    "training.schedule.kind=warm-up-cosine",
    "training.schedule.peak=1e-3",
    "training.schedule.floor=2e-5",
    "data.validation_share=0.05",
)
"""InversionNet with the scales and the loss of OpenFWI's benchmark, as in `benchmarks/learning.py`."""
FINE_TUNING = (
    "training.epochs=20",
    "training.schedule.peak=3e-4",
    "training.mirror=true",
    "data.validation_share=0.1",
)
ONE_CORE = ("cluster.workers=0", "cluster.threads_per_worker=1")
ALONE = ("--workers", "0", "--device", "cpu")
SHOWN = ("mae_mps", "ssim")
BESIDE_SPONGE = 5
"""Held-out samples that are refined with the sponge too."""


class Stages:
    """Commands run one after the other, with the time that each took, kept in the folder of the benchmark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "times.json"
        self.times: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def run(self, name: str, *command: str) -> None:
        """Run `hpfwi command …` in the folder, unless its time is known."""
        if name in self.times:
            return
        print(f"# {name}: hpfwi {' '.join(command)}", flush=True)
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "hpfwi", *command], check=True, cwd=self.folder, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.times[name] = {"seconds": time.perf_counter() - begin, "processor_seconds": processor}
        self.file.write_text(json.dumps(self.times, indent=1) + "\n")


def settings(options: Sequence[str]) -> list[str]:
    """Options of a configuration as arguments."""
    return [word for option in options for word in ("--set", option)]


def main() -> None:
    """Run what is not done, compare, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/loop"), help="where stores and runs go")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    conditions = peers.conditions(threads=1)
    stages = Stages(folder)
    held_out = str(HELD_OUT)
    stages.run("pairs", "data", "generate", SOURCE, "source.zarr", "-n", str(TRAINED), "--test", "0", *ALONE, *MAPS)
    count = str(UNLABELLED + HELD_OUT)
    stages.run("records", "data", "generate", TARGET, "target.zarr", "-n", count, "--test", held_out, *ALONE, *MAPS)
    options = settings((*TRAINING, *ONE_CORE))
    stages.run("train", "train", "train_inversionnet", "--data", "source.zarr", "--name", "trained", *options)
    refining = ("refine", "runs/trained", "--data", "target.zarr", *ALONE)
    iterations = ("--set", f"iterations={ITERATIONS}")
    stages.run("refine", *refining, "refined.zarr", *iterations)
    stages.run("refine held out", *refining, "held_out.zarr", "--split", "test", *iterations)
    few = ("--split", "test", "-n", str(BESIDE_SPONGE), "--set", "boundary=sponge")
    stages.run("refine with sponge", *refining, "sponge.zarr", *few, *iterations)
    stages.run("propose", *refining, "proposals.zarr", "--set", "iterations=0")
    model_again(folder / "refined.zarr", folder / "modelled.zarr")
    tuned = {
        "fine-tuned, observed records": ("observed", "refined.zarr"),
        "fine-tuned, modelled records": ("modelled", "modelled.zarr"),
        "control: unrefined proposals": ("control", "proposals.zarr"),
        "labelled: true models": ("labelled", "target.zarr"),
    }
    for name, store in tuned.values():
        again = ("train", "runs/trained/config.toml", "--data", store, "--weights", "runs/trained", "--name", name)
        stages.run(f"fine-tune {name}", *again, *settings((*FINE_TUNING, *ONE_CORE)))
    rows = {"trained": scores_of(folder, "trained"), "refined": scores_of_refined(folder)}
    rows |= {title: scores_of(folder, name) for title, (name, _) in tuned.items()}
    print(f"{'':30s}" + "".join(f"{score:>22s}" for score in SHOWN))
    for title, row in rows.items():
        print(f"{title:30s}" + "".join(f"{row[score][0]:14.4g} ± {row[score][1]:<5.2g}" for score in SHOWN))
    document = {
        "conditions": conditions,
        "pairs": {"trained": [SOURCE, TRAINED], "unlabelled": [TARGET, UNLABELLED], "held out": [TARGET, HELD_OUT]},
        "options": {"maps": MAPS, "training": TRAINING, "fine-tuning": FINE_TUNING, "iterations": ITERATIONS},
        "scores": rows,
        "refinement": {name: in_short(folder / f"{name}.zarr") for name in ("refined", "held_out")},
        "edges": {
            "cpml": in_short(folder / "held_out.zarr", BESIDE_SPONGE),
            "sponge": in_short(folder / "sponge.zarr"),
            "relative L2 difference of records": gaps_of_cpml(),
        },
        "times": stages.times,
    }
    path = peers.result_path("loop", conditions)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"# Wrote {path}")


def model_again(refined: Path, path: Path) -> None:
    """The pairs that `--set records=modelled` would have given: the same models with their own records."""
    store = open_pairs(refined)
    writer = create_pairs(
        path,
        samples=store.samples,
        records_shape=store.records_shape,
        model_shape=store.model_shape,
        family=store.family,
        physics=store.physics,
    )
    simulator = OpenFwiSimulator(store.model_shape, modelling_of(store.physics, store.records_shape), device="cpu")
    for shard in writer.missing():
        _, models = store.read(list(shard))
        writer.write(shard.start, simulator.records_of(models), models)
    writer.finish()


def scores_of(folder: Path, name: str) -> dict[str, tuple[float, float]]:
    """Mean and half the 95 % interval of a network's scores on the held-out samples."""
    run = folder / "runs" / name
    if not is_done(run):
        raise SystemExit(f"{run} is not finished: delete it, and its entry in {folder / 'times.json'}.")
    found = evaluate(run, "test", data=folder / "target.zarr")
    return {score: (found.means[score].mean, found.means[score].half_width) for score in SHOWN}


def scores_of_refined(folder: Path) -> dict[str, tuple[float, float]]:
    """The same of the refined predictions."""
    target = open_pairs(folder / "target.zarr")
    _, true = target.read(list(target.splits["test"]))
    refined = open_pairs(folder / "held_out.zarr")
    _, models = refined.read(list(range(refined.samples)))
    scores = scores_in_mps(models, true)
    found = {score: mean_of(scores[score]) for score in SHOWN}
    return {score: (one.mean, one.half_width) for score, one in found.items()}


def gaps_of_cpml() -> dict[str, list[float]]:
    """Norm of the difference that a C-PML in place of the sponge makes, over that of the records, by family."""
    simulators = [OpenFwiSimulator((70, 70), boundary=edges, device="cpu") for edges in ("sponge", "cpml")]
    found = {}
    for family in (SOURCE, TARGET, "curvefault-b", "style-a"):
        maps = [velocity_map(family, (70, 70), 0, sample) for sample in range(3)]
        pairs = [[simulator.records(velocity) for simulator in simulators] for velocity in maps]
        found[family] = [float(np.linalg.norm(cpml - sponge) / np.linalg.norm(sponge)) for sponge, cpml in pairs]
    return found


def in_short(store: Path, first: int | None = None) -> dict[str, float]:
    """Misfit and error before and after, over all or the first samples of a refined store."""
    rows = read_rows(store / "refinement.csv")[:first]
    misfits = np.array([(row.misfit_proposed, row.misfit_refined) for row in rows])
    errors = np.array([(row.mae_proposed_mps, row.mae_refined_mps) for row in rows], np.float64)
    return {
        "samples": len(rows),
        "median_misfit_proposed": float(np.median(misfits[:, 0])),
        "median_misfit_refined": float(np.median(misfits[:, 1])),
        "mae_proposed_mps": float(errors[:, 0].mean()),
        "mae_refined_mps": float(errors[:, 1].mean()),
        "samples_improved": int((errors[:, 1] < errors[:, 0]).sum()),
    }


if __name__ == "__main__":
    main()
