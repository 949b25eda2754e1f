"""The optimiser's settings, Adam over named parameter groups, its state as plain arrays, and the order of items."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from hpfwi.errors import DataError


class AdamSettings(BaseModel):
    """Adam's constants; the rates belong to the parameterisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of Adam's mean gradient.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of Adam's mean squared gradient.")
    eps: float = Field(
        default=1e-8,
        gt=0,
        description="Added to the root of Adam's mean squared gradient; gradients far below it move nothing, so lower "
        "it when the gathers, and with them the gradients, are tiny.",
    )


class OptimiserSettings(AdamSettings):
    """Which optimiser takes the steps of an inversion, and its constants."""

    kind: Literal["adam", "lbfgs"] = Field(
        default="adam",
        description="adam, or lbfgs: quasi-Newton steps with a line search, of which every trial is one iteration. It "
        "needs all shots in every iteration, and the parameterisation pixel, s-denorm or pretrain.",
    )
    memory: int = Field(default=8, ge=1, description="Steps that lbfgs remembers the curvature of.")
    first_step: float = Field(
        default=40.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest change of a number in the first step of lbfgs, as a multiple of the rate that Adam would "
        "take; the length of later steps follows from the curvature.",
    )


def build_adam(groups: Sequence[Mapping[str, Any]], settings: AdamSettings) -> torch.optim.Adam:
    """Adam for groups {"params", "lr", "name"}; the names must differ, for the state is stored under them."""
    names = [group["name"] for group in groups]
    if len(set(names)) != len(names):
        raise ValueError(f"Parameter groups are named {names}. Give every group its own name.")
    return torch.optim.Adam(
        [dict(group) for group in groups], betas=(settings.beta1, settings.beta2), eps=settings.eps, foreach=False
    )


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Everything the optimiser remembers, by flat name, without loss: '<group>/lr', '<group>/<index>/<moment>'.

    A parameter that has not been stepped, or whose memory was cleared, has no entries.
    """
    arrays: dict[str, np.ndarray] = {}
    for group in optimiser.param_groups:
        arrays[f"{group['name']}/lr"] = np.array(group["lr"], dtype=np.float64)
        for index, parameter in enumerate(group["params"]):
            for moment, value in optimiser.state.get(parameter, {}).items():
                arrays[f"{group['name']}/{index}/{moment}"] = np.array(value.detach().cpu().numpy())
    return arrays


def load_optimiser_state(optimiser: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """Put back what `optimiser_state` returned, into an optimiser over the same groups.

    raises   DataError: an entry for a group, parameter or shape that this optimiser has not, or no rate for a group
    """
    parameters = {
        f"{group['name']}/{index}": parameter
        for group in optimiser.param_groups
        for index, parameter in enumerate(group["params"])
    }
    rates = {f"{group['name']}/lr" for group in optimiser.param_groups}
    missing = sorted(rates - arrays.keys())
    if missing:
        raise DataError(f"The saved optimiser state lacks {missing}. Resume with the configuration that saved it.")
    state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        if name in rates:
            continue
        owner, _, moment = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or (array.ndim > 0 and array.shape != tuple(parameter.shape)):
            raise DataError(
                f"The saved optimiser state has {name} of shape {array.shape}, which fits no parameter here. "
                "Resume with the configuration that saved it."
            )
        # Adam keeps its step counter on the CPU whatever the parameter's device.
        device = parameter.device if array.ndim else torch.device("cpu")
        state.setdefault(parameter, {})[moment] = torch.from_numpy(np.array(array)).to(device)
    for group in optimiser.param_groups:
        group["lr"] = float(arrays[f"{group['name']}/lr"])
    optimiser.state.clear()
    for parameter, moments in state.items():
        optimiser.state[parameter] = moments


def iterations_per_pass(n_items: int, batch: int | None) -> int:
    """Iterations that `batch_of_items` needs to visit every item once."""
    return 1 if batch is None else -(-n_items // batch)


def batch_of_items(seed: int, iteration: int, n_items: int, batch: int | None) -> tuple[int, ...]:
    """Items of one iteration, ascending, at most `batch` of them (None: all); a pure function of its arguments.

    Iterations come in passes. Each pass shuffles all items and deals them out in near-equal batches (sizes differ by at
    most one), so every item is used exactly once before any is used again.

    >>> sorted(batch_of_items(7, 0, 5, 3) + batch_of_items(7, 1, 5, 3))
    [0, 1, 2, 3, 4]
    """
    if n_items < 1 or (batch is not None and batch < 1):
        raise ValueError(f"n_items={n_items} and batch={batch} make no batch. Both must be at least 1.")
    per_pass = iterations_per_pass(n_items, batch)
    number, part = divmod(iteration, per_pass)
    # Sorting raw output of a bit generator: NumPy freezes that stream, but not the algorithm behind `permutation`.
    keys = np.random.PCG64(np.random.SeedSequence([seed, number])).random_raw(n_items)
    shuffled = np.argsort(keys, kind="stable")
    return tuple(sorted(int(item) for item in np.array_split(shuffled, per_pass)[part]))
