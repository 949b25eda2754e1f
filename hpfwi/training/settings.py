"""The configuration of a training run: which pairs, which network, how it is trained and on what."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hpfwi.commands import command_on
from hpfwi.config import (
    TO_BE_GIVEN,
    Origins,
    OutputSettings,
    RunConfig,
    load_settings,
    name_of_folder,
    recipe_names,
    training_recipe_names,
)
from hpfwi.errors import ConfigError, DataError
from hpfwi.inversion.optimise import AdamSettings
from hpfwi.networks.build import NetworkChoice, build_network, fewest_samples
from hpfwi.parallel import ClusterSettings
from hpfwi.store.openfwi import PairStore
from hpfwi.training.batches import LoaderSettings, steps_per_epoch
from hpfwi.training.early_stop import EarlyStopSettings
from hpfwi.training.losses import LossSettings
from hpfwi.training.mirror import require_symmetric
from hpfwi.training.normalise import NormalisationSettings
from hpfwi.training.schedule import ScheduleSettings, learning_rate

VALIDATION = "validation"
"""The split that is used for validation where a store has one."""


class PairsSettings(BaseModel):
    """Pairs of records and velocity models, and which of them are used for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: str = Field(
        default=TO_BE_GIVEN, min_length=1, description="Store of pairs, a .zarr folder that `hpfwi data` wrote."
    )
    train: str = Field(default="train", min_length=1, description="Split of the store that trains.")
    validation_share: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="Share of the training split, its last samples, that validates and does not train, where the store "
        f"has no split called '{VALIDATION}'; at least one sample.",
    )
    loader: LoaderSettings = LoaderSettings.model_validate({})


class TrainingSettings(BaseModel):
    """How a network is trained: the same on any number of workers, because a slice and not a worker is its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=140, ge=1, description="Passes over the training samples.")
    batch: int = Field(default=20, ge=1, description="Samples in an optimiser step.")
    slices: int = Field(
        default=4,
        ge=1,
        description="Parts of a batch, computed one by one or by several workers at once; batch norm takes its "
        "statistics from a slice. More slices than workers save memory, as accumulating gradients does.",
    )
    exact: bool = Field(
        default=True,
        description="Add the slices' gradients in fixed point, and have torch add in a fixed order on a GPU, so that "
        "any number of workers gives the same bits. 'false' adds in float32 and lets a GPU choose its fastest layers: "
        "the same curves to rounding, for steps that are as short as the sums.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the order of samples and of the noise.")
    initial_weights: str | None = Field(
        default=None,
        min_length=1,
        description="Weights to begin with in place of random ones: the folder of a training run, whose best "
        "checkpoint counts, or a file that `hpfwi export` wrote. The network must be the same; the optimiser begins "
        "afresh.",
    )
    mirror: bool = Field(
        default=False,
        description="Show every sample mirrored from left to right in every second epoch, half of them in each. Right "
        "where sources and receivers are symmetric about the middle of the model, as OpenFWI's are to a cell.",
    )
    records_noise: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Standard deviation of Gaussian noise added to training records, in the records' unit.",
    )
    curriculum: tuple[int, int, int] | None = Field(
        default=None,
        description="Epochs of DD-Net's stages, such as [10, 10, 120]: copies of the middle shot, partly noisy or "
        'gained; plain copies of it; the true records, until the run ends. "none" shows the true records throughout.',
    )
    critic_steps: int = Field(
        default=5, ge=1, description="Steps of the critic for one of the generator; for velocitygan alone."
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description="Arithmetic of the layers. 'tf32' lets a GPU round what it multiplies; 'bfloat16' is autocast: "
        "weights, losses and sums stay float32.",
    )
    channels_last: bool = Field(
        default=False, description="Keep channels innermost in memory, which tensor cores prefer; bits change."
    )
    compile: bool = Field(
        default=False,
        description="Have torch.compile fuse the layers, at the cost of minutes before the first step; needs a C++ "
        "compiler on a CPU. The bits change, once.",
    )
    average_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Validate, evaluate and predict with a moving average of the weights, which keeps this share of "
        'itself in every step; "none" takes the weights of the last step.',
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="Batch norm takes its statistics from the whole batch instead of a slice, at the cost of two sums "
        "over all workers for each of its layers. Quickest with as many slices as workers; every slice of a step is "
        "held in memory.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of every weight that a step takes away, times the learning rate: Adam becomes AdamW.",
    )
    spike_factor: float | None = Field(
        default=1e4,
        gt=1,
        description="A step is left out whose gradient has an element so many times as large as the largest of recent "
        "steps, in the median. 'none' leaves out only what would leave float32 in Adam's squares, 2e19.",
    )
    spikes_in_a_row: int = Field(default=10, ge=1, description="Steps left out in a row that end a run.")
    validate_every: int = Field(default=1, ge=1, description="Epochs between validations; the last one always is.")
    checkpoint_every: int = Field(
        default=1000, ge=1, description="Steps between checkpoints within an epoch; every epoch ends with one."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between entries of the event log and TensorBoard.")
    shown_samples: int = Field(
        default=3, ge=0, le=8, description="Validation samples drawn, predicted beside true, in TensorBoard."
    )
    loss: LossSettings = LossSettings.model_validate({})
    schedule: ScheduleSettings = ScheduleSettings.model_validate({})
    early_stop: EarlyStopSettings = EarlyStopSettings.model_validate({})
    normalisation: NormalisationSettings = NormalisationSettings.model_validate({})
    optimiser: AdamSettings = AdamSettings.model_validate({})

    @model_validator(mode="after")
    def _whole_slices(self) -> Self:
        if self.slices > self.batch:
            raise ValueError(
                f"slices={self.slices} of a batch of {self.batch} leaves some empty; take at most that many"
            )
        return self

    @model_validator(mode="after")
    def _exact_statistics(self) -> Self:
        if self.sync_batch_norm and self.slices > 1 and (self.compile or not self.exact):
            raise ValueError(
                f"sync_batch_norm=true cannot go with exact={str(self.exact).lower()}, "
                f"compile={str(self.compile).lower()}; take exact=true and compile=false, or slices=1, where batch "
                "norm sees the whole batch"
            )
        return self

    @model_validator(mode="after")
    def _stages_of_the_curriculum(self) -> Self:
        if self.curriculum is not None and (min(self.curriculum) < 0 or sum(self.curriculum[:2]) >= self.epochs):
            raise ValueError(
                f"curriculum={list(self.curriculum)} leaves none of {self.epochs} epochs for the true records; lower "
                "its first two numbers or train longer"
            )
        return self

    @model_validator(mode="after")
    def _milestones_within_the_run(self) -> Self:
        milestones = self.schedule.milestones
        if milestones and milestones[-1] >= self.epochs:
            raise ValueError(
                f"schedule.milestones={list(milestones)} are not all before the end of {self.epochs} epochs; lower or "
                "leave out the last ones, or train longer"
            )
        return self


class TrainConfig(BaseModel):
    """Everything that determines a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="run",
        max_length=100,
        description="Name of the run and of its folder; without one, the name of the TOML file.",
    )
    data: PairsSettings = PairsSettings.model_validate({})
    network: NetworkChoice = NetworkChoice.model_validate({})
    training: TrainingSettings = TrainingSettings.model_validate({})
    cluster: ClusterSettings = ClusterSettings.model_validate({})
    output: OutputSettings = OutputSettings.model_validate({})

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        return name_of_folder(value)

    @model_validator(mode="after")
    def _critic_and_its_loss(self) -> Self:
        gan = self.network.name == "velocitygan"
        if gan != (self.training.loss.name == "wgan-gp"):
            raise ValueError(
                f"network.name = {self.network.name!r} cannot be trained with training.loss.name = "
                f"{self.training.loss.name!r}; velocitygan takes 'wgan-gp' and no other network does"
            )
        if gan and self.training.sync_batch_norm and self.training.slices > 1:
            raise ValueError(
                "training.sync_batch_norm = true cannot train velocitygan, whose critic is differentiated twice; take "
                "training.slices = 1, where the statistics are the batch's as well"
            )
        if self.training.loss.name == "dd" and self.network.name not in ("dd-net", "dd-net70"):
            raise ValueError(
                f"training.loss.name = 'dd' needs the edges that dd-net and dd-net70 return, and {self.network.name!r} "
                "returns none; take another loss"
            )
        return self


def load_train_config(source: str | Path | None, overrides: Sequence[str] = ()) -> tuple[TrainConfig, Origins]:
    """Read the configuration of a training run and say where each of its values comes from.

    source      a TOML file, the name of a training recipe, or None for the defaults alone
    raises      ConfigError: see `hpfwi.config.load_settings`; a folder in place of a file
    """
    if source is not None and (Path(source) / "config.toml").is_file():
        raise ConfigError(
            f"{source} is a run folder; go on with `{command_on('resume', Path(source))}`, or give its config.toml."
        )
    files = {"data.pairs": (TO_BE_GIVEN,), "training.initial_weights": ()}
    return load_settings(TrainConfig, source, overrides, recipes=training_recipe_names(), files=files)


def is_training(source: str | Path | None) -> bool:
    """Whether a recipe, a TOML file or a run folder trains a network rather than inverts gathers."""
    if source is None:
        return False
    if str(source) in training_recipe_names() and not Path(source).is_file():
        return True
    return not {"training", "network"}.isdisjoint(_tables_of(Path(source)))


def require_kind(source: str, *, training: bool) -> None:
    """Raise ConfigError where a recipe or a TOML file is of the other kind of run."""
    if not training and is_training(source):
        raise ConfigError(f"{source} trains a network; give it to `hpfwi train`.")
    if training and not is_training(source):
        recipe = source in recipe_names() and not Path(source).is_file()
        if recipe or not _tables_of(Path(source)).isdisjoint(RunConfig.model_fields.keys() - TrainConfig.model_fields):
            raise ConfigError(f"{source} inverts gathers; give it to `hpfwi invert`.")


def _tables_of(path: Path) -> set[str]:
    """Names at the top of a TOML file or of a run folder's; none where it cannot be read."""
    try:
        return set(tomllib.loads((path / "config.toml" if path.is_dir() else path).read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError):
        return set()


def require_pairs(config: TrainConfig) -> None:
    """Raise ConfigError where the store of pairs has still to be named."""
    if config.data.pairs == TO_BE_GIVEN:
        raise ConfigError(
            f"{config.name} needs pairs of records and velocities; name a store that `hpfwi data` wrote with "
            "--data PATH.zarr."
        )


def resolved(config: TrainConfig, store: PairStore) -> TrainConfig:
    """The configuration with what the store decides filled in, so that a run folder can be used without the store.

    These are the shapes of records and model, and the ranges of velocity and amplitude that normalise: the least and
    largest values of the split that trains, whose last samples may validate. No other split has a say in them.

    raises      ConfigError: another shape asked for than the store has; DataError: values that have no range
    """

    def extremes(name: str) -> tuple[float, float]:
        split_of(store, config.data.train)
        values = store.split_statistics(name, config.data.train)
        if not values["min"] < values["max"]:
            raise DataError(
                f"The {name} of split {config.data.train!r} of {store.path} are all {values['min']:g}, and nothing can "
                "be learnt from that; take a store or a split with others."
            )
        return values["min"], values["max"]

    shapes = {"records_shape": store.records_shape, "model_shape": store.model_shape}
    for name, shape in shapes.items():
        asked = getattr(config.network, name)
        if asked is not None and tuple(asked) != shape:
            raise ConfigError(
                f"network.{name} = {list(asked)} contradicts {store.path}, which has {list(shape)}; leave it out."
            )
    scale = config.training.normalisation
    scale = scale.model_copy(
        update={
            "range_mps": scale.range_mps or (extremes("models") if scale.normalisation == "range" else None),
            "amplitudes": scale.amplitudes or (extremes("records") if scale.records == "log" else None),
        }
    )
    return config.model_copy(
        update={
            "network": config.network.model_copy(update=shapes),
            "training": config.training.model_copy(update={"normalisation": scale}),
        }
    )


def samples_of(config: TrainConfig, store: PairStore) -> tuple[range, range]:
    """Samples that train and samples that validate: neighbours in the store that have none in common.

    raises      ConfigError: no such split, or too few samples for a batch beside the validation's
    """
    train = split_of(store, config.data.train)
    if VALIDATION in store.splits and config.data.train != VALIDATION:
        validation = store.splits[VALIDATION]
    else:
        kept = max(1, round(len(train) * config.data.validation_share))
        train, validation = train[: len(train) - kept], train[len(train) - kept :]
    if len(train) < config.training.batch:
        raise ConfigError(
            f"{store.path} leaves {len(train)} samples to train beside {len(validation)} that validate, fewer than a "
            f"batch of {config.training.batch}; lower training.batch (and training.slices)."
        )
    return train, validation


def require_trainable(config: TrainConfig, store: PairStore) -> None:
    """Raise ConfigError where samples, positions, network, learning rate or precision would end or spoil the run."""
    if config.training.precision == "bfloat16" and config.cluster.device != "cuda":
        # Seen with torch 2.13 on AMFMS: in about one step of ten, a plain convolution's weight gradient of up to 1e33.
        raise ConfigError(
            "training.precision = 'bfloat16' is for GPUs: on CPUs torch's convolutions return wrong weight gradients "
            "now and then, which ruin a run without a sign; take 'float32'."
        )
    train, _ = samples_of(config, store)
    _require_statistics(config)
    if config.training.mirror:
        require_symmetric(store.physics, store.model_shape[1], store.path)
    build_network(config.network)
    settings = config.training
    steps = steps_per_epoch(len(train), settings.batch)
    learning_rate(settings.schedule, step=0, steps_per_epoch=steps, epochs=settings.epochs)


def _require_statistics(config: TrainConfig) -> None:
    """Raise ConfigError where batch norm would take its statistics from too few samples."""
    settings, fewest = config.training, fewest_samples(config.network.name)
    at_once = settings.batch if settings.sync_batch_norm else settings.batch // settings.slices
    if at_once < fewest:
        raise ConfigError(
            f"training.slices = {settings.slices} of a batch of {settings.batch} has slices of {at_once} sample, and "
            f"batch norm of {config.network.name} needs {fewest}; take {settings.batch // fewest or 1} slices or less, "
            "or a larger batch."
        )


def split_of(store: PairStore, name: str) -> range:
    """Samples of a split; raises ConfigError where the store has none of that name, or none in it."""
    if name not in store.splits:
        raise ConfigError(f"{store.path} has no split {name!r}; it has {', '.join(store.splits)}.")
    if not store.splits[name]:
        others = ", ".join(f"{other} {len(split)}" for other, split in store.splits.items() if split)
        raise ConfigError(f"Split {name!r} of {store.path} is empty; it has {others}.")
    return store.splits[name]
