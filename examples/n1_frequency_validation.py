"""Do fine structures come sooner with denormalisation than with pretraining? Read off finished runs, nothing computed.

Give run folders, or a folder full of them, such as that of `benchmarks/marmousi.py run`. Runs of `pretrain` and of
`s-denorm` are compared wherever both have the same true and starting model, in five bands of wavenumber, from the
longest wavelengths to the shortest, over the whole model and over its deep half. Numbers are medians over runs.

    half-life   first diagnosed iteration at which less than half of the start's error is left in the band
    error       |F(m - true)|² / |F(initial - true)|² at the end
    coherence   agreement of what was added with what was missing, -1 to 1, at the end

The mechanism claim is that the finest band that waves resolve (1 to 2 cycles per wavelength) has the shorter half-life
with denormalisation, and the higher coherence when both methods fit the data equally well.

    python examples/n1_frequency_validation.py runs/marmousi
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpfwi.config import RunConfig, load_config
from hpfwi.inversion.spectra import BANDS, FINEST_RESOLVED_BAND, half_lives
from hpfwi.physics.model import ModelSettings
from hpfwi.run_folder import is_done, read_events

METHODS = ("pretrain", "s-denorm")
HALVES = {"whole": "", "deep": "_deep"}
"""Part of the model, and what the events call its scores after."""
Pair = tuple[float, float]
"""A number of each method, in their order."""


@dataclass(frozen=True)
class Run:
    """What one run came to in one part of the model."""

    half_lives: list[float]  # [band], infinite where the error never halved
    errors: list[float]  # [band], at the end
    coherences: list[float]  # [band], at the end
    misfits: list[float]  # at each diagnosed iteration
    finest_coherences: list[float]  # of the finest resolved band, at each diagnosed iteration

    def coherence_at(self, misfit: float) -> float:
        """Coherence of the finest resolved band where the misfit first is as low as this."""
        return next(found for found, value in zip(self.finest_coherences, self.misfits, strict=True) if value <= misfit)


def finished_runs(paths: Sequence[Path]) -> Iterator[tuple[Path, RunConfig]]:
    """The finished runs among the paths and directly under them."""
    for path in paths:
        for folder in (path, *sorted(path.glob("*/"))):
            if is_done(folder):
                yield folder, load_config(folder / "config.toml")[0]


def read_run(folder: Path, config: RunConfig, half: str) -> Run:
    """What the events of a run say of one part of the model."""
    events = read_events(folder)
    looks = [event for event in events if event["kind"] == "diagnostics"]
    misfits = [event["misfit"] for event in events if event["kind"] == "iteration"]
    # Random batches of shots are unequal: a misfit is the mean over the last pass through the shots.
    batch = config.inversion.shots_per_iteration
    per_pass = 1 if batch is None else math.ceil(config.survey.shots / batch)
    ends = [min(max(look["iteration"] + 1, per_pass), len(misfits)) for look in looks]

    def bands(score: str) -> list[list[float]]:
        names = [f"spectra/{score}{HALVES[half]}_{band}" for band in range(BANDS)]
        return [[look.get(name, math.nan) for name in names] for look in looks]

    errors, coherences = bands("error"), bands("coherence")
    lives = half_lives([look["iteration"] for look in looks], errors)
    return Run(
        [math.inf if life is None else life for life in lives],
        errors[-1],
        coherences[-1],
        [statistics.fmean(misfits[max(0, end - per_pass) : end]) for end in ends],
        [band[FINEST_RESOLVED_BAND] for band in coherences],
    )


def report(half: str, runs: dict[str, list[Run]]) -> list[str]:
    """The table of one part of the model, and what it says of the claim."""
    lines = []
    for band in range(BANDS):
        life = medians([[run.half_lives[band] for run in runs[method]] for method in METHODS])
        error = medians([[run.errors[band] for run in runs[method]] for method in METHODS])
        if math.isnan(error[0]):  # a model too small for such wavelengths
            continue
        coherence = medians([[run.coherences[band] for run in runs[method]] for method in METHODS])
        lines.append(
            f"{half:5s}  {band:4d}  {when(life[0]):>8s}  {when(life[1]):>8s}  {error[0]:8.3f}  {error[1]:8.3f}  "
            f"{coherence[0]:8.3f}  {coherence[1]:8.3f}"
        )
    level = max(min(run.misfits) for method in METHODS for run in runs[method])
    finest = medians([[run.half_lives[FINEST_RESOLVED_BAND] for run in runs[method]] for method in METHODS])
    alike = medians([[run.coherence_at(level) for run in runs[method]] for method in METHODS])
    return [*lines, verdict(half, finest, alike, level)]


def medians(values: Sequence[Sequence[float]]) -> Pair:
    return statistics.median(values[0]), statistics.median(values[1])


def verdict(half: str, life: Pair, coherence: Pair, level: float) -> str:
    """One sentence on the claim, for the finest resolved band of one part of the model."""
    sooner, better = life[1] < life[0], coherence[1] > coherence[0]
    stands = "stands" if sooner and better else "stands in one of its two parts" if sooner or better else "falls"
    if math.isinf(min(life)):
        stands = f"cannot be judged by half-lives, and coherence speaks {'for' if better else 'against'} it"
    return (
        f"{half.capitalize()} model: the claim {stands}. Band {FINEST_RESOLVED_BAND} halved its error at iteration: "
        f"pretrain {when(life[0])}, s-denorm {when(life[1])}. Its coherence at a misfit of {level:.3g}, the lowest "
        f"that every run reached: pretrain {coherence[0]:.3f}, s-denorm {coherence[1]:.3f}."
    )


def when(iteration: float) -> str:
    return "never" if math.isinf(iteration) else f"{iteration:.0f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of run folders")
    options = parser.parse_args(arguments)

    found: dict[ModelSettings, dict[str, list[tuple[Path, RunConfig]]]] = {}
    for folder, config in finished_runs(options.runs):
        methods = found.setdefault(config.model, {})
        methods.setdefault(config.inversion.parameterisation.kind, []).append((folder, config))
    both = {models: runs for models, runs in found.items() if set(METHODS) <= set(runs)}
    if not both:
        print(f"Nothing to compare: no models have a finished run of {' and one of '.join(METHODS)}.", file=sys.stderr)
        return 2
    for models, runs in both.items():
        counts = ", ".join(f"{len(runs[method])} of {method}" for method in METHODS)
        print(f"{models.true}, {models.initial} start; runs: {counts}")
        print("                  half-life             error at the end    coherence at the end")
        print("half   band  pretrain  s-denorm  pretrain  s-denorm  pretrain  s-denorm")
        for half in HALVES:
            of_half = {method: [read_run(*run, half) for run in runs[method]] for method in METHODS}
            print("\n".join(report(half, of_half)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
