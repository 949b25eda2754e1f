"""What a run needs before its first iteration, written into its folder: models, observed gathers, their scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.experiment import Experiment, build_experiment, simulated_gathers
from hpfwi.inversion.bands import Stage, sparse_bands, stages_of
from hpfwi.inversion.silent_shots import about, silent_shots
from hpfwi.inversion.task import OBSERVED, InversionTask, in_stage, open_task, window_of
from hpfwi.inversion.windows import MuteSettings
from hpfwi.physics.derived import derived
from hpfwi.physics.model import EarthModel
from hpfwi.store.gathers import GathersStore, open_gathers, write_gathers

if TYPE_CHECKING:
    from hpfwi.config import RunConfig
    from hpfwi.run_folder import RunFolder

PLAUSIBLE_RATIO = 10.0
"""Amplitudes of predicted and observed gathers that differ by more than this factor are in different units: no error of
a velocity model that waves can still correct does so much."""

SHOWN_SHOTS = 3
"""Shots whose gathers are kept in the results: a figure shows one, and three tell a trend along the line."""


def prepare(
    config: RunConfig,
    folder: RunFolder,
    *,
    threads: int,
    say: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> tuple[InversionTask, Experiment]:
    """Fill a new run folder with the inputs of its inversion and return the driver's replica.

    Observed gathers are simulated here, on a finer grid than the inversion's, unless the configuration names a file.

    look    called after every few shots of that simulation; what it raises ends it

    raises  DataError, ConfigError, hpfwi_kernels.errors.KernelError: everything that can be found wrong before any work
    """
    experiment = build_experiment(config)
    survey, models = experiment.survey, experiment.models
    shots_together = min(config.inversion.shots_per_item, survey.shots)
    for fact in derived(experiment.simulator, experiment.slowest_mps, shots_together):
        folder.event("derived", name=fact.name, value=fact.value, reason=fact.reason, warning=fact.warning)
    results, grid = folder.results, models.initial.grid
    results.describe(name=config.name, spacing_m=grid.spacing_m, origin_m=grid.origin_m, dt_s=survey.dt_s)
    results.wavelet(experiment.wavelet)
    results.water(models.water_mask)
    results.model("initial", models.initial.velocity)
    if models.true is not None:
        results.model("true", models.true.velocity)
    if config.data.observed is None:
        cells = "the inversion's cells" if config.data.refine == 1 else f"cells {config.data.refine} times smaller"
        say(f"Simulating {survey.shots} observed shots on {cells}.")
        gathers = simulated_gathers(experiment, threads=threads, progress=lambda done, shots: look())
        attrs = {"simulated_by": config.name, "refine": config.data.refine}
        # A start that was killed here left an older copy behind.
        write_gathers(folder.path / OBSERVED, gathers, survey, experiment.wavelet, attrs, overwrite=True)
    observed = open_gathers(config.data.observed if config.data.observed is not None else folder.path / OBSERVED)
    stages = stages_of(config.inversion.bands_hz, config.inversion.iterations)
    energies = _energies(observed, stages, config.data.mute)
    silent = silent_shots(energies)
    *in_bands, whole = _rms_of_stages(observed, config.data.mute, np.delete(energies, silent, axis=0))
    results.observed_rms(whole, *in_bands)
    if silent:
        reason = about(silent, muted=config.data.mute.active)
        results.silent_shots(silent)
        folder.event("derived", name="silent_shots", value=silent, reason=reason, warning=True)
        say(f"Warning: {reason}.")
    for corner_hz, doubt in sparse_bands(
        [(rms / whole) ** 2 for rms in in_bands], config.inversion.bands_hz, "gathers"
    ):
        folder.event("derived", name=f"band up to {corner_hz:g} Hz", value=corner_hz, reason=doubt, warning=True)
        say(f"Warning: {doubt}.")
    task = open_task(folder.path)
    shots = shown_shots(task.shots)
    results.shots(shots)
    results.positions(observed.survey, shots)
    results.gathers("observed", observed.read(shots))
    if config.data.mute.active:
        results.gathers("window", window_of(config.data.mute, observed.survey, shots, stages[-1]))
    start = predicted(task, models.initial, shots, threads=threads)
    results.gathers("initial", start)
    compares_strengths = config.inversion.misfit == "l2"
    if compares_strengths and (strength := doubtful_strength(start, observed.read(shots))) is not None:
        folder.event("derived", name="strength", value=strength[0], reason=strength[1], warning=True)
        say(f"Warning: {strength[1]}.")
    return task, experiment


def doubtful_strength(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> tuple[float, str] | None:
    """Amplitude of predicted gathers over that of observed ones and what to do, where another scale is the reason.

    >>> doubtful_strength(np.ones(4, np.float32), np.full(4, 3, np.float32)) is None
    True
    """
    strengths = [float(np.sqrt(np.mean(np.square(gathers, dtype=np.float64)))) for gathers in (predicted, observed)]
    if strengths[1] == 0.0:
        return None
    ratio = strengths[0] / strengths[1]
    if 1 / PLAUSIBLE_RATIO <= ratio <= PLAUSIBLE_RATIO:
        return None
    return float(f"{ratio:.3g}"), (
        f"gathers predicted in the initial model are {ratio:.3g} times as strong as the observed ones, which the "
        "inversion would explain by velocity: `hpfwi wavelet` estimates the wavelet with its strength"
    )


def predicted(task: InversionTask, model: EarthModel, shots: list[int], *, threads: int) -> NDArray[np.float32]:
    """Gathers of a few shots in a model, float32[shot, receiver, time]."""
    import torch

    with torch.no_grad():
        gathers: NDArray[np.float32] = task.simulator.predict(torch.tensor(model.velocity), shots, threads).numpy()
    return gathers


def shown_shots(shots: Sequence[int]) -> list[int]:
    """A few of the shots along the line: first quarter, middle, last quarter.

    >>> shown_shots(range(13)), shown_shots([4])
    ([3, 6, 9], [4])
    """
    return sorted({shots[len(shots) * part // (SHOWN_SHOTS + 1)] for part in range(1, SHOWN_SHOTS + 1)})


def _energies(observed: GathersStore, stages: Sequence[Stage], mute: MuteSettings) -> NDArray[np.float64]:
    """Energy of every shot in the band of each stage, after the mute, float64[shot, stage]; read shot by shot."""
    found = np.zeros((observed.survey.shots, len(stages)))
    for shot in range(observed.survey.shots):
        gather = observed.read([shot])
        for place, stage in enumerate(stages):
            in_band = in_stage(gather, observed.survey.dt_s, stage)
            if mute.active:
                in_band = in_band * window_of(mute, observed.survey, [shot], stage)
            found[shot, place] = np.square(in_band, dtype=np.float64).sum()
    return found


def _rms_of_stages(observed: GathersStore, mute: MuteSettings, energies: NDArray[np.float64]) -> list[float]:
    """Root mean square of the samples of the shots that are not silent, in the band of each stage.

    energies    of these shots, as `_energies`; raises DataError where there are none of them
    """
    if not len(energies):
        muted = " after data.mute, in one of the bands at least; leave more of them"
        raise DataError(
            f"Every sample of every shot in {observed.path} is zero"
            + (muted if mute.active else "; give gathers with a signal in them")
            + "."
        )
    samples = len(energies) * math.prod(observed.shape[1:])
    return [math.sqrt(math.fsum(of_stage) / samples) for of_stage in energies.T.tolist()]
