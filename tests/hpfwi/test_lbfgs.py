"""L-BFGS one evaluation at a time: against its definition, on functions with known minima, and stopped at any time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from hpfwi.errors import DataError
from hpfwi.inversion.lbfgs import LONGEST, SHORTEST, Lbfgs

Function = Callable[[torch.Tensor], torch.Tensor]

SCALES = torch.logspace(0, 3, 12, dtype=torch.float64)


def bowl(x: torch.Tensor) -> torch.Tensor:
    """A quadratic of condition 1000 whose minimum, 0, is at 1, 2, 3 and so on."""
    return 0.5 * (SCALES * (x.double() - torch.arange(1.0, 13.0)) ** 2).sum()


def valley(x: torch.Tensor) -> torch.Tensor:
    """Rosenbrock's function, minimum 0 at ones, with pairs of negative curvature on the way."""
    wide = x.double()
    return (100 * (wide[1:] - wide[:-1] ** 2) ** 2 + (1 - wide[:-1]) ** 2).sum()


def start_of(size: int = 12) -> list[torch.nn.Parameter]:
    """Two parameters that are one vector: the order counts."""
    return [torch.nn.Parameter(torch.zeros(size // 2)), torch.nn.Parameter(torch.zeros(size - size // 2))]


def evaluate(parameters: list[torch.nn.Parameter], function: Function) -> float:
    for parameter in parameters:
        parameter.grad = None
    value = function(torch.cat([parameter.ravel() for parameter in parameters]))
    value.backward()
    return float(value.detach())


def descend(
    parameters: list[torch.nn.Parameter],
    optimiser: Lbfgs,
    function: Function,
    evaluations: int,
    project: Callable[[], None] = lambda: None,
) -> list[float]:
    """The values of so many evaluations."""
    values = []
    for _ in range(evaluations):
        values.append(evaluate(parameters, function))
        optimiser.advance(values[-1])
        project()
    return values


def vector_of(parameters: list[torch.nn.Parameter]) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in parameters])


@pytest.mark.parametrize(("function", "evaluations"), [(bowl, 60), (valley, 150)])
def test_a_minimum_is_found(function: Function, evaluations: int) -> None:
    parameters = start_of()
    values = descend(parameters, Lbfgs(parameters, 0.5, 8), function, evaluations)
    assert min(values) < 1e-7 * values[0]


@pytest.mark.parametrize("function", [bowl, valley])
def test_saved_after_every_evaluation_and_taken_up_by_another_it_goes_the_same_way(function: Function) -> None:
    straight = start_of()
    values = descend(straight, Lbfgs(straight, 0.5, 3), function, 40)
    parameters, optimiser, found = start_of(), None, []
    arrays: dict[str, np.ndarray] = {}
    for _ in range(40):
        optimiser = Lbfgs(parameters, 0.5, 3)
        optimiser.load(arrays)
        found += descend(parameters, optimiser, function, 1)
        arrays = optimiser.arrays()
    assert found == values
    assert np.array_equal(vector_of(parameters), vector_of(straight))


def test_the_direction_is_that_of_the_inverse_hessian_of_all_pairs() -> None:
    """Against the matrix that BFGS updates, which the recursion never forms (Nocedal and Wright, equation 6.17)."""
    random = np.random.default_rng(1)
    filtering = np.diag(random.uniform(0.5, 2.0, 12))
    parameters = start_of()
    optimiser = Lbfgs(parameters, 0.5, 5, precondition=lambda vector: filtering @ vector)
    descend(parameters, optimiser, bowl, 9)
    saved = {name: value.astype(np.float64) for name, value in optimiser.arrays().items()}
    assert saved["steps"].shape == (5, 12)
    last_s, last_y = saved["steps"][-1], saved["changes"][-1]
    inverse = filtering * (last_s @ last_y) / (last_y @ filtering @ last_y)
    for step, change in zip(saved["steps"], saved["changes"], strict=True):
        ratio = 1 / (step @ change)
        left = np.eye(12) - ratio * np.outer(step, change)
        inverse = left @ inverse @ left.T + ratio * np.outer(step, step)
    assert saved["direction"] == pytest.approx(-inverse @ saved["gradient"], rel=1e-4)


def test_a_failed_trial_goes_back_for_a_shorter_step() -> None:
    parameters = start_of()
    optimiser = Lbfgs(parameters, 1.0, 8)
    descend(parameters, optimiser, bowl, 6)
    point, direction = (optimiser.arrays()[name].astype(np.float64) for name in ("point", "direction"))
    lengths = [optimiser.step_length]
    for value in (1e9, 1e9, 1e9):
        evaluate(parameters, bowl)
        optimiser.advance(value)
        arrays, optimiser = optimiser.arrays(), Lbfgs(parameters, 1.0, 8)
        optimiser.load(arrays)
        lengths.append(optimiser.step_length)
        assert vector_of(parameters) == pytest.approx(point + (lengths[-1] or 0.0) * direction, rel=1e-6)
        assert np.array_equal(optimiser.arrays()["point"], point)
    assert lengths == pytest.approx([1.0, SHORTEST, SHORTEST**2, SHORTEST**3])
    assert "steps" in optimiser.arrays()
    last = optimiser.arrays()["steps"][-1]
    optimiser.advance(1e9)  # patience ends: what it remembers must be wrong
    downhill = -optimiser.arrays()["gradient"].astype(np.float64)
    wanted = downhill * np.abs(last).max() / np.abs(downhill).max()
    assert optimiser.arrays()["direction"] == pytest.approx(wanted, rel=1e-6)
    assert "steps" not in optimiser.arrays()
    assert optimiser.step_length == 1.0
    slightly_worse = (optimiser.acceptable or 0.0) + 1e-12 * evaluate(parameters, bowl)
    optimiser.advance(slightly_worse)
    assert optimiser.step_length == pytest.approx(LONGEST, rel=1e-3)


def test_pairs_without_curvature_are_not_remembered() -> None:
    def hill(x: torch.Tensor) -> torch.Tensor:
        return -(x.double() - 1).square().sum()

    parameters = start_of()
    optimiser = Lbfgs(parameters, 0.1, 8)
    values = descend(parameters, optimiser, hill, 5)
    assert values == sorted(values, reverse=True)
    assert "steps" not in optimiser.arrays()
    parameters = start_of()
    optimiser = Lbfgs(parameters, 0.5, 8)
    descend(parameters, optimiser, bowl, 6)
    before = optimiser.arrays()
    step = vector_of(parameters) - before["point"]
    parameters[0].grad, parameters[1].grad = torch.from_numpy(before["gradient"] - step).split(6)
    optimiser.advance(-1.0)
    after = optimiser.arrays()
    assert np.array_equal(after["point"], before["point"] + step)
    assert np.array_equal(after["steps"], before["steps"])


def test_bounds_are_kept_and_what_lies_at_one_does_not_hold_the_others_back() -> None:
    parameters = start_of()

    def project() -> None:
        with torch.no_grad():
            for parameter in parameters:
                parameter.clamp_(0.5, 6.5)

    def movable(point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.asarray(~(((point <= 0.5) & (gradient > 0)) | ((point >= 6.5) & (gradient < 0))))

    project()
    optimiser = Lbfgs(parameters, 0.5, 8, movable)
    descend(parameters, optimiser, bowl, 80, project)
    assert vector_of(parameters) == pytest.approx(np.minimum(np.arange(1.0, 13.0), 6.5), rel=1e-3)
    with torch.no_grad():
        parameters[0].fill_(0.7)
    spreading = Lbfgs(parameters, 0.5, 8, movable, precondition=lambda vector: vector + 0.1 * vector.sum())
    descend(parameters, spreading, bowl, 1)
    assert not spreading.arrays()["direction"][6:].any()
    without = start_of()
    descend(without, Lbfgs(without, 0.5, 8), bowl, 80)
    assert vector_of(without).max() > 11.9


def test_an_end_keeps_the_accepted_point_and_no_memory() -> None:
    parameters = start_of()
    optimiser = Lbfgs(parameters, 0.5, 8)
    descend(parameters, optimiser, bowl, 7)
    accepted = optimiser.arrays()["point"]
    evaluate(parameters, bowl)
    optimiser.advance(1e9, ends=True)
    assert np.array_equal(vector_of(parameters), accepted)
    assert optimiser.arrays() == {}
    assert (optimiser.acceptable, optimiser.step_length) == (None, None)


def test_a_state_of_another_problem_is_refused() -> None:
    parameters = start_of()
    optimiser = Lbfgs(parameters, 0.5, 8)
    descend(parameters, optimiser, bowl, 4)
    other = Lbfgs([torch.nn.Parameter(torch.zeros(5))], 0.5, 8)
    with pytest.raises(DataError, match="fits no L-BFGS over 5 numbers"):
        other.load(optimiser.arrays())
    with pytest.raises(DataError, match="pixels/lr"):
        optimiser.load({"pixels/lr": np.array(1.0)})
