"""The loop of a training run: steps and validations on workers, log, pictures and checkpoints on the driver."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hpfwi import checkpoints
from hpfwi.checkpoints import part_of
from hpfwi.commands import command_on
from hpfwi.errors import DataError, DiskError, NumericsError, RunClusterError, Stopped
from hpfwi.parallel import (
    Abandoned,
    ClusterError,
    ClusterSettings,
    Group,
    GroupLost,
    IterationResult,
    State,
    one_torch_thread,
    placed,
    start_training,
)
from hpfwi.progress import Progress, clock
from hpfwi.store.pair_manifest import PHYSICS
from hpfwi.training import saved
from hpfwi.training.early_stop import without_gain
from hpfwi.training.forward import in_mps
from hpfwi.training.idle import idle_workers
from hpfwi.training.items import Items
from hpfwi.training.means import EpochMeans, skipped_before
from hpfwi.training.outcome import Outcome
from hpfwi.training.pictures import draw_predictions
from hpfwi.training.schedule import LAST_STAGE, curriculum_stage, learning_rate
from hpfwi.training.settings import TrainConfig
from hpfwi.training.spikes import Skipped, skipped_of
from hpfwi.training.task import HALTED, open_task
from hpfwi.training.trained import GUARD, require_same_pairs
from hpfwi.training.view import TrainingView, figure_path, forget_figures_after
from hpfwi.training.weights import read_weights

if TYPE_CHECKING:
    from hpfwi.run_folder import RunFolder
    from hpfwi.stop import Stop


def cluster_of(config: TrainConfig, gpus: int | None = None) -> ClusterSettings:
    """Who computes a training run: its cluster settings without "auto".

    gpus    of this machine; None counts those that torch can use

    raises  ConfigError: device="cuda" where there are too few
    """
    busy = -(-config.training.slices // config.cluster.threads_per_worker)
    return placed(config.cluster, _gpus() if gpus is None else gpus, busy)


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def train(config: TrainConfig, folder: RunFolder, *, resume: bool, stop: Stop) -> Outcome:
    """Train a network in a run folder, from the start or from the last checkpoint.

    config  `resolved`, and stored in the folder
    stop    polled several times a second; once raised, the run gives the step up, leaves a checkpoint and ends

    raises  Stopped: asked to; the folder can be resumed, to the same bits, on any number of workers
            NumericsError: a loss or gradient that is not finite; nothing was applied
            DataError, ConfigError, hpfwi_cluster.errors.ClusterError
    """
    cluster = cluster_of(config)
    folder.event(
        "resume" if resume else "start", name=config.name, workers=cluster.worker_count(), device=cluster.device
    )
    # More torch threads in the driver would take the workers' cores, and their number could change bits.
    with one_torch_thread(), contextlib.closing(TrainingView(folder.path)) as view:
        run = _Run(config, folder, view)
        with contextlib.closing(run.task.batches), Progress(run.steps, unit="step") as bar:
            run.say = bar.say
            if resume and run.restore():
                bar.say(f"Going on after step {run.done}.")
                bar.went_back(run.done)
            else:
                run.start()
            if idle := idle_workers(config, cluster, room=placed(config.cluster, _gpus()).worker_count()):
                bar.say(idle)

            def stopped() -> Stopped:
                folder.event("stop", iteration=run.done, reason=stop.reason)
                return Stopped(
                    f"Stopped after step {run.done} of {run.steps} ({stop.reason}); go on with "
                    f"`{command_on('resume', folder.path)}`."
                )

            try:
                group = start_training(folder.path, cluster, stop)
            except Abandoned:
                raise stopped() from None
            with group:
                group.tell = run.told
                run.give_state(group)
                while not run.is_over or run.owes_an_epoch:
                    if stop.requested:
                        run.leave(group)
                        raise stopped()
                    told = run.iterate(group)
                    if told is None:
                        bar.went_back(run.done)
                    else:
                        bar.show(run.done, told)
            return run.finish()


class _Run:
    """The driver's side of a training run: its counts, its log and what it writes."""

    def __init__(self, config: TrainConfig, folder: RunFolder, view: TrainingView) -> None:
        self.config = config
        self.settings = config.training
        self.folder = folder
        self.view = view
        self.say: Callable[[str], None] = lambda sentence: None
        self.task = open_task(folder.path, device="cpu")
        self.steps = self.task.steps
        self.per_epoch = self.task.batches.steps_per_epoch
        self.items = Items(self.task, folder.path)
        self.done = 0
        self.seconds = 0.0
        self.epoch = EpochMeans(self.settings.batch)
        self.told_skips = 0
        self.best: dict[str, Any] | None = None
        self.judged: list[float] = []
        """Validation losses that an early stop looks at."""
        self.saved: saved.Saved

    def start(self) -> None:
        """A new run: say what it trains on, and leave a checkpoint that a lost group can go back to."""
        task = self.task
        self.folder.event(
            "data",
            pairs=self.config.data.pairs,
            sha256=task.store.manifest["sha256"],
            physics={name: task.store.physics.get(name) for name in PHYSICS},
            train=len(task.train),
            validation=len(task.validation),
        )
        self.say(
            f"Training {self.config.network.name} ({_parameters(task.network):,} parameters) on {len(task.train)} "
            f"samples, {len(task.validation)} validate; {self.settings.epochs} epochs of {self.per_epoch} steps of "
            f"{self.settings.batch} samples in {self.settings.slices} slices."
        )
        if self.settings.initial_weights is not None:
            weights = read_weights(Path(self.settings.initial_weights))
            task.begin_with(weights)
            self.folder.event("weights", path=str(weights.path), step=weights.step)
            self.say(f"Beginning with the weights of {weights.in_words()}.")
        self._save(task.state())
        self.folder.begun()

    def restore(self) -> bool:
        """Take up the last good checkpoint; False where the run stopped before it had one."""
        require_same_pairs(self.folder.path, self.task.store)
        found = checkpoints.load_latest(self.folder.checkpoints)
        if found is None:
            self._forget_after(0)
            return False
        self.saved = saved.saved_in(found)
        for sentence in found.skipped:
            self.say(sentence)
        self._back_to_saved()
        self.seconds = self.saved.seconds
        return True

    def give_state(self, group: Group) -> None:
        """Put every rank at the last checkpoint."""
        while True:
            self.items.put_scale(group)
            try:
                group.load_state(self.saved.state)
            except GroupLost as error:
                self.say(str(error))
                continue
            return

    def iterate(self, group: Group) -> Callable[[float | None], str] | None:
        """Take one step, with what ends an epoch after its last; the words for it, None where nothing new was done."""
        started = time.perf_counter()
        step = self.done
        try:
            if self.owes_an_epoch:
                self._end_epoch(group)
                return None
            result = self.items.step(group, step)
            facts = self._count(step, result)
            self._require_steps(step - 1, skipped_before(result))
            if self.done % self.per_epoch == 0:
                self._end_epoch(group)
            elif self.done % self.settings.checkpoint_every == 0:
                self._save(group.state())
        except GroupLost as error:
            self._go_back(group, str(error))
            return None
        except Abandoned:
            return None
        except (ClusterError, RunClusterError, NumericsError, DataError):
            self.leave(group)  # the state is the one before this step
            raise
        finally:
            self.seconds += time.perf_counter() - started
        return lambda left_s: self._sentence(step, facts, left_s)

    @property
    def owes_an_epoch(self) -> bool:
        """Whether an epoch's steps are done and what ends it is not: the run was stopped in between."""
        return bool(self.epoch.sums) and self.done % self.per_epoch == 0

    @property
    def without_gain(self) -> int:
        """Validations in a row without a gain."""
        return without_gain(self.judged, self.settings.early_stop.minimum_gain)

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take, or validations gain nothing any more."""
        patience = self.settings.early_stop.patience
        return self.done == self.steps or self.without_gain >= (patience or math.inf)

    def leave(self, group: Group) -> None:
        """Leave a checkpoint of this moment where the group still has it; else go back to the last one."""
        try:
            if self.saved.done != self.done:
                self._save(group.state())
        except ClusterError:
            self._back_to_saved()

    def told(self, sentence: str) -> None:
        """The group lost a worker, or waits for one."""
        self.folder.event("worker_lost", iteration=self.done, sentence=sentence)
        self.say(sentence)

    def finish(self) -> Outcome:
        """Mark the run done."""
        epochs = [event for event in self.folder.events() if event["kind"] == "epoch"]
        assert self.best is not None  # the last epoch is always validated
        taken, early = self.done // self.per_epoch, self.done < self.steps
        if early:
            self.say(f"Ended early, after epoch {taken}: validations in a row without a gain: {self.without_gain}.")
        outcome = Outcome(
            epochs=taken,
            steps=self.done,
            early=early,
            seconds=self.seconds,
            samples_per_s=self.done * self.settings.batch / self.seconds,
            loss=epochs[-1]["loss"],
            best_epoch=self.best["epoch"] + 1,
            best_validation=self.best["validation"],
            parameters=_parameters(self.task.network),
        )
        gainless = {"without_gain": self.without_gain} if early else {}
        self.folder.event("done", iterations=self.done, seconds=self.seconds, early=early, **gainless)
        self.folder.done(asdict(outcome))
        return outcome

    def _count(self, step: int, result: IterationResult) -> dict[str, float]:
        """Add a step to the epoch's means and, now and then, to the log; returns its numbers."""
        terms, speed = self.epoch.add(result)
        self.done = step + 1
        if self.done % self.settings.log_every == 0 or self.done % self.per_epoch == 0:
            rate = self._rate(step)
            self._log("step", iteration=step, **terms, learning_rate=rate, **speed, seconds=result.seconds)
        return terms | speed

    def _end_epoch(self, group: Group) -> None:
        """Validate where it is due, say how the epoch went, and leave a checkpoint."""
        epoch = self.done // self.per_epoch - 1
        means, speed = self.epoch.means(self.per_epoch)
        due = (epoch + 1) % self.settings.validate_every == 0 or self.done == self.steps
        validation = self.items.validation(group, epoch) if due else None
        state = group.state()
        if validation is not None and (self.best is None or validation["loss"] < self.best["validation"]["loss"]):
            self.best = {"epoch": epoch, "iteration": self.done, "validation": validation}
        stages, judged = self.settings.curriculum, list(self.judged)
        if validation is not None and (stages is None or curriculum_stage(epoch, stages) == LAST_STAGE):
            judged.append(validation["loss"])
        gainless = without_gain(judged, self.settings.early_stop.minimum_gain)
        rate = self._rate(self.done - 1)
        self._log(
            "epoch",
            iteration=self.done - 1,
            epoch=epoch,
            **means,
            learning_rate=rate,
            **speed,
            validation=validation or {},
            without_gain=gainless,
        )
        said = "" if validation is None else f"  validation {validation['loss']:.4g}, {validation['mae_mps']:.1f} m/s"
        if validation is not None and self.settings.early_stop.patience is not None:
            said += f", {gainless} of {self.settings.early_stop.patience} without a gain"
        self.say(
            f"epoch {epoch + 1}/{self.settings.epochs}  loss {means['loss']:.4g}{said}  rate {rate:.3g}  "
            f"{speed['samples_per_s']:.3g} samples/s  waiting for data {speed['data_wait_share']:.0%}  "
            f"after {clock(self.seconds)}".replace("%", " %")
        )
        self.epoch.clear()
        self.judged = judged
        self._save(state, score=None if validation is None else validation["loss"])
        if validation is not None and self.settings.shown_samples:
            self._draw(state)

    def _require_steps(self, step: int, skipped: Skipped) -> None:
        """Say which steps were left out, up to number `step`; raises NumericsError where too many were in a row."""
        self._tell_skipped(step, skipped)
        if skipped.in_a_row >= self.settings.spikes_in_a_row:
            raise NumericsError(
                f"Training cannot go on: {skipped.in_a_row} steps in a row, up to step {step + 1}, were left out "
                f"because their gradients reach {skipped.largest:.3g} and the limit is {skipped.limit:.3g}; the state "
                "before them is kept: in a new run lower training.schedule.peak or raise training.spike_factor, or "
                "look at the samples."
            )

    def _tell_skipped(self, step: int, skipped: Skipped) -> None:
        """Log and show, once, that step number `step` was left out."""
        if skipped.steps <= self.told_skips:
            return
        self.told_skips = skipped.steps
        numbers = {"largest": skipped.largest, "limit": skipped.limit, "skipped": skipped.steps}
        self.folder.event("skipped", iteration=step, **numbers)
        self.say(
            f"Step {step + 1} was left out: its gradient reaches {skipped.largest:.3g} and the limit is "
            f"{skipped.limit:.3g}; {skipped.steps} so far."
        )

    def _draw(self, state: State) -> None:
        """Draw the first validation samples, predicted beside true."""
        self.task.load_state(state)
        samples = self.task.validation[: self.settings.shown_samples]
        records, true = self.task.store.read(samples)
        predicted = in_mps(self.settings, self.task.predict(records), true)
        path = figure_path(self.folder.path, self.done)
        title = f"{self.config.name}: validation after epoch {self.done // self.per_epoch}"
        try:
            draw_predictions(path, predicted, true, list(samples), self.task.store.physics, title)
        except DiskError as error:
            raise DiskError(f"{str(error).rstrip('.')}, and resume the run.") from error
        self.view.figure(path)

    def _save(self, state: State, *, score: float | None = None) -> None:
        self._tell_skipped(self.done - 1, skipped_of(part_of(state, GUARD)))
        # Of a step that was given up nothing is kept.
        state = {name: value for name, value in state.items() if not name.startswith(HALTED)}
        epoch = (dict(self.epoch.sums), dict(self.epoch.times))
        judged = tuple(self.judged)
        now = saved.Saved(
            self.done, self.items.exponents, self.seconds, state, *epoch, self.told_skips, self.best, judged
        )
        path = saved.write(self.folder.checkpoints, now, score)
        self.saved = now
        kept = str(path.relative_to(self.folder.path))
        self.folder.event("checkpoint", iteration=self.done - 1, path=kept, score=score)

    def _back_to_saved(self) -> None:
        """Take everything back to the last checkpoint; a course that was left leaves no trace."""
        self.done, self.items.exponents = self.saved.done, self.saved.exponents
        self.epoch.restore(self.saved.epoch_sums, self.saved.epoch_times)
        self.told_skips, self.best, self.judged = self.saved.told_skips, self.saved.best, list(self.saved.judged)
        self._forget_after(self.done)

    def _forget_after(self, done: int) -> None:
        self.folder.truncate_events_after(done - 1)
        forget_figures_after(self.folder.path, done)
        self.view.start_again()

    def _go_back(self, group: Group, why: str) -> None:
        """Every worker with the run's state is gone: fresh ones take up the last checkpoint."""
        self.folder.event("rewind", iteration=self.saved.done, sentence=why)
        self.say(f"{why} Going on after step {self.saved.done}.")
        self._back_to_saved()
        self.give_state(group)

    def _rate(self, step: int) -> float:
        schedule, epochs = self.settings.schedule, self.settings.epochs
        return learning_rate(schedule, step=step, steps_per_epoch=self.per_epoch, epochs=epochs)

    def _log(self, kind: str, **fields: Any) -> None:
        self.view.event(self.folder.event(kind, **fields))

    def _sentence(self, step: int, facts: Mapping[str, float], left_s: float | None) -> str:
        left = "" if left_s is None else f"  {clock(left_s)} left"
        return (
            f"step {step + 1}/{self.steps}  epoch {step // self.per_epoch + 1}/{self.settings.epochs}  "
            f"loss {facts['loss']:.4g}  {facts['samples_per_s']:.3g} samples/s  "
            f"waiting {facts['wait_share']:.0%}, for data {facts['data_wait_share']:.0%}{left}"
        ).replace("%", " %")


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
