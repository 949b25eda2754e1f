"""Weights of a trained network on their own: one safetensors file to hand on, to predict with, or to begin a run with.

The file holds the network's torch state dict under its own names, so `build_network(...)` takes what
`safetensors.torch.load_file` reads, and its header says which network it is, on which scale it predicts, and by sha256
and geometry which pairs trained it. Neither writing nor reading it pickles anything, and no path of this machine is in
it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from hpfwi import __version__
from hpfwi.errors import ConfigError, DataError
from hpfwi.networks.build import NetworkChoice, build_network
from hpfwi.store.atomic import new_file
from hpfwi.training.normalise import scale_in_words
from hpfwi.training.outputs import require_free
from hpfwi.training.replicas import put_weights, weights_of
from hpfwi.training.settings import TrainConfig
from hpfwi.training.trained import Trained, TrainedOn, Which, open_trained, ready, require_device

FORMAT = "hpfwi-network 1"
_KEPT = {
    "training": {"batch", "slices", "precision", "channels_last", "loss"},
    "data": {"train", "validation_share"},
}
"""What a file says of a run's configuration beside network and scales: what predictions and their judgement need."""
_COUNTER = "num_batches_tracked"
"""Batch norm's counter of batches, which a state dict has and nothing here reads."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights as they were trained.

    config      of the run that trained them; of a file, the parts that it tells
    tensors     by the names of `weights_of`
    step        optimiser steps that they have seen
    """

    path: Path
    config: TrainConfig
    tensors: dict[str, np.ndarray]
    step: int
    trained_on: TrainedOn

    def put_into(self, network: torch.nn.Module, choice: NetworkChoice) -> None:
        """Make them the weights of a network that was built from `choice`.

        raises      ConfigError: they are those of another network
        """
        own = self.config.network
        if own.name == choice.name:
            try:
                put_weights(weights_of(network), self.tensors, "")
            except DataError:
                pass
            else:
                return
        raise ConfigError(
            f"training.initial_weights = {self.path} holds {_described(own)}, and this run trains "
            f"{_described(choice)}; take weights of the same network."
        )

    def in_words(self) -> str:
        """What they are, for the start of a run."""
        scale = scale_in_words(self.config.training.normalisation)
        return f"{self.path} after step {self.step}, trained with velocities on {scale}"


def export(run: Path, out: Path, *, which: Which = "best", overwrite: bool = False) -> Trained:
    """Write the weights of a training run, finished or not, to one safetensors file; returns what was written.

    out         appears whole or not at all
    raises      ConfigError: not a training run, or `out` is there already; DataError: no such checkpoint, or a disk
                that refuses
    """
    from safetensors.numpy import save

    require_free(out, overwrite=overwrite)
    trained = open_trained(run, which)
    tensors = {name: np.array(value.numpy(), order="C") for name, value in trained.network.state_dict().items()}
    config = trained.config
    told = {
        "format": FORMAT,
        "network": config.network.model_dump_json(),
        "normalisation": config.training.normalisation.model_dump_json(),
        "training": config.training.model_dump_json(include=_KEPT["training"]),
        "data": config.data.model_dump_json(include=_KEPT["data"]),
        "trained_on": json.dumps(asdict(trained.trained_on)),
        "run": config.name,
        "step": str(trained.step),
        "hpfwi": __version__,
    }
    with new_file(out, overwrite=overwrite) as temporary:
        temporary.write_bytes(save(tensors, told))
    return trained


def read_weights(path: Path) -> Weights:
    """The weights in a file that `export` wrote, or those of the best checkpoint of a training run's folder.

    raises      ConfigError: a folder that is not a training run's; DataError: no validated checkpoint, not such a file,
                or a damaged one
    """
    if path.is_dir():
        trained = open_trained(path, "best")
        tensors = {name: value.detach().numpy() for name, value in weights_of(trained.network).items()}
        return Weights(path, trained.config, tensors, trained.step, trained.trained_on)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(_COUNTER)}  # noqa: SIM118
        if told.get("format") != FORMAT:
            raise ValueError(f"its header says {told.get('format', 'nothing')!r} where {FORMAT!r} belongs")
        network, scales = (json.loads(told[name]) for name in ("network", "normalisation"))
        training, data, pairs = (json.loads(told.get(name, "{}")) for name in ("training", "data", "trained_on"))
        config = TrainConfig.model_validate(
            {"name": told["run"], "network": network, "training": training | {"normalisation": scales}, "data": data}
        )
        return Weights(path, config, tensors, int(told["step"]), TrainedOn(**pairs))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unusable(path, error) from error


def open_network(source: Path, which: Which = "best", *, device: str = "cpu") -> Trained:
    """The network of a training run's folder, or of a file that `export` wrote, ready to predict.

    which       of a run's checkpoints; a file holds one
    raises      ConfigError: not a training run, the last checkpoint of a file, or no GPU for it; DataError: no
                checkpoint, not such a file, or a damaged one
    """
    if source.is_dir():
        return open_trained(source, which, device=device)
    if which != "best":
        raise ConfigError(f"{source} holds the weights of one checkpoint; leave --checkpoint {which} out.")
    require_device(device)
    weights = read_weights(source)
    network = build_network(weights.config.network)
    try:
        put_weights(weights_of(network), weights.tensors, "")
    except DataError as error:
        raise _unusable(source, "its tensors are not those of the network that its header names") from error
    network = ready(network, weights.config, device)
    return Trained(weights.config, network, weights.step, torch.device(device), weights.trained_on)


def _unusable(path: Path, why: object) -> DataError:
    return DataError(
        f"The weights {path} cannot be used ({' '.join(str(why).split())}); give the folder of a training run or a "
        "file that `hpfwi export` wrote."
    )


def _described(choice: NetworkChoice) -> str:
    shapes = ""
    if choice.records_shape is not None and choice.model_shape is not None:
        shapes = f" for records {list(choice.records_shape)} and models {list(choice.model_shape)}"
    return f"{choice.name}{' without its attention' * choice.ablation} of width {choice.width:g}{shapes}"
