"""One replica of a training run: the network, the gradient of a slice, the optimiser's step, the loss of a validation.

A replica is built from a run folder and the store of pairs that it names, so a worker on any node starts from the same
bits. What a slice gives is a function of the state and of (seed, epoch, step, slot) alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.checkpoints import part_of
from hpfwi.commands import command_on
from hpfwi.errors import DataError, NumericsError
from hpfwi.inversion.optimise import build_adam, load_optimiser_state, optimiser_state
from hpfwi.networks.build import build_network
from hpfwi.networks.velocitygan import VelocityGan
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.training.batches import Batches, Slice, slice_of
from hpfwi.training.forward import outputs_of, scale_of, velocities_of
from hpfwi.training.gpu_arithmetic import set_arithmetic
from hpfwi.training.halted_steps import HaltedStep
from hpfwi.training.losses import loss_terms
from hpfwi.training.means import SKIPPED
from hpfwi.training.metrics import scores_in_mps
from hpfwi.training.mirror import mirror
from hpfwi.training.order import mirrored
from hpfwi.training.replicas import (
    Replicas,
    largest_gradient,
    put_weights,
    statistics_of,
    take_total,
    trained_parameters,
    vector_of,
    weights_of,
)
from hpfwi.training.schedule import generator_moves, learning_rate
from hpfwi.training.settings import TrainConfig, load_train_config, samples_of
from hpfwi.training.shared_norm import HaltedSlice, share_statistics
from hpfwi.training.slice_loss import backward, edges_of, in_a_batch, terms_of
from hpfwi.training.sound import require_sound
from hpfwi.training.spikes import SpikeGuard
from hpfwi.training.trained import AVERAGE, GUARD, NETWORK, OPTIMISER
from hpfwi.training.weights import Weights

_EXPONENT = "statistics_exponent"
LISTED = 8
"""Samples that a message names."""
HALTED = "halted"
"""Among a slice's numbers: its array is what it halted with. In the state: prefix of the sums of a step so far."""


class TrainingTask:
    """The state of a training run and what advances it.

    store       the pairs; only the samples of the training and of the validation split are read
    ahead       slices that are computed at the same time in this process, which decides about memory for reading
    device      of the network
    """

    def __init__(self, config: TrainConfig, store: PairStore, *, ahead: int = 1, device: str = "cpu") -> None:
        self.config = config
        self.settings = settings = config.training
        self.store = store
        self.train, self.validation = samples_of(config, store)
        self.device = torch.device(device)
        loader = config.data.loader
        self.batches = Batches(
            store,
            self.train,
            seed=settings.seed,
            batch=settings.batch,
            slots=settings.slices,
            settings=loader.model_copy(update={"buffers": max(loader.buffers, ahead + 1)}),
            device=self.device,
        )
        self.steps = self.batches.steps_per_epoch * settings.epochs
        network = build_network(config.network).to(self.device)
        if settings.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shares = settings.sync_batch_norm and settings.slices > 1 and share_statistics(network) > 0
        self._halted = HaltedStep() if shares else None
        self.network = network
        group = {"params": trained_parameters(network), "lr": settings.schedule.peak, "name": "network"}
        decay = {"weight_decay": settings.weight_decay, "decoupled_weight_decay": True}
        self.optimiser = build_adam([group | decay], settings.optimiser)
        self.average: dict[str, torch.Tensor] | None = None
        if settings.average_decay is not None:
            self.average = {name: value.detach().clone() for name, value in weights_of(network).items()}
        self._replicas = Replicas(network, compiled=settings.compile)
        self._exponent = 0
        self._guard = SpikeGuard(settings.spike_factor)
        self._step: int | None = None
        self._sequence: list[int] = []
        self._previous: list[int] = []

    def weights(self) -> dict[str, torch.Tensor]:
        """What validation, evaluation and prediction use: the moving average of the weights, or the last ones."""
        return self.average if self.average is not None else weights_of(self.network)

    def begin_with(self, weights: Weights) -> None:
        """Make these the weights that the run begins with; raises ConfigError: they are those of another network."""
        weights.put_into(self.network, self.config.network)
        if self.average is not None:
            self.average = {name: value.detach().clone() for name, value in weights_of(self.network).items()}

    def begin(self, step: int | None) -> None:
        """Get ready for the slices of a step, counted from 0 over the run, or of the validation (None)."""
        if step != self._step:
            self._previous = self._sequence or self._previous
            self._step, self._sequence = step, []
        if self._halted is not None:
            self._halted.begin(step)

    def gradient(self, slot: int) -> tuple[NDArray[np.floating], dict[str, float]]:
        """What a slice adds to the step's sum (see `hpfwi.training.replicas`), and numbers about it.

        With shared statistics of batch norm it is what the slice halted with, and the numbers say `halted`, until
        `advance` was given all the sums that it needs.

        The numbers are `loss`, its terms by name, `samples`, the seconds spent, `seconds`, and of them waiting for
        samples, `waited_s`, and those of `hpfwi.training.spikes.Skipped` after the step before. May be called from
        several threads at once.

        raises      NumericsError: a loss that is not finite; DataError: a sample that cannot be read, or is not finite
        """
        assert self._step is not None  # begin comes first
        started = time.perf_counter()
        if self._halted is not None:
            return self._halted_gradient(self._halted, self._step, slot)
        taken, waited_s = self._taken(self._step, slot)
        try:
            share = len(taken.indices) / self.settings.batch
            with self._replicas.training() as replica:
                terms = backward(self.settings, replica, taken, share, moves=self._generator_moves(self._step))
                vector = vector_of(replica, share, self._exponent)
        finally:
            self.batches.release(taken)
        return vector, self._numbers(slot, share, terms, vector, started, waited_s)

    def _taken(self, number: int, slot: int) -> tuple[Slice, float]:
        """The samples of a slice of step `number`, and the seconds that this waited for them."""
        started = time.perf_counter()
        epoch, step = divmod(number, self.batches.steps_per_epoch)
        taken = self.batches.take(epoch, step, slot)
        waited_s = time.perf_counter() - started
        self._read_ahead(number, slot)
        if self.settings.mirror:
            mirror(taken.records, taken.models, mirrored(self.settings.seed, epoch, taken.indices))
        return taken, waited_s

    def _halted_gradient(
        self, halted: HaltedStep, number: int, slot: int
    ) -> tuple[NDArray[np.floating], dict[str, float]]:
        """`gradient` of a slice that halts, up to where the known sums bring it."""
        started, waited = time.perf_counter(), [0.0]
        share = slice_sizes(self.config)[slot] / self.settings.batch

        def start(stack: ExitStack) -> HaltedSlice:
            taken, waited[0] = self._taken(number, slot)
            stack.callback(self.batches.release, taken)  # the way back needs the records too
            replica = stack.enter_context(self._replicas.training())
            one = HaltedSlice(replica, lambda network: terms_of(self.settings, network, taken, share), share)
            stack.callback(one.close)
            return one

        with halted.reached(slot, start) as one:
            array = vector_of(one.replica, share, self._exponent) if one.sums is None else one.sums
            numbers = self._numbers(slot, share, one.terms, array, started, waited[0])
            return array, numbers if one.sums is None else numbers | {HALTED: 1.0}

    def _numbers(
        self,
        slot: int,
        share: float,
        terms: dict[str, float],
        array: NDArray[np.floating],
        started: float,
        waited_s: float,
    ) -> dict[str, float]:
        """The numbers that go with what a slice adds; raises where one of either is not finite."""
        loss = sum(value for name, value in terms.items() if name not in ("critic", "penalty"))
        numbers = {"loss": loss, **terms, "samples": float(round(share * self.settings.batch))}
        if not np.isfinite(list(numbers.values())).all() or not np.isfinite(array).all():
            epoch, step = divmod(self._step or 0, self.batches.steps_per_epoch)
            samples = self.batches.indices(epoch, step, slot)
            require_sound(self.store, samples, *self.store.read(samples))
            raise NumericsError(
                f"a loss of {loss:g} or a gradient that is not finite in slice {slot + 1} of step {step + 1} of epoch "
                f"{epoch + 1}, samples {listed(samples)}"
            )
        skipped = {f"{SKIPPED}{name}": float(value) for name, value in asdict(self._guard.skipped).items()}
        return numbers | skipped | {"seconds": time.perf_counter() - started, "waited_s": waited_s}

    def advance(self, step: int, total: NDArray[np.floating]) -> None:
        """Take one optimiser step with the sum over the step's slices, or leave it out, statistics of batch norm too.

        A step is left out where its gradient is absurd (see `hpfwi.training.spikes`), on every rank or on none.
        """
        if self._halted is not None:
            # Of the largest norm's four numbers a channel two are in the sums, and all in a gradient with statistics.
            if len(total) < sum(value.numel() for value in self._vector_parts):
                self._halted.take(total)
                return
            self._halted.clear()
        largest = largest_gradient(self.network, total)
        if not self._guard.accepts(largest):
            return
        settings, per_epoch = self.settings, self.batches.steps_per_epoch
        rate = learning_rate(settings.schedule, step=step, steps_per_epoch=per_epoch, epochs=settings.epochs)
        with torch.no_grad():
            self._exponent = take_total(self.network, total, self._exponent, largest)
        if isinstance(self.network, VelocityGan) and not self._generator_moves(step):
            for parameter in self.network.generator.parameters():
                parameter.grad = None  # Adam leaves it, and its moments, alone
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.average is not None:
            assert settings.average_decay is not None
            for name, value in weights_of(self.network).items():
                self.average[name].lerp_(value.detach(), 1.0 - settings.average_decay)

    def validation_parts(self) -> int:
        """Number of slices that the validation samples are cut into."""
        return -(-len(self.validation) // self._validation_batch)

    def judge(self, part: int) -> dict[str, float]:
        """Sums over the samples of one slice of the validation.

        `samples`, and times the number of samples: `loss` with its terms, `mae_mps`, `rmse_mps` and `ssim`. Velocities
        are on the scale of training, records without noise, batch norm with its running statistics.
        """
        first = self.validation.start + part * self._validation_batch
        indices = np.arange(first, min(first + self._validation_batch, self.validation.stop))
        records, models = self.store.read(indices)
        target_mps = torch.from_numpy(models).unsqueeze(1)
        settings = self.settings
        target_mps = target_mps.to(self.device)
        edges, scale = edges_of(settings.loss, target_mps), scale_of(settings, target_mps)
        with torch.no_grad(), self._replicas.judging(self.weights()) as replica:
            outputs = outputs_of(settings, replica, torch.from_numpy(records).to(self.device))
            found = loss_terms(settings.loss, outputs, scale.normalised(target_mps), edges=edges)
            found = in_a_batch(settings.loss, found, len(indices) / settings.batch)
            terms = {name: float(value) for name, value in found.items()}
            if not np.isfinite(list(terms.values())).all():
                require_sound(self.store, indices, records, models)
            prediction = outputs[0] if isinstance(outputs, tuple) else outputs
            predicted_mps = scale.in_mps(prediction)[:, 0].cpu().numpy()
        scores = scores_in_mps(predicted_mps, models)
        kept = {name: float(scores[name].sum()) for name in ("mae_mps", "rmse_mps", "ssim")}
        kept = {name: value for name, value in kept.items() if np.isfinite(value)}  # maps below 7 cells have no SSIM
        terms = {"loss": sum(terms.values()), **terms}
        return {"samples": float(len(indices))} | {name: value * len(indices) for name, value in terms.items()} | kept

    def predict(self, records: NDArray[np.float32]) -> NDArray[np.float32]:
        """Velocities on the network's scale, float32[sample, z, x], of records[sample, shot, time, receiver]."""
        with self._replicas.judging(self.weights()) as replica:
            return velocities_of(self.settings, replica, torch.from_numpy(records).to(self.device))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that steps change, by flat name."""
        arrays = {f"{NETWORK}{name}": _array(value) for name, value in weights_of(self.network).items()}
        arrays |= {f"{AVERAGE}{name}": _array(value) for name, value in (self.average or {}).items()}
        arrays |= {f"{OPTIMISER}{name}": value for name, value in optimiser_state(self.optimiser).items()}
        arrays |= {f"{GUARD}{name}": value for name, value in self._guard.state().items()}
        if self._halted is not None:
            arrays |= {f"{HALTED}/{name}": value for name, value in self._halted.state().items()}
        return arrays | {_EXPONENT: np.array(self._exponent)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned; raises DataError where it belongs to another configuration."""
        put_weights(weights_of(self.network), state, NETWORK)
        if self.average is not None:
            put_weights(self.average, state, AVERAGE)
        load_optimiser_state(self.optimiser, part_of(state, OPTIMISER))
        self._guard.load_state(part_of(state, GUARD))
        if self._halted is not None:
            self._halted.load_state(part_of(state, f"{HALTED}/"))
        self._exponent = int(state[_EXPONENT])

    @property
    def _vector_parts(self) -> list[torch.Tensor]:
        """What a slice's gradient has values for (see `vector_of`)."""
        return [*trained_parameters(self.network), *statistics_of(self.network).values()]

    @property
    def _validation_batch(self) -> int:
        """Samples in a slice of the validation: what a slice of training needs memory for, at most."""
        return max(1, self.settings.batch // self.settings.slices)

    def _generator_moves(self, step: int) -> bool:
        return generator_moves(
            step=step, steps_per_epoch=self.batches.steps_per_epoch, critic_steps=self.settings.critic_steps
        )

    def _read_ahead(self, step: int, slot: int) -> None:
        """Ask for the slices that this rank will probably compute next: those it computed in the step before."""
        self._sequence.append(slot)
        for number, following in self._expected(step, slot):
            epoch, within = divmod(number, self.batches.steps_per_epoch)
            if number >= self.steps or not self.batches.request(epoch, within, following):
                return

    def _expected(self, step: int, slot: int) -> Iterator[tuple[int, int]]:
        """(step, slot) that come after this one if ranks go on sharing the work as they did."""
        known = self._previous or [slot]
        rest = known[known.index(slot) + 1 :] if slot in known else []
        yield from ((step, other) for other in rest if other not in self._sequence)
        yield from ((step + 1, other) for other in known)


def open_task(run: Path, *, ahead: int = 1, device: str = "cpu") -> TrainingTask:
    """The replica that the run folder `run` describes, at its state before the first step.

    device      of the network

    raises      DataError, ConfigError: the store of pairs is not there, or does not fit the configuration
    """
    config, _ = load_train_config(run / "config.toml")
    try:
        store = open_pairs(config.data.pairs)
    except DataError as error:
        if Path(config.data.pairs).exists():
            raise
        raise DataError(
            f"The pairs that {run} trains on are not at {config.data.pairs}: put them back, or say where they are now "
            f"with `{command_on('resume', run)} --data PATH.zarr`."
        ) from error
    if device == "cuda":
        set_arithmetic(config.training)
    return TrainingTask(config, store, ahead=ahead, device=device)


def slice_sizes(config: TrainConfig) -> list[int]:
    """Samples in each slice of a step."""
    settings = config.training
    whole = np.arange(settings.batch)
    return [len(slice_of(whole, slot, settings.slices)) for slot in range(settings.slices)]


def listed(samples: NDArray[np.int64]) -> str:
    """Numbers of samples for a message.

    >>> listed(np.arange(3)), listed(np.arange(20))
    ('0, 1, 2', '0, 1, 2, 3, 4, 5, 6, 7, …')
    """
    shown = samples.tolist()[:LISTED]
    return ", ".join(map(str, shown)) + (", …" if len(samples) > LISTED else "")


def _array(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array
