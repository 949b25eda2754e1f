"""How each network was trained in the public code of AMFMS, which carries all eleven.

Facts of that code and its configuration, not advice. All use Adam with betas 0.9 and 0.999, no weight decay and no
clipping. Two things make its comparisons unequal: Gaussian noise is added to the training records of the DD-Nets and
the ABA-FWIs alone, and AMFMS trains its first epoch with rate 0.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hpfwi.networks.build import NetworkName
from hpfwi.training.losses import LossSettings
from hpfwi.training.normalise import NormalisationSettings
from hpfwi.training.schedule import ScheduleSettings

DataSet = Literal["openfwi", "marmousi-slices", "seg-salt", "seg-simulation"]


class Recipe(BaseModel):
    """What one published training run is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossSettings = Field(description="The loss and its weights.")
    schedule: ScheduleSettings = Field(description="The learning rate over the run.")
    normalisation: NormalisationSettings = Field(description="Scales of records and velocities.")
    epochs: int = Field(description="Passes over the training samples.")
    batch: int = Field(description="Samples in a step.")
    records_noise: float = Field(
        description="Standard deviation of Gaussian noise on training records, in the records' unit."
    )
    critic_steps: int | None = Field(
        description="Steps of the critic for one of the generator; none: there is no critic."
    )


def published_recipe(network: NetworkName, data: DataSet) -> Recipe:
    """The recipe of a network on a data set.

    >>> recipe = published_recipe("amfms", "openfwi")
    >>> recipe.loss.name, recipe.schedule.peak, recipe.epochs, recipe.batch
    ('mmt', 0.001, 140, 20)
    """
    epochs, batch = {
        "openfwi": (140, 20),
        "marmousi-slices": (160, 20),
        "seg-salt": (60, 10),
        "seg-simulation": (140, 10),
    }[data]
    seg = data in ("seg-salt", "seg-simulation")
    return Recipe(
        loss=_loss(network, seg),
        schedule=_schedule(network),
        normalisation=NormalisationSettings(normalisation="none" if seg else "per-sample"),
        epochs=epochs,
        batch=batch,
        records_noise=0.3 if network in ("dd-net", "dd-net70", "aba-fwi", "aba-fwi+") else 0.0,
        critic_steps=5 if network == "velocitygan" else None,
    )


def _loss(network: NetworkName, seg: bool) -> LossSettings:
    match network:
        case "amfms" | "amfms-seg":
            return LossSettings(name="mmt", tv_weight=1e-3 if seg else 1e-5)
        case "inversionnet":
            return LossSettings(name="mse")
        case "fcnvmb":
            return LossSettings(name="mae")
        case "dd-net" | "dd-net70":
            return LossSettings(name="dd", edge_weight=1e6 if seg else 0.01)
        case "aba-fwi" | "aba-fwi+":
            return LossSettings(name="l1+l2+rctb")
        case "tu-net" | "tu-net-seg":
            return LossSettings(name="mpe")
        case "velocitygan":
            return LossSettings(name="wgan-gp", l1_weight=100.0, l2_weight=100.0, penalty_weight=10.0)


def _schedule(network: NetworkName) -> ScheduleSettings:
    match network:
        case "amfms" | "amfms-seg":
            return ScheduleSettings(
                kind="warm-up-cosine", peak=1e-3, floor=5e-4, warm_up_epochs=14.0, as_published=True
            )
        case "inversionnet" | "aba-fwi":
            return ScheduleSettings(kind="constant", peak=1e-4)
        case "tu-net" | "tu-net-seg":
            return ScheduleSettings(kind="constant", peak=3e-4)
        case "fcnvmb" | "dd-net" | "dd-net70" | "aba-fwi+" | "velocitygan":
            return ScheduleSettings(kind="constant", peak=1e-3)
