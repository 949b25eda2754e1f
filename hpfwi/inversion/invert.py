"""The loop of an inversion: iterations on workers, diagnostics and checkpoints on the driver, a report at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpfwi import checkpoints
from hpfwi.commands import command_on
from hpfwi.errors import DataError, NumericsError, RunClusterError, Stopped
from hpfwi.experiment import cluster_of
from hpfwi.inversion import saved, signatures
from hpfwi.inversion.bands import Stage, stage_at, stages_of
from hpfwi.inversion.diagnostics import diagnose, reference_state
from hpfwi.inversion.metrics import model_metrics
from hpfwi.inversion.optimise import batch_of_items, iterations_per_pass
from hpfwi.inversion.outcome import Course, Outcome, verdicts
from hpfwi.inversion.prepare import predicted, prepare, shown_shots
from hpfwi.inversion.silent_shots import named
from hpfwi.inversion.task import InversionTask, line_search, open_task
from hpfwi.parallel import (
    Abandoned,
    ClusterError,
    Group,
    GroupLost,
    ItemFailed,
    IterationResult,
    State,
    local_threads,
    one_torch_thread,
    start_group,
)
from hpfwi.physics.model import EarthModel
from hpfwi.progress import Progress
from hpfwi.tensorboard_view import TensorBoardView, colour_limits_mps

if TYPE_CHECKING:
    from hpfwi.config import RunConfig
    from hpfwi.run_folder import RunFolder
    from hpfwi.stop import Stop


def invert(config: RunConfig, folder: RunFolder, *, resume: bool, stop: Stop) -> Outcome:
    """Run an inversion in its folder, from the start or from the last checkpoint.

    stop    polled several times a second; once raised, the run gives up what it is at, leaves a checkpoint and ends.
            Before its first checkpoint, while it simulates gathers or pretrains, it leaves none and will begin anew

    raises  Stopped: asked to; the folder can be resumed, to the same bits, on any number of workers
            NumericsError: a misfit or gradient that is not finite; nothing was applied
            RunClusterError: a group of shots that no worker can compute, named, after a checkpoint
            DataError, ConfigError, hpfwi_kernels.errors.KernelError, hpfwi_cluster.errors.ClusterError
    """
    iterations, cluster = config.inversion.iterations, cluster_of(config)
    folder.event(
        "resume" if resume else "start", name=config.name, workers=cluster.worker_count(), device=cluster.device
    )
    # More torch threads in the driver would take the workers' cores, and their number could change bits.
    with one_torch_thread(), contextlib.closing(TensorBoardView(folder.path)) as view, Progress(iterations) as bar:
        run = _Run(config, folder, view, bar.say, threads=local_threads(cluster))

        def look() -> None:
            if stop.requested:
                folder.event("stop", iteration=run.done, reason=stop.reason)
                raise Stopped(
                    f"Stopped after iteration {run.done} of {iterations} ({stop.reason}); go on with "
                    f"`{command_on('resume', folder.path)}`."
                )

        if resume and run.restore():
            bar.say(f"Going on after iteration {run.done}.")
            bar.went_back(run.done)
        else:
            run.start(look)
        look()
        try:
            group = start_group(folder.path, cluster, stop)
        except Abandoned:
            look()
            raise
        with group:
            group.tell = run.told
            run.give_state(group)
            while run.done < iterations or not run.keep(group):
                if stop.requested:
                    run.leave(group)
                    look()
                step = run.iterate(group)
                if step is None:
                    bar.went_back(run.done)
                else:
                    bar.update(**step)
        return run.finish()


class _Run:
    """The driver's side of a run: its replica, its histories and what it writes."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, view: TensorBoardView, say: Callable[[str], None], *, threads: int
    ) -> None:
        self.config = config
        self.settings = config.inversion
        self.stages = stages_of(config.inversion.bands_hz, config.inversion.iterations)
        self.folder = folder
        self.view = view
        self.say = say
        self.threads = threads
        self.done = 0
        self.misfits: list[float] = []
        self.seconds = 0.0
        self.exponent: int | None = None
        self.diagnosed: list[dict[str, Any]] = []
        self.best: tuple[float, NDArray[np.float32]] | None = None
        self.task: InversionTask
        self.initial: EarthModel
        self.true: NDArray[np.float32] | None = None
        self.reference: State
        self.saved: saved.Saved

    def start(self, look: Callable[[], None]) -> None:
        """A new run: inputs, the work before iteration 0, and a checkpoint that a lost group can go back to.

        look    called again and again meanwhile; what it raises ends the run
        """
        self.task, experiment = prepare(self.config, self.folder, threads=self.threads, say=self.say, look=look)
        models = experiment.models
        self.initial = models.initial
        self.true = None if models.true is None else models.true.velocity
        for sentence in self.task.describe():
            self.say(sentence)
        before = time.perf_counter()
        report = self.task.parameterisation.prepare(lambda steps, mae_mps: look())
        if report is not None:
            self.seconds += time.perf_counter() - before
            self.folder.event(
                "pretrain",
                steps=report.steps,
                seconds=report.seconds,
                mae_mps=report.mae_mps,
                losses=report.losses[::10],
            )
            self.say(
                f"Pretraining: {report.steps} steps in {report.seconds:.1f} s, mean error {report.mae_mps:.1f} m/s."
            )
        self._reference_is_now()
        self._save(self.task.state())
        self.folder.begun()
        if self.true is not None:
            self.view.model("true", self.true, 0, spacing_m=self._spacing_m, limits_mps=self._limits_mps)

    def restore(self) -> bool:
        """Take up the last good checkpoint; False where the run stopped before it had one."""
        found = checkpoints.load_latest(self.folder.checkpoints)
        if found is None:
            self._forget_after(0)
            return False
        self.saved = saved.saved_in(found)
        for sentence in found.skipped:
            self.say(sentence)
        self.task = open_task(self.folder.path)
        models = _models(self.folder)
        self.initial = EarthModel(models["initial"], self.task.simulator.grid)
        self.true = models.get("true")
        self.reference, self.seconds = self.saved.reference, self.saved.seconds
        self._back_to_saved()
        return True

    def give_state(self, group: Group) -> None:
        """Put every rank at the last checkpoint."""
        while True:
            group.exponent = self.saved.exponent
            try:
                group.load_state(self.saved.state)
            except GroupLost as error:  # restart_limit bounds how often
                self.say(str(error))
            else:
                return

    def iterate(self, group: Group) -> dict[str, Any] | None:
        """One iteration and what to show of it; None when the group was lost and the run went back."""
        iteration, settings = self.done, self.settings
        started = time.perf_counter()
        stage = stage_at(self.stages, iteration)
        if iteration == stage.first:
            self._enter(stage)
        diagnoses = iteration % settings.diagnostics_every == 0
        keeps = iteration % settings.snapshot_every == 0
        items = batch_of_items(settings.seed, iteration, len(self.task.groups), self.settings.items_per_iteration)
        shots = sum(len(self.task.groups[item]) for item in items)
        costs = [float(self.task.simulator.updates_per_shot * len(self.task.groups[item])) for item in items]
        try:
            if iteration % settings.checkpoint_every == 0:
                self._checkpoint(group)
            if diagnoses or keeps:
                self.task.load_state(group.state())
            result = group.run(iteration, items, costs)
        except GroupLost as error:
            self._go_back(group, str(error))
            return None
        except Abandoned:
            return None
        except ClusterError as error:
            self.leave(group)  # the state is the one before this iteration
            raise self._about_shots(error) from error
        self.exponent = group.exponent
        misfit, search = self._misfit(result), line_search(result.total, result.scalars[items[0]])
        # Of a trial that is rejected no trace is left in the course: misfit and model are those accepted last.
        rejected = bool(search.get("rejected"))
        self.misfits.append(self.misfits[-1] if rejected else misfit)
        with self.task.at_accepted() if rejected else contextlib.nullcontext():
            if keeps:
                self._snapshot(iteration)
            if diagnoses:
                self._diagnose(iteration, None if rejected else result, self.misfits[-1])
        self.done = iteration + 1
        self.seconds += time.perf_counter() - started
        step = {
            "iteration": iteration,
            "misfit": self.misfits[-1],
            "seconds": result.seconds,
            "shots": shots,
            "wait_share": result.wait_share,
        }
        in_stages = {"stage": stage.number, "band_hz": stage.corner_hz} if self.settings.bands_hz else {}
        tried = {"trial_misfit": misfit, **search} if search else {}
        self._log("iteration", **step, shots_per_s=shots / result.seconds, **in_stages, **tried)
        return step

    def keep(self, group: Group) -> bool:
        """Leave a checkpoint of this moment; False when the group was lost with it and the run went back."""
        try:
            self._checkpoint(group)
        except GroupLost as error:
            self._go_back(group, str(error))
            return False
        return True

    def leave(self, group: Group) -> None:
        """Leave a checkpoint of this moment where the group still has it; else go back to the last one."""
        try:
            self._checkpoint(group)
        except ClusterError:
            self._back_to_saved()

    def told(self, sentence: str) -> None:
        """The group lost a worker, or waits for one."""
        self.folder.event("worker_lost", iteration=self.done, sentence=sentence)
        self.say(sentence)

    def finish(self) -> Outcome:
        """Judge the run, write its results and mark it done."""
        self.task.load_state(self.saved.state)
        model = self.task.model()
        self._snapshot(self.done)
        self._diagnose(self.done, None, self.misfits[-1])
        results = self.folder.results
        results.model("inverted", model)
        results.model("best", self.best[1] if self.best is not None else model)
        shots = shown_shots(self.task.shots)
        inverted = EarthModel(model, self.initial.grid)
        results.gathers("predicted", predicted(self.task, inverted, shots, threads=self.threads))
        errors: list[float | None] = [None, None]
        if self.true is not None:
            errors = [model_metrics(field, self.true)["mse_kmps2"] for field in (self.initial.velocity, model)]
        course = Course(
            misfits=self.misfits,
            diagnosed=self.diagnosed,
            iterations_per_pass=iterations_per_pass(len(self.task.groups), self.settings.items_per_iteration),
            stage_first=self.stages[-1].first,
        )
        judged = verdicts(course, float(self.initial.velocity.mean()), true_known=self.true is not None)
        for verdict in judged:
            self._log("verdict", **dataclasses.asdict(verdict))
        passes = course.misfit_of_passes
        ends = (passes[0], passes[-1], course.stage_first)
        outcome = Outcome(self.done, self.seconds, *ends, errors[0], errors[1], signatures.say(judged))
        self.folder.event("done", iterations=self.done, seconds=self.seconds)
        self.folder.done(dataclasses.asdict(outcome))
        return outcome

    @property
    def _spacing_m(self) -> tuple[float, ...]:
        return self.initial.grid.spacing_m

    @property
    def _limits_mps(self) -> tuple[float, float]:
        return colour_limits_mps(*(model for model in (self.true, self.initial.velocity) if model is not None))

    def _reference_is_now(self) -> None:
        self.reference = {name: value.numpy() for name, value in reference_state(self.task.parameterisation).items()}

    def _enter(self, stage: Stage) -> None:
        """Say which band comes now. Without a true model the best is known by its misfit, which starts anew with it."""
        if self.settings.bands_hz:
            where = f"iterations {stage.first} to {stage.end - 1}"
            self.say(f"Stage {stage.number} of {len(self.stages)}, {where}: {stage.band}.")
            if self.true is None:
                self.best = None

    def _checkpoint(self, group: Group) -> None:
        """Write the state between iterations, unless it is on disk already."""
        if self.saved.done != self.done:
            self._save(group.state())

    def _save(self, state: State) -> None:
        now = saved.Saved(self.done, self.exponent, self.seconds, state, self.reference, self.best)
        # Misfits of two bands do not compare: only checkpoints of the last one compete for being the best.
        compares = self.misfits and stage_at(self.stages, self.done - 1) is self.stages[-1]
        path = saved.write(self.folder.checkpoints, now, self.misfits[-1] if compares else None)
        self.saved = now
        self.folder.event("checkpoint", iteration=self.done - 1, path=str(path.relative_to(self.folder.path)))

    def _back_to_saved(self) -> None:
        """Take everything back to the last checkpoint; a course that was left leaves no trace."""
        then = self.saved
        self.done, self.exponent, self.best = then.done, then.exponent, then.best
        self.task.load_state(then.state)
        self._forget_after(self.done)
        events = self.folder.events()
        self.misfits = [event["misfit"] for event in events if event["kind"] == "iteration"]
        self.diagnosed = [event for event in events if event["kind"] == "diagnostics"]

    def _forget_after(self, done: int) -> None:
        """Take log, history and TensorBoard back to where `done` iterations count."""
        self.folder.truncate_events_after(done - 1)
        self.folder.results.truncate_history_after(done - 1)
        self.view.start_again()

    def _go_back(self, group: Group, why: str) -> None:
        """Every worker with the run's state is gone: fresh ones take up the last checkpoint."""
        self.folder.event("rewind", iteration=self.saved.done, sentence=why)
        self.say(f"{why} Going on after iteration {self.saved.done}.")
        self._back_to_saved()
        self.give_state(group)

    def _about_shots(self, error: ClusterError) -> Exception:
        """The error of a group of workers in terms of shots, or of the numbers of a replica."""
        told = str(error).rstrip(".").partition(f" {NumericsError.__name__}: ")[2]
        if told:
            return NumericsError(f"{told}.")
        if not isinstance(error, ItemFailed) or error.item is None:
            return error
        shots = self.task.groups[error.item]
        sentence = (
            f"{named(shots).capitalize()} cannot be computed: {str(error).rstrip('.')}. The state before is kept; "
            f"`{command_on('resume', self.folder.path)}` goes on from there once the cause is gone."
        )
        if f" {DataError.__name__}: " in str(error):
            return DataError(sentence)
        return NumericsError(sentence) if "non-finite" in str(error) else RunClusterError(sentence)

    def _misfit(self, result: IterationResult) -> float:
        residual = math.fsum(scalars["residual_energy"] for scalars in result.scalars.values())
        observed = math.fsum(scalars["observed_energy"] for scalars in result.scalars.values())
        if observed == 0.0:
            raise DataError(
                f"The observed gathers of iteration {self.done} are all zero, which they were not when the run began: "
                "put the file back as it was and resume."
            )
        misfit = residual / observed
        if not (math.isfinite(misfit) and np.isfinite(result.total).all()):
            raise NumericsError(
                f"Iteration {self.done} gave a misfit of {misfit} or a gradient that is not finite; nothing was "
                "applied: lower the rates or narrow bounds_mps in a new run."
            )
        return misfit

    def _snapshot(self, iteration: int) -> None:
        model = self.task.model()
        self.folder.results.append_history(iteration, model)
        self.view.model("inverted", model, iteration, spacing_m=self._spacing_m, limits_mps=self._limits_mps)

    def _diagnose(self, iteration: int, result: IterationResult | None, misfit: float) -> None:
        """Look at the model and network of `iteration`; `misfit` is the model's, `result` what it gave or None."""
        import torch

        task, initial = self.task, self.initial.velocity
        model = task.model()
        scores = diagnose(
            task.parameterisation,
            {name: torch.from_numpy(value) for name, value in self.reference.items()},
            model,
            initial,
            spacing_m=self._spacing_m,
            wavelength_m=float(initial.mean()) / max(task.simulator.peak_hz, 1 / task.simulator.survey.duration_s),
            true=self.true,
            gradient=None if result is None else task.gradient_in(result.total),
            tangent_kernel=iteration in (0, self.settings.iterations),  # takes longer than all the rest
        )
        fields: dict[str, Any] = {name.removeprefix("metrics/"): value for name, value in scores.items()}
        if result is not None:
            shares = [scalars["skipped_share"] for scalars in result.scalars.values()]
            fields["skipped_share"] = math.fsum(shares) / len(shares)
        penalties = {} if task.regulariser is None else task.regulariser.penalties(model)
        fields |= {f"regularisation/{name}": value for name, value in penalties.items()}
        score = fields["mse_kmps2"] if self.true is not None else misfit + math.fsum(penalties.values())
        if self.best is None or score < self.best[0]:
            self.best = (score, model.copy())
        self.diagnosed.append(self._log("diagnostics", iteration=iteration, **fields))

    def _log(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = self.folder.event(kind, **fields)
        self.view.event(event)
        return event


def _models(folder: RunFolder) -> dict[str, NDArray[np.float32]]:
    """The input models that `prepare` stored, by name."""
    import zarr

    root: Any = zarr.open_group(folder.path / "results.zarr", mode="r")
    names = [name for name in ("initial", "true") if f"model/{name}" in root]
    return {name: np.asarray(root[f"model/{name}"][:], np.float32) for name in names}
