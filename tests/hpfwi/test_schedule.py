"""Learning rates, turns and stages as functions of the step."""

import math
from itertools import pairwise

import pytest

from hpfwi.errors import ConfigError
from hpfwi.training.published import published_recipe
from hpfwi.training.schedule import ScheduleSettings, curriculum_stage, generator_moves, learning_rate
from hpfwi.training.settings import load_train_config


def published_rate(epoch: int, epochs: int = 140, steps_per_epoch: int = 1200, within: int = 0) -> float:
    settings = published_recipe("amfms", "openfwi").schedule
    return learning_rate(
        settings, step=epoch * steps_per_epoch + within, steps_per_epoch=steps_per_epoch, epochs=epochs
    )


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.0), (1, 7.143e-5), (7, 5e-4), (13, 9.286e-4), (14, 1e-3), (70, 7.934e-4), (139, 5.0008e-4)],
)
def test_amfms_s_published_rates(epoch: int, rate: float) -> None:
    assert published_rate(epoch) == pytest.approx(rate, rel=1e-4)
    assert published_rate(epoch, within=1199) == published_rate(epoch)


def test_by_default_the_first_step_trains_and_the_last_reaches_the_floor() -> None:
    settings = ScheduleSettings()
    rates = [learning_rate(settings, step=step, steps_per_epoch=7, epochs=20) for step in range(140)]
    assert rates[0] == pytest.approx(1e-3 / 14)  # a tenth of 20 epochs is 2, of 7 steps each
    assert max(rates) == rates[13] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(5e-4)
    assert all(after > before for before, after in pairwise(rates[:14]))
    assert all(after < before for before, after in pairwise(rates[13:]))
    halfway = (140 + 14) // 2 - 1
    assert rates[halfway] == pytest.approx(7.5e-4)


def test_the_default_warm_up_is_the_published_one_for_the_published_run() -> None:
    default, explicit = ScheduleSettings(), ScheduleSettings(warm_up_epochs=14)
    for step in (0, 5, 27, 28, 100, 279):
        arguments = {"step": step, "steps_per_epoch": 2, "epochs": 140}
        assert learning_rate(default, **arguments) == learning_rate(explicit, **arguments)


def test_constant_rates_and_no_warm_up() -> None:
    constant = ScheduleSettings(kind="constant", peak=3e-4)
    assert {learning_rate(constant, step=step, steps_per_epoch=3, epochs=2) for step in range(6)} == {3e-4}
    cosine = ScheduleSettings(warm_up_epochs=0, peak=1.0, floor=0.0)
    rates = [learning_rate(cosine, step=step, steps_per_epoch=1, epochs=4) for step in range(4)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * done / 4)) / 2 for done in (1, 2, 3, 4)])


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"warm-up of 14 epochs leaves none of 10 .* schedule.warm_up_epochs below 10"
    ):
        learning_rate(ScheduleSettings(warm_up_epochs=14), step=0, steps_per_epoch=1, epochs=10)


def test_milestones_multiply_the_rate() -> None:
    settings = ScheduleSettings(kind="multi-step", peak=1.0, milestones=(2, 3), factor=0.5)
    rates = [learning_rate(settings, step=step, steps_per_epoch=2, epochs=5) for step in range(10)]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    rising = settings.model_copy(update={"warm_up_epochs": 2})
    rates = [learning_rate(rising, step=step, steps_per_epoch=2, epochs=5) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5]
    per_epoch = rising.model_copy(update={"as_published": True})
    rates = [learning_rate(per_epoch, step=step, steps_per_epoch=2, epochs=5) for step in range(6)]
    assert rates == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("kind=multi-step", r"needs milestones; give the epochs after which the rate falls, such as \[40, 80\]"),
        ("milestones=[40]", "have no effect with kind='warm-up-cosine'"),
        ("kind=multi-step milestones=[80,40]", r"milestones=\[80, 40\] do not ascend"),
        ("kind=multi-step milestones=[40,40]", r"milestones=\[40, 40\] do not ascend"),
        ("kind=multi-step milestones=[0,40]", r"milestones=\[0, 40\] do not ascend from 1"),
        ("kind=multi-step milestones=[40,140]", "are not all before the end of 140 epochs"),
        ("kind=multi-step milestones=[40] warm_up_epochs=41", "ends after the first .* lower it to 40"),
        ("kind=multi-step milestones=[40] factor=1", "factor = 1 .* give less than 1"),
    ],
)
def test_milestones_that_make_no_schedule_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(None, [f"training.schedule.{option}" for option in options.split()])


def test_the_generator_moves_every_fifth_step_and_at_the_end_of_an_epoch() -> None:
    moves = [generator_moves(step=step, steps_per_epoch=12, critic_steps=5) for step in range(24)]
    assert [step for step, move in enumerate(moves) if move] == [4, 9, 11, 16, 21, 23]


def test_stages_of_the_curriculum() -> None:
    assert [curriculum_stage(epoch, (40, 30, 30)) for epoch in (0, 39, 40, 69, 70, 99)] == [1, 1, 2, 2, 3, 3]
    assert curriculum_stage(0, (0, 0, 50)) == 3


def test_published_recipes() -> None:
    assert published_recipe("inversionnet", "openfwi").loss.name == "mse"
    assert published_recipe("fcnvmb", "seg-salt").schedule.peak == 1e-3
    assert published_recipe("aba-fwi", "openfwi").schedule.peak == 1e-4
    assert published_recipe("aba-fwi+", "seg-simulation").schedule.peak == 1e-3
    assert published_recipe("tu-net-seg", "seg-salt").schedule.peak == 3e-4
    assert published_recipe("amfms-seg", "seg-salt").loss.tv_weight == 1e-3
    assert published_recipe("amfms", "marmousi-slices").loss.tv_weight == 1e-5
    assert published_recipe("dd-net", "seg-simulation").loss.edge_weight == 1e6
    assert published_recipe("dd-net70", "openfwi").loss.edge_weight == 0.01
    assert [published_recipe(name, "openfwi").records_noise for name in ("dd-net70", "aba-fwi", "amfms")] == [
        0.3,
        0.3,
        0,
    ]
    assert published_recipe("velocitygan", "openfwi").critic_steps == 5
    assert published_recipe("velocitygan", "openfwi").loss.l1_weight == 100
    normalisations = [published_recipe("amfms", "openfwi"), published_recipe("amfms-seg", "seg-salt")]
    assert [recipe.normalisation.normalisation for recipe in normalisations] == ["per-sample", "none"]
    assert [
        (recipe.epochs, recipe.batch)
        for recipe in (
            published_recipe("amfms", "openfwi"),
            published_recipe("amfms", "marmousi-slices"),
            published_recipe("amfms-seg", "seg-salt"),
            published_recipe("amfms-seg", "seg-simulation"),
        )
    ] == [(140, 20), (160, 20), (60, 10), (140, 10)]
