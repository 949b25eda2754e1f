"""Learning rates and turns as functions of the step alone, so that a resumed run goes on where it was."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi.errors import ConfigError

LAST_STAGE = 3
"""Of the curriculum, which shows true records."""


class ScheduleSettings(BaseModel):
    """The learning rate over a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["warm-up-cosine", "multi-step", "constant"] = Field(
        default="warm-up-cosine",
        description="'warm-up-cosine' rises linearly to the peak and falls along half a cosine to the floor; "
        "'multi-step' is multiplied by the factor at each milestone, as in OpenFWI's code; 'constant' stays at the "
        "peak.",
    )
    peak: float = Field(default=1e-3, gt=0, description="Largest learning rate.")
    floor: float = Field(default=5e-4, ge=0, description="Learning rate at the end of the cosine.")
    warm_up_epochs: float | None = Field(
        default=None,
        ge=0,
        description="Epochs of the rise; none: a tenth of the run before a cosine, which is AMFMS's 14 of 140, and no "
        "rise before milestones.",
    )
    milestones: tuple[int, ...] = Field(
        default=(), description="Epochs after which 'multi-step' lowers the rate, such as [40, 80]."
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="What a milestone multiplies the rate by.")
    as_published: bool = Field(
        default=False,
        description="Set the rate once an epoch, as AMFMS does, whose first epoch therefore runs with rate 0; else it "
        "moves every step and the first step already trains.",
    )

    @model_validator(mode="after")
    def _milestones_in_order(self) -> Self:
        milestones, warm_up = list(self.milestones), self.warm_up_epochs or 0.0
        if self.kind != "multi-step" and milestones:
            raise ValueError(
                f"milestones={milestones} have no effect with kind={self.kind!r}; take kind='multi-step' or leave them "
                "out"
            )
        if self.kind == "multi-step" and not milestones:
            raise ValueError(
                "kind='multi-step' needs milestones; give the epochs after which the rate falls, such as [40, 80]"
            )
        if any(later <= earlier for earlier, later in pairwise([0, *milestones])):
            raise ValueError(f"milestones={milestones} do not ascend from 1 on; give each epoch once, in order")
        if milestones and warm_up > milestones[0]:
            raise ValueError(
                f"warm_up_epochs={warm_up:g} ends after the first of milestones={milestones}; lower it to "
                f"{milestones[0]} or less"
            )
        return self


def learning_rate(settings: ScheduleSettings, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of a step, counted from 0 over the whole run.

    With E epochs, warm-up W, and e the epochs done at the end of the step (as published: at the start of its epoch):
    peak * e / W up to W, then floor + (peak - floor) (1 + cos(pi (e - W) / (E - W))) / 2. With milestones it is
    peak * min(1, e / W) * factor^n, n of them in the epochs that are over.

    raises   ConfigError: a warm-up that leaves no epoch for the cosine

    >>> published = ScheduleSettings(warm_up_epochs=14, as_published=True)
    >>> [round(learning_rate(published, step=e, steps_per_epoch=1, epochs=140), 8) for e in (0, 7, 14, 70)]
    [0.0, 0.0005, 0.001, 0.00079341]
    """
    if settings.kind == "constant":
        return settings.peak
    done = float(step // steps_per_epoch) if settings.as_published else (step + 1) / steps_per_epoch
    if settings.kind == "multi-step":
        rise = min(1.0, done / settings.warm_up_epochs) if settings.warm_up_epochs else 1.0
        passed = bisect_right(settings.milestones, step // steps_per_epoch)
        return settings.peak * rise * settings.factor**passed
    warm_up = epochs / 10 if settings.warm_up_epochs is None else settings.warm_up_epochs
    if warm_up >= epochs:
        raise ConfigError(
            f"A warm-up of {warm_up:g} epochs leaves none of {epochs} for the cosine; set schedule.warm_up_epochs "
            f"below {epochs} or train longer."
        )
    if done < warm_up:
        return settings.peak * done / warm_up
    fall = (1.0 + math.cos(math.pi * (done - warm_up) / (epochs - warm_up))) / 2.0
    return settings.floor + (settings.peak - settings.floor) * fall


def generator_moves(*, step: int, steps_per_epoch: int, critic_steps: int) -> bool:
    """Whether VelocityGAN's generator is trained after this critic step: every so many steps and at an epoch's end.

    Steps count from 0 over the whole run, turns from the start of each epoch.

    >>> [step for step in range(14) if generator_moves(step=step, steps_per_epoch=7, critic_steps=5)]
    [4, 6, 11, 13]
    """
    within = step % steps_per_epoch + 1
    return within % critic_steps == 0 or within == steps_per_epoch


def curriculum_stage(epoch: int, stage_epochs: tuple[int, int, int]) -> int:
    """DD-Net's stage of an epoch counted from 0: 1, 2 or 3; the third lasts as long as the run does.

    Stage 1 shows the middle shot in place of all, partly with noise or gain, stage 2 the middle shot in place of all,
    stage 3 the true records.

    >>> [curriculum_stage(epoch, (10, 10, 100)) for epoch in (0, 9, 10, 19, 20, 500)]
    [1, 1, 2, 2, 3, 3]
    """
    first, second, _ = stage_epochs
    return 1 if epoch < first else 2 if epoch < first + second else LAST_STAGE
