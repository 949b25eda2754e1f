"""Adam's state as arrays, and the order of items."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpfwi.errors import DataError
from hpfwi.inversion.optimise import (
    AdamSettings,
    batch_of_items,
    build_adam,
    iterations_per_pass,
    load_optimiser_state,
    optimiser_state,
)


def problem() -> tuple[list[torch.nn.Parameter], torch.optim.Adam]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), ())]
    groups = [
        {"params": parameters[:2], "lr": 1e-2, "name": "weights"},
        {"params": parameters[2:], "lr": 0.1, "name": "scale"},
    ]
    return parameters, build_adam(groups, AdamSettings())


def descend(parameters: list[torch.nn.Parameter], optimiser: torch.optim.Adam, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum((parameter - 1.0).pow(4).sum() for parameter in parameters)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimiser.step()


def test_saved_and_loaded_state_continues_bit_for_bit() -> None:
    straight, optimiser = problem()
    descend(straight, optimiser, 10)
    parameters, optimiser = problem()
    descend(parameters, optimiser, 5)
    optimiser.param_groups[1]["lr"] = 0.1 / 3.0
    saved = {name: array.copy() for name, array in optimiser_state(optimiser).items()}
    values = [parameter.detach().clone() for parameter in parameters]
    optimiser.param_groups[1]["lr"] = 0.1
    del optimiser

    resumed, fresh = problem()
    with torch.no_grad():
        for parameter, value in zip(resumed, values, strict=True):
            parameter.copy_(value)
    load_optimiser_state(fresh, saved)
    assert fresh.param_groups[1]["lr"] == 0.1 / 3.0
    fresh.param_groups[1]["lr"] = 0.1
    descend(resumed, fresh, 5)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert torch.equal(ours, theirs)


def test_the_state_is_a_copy_with_flat_names() -> None:
    parameters, optimiser = problem()
    descend(parameters, optimiser, 2)
    state = optimiser_state(optimiser)
    moments = {f"{owner}/{moment}" for owner in ("weights/0", "weights/1", "scale/0") for moment in MOMENTS}
    assert set(state) == moments | {"weights/lr", "scale/lr"}
    kept = state["weights/0/exp_avg"].copy()
    descend(parameters, optimiser, 1)
    np.testing.assert_array_equal(state["weights/0/exp_avg"], kept)
    assert float(state["scale/0/step"]) == 2.0


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def test_a_cleared_memory_is_saved_and_restored_as_cleared() -> None:
    parameters, optimiser = problem()
    descend(parameters, optimiser, 2)
    optimiser.state.clear()
    saved = optimiser_state(optimiser)
    assert set(saved) == {"weights/lr", "scale/lr"}
    descend(parameters, optimiser, 2)
    load_optimiser_state(optimiser, saved)
    assert len(optimiser.state) == 0


def test_state_of_another_problem_is_refused() -> None:
    parameters, optimiser = problem()
    descend(parameters, optimiser, 1)
    saved = optimiser_state(optimiser)
    with pytest.raises(DataError, match="background/0/exp_avg of shape"):
        load_optimiser_state(optimiser, {**saved, "background/0/exp_avg": np.zeros(5, np.float32)})
    with pytest.raises(DataError, match=r"weights/0/exp_avg of shape \(2,\)"):
        load_optimiser_state(optimiser, {**saved, "weights/0/exp_avg": np.zeros(2, np.float32)})
    with pytest.raises(DataError, match=r"lacks \['scale/lr'\]"):
        load_optimiser_state(optimiser, {name: array for name, array in saved.items() if name != "scale/lr"})


def test_group_names_must_differ() -> None:
    parameters, _ = problem()
    groups = [{"params": [parameter], "lr": 1.0, "name": "same"} for parameter in parameters]
    with pytest.raises(ValueError, match="own name"):
        build_adam(groups, AdamSettings())


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 40))
def test_every_item_is_used_once_in_a_pass(seed: int, n_items: int, batch: int) -> None:
    per_pass = iterations_per_pass(n_items, batch)
    for number in range(2):
        batches = [batch_of_items(seed, number * per_pass + part, n_items, batch) for part in range(per_pass)]
        assert Counter(item for items in batches for item in items) == Counter(range(n_items))
        sizes = [len(items) for items in batches]
        assert max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
        assert all(list(items) == sorted(items) for items in batches)


def test_batches_are_pinned_and_differ_between_passes_and_seeds() -> None:
    assert [batch_of_items(11, iteration, 13, 5) for iteration in range(3)] == PINNED
    assert len({batch_of_items(11, 3 * number, 13, 5) for number in range(8)}) > 4
    assert len({batch_of_items(seed, 0, 13, 5) for seed in range(8)}) > 4


PINNED = [(0, 3, 4, 6, 7), (1, 2, 10, 11), (5, 8, 9, 12)]


def test_no_batch_size_means_all_items() -> None:
    assert batch_of_items(0, 9, 4, None) == (0, 1, 2, 3)


@pytest.mark.parametrize(("n_items", "batch"), [(0, 1), (3, 0)])
def test_empty_batches_are_refused(n_items: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"n_items={n_items} and batch={batch}"):
        batch_of_items(0, 0, n_items, batch)
