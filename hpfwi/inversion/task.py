"""One replica of an inversion: the model it writes, the gradient of a group of shots, the optimiser's step.

A replica is built from a run folder alone, so that a worker on any node, or a resume after the original files are gone,
starts from the same bytes.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpfwi.errors import DataError, NumericsError
from hpfwi.experiment import wavelet_of
from hpfwi.inversion.bands import Stage, stage_at, stages_of
from hpfwi.inversion.lbfgs import Lbfgs
from hpfwi.inversion.misfit import equal_traces, l2
from hpfwi.inversion.optimise import build_adam, iterations_per_pass, load_optimiser_state, optimiser_state
from hpfwi.inversion.parameterisation import build_parameterisation
from hpfwi.inversion.regularise import Regulariser
from hpfwi.inversion.signatures import cycle_skipped_share
from hpfwi.inversion.windows import MuteSettings, time_window, trace_weights
from hpfwi.parallel import device_here, groups_of_shots
from hpfwi.physics.bands import band_passed, delay_s, simulator_of_band
from hpfwi.physics.device import Device
from hpfwi.physics.grid import Grid
from hpfwi.physics.memory import fair_share_bytes
from hpfwi.physics.model import EarthModel, water_of
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.survey import Survey
from hpfwi.store.gathers import GathersStore, open_gathers

if TYPE_CHECKING:
    from hpfwi.config import RunConfig

OBSERVED = "observed.zarr"
"""Gathers that a run simulated for itself, inside its folder."""
_PARAMETER = "parameterisation/"
_OPTIMISER = "optimiser/"


class InversionTask:
    """The state of an inversion and what advances it.

    config          of the run
    initial         the starting model
    observed        gathers to fit, with their survey
    observed_rms    root mean square of the observed samples after data.mute, Pa; residuals are counted in this unit,
                    which keeps gradients near 1 whatever the strength of the source, as Adam's epsilon wants
    band_rms        the same below each corner of inversion.bands_hz
    silent          shots that are left out, see `silent_shots`
    wavelet         float32[shot, source, time], Pa; None: what configuration and gathers say
    water           bool of the model's shape, cells that keep their velocity; None: what the configuration says
    device          that waves are computed on; None: as cluster.device says for this process

    The misfit that is minimised is J = ½ Σ ((predicted - observed) / observed_rms)², both multiplied by the window of
    data.mute; with inversion.misfit "normalised" every trace of both is then brought to observed_rms. In a stage of a
    band, predicted and observed gathers and their rms are those of the band. Penalties of inversion.regularise are
    added to J's gradient once an iteration, by each replica for itself, in proportion to the energy that the
    iteration's shots are expected to have.
    """

    def __init__(
        self,
        config: RunConfig,
        initial: EarthModel,
        observed: GathersStore,
        observed_rms: float,
        *,
        band_rms: Sequence[float] = (),
        silent: Sequence[int] = (),
        wavelet: NDArray[np.float32] | None = None,
        water: NDArray[np.bool_] | None = None,
        device: Device | None = None,
    ) -> None:
        self._config = config
        self._observed = observed
        survey = observed.survey
        self._wavelet = wavelet_of(config, observed) if wavelet is None else wavelet
        low, high = config.model.bounds_mps
        device = device_here(config.cluster) if device is None else device
        self.simulator = Simulator(initial.grid, survey, self._wavelet, config.modelling, high, low, device=device)
        self._stages = stages_of(config.inversion.bands_hz, config.inversion.iterations)
        self._rms_of_stages = (*band_rms, observed_rms)
        self._stage = self._stages[-1]
        self._listener = self.simulator  # predicts what this stage compares
        self.shots = sorted(set(range(survey.shots)) - set(silent))
        self.groups = groups_of_shots(self.shots, config.inversion.shots_per_item)
        self.items_per_iteration = config.inversion.items_per_iteration or len(self.groups)
        self.parameterisation = build_parameterisation(
            config.inversion.parameterisation,
            initial,
            config.model.bounds_mps,
            water_of(config.model, initial.grid) if water is None else water,
            config.inversion.seed,
        )
        self.optimiser = self._build_optimiser()
        self._normalised = config.inversion.misfit == "normalised"
        self.regulariser: Regulariser | None = None
        if config.inversion.regularise.active:
            self.regulariser = Regulariser(
                config.inversion.regularise,
                initial.velocity,
                initial.grid.spacing_m,
                self.parameterisation.water.numpy(),
            )
        self._half_energy = self._energy_of_iteration() / 2
        self._model: torch.Tensor | None = None
        self._velocity: torch.Tensor | None = None
        self._look_for_skips = False
        self._trial: dict[str, float] = {}
        self._cache: dict[tuple[int, ...], torch.Tensor] = {}
        self._cache_left_bytes = _cache_bytes()
        self._lock = threading.Lock()

    def model(self) -> NDArray[np.float32]:
        """The current model, float32[z, x] or [z, y, x], m/s."""
        with torch.no_grad():
            velocity: NDArray[np.float32] = self.parameterisation().numpy()
        return velocity

    def at_accepted(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model is the one that a line search accepted last; without one, the current one."""
        return self.optimiser.at_accepted() if isinstance(self.optimiser, Lbfgs) else contextlib.nullcontext()

    def describe(self) -> list[str]:
        """Sentences for the log: what is trained, and how where it is not Adam that does it."""
        sentences, settings = [self.parameterisation.describe()], self._config.inversion.optimiser
        if settings.kind == "lbfgs":
            sentences.append(
                f"L-BFGS with a line search: the first step is at most {settings.first_step:g} times that rate, later "
                f"ones go by the curvature of the last {settings.memory}; a trial that fails costs an iteration."
            )
        return sentences

    def begin(self, iteration: int) -> None:
        """Write the model of this iteration; the network's part of the chain rule waits for `advance`.

        raises  NumericsError: the step before, finite as its gradient was, led to a model that is not
        """
        self._listen(stage_at(self._stages, iteration))
        self._model = self.parameterisation()
        self._velocity = self._model.detach()
        if not bool(torch.isfinite(self._velocity).all()):
            raise NumericsError(
                f"The model of iteration {iteration} is not finite: the steps before it were too long, so lower the "
                "rates of inversion.parameterisation in a new run."
            )
        self._look_for_skips = iteration % self._config.inversion.diagnostics_every == 0
        self._trial = self._described_trial()

    def gradient(self, shots: Sequence[int], *, threads: int = 1) -> tuple[NDArray[np.float32], dict[str, float]]:
        """dJ/dm of some shots, float32 of the model's shape per m/s, and what they add up to.

        threads     compute them together on the CPU; the bits do not depend on it

        The numbers are `residual_energy` and `observed_energy`, sums of squares in units of observed_rms², and, in the
        iterations of diagnostics, `skipped_share`; with lbfgs also what `line_search` asks for. May be called from
        several threads at once.
        """
        assert self._velocity is not None  # begin comes first
        velocity = self._velocity.clone().requires_grad_()
        observed = self._observed_of(tuple(shots))
        predicted = self._compared(self._listener.predict(velocity, shots, threads), shots)
        misfit = l2(predicted, observed) / self._rms**2
        (gradient,) = torch.autograd.grad(misfit, velocity)
        scalars = {
            "residual_energy": 2.0 * float(misfit.detach()),
            "observed_energy": float(observed.double().square().sum()) / self._rms**2,
            **self._trial,
        }
        if self._look_for_skips:
            scalars["skipped_share"] = cycle_skipped_share(
                predicted.detach().numpy(), observed.numpy(), self._observed.survey.dt_s, self._listener.peak_hz
            )
        result: NDArray[np.float32] = gradient.numpy()
        return result, scalars

    def contribution(self, shots: Sequence[int], *, threads: int = 1) -> tuple[NDArray[Any], dict[str, float]]:
        """What some shots add to the sum that `advance` takes, and the numbers of `gradient`.

        It is the gradient; with lbfgs, whose line search asks for the misfit on every replica, a flat float64 array of
        the gradient and the misfit.
        """
        gradient, scalars = self.gradient(shots, threads=threads)
        if not isinstance(self.optimiser, Lbfgs):
            return gradient, scalars
        misfit = scalars["residual_energy"] / (2.0 * self._half_energy)
        return np.append(gradient.astype(np.float64), misfit), scalars

    def gradient_in(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient dJ/dm in a sum of contributions, float64 in the shape of the model."""
        return total[:-1].reshape(self.simulator.grid.shape) if isinstance(self.optimiser, Lbfgs) else total

    def advance(self, iteration: int, total: NDArray[np.float64]) -> None:
        """Take one optimiser step with the sum of the contributions of the iteration's shots, and the penalties' part.

        With lbfgs what is minimised is the misfit plus the penalties, and a filter on the gradient becomes one on the
        steps: only the gradient itself says along which line the misfit falls. After the last iteration of a stage, and
        of the run, the model is the one accepted last.
        """
        assert self._model is not None  # begin comes first
        assert self._velocity is not None
        self.optimiser.zero_grad()
        gradient = self.gradient_in(total)
        if isinstance(self.optimiser, Lbfgs):
            gradient = gradient / self._half_energy
            if self.regulariser is not None:
                gradient = gradient + self.regulariser.gradient(self._velocity.numpy())
            self._model.backward(torch.from_numpy(gradient).to(self._model.dtype))
            ends = iteration + 1 == stage_at(self._stages, iteration).end
            self.optimiser.advance(_value(total, self._trial), ends=ends)
            self.parameterisation.project()
        else:
            gradient = self._smooth(gradient)
            if self.regulariser is not None:
                gradient = gradient + self._half_energy * self.regulariser.gradient(self._velocity.numpy())
            self._model.backward(torch.from_numpy(gradient).to(self._model.dtype))
            self.optimiser.step()
            self.parameterisation.after_step(iteration, self.optimiser)
        self._model = self._velocity = None

    def _build_optimiser(self) -> torch.optim.Adam | Lbfgs:
        settings, groups = self._config.inversion, self.parameterisation.parameter_groups()
        if settings.optimiser.kind == "adam":
            return build_adam(groups, settings.optimiser)
        (group,) = groups  # of every kind that the settings allow
        return Lbfgs(
            group["params"],
            settings.optimiser.first_step * group["lr"],
            settings.optimiser.memory,
            self.parameterisation.movable,
            self._smooth_flat if settings.smooth_gradient_m > 0 else None,
        )

    def _smooth_flat(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._smooth(gradient.reshape(self.simulator.grid.shape)).ravel()

    def _described_trial(self) -> dict[str, float]:
        """What decides whether the current model is accepted by a line search; nothing without one."""
        if not isinstance(self.optimiser, Lbfgs):
            return {}
        assert self._velocity is not None
        penalties = {} if self.regulariser is None else self.regulariser.penalties(self._velocity.numpy())
        found = {"penalty": math.fsum(penalties.values())}
        step_length, acceptable = self.optimiser.step_length, self.optimiser.acceptable
        if step_length is not None and acceptable is not None:
            found |= {"step_length": step_length, "acceptable": acceptable}
        return found

    def _smooth(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient after the Gaussian filter that the configuration asks for; none of it comes out of the water."""
        sigma_m = self._config.inversion.smooth_gradient_m
        if sigma_m == 0:
            return gradient
        dry = np.where(self.parameterisation.water.numpy(), 0.0, gradient)
        sigmas = [sigma_m / spacing for spacing in self.simulator.grid.spacing_m]
        return np.asarray(gaussian_filter(dry, sigmas, mode="nearest"))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that iterations change, by flat name."""
        tensors = {f"{_PARAMETER}{name}": value.numpy() for name, value in self.parameterisation.state_dict().items()}
        optimiser = self.optimiser
        saved = optimiser.arrays() if isinstance(optimiser, Lbfgs) else optimiser_state(optimiser)
        return tensors | {f"{_OPTIMISER}{name}": value for name, value in saved.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` returned; raises DataError where it belongs to another configuration."""
        tensors = {
            name.removeprefix(_PARAMETER): torch.from_numpy(np.array(value))
            for name, value in state.items()
            if name.startswith(_PARAMETER)
        }
        try:
            self.parameterisation.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"The saved state does not fit this configuration ({reason}); resume the run it belongs to."
            ) from error
        saved = {name.removeprefix(_OPTIMISER): value for name, value in state.items() if name.startswith(_OPTIMISER)}
        if isinstance(self.optimiser, Lbfgs):
            self.optimiser.load(saved)
        else:
            load_optimiser_state(self.optimiser, saved)

    def _energy_of_iteration(self) -> float:
        """Observed energy of the shots of an iteration on average, in units of observed_rms²."""
        mute, survey = self._config.data.mute, self._observed.survey
        samples = float(len(self.shots) * math.prod(self._observed.shape[1:]))
        if self._normalised:  # all traces are equal but for their weights
            each = trace_weights(mute, survey, self.shots)
            samples = survey.samples * math.fsum(np.square(each).ravel().tolist())
        return samples / iterations_per_pass(len(self.groups), self._config.inversion.items_per_iteration)

    @property
    def _rms(self) -> float:
        return self._rms_of_stages[self._stage.number - 1]

    def _listen(self, stage: Stage) -> None:
        """Compare gathers in the band of a stage from now on."""
        if stage is self._stage:
            return
        self._stage = stage
        self._cache.clear()
        self._cache_left_bytes = _cache_bytes()
        self._listener = self.simulator
        if stage.corner_hz is not None:
            wavelet = in_stage(self._wavelet, self._observed.survey.dt_s, stage)
            self._listener = simulator_of_band(self.simulator, wavelet, self._config.model.bounds_mps)

    def _observed_of(self, shots: tuple[int, ...]) -> torch.Tensor:
        """What the misfit compares of the observed gathers of some shots, read and filtered once where memory allows.

        What is kept stays: a worker meets its groups in turn, so making room for one would only lose another.
        """
        kept = self._cache.get(shots)
        if kept is not None:
            return kept
        gathers = in_stage(self._observed.read(shots), self._observed.survey.dt_s, self._stage)
        observed = self._compared(torch.from_numpy(gathers), shots)
        with self._lock:
            if observed.nbytes <= self._cache_left_bytes:
                self._cache[shots] = observed
                self._cache_left_bytes -= observed.nbytes
        return observed

    def _compared(self, gathers: torch.Tensor, shots: Sequence[int]) -> torch.Tensor:
        """What the misfit compares of gathers [shot, receiver, time] of some shots, in the band of the stage."""
        mute, survey = self._config.data.mute, self._observed.survey
        if mute.active:
            gathers = gathers * torch.from_numpy(window_of(mute, survey, shots, self._stage))
        if self._normalised:
            gathers = equal_traces(gathers, self._rms)
            if mute.active:  # again, for equal traces have forgotten which of them count less
                gathers = gathers * torch.from_numpy(trace_weights(mute, survey, shots).astype(np.float32))[..., None]
        return gathers


def line_search(total: NDArray[np.float64], scalars: Mapping[str, float]) -> dict[str, float]:
    """What the line search of every replica makes of the model of an iteration: `rejected`, 0 or 1, and `step_length`.

    total       sum of the contributions       scalars     of any of its items; {} where they know of no line search
    """
    if "penalty" not in scalars:
        return {}
    if "acceptable" not in scalars:
        return {"rejected": 0}
    rejected = not _value(total, scalars) <= scalars["acceptable"]
    return {"step_length": scalars["step_length"], "rejected": int(rejected)}


def _value(total: NDArray[np.float64], scalars: Mapping[str, float]) -> float:
    """What lbfgs minimises: the misfit that the contributions add up to, and the penalties."""
    return float(total[-1]) + scalars["penalty"]


def _cache_bytes() -> int:
    """Memory for observed gathers: half of this core's share, for the wavefields take theirs of what is left."""
    return fair_share_bytes() // 2


def in_stage(gathers: NDArray[np.float32], dt_s: float, stage: Stage) -> NDArray[np.float32]:
    """Gathers or a wavelet [..., time] in the band of a stage; raises ConfigError: a corner above Nyquist."""
    return gathers if stage.corner_hz is None else band_passed(gathers, dt_s, 0.0, stage.corner_hz)


def window_of(mute: MuteSettings, survey: Survey, shots: Sequence[int], stage: Stage) -> NDArray[np.float32]:
    """What gathers of some shots in the band of a stage are multiplied by, float32[shot, receiver, time]."""
    later_s = 0.0 if stage.corner_hz is None else delay_s(stage.corner_hz)
    window = time_window(mute, survey, shots, later_s) * trace_weights(mute, survey, shots)[..., None]
    return window.astype(np.float32)


def open_task(run: Path, *, device: Device | None = None) -> InversionTask:
    """The replica that the run folder `run` describes, at its state before the first iteration.

    device  as in `InversionTask`
    """
    from hpfwi.config import load_config

    config, _ = load_config(run / "config.toml")
    results = _results(run)
    grid = Grid(
        tuple(results["model/initial"].shape),
        tuple(results.attrs["spacing_m"]),
        tuple(results.attrs["origin_m"]),
    )
    initial = EarthModel(np.asarray(results["model/initial"][:], np.float32), grid)
    observed = open_gathers(config.data.observed if config.data.observed is not None else run / OBSERVED)
    return InversionTask(
        config,
        initial,
        observed,
        float(results.attrs["observed_rms"]),
        band_rms=results.attrs.get("band_rms", ()),
        silent=results.attrs.get("silent_shots", ()),
        wavelet=np.asarray(results["wavelet"][:], np.float32) if "wavelet" in results else None,
        water=np.asarray(results["water"][:], np.bool_) if "water" in results else None,
        device=device,
    )


def _results(run: Path) -> Any:
    import zarr

    try:
        return zarr.open_group(run / "results.zarr", mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{run} holds no results.zarr: the run stopped before its inputs were ready; start it again."
        ) from error
