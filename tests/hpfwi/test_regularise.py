"""Penalties on the model: what they measure, and that their gradients are theirs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi.inversion.regularise import EPSILON, Regulariser, RegulariseSettings

SHAPE, SPACING_M = (12, 17), (8.0, 20.0)


def regulariser(
    weights: dict[str, float], water_rows: int = 0, mean_mps: float = 2000.0, shape: tuple[int, int] = SHAPE
) -> Regulariser:
    water = np.zeros(shape, bool)
    water[:water_rows] = True
    initial = np.full(shape, mean_mps, np.float32)
    return Regulariser(RegulariseSettings.model_validate(weights), initial, SPACING_M, water)


def rough(seed: int = 0) -> NDArray[np.float64]:
    return 2000.0 + 300.0 * np.random.default_rng(seed).standard_normal(SHAPE)


@pytest.mark.parametrize("weights", [{"tv": 0.3}, {"tikhonov": 0.02}, {"tv": 0.3, "tikhonov": 0.02}])
@pytest.mark.parametrize("water_rows", [0, 3])
def test_the_gradient_is_the_derivative(weights: dict[str, float], water_rows: int) -> None:
    penalty = regulariser(weights, water_rows)
    model, way = rough(), np.random.default_rng(1).standard_normal(SHAPE)
    way[:water_rows] = 0.0
    slope = float((penalty.gradient(model) * way).sum())
    steps = 4.0 ** -np.arange(1, 5)
    start = sum(penalty.penalties(model).values())
    rests = [abs(sum(penalty.penalties(model + step * way).values()) - start - step * slope) for step in steps]
    assert np.polyfit(np.log(steps), np.log(rests), 1)[0] == pytest.approx(2.0, abs=0.02)


def test_a_model_that_changes_by_its_mean_over_its_depth_costs_the_weight() -> None:
    rows = 400
    falling = np.repeat(np.linspace(1000.0, 3000.0, rows)[:, None], 5, axis=1)
    found = regulariser({"tv": 0.01, "tikhonov": 0.002}, shape=(rows, 5)).penalties(falling)
    assert found["tv"] == pytest.approx(0.01 * (np.sqrt(1 + EPSILON**2) - EPSILON), rel=0.01)
    assert found["tikhonov"] == pytest.approx(0.002, rel=0.01)


def test_units_do_not_count() -> None:
    assert regulariser({"tv": 1.0}, mean_mps=2.0).penalties(rough() / 1000)["tv"] == pytest.approx(
        regulariser({"tv": 1.0}).penalties(rough())["tv"], rel=1e-12
    )


def test_total_variation_spares_edges_and_knows_no_direction() -> None:
    """One step costs what a ramp of the same height does, where the square of its slope costs far more."""
    step, ramp = np.full((40, 40), 1000.0), np.full((40, 40), 1000.0)
    step[20:] = 3000.0
    ramp[10:31] = np.linspace(1000.0, 3000.0, 21)[:, None]
    ramp[31:] = 3000.0
    penalty = regulariser({"tv": 1.0, "tikhonov": 1.0}, shape=(40, 40))
    (step_tv, step_square), (ramp_tv, ramp_square) = (penalty.penalties(model).values() for model in (step, ramp))
    assert step_tv == pytest.approx(ramp_tv, rel=0.05)
    assert step_square > 10 * ramp_square
    square = Regulariser(
        RegulariseSettings(tv=1.0), np.full((40, 40), 2000.0, np.float32), (10.0, 10.0), np.zeros((40, 40), bool)
    )
    assert square.penalties(step)["tv"] == pytest.approx(square.penalties(step.T)["tv"], rel=1e-12)


def test_the_sea_floor_is_no_slope() -> None:
    model = np.full(SHAPE, 2500.0)
    model[:3] = 1500.0
    penalty = regulariser({"tv": 1.0, "tikhonov": 1.0}, 3)
    assert list(penalty.penalties(model).values()) == [0.0, 0.0]
    assert not penalty.gradient(model).any()
    assert penalty.gradient(rough())[3:].any()
    assert not penalty.gradient(rough())[:3].any()
