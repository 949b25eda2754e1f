"""What a configuration describes, built: models, survey, wavelet, simulator, and the observed gathers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpfwi.config import RunConfig, require_input
from hpfwi.errors import ConfigError
from hpfwi.parallel import ClusterSettings, device_here, placed
from hpfwi.physics.device import usable_gpus
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import WIDEST, ModelPair, load_models
from hpfwi.physics.modelling import simulate_observed
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import build_wavelet
from hpfwi.physics.survey import Survey, build_survey
from hpfwi.store.gathers import GathersStore, open_gathers


@dataclass(frozen=True, eq=False)
class Experiment:
    """The physics of one run, ready to compute.

    wavelet     float32[shot, source, time]
    guessed     the wavelet is a Ricker taken for records from a file, which bring none and were not made with it
    simulator   made for the whole range of velocities that the inversion may reach
    """

    config: RunConfig
    models: ModelPair
    survey: Survey
    wavelet: NDArray[np.float32]
    guessed: bool
    simulator: Simulator

    @property
    def slowest_mps(self) -> float:
        """The lowest velocity in the models of the run."""
        models = [self.models.initial] if self.models.true is None else [self.models.initial, self.models.true]
        return min(model.slowest_mps for model in models)


def cluster_of(config: RunConfig, gpus: int | None = None) -> ClusterSettings:
    """Who computes a run: its cluster settings without "auto".

    gpus    of this machine that can be used; None counts them

    raises  ConfigError: device="cuda" where there are too few, or with an engine that has no use for them; DataError:
            observed gathers that cannot be opened
    """
    items = _items_per_iteration(config)
    if config.modelling.engine == "hpfwi":
        return placed(config.cluster, usable_gpus() if gpus is None else gpus, items)
    if config.cluster.device == "cuda":
        raise ConfigError(
            f'cluster.device = "cuda" has no use with modelling.engine = "{config.modelling.engine}", which computes '
            'on the CPU here: set it to "cpu", or take engine "hpfwi".'
        )
    return placed(config.cluster.model_copy(update={"device": "cpu"}), 0, items)


def _items_per_iteration(config: RunConfig) -> int:
    shots = config.inversion.shots_per_iteration
    if shots is None:
        observed = config.data.observed
        shots = config.survey.every_shot if observed is None else open_gathers(observed).survey.shots
    return -(-shots // config.inversion.shots_per_item)


def build_experiment(config: RunConfig) -> Experiment:
    """Build what `config` describes; no wave is computed.

    Observed gathers from a file bring their survey with them, and their wavelet unless source.wavelet is a file.

    raises      ConfigError, DataError, hpfwi_kernels.errors.KernelError: one sentence each
    """
    require_input(config)
    models = load_models(config.model)
    grid = models.initial.grid
    if config.data.observed is None:
        survey = build_survey(config.survey, grid)
        wavelet, guessed = build_wavelet(config.source, survey), False
    else:
        store = open_gathers(config.data.observed)
        survey, wavelet = store.survey, wavelet_of(config, store)
        guessed = store.wavelet is None and config.source.wavelet == "ricker"
    wanted = config.inversion.shots_per_iteration
    if wanted is not None and wanted > survey.shots:
        raise ConfigError(
            f"inversion.shots_per_iteration = {wanted} is more than the {survey.shots} shots of the survey; give "
            f"{survey.shots} at most, or none for all."
        )
    _refuse_wide_filters(config, grid)
    low_mps, high_mps = config.model.bounds_mps
    device = device_here(config.cluster)
    simulator = Simulator(grid, survey, wavelet, config.modelling, high_mps, low_mps, device=device)
    return Experiment(config, models, survey, wavelet, guessed, simulator)


def _refuse_wide_filters(config: RunConfig, grid: Grid) -> None:
    """Raise ConfigError where a filter is far wider than the model, of which it would take long to leave a mean."""
    settings = config.inversion
    widths_m = {"inversion.smooth_gradient_m": settings.smooth_gradient_m}
    if settings.parameterisation.kind == "a-denorm-moving-mean":
        widths_m["inversion.parameterisation.moving_mean_sigma_m"] = settings.parameterisation.moving_mean_sigma_m
    longest_m = max(cells * step_m for cells, step_m in zip(grid.shape, grid.spacing_m, strict=True))
    for name, width_m in widths_m.items():
        if width_m > WIDEST * longest_m:
            raise ConfigError(
                f"{name} = {width_m:g} is more than {WIDEST} times the {longest_m:g} m of the model's longest side; "
                "give less, a wavelength or so."
            )


def wavelet_of(config: RunConfig, observed: GathersStore) -> NDArray[np.float32]:
    """The wavelet of observed gathers, float32[shot, source, time].

    Gathers that the run simulated carry theirs. A file's own wavelet counts unless source.wavelet names another one.
    """
    named = config.data.observed is not None and config.source.wavelet != "ricker"
    if observed.wavelet is None or named:
        return build_wavelet(config.source, observed.survey)
    return observed.wavelet


def simulated_gathers(
    experiment: Experiment, *, threads: int = 1, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Gathers of the true model that stand in for observed ones, float32[shot, receiver, time], noise included.

    progress    called with (shots done, shots in all)
    raises      ConfigError without a true model
    """
    data = experiment.config.data
    if experiment.models.true is None:
        raise ConfigError("Simulating gathers needs a true model, and model.true is none; name one with --model PATH.")
    gathers = simulate_observed(
        experiment.models.true,
        experiment.survey,
        experiment.wavelet,
        experiment.config.modelling,
        refine=data.refine,
        order=data.order,
        threads=threads,
        device=device_here(experiment.config.cluster),
        progress=progress,
    )
    return with_noise(gathers, data.noise_std_share, data.noise_seed)


def with_noise(gathers: NDArray[np.float32], std_share: float, seed: int) -> NDArray[np.float32]:
    """Add Gaussian noise whose standard deviation is `std_share` times that of all gathers [shot, receiver, time].

    >>> clean = np.sin(np.arange(4000, dtype=np.float32)).reshape(2, 20, 100)
    >>> bool(abs(np.std(with_noise(clean, 0.5, seed=1) - clean) / np.std(clean) - 0.5) < 0.02)
    True
    """
    if std_share == 0:
        return gathers
    generator = np.random.default_rng(seed)
    std = std_share * float(np.std(gathers, dtype=np.float64))
    noisy = np.empty_like(gathers)
    for shot, gather in enumerate(gathers):
        noisy[shot] = gather + std * generator.standard_normal(gather.shape, dtype=np.float32)
    return noisy
