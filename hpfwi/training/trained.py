"""A trained network, taken from a run folder alone: nothing of the store it was trained on is needed to predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi import checkpoints
from hpfwi.checkpoints import Checkpoint
from hpfwi.commands import command_on
from hpfwi.errors import ConfigError, DataError
from hpfwi.networks.build import build_network
from hpfwi.run_folder import read_events
from hpfwi.store.openfwi import PairStore
from hpfwi.training.forward import velocities_of
from hpfwi.training.replicas import put_weights, weights_of
from hpfwi.training.settings import TrainConfig, is_training, load_train_config
from hpfwi.training.sound import first_unsound

Which = Literal["best", "last"]
STATE = "state/"
"""Prefix of everything that steps change in a checkpoint; below it stand the parts of a task's state."""
NETWORK, AVERAGE, OPTIMISER, GUARD = "network/", "average/", "optimiser/", "guard/"


@dataclass(frozen=True)
class TrainedOn:
    """The pairs that a network was trained on; None where that was not noted.

    sha256      of the store's manifest
    physics     how the records were made: grid, time step, source and positions, by the names of a store's physics
    """

    sha256: str | None = None
    physics: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with the weights of one checkpoint, ready to predict on `device`.

    step    optimiser steps that its weights have seen
    """

    config: TrainConfig
    network: torch.nn.Module
    step: int
    device: torch.device
    trained_on: TrainedOn

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver) of a sample."""
        assert self.config.network.records_shape is not None  # a run folder's configuration is resolved
        return self.config.network.records_shape

    def require_shapes(self, store: PairStore) -> None:
        """Raise DataError where a store has samples of another shape than the network was trained on."""
        shapes, own = (store.records_shape, store.model_shape), (self.records_shape, self.config.network.model_shape)
        if shapes != own:
            raise DataError(
                f"{store.path} has records {list(shapes[0])} and models {list(shapes[1])}, and this network was "
                f"trained on {list(own[0])} and {list(own[1] or ())}; give a store of its shapes."
            )

    def predict(self, records: NDArray[np.float32], *, first: int = 0) -> NDArray[np.float32]:
        """Velocities on the network's scale, float32[sample, z, x], of records[sample, shot, time, receiver].

        Samples are computed a slice of training at a time, and no sample's result depends on the others.

        first       what a message calls the first of them
        raises      DataError: records of another shape, or not finite; predictions that are not finite
        """
        if records.shape[1:] != self.records_shape or not len(records):
            raise DataError(
                f"Records of shape {list(records.shape)} do not fit this network; give [sample, shot, time, receiver] "
                f"with {list(self.records_shape)} after the samples."
            )
        # A layer may turn NaN into a number, and velocities would come out that look like any others.
        row = first_unsound(records)
        if row is not None:
            raise DataError(f"The records of sample {first + row} hold NaN or infinity; mend them or leave them out.")
        parts = list(self._parts(records))
        velocities = np.concatenate(parts)
        if not np.isfinite(velocities).all():
            raise DataError(
                "The network's velocities are not finite for these records; look for amplitudes far from those it was "
                "trained on."
            )
        return velocities

    def _parts(self, records: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        settings = self.config.training
        size = max(1, settings.batch // settings.slices)
        for first in range(0, len(records), size):
            part = np.ascontiguousarray(records[first : first + size], dtype=np.float32)
            yield velocities_of(settings, self.network, torch.from_numpy(part).to(self.device))


def open_trained(run: Path, which: Which = "best", *, device: str = "cpu") -> Trained:
    """The network of a training run, finished or not.

    which       the checkpoint with the least validation loss, or the last one
    raises      ConfigError: not a training run, or no GPU for it; DataError: no checkpoint, or a damaged one
    """
    require_device(device)
    require_training(run)
    config, _ = load_train_config_of(run)
    found = _checkpoint(run, which)
    network = build_network(config.network)
    prefix = STATE + (NETWORK if config.training.average_decay is None else AVERAGE)
    put_weights(weights_of(network), found.tensors, prefix)
    return Trained(config, ready(network, config, device), found.iteration, torch.device(device), trained_on(run))


def ready(network: torch.nn.Module, config: TrainConfig, device: str) -> torch.nn.Module:
    """A network in evaluation mode, where and as it is to predict."""
    network = network.to(device).eval()
    if config.training.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def require_device(device: str) -> None:
    """Raise ConfigError where a network is to compute on a GPU and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch can use and finds none; take --device cpu.")


def trained_on(run: Path) -> TrainedOn:
    """The pairs that a run began with."""
    data = [event for event in read_events(run) if event["kind"] == "data"]
    return TrainedOn(data[-1].get("sha256"), data[-1].get("physics")) if data else TrainedOn()


def require_same_pairs(run: Path, store: PairStore) -> None:
    """Raise DataError where a store is not the one that a run began with, wherever that lay then."""
    began_with, now = trained_on(run).sha256, str(store.manifest["sha256"])
    if began_with not in (None, now):
        raise DataError(
            f"{store.path} holds other pairs than {run} began with (sha256 {now[:12]}…, then {str(began_with)[:12]}…): "
            "put those back, or train anew."
        )


def require_training(run: Path) -> None:
    """Raise ConfigError where a folder is not that of a training run."""
    if not (run / "config.toml").is_file() or not is_training(run):
        raise ConfigError(f"{run} is not the folder of a training run; give one that `hpfwi train` made.")


def load_train_config_of(run: Path) -> tuple[TrainConfig, dict[str, str]]:
    """The resolved configuration of a training run."""
    return load_train_config(run / "config.toml")


def _checkpoint(run: Path, which: Which) -> Checkpoint:
    if which == "last":
        found = checkpoints.load_latest(run / "checkpoints")
        if found is None:
            raise DataError(f"{run} has no checkpoint yet; train on with `{command_on('resume', run)}`.")
        return found
    scored = [event for event in read_events(run) if event["kind"] == "checkpoint" and event.get("score") is not None]
    if not scored:
        raise DataError(
            f"{run} has no validated checkpoint yet; train on with `{command_on('resume', run)}`, or take the last one "
            "with --checkpoint last."
        )
    best = min(scored, key=lambda event: float(event["score"]))
    return checkpoints.load(run / best["path"])
