"""Copies of a network that compute slices at the same time, and the vector that a slice adds to the step's sum.

A slice must be a pure function of the state at the start of its step, and several run in threads of one process. So
each takes a copy of the network that shares the weights' memory, has gradients and batch-norm statistics of its own,
and starts from the statistics of the step's start.

The vector is the gradient of every trained parameter, one after another, followed by the running means and variances of
batch norm, all weighted by the slice's share of the batch: the sum over slices is the batch's gradient, and the mean of
the statistics that each slice alone would have led to. It is added in fixed point, whose resolution is set by the
largest element; a power of two brings the statistics to the size of the gradients, so that neither costs the other
digits.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.checkpoints import part_of
from hpfwi.errors import DataError

STATISTICS = ("running_mean", "running_var")
"""Batch norm's buffers; its counter of batches is left out, because no network here averages over all batches."""


def statistics_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Running means and variances of batch norm by name, in the order of the layers."""
    return {name: buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] in STATISTICS}


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything that makes a trained network, by name: parameters, frozen ones too, and batch-norm statistics."""
    return dict(network.named_parameters()) | statistics_of(network)


def trained_parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters that receive gradients, in the order of the vector."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def put_weights(weights: Mapping[str, torch.Tensor], saved: Mapping[str, np.ndarray], prefix: str) -> None:
    """Copy the saved arrays whose names begin with `prefix` into tensors of the same names and shapes.

    raises      DataError: names or shapes that differ
    """
    arrays = part_of(saved, prefix)
    wrong = sorted(set(weights) ^ set(arrays))
    wrong += [name for name, value in weights.items() if name in arrays and tuple(value.shape) != arrays[name].shape]
    if wrong:
        raise DataError(
            f"The saved state does not fit this configuration ({len(wrong)} names or shapes differ, the first "
            f"{wrong[0]}); use the run it belongs to."
        )
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(torch.from_numpy(np.array(arrays[name])))


class Replicas:
    """Copies of `network` that share its weights, made when more are in use than there are.

    compiled    by torch.compile, each at its first use; of VelocityGAN the generator alone, because the critic is
                differentiated twice, which compiled code cannot be
    """

    def __init__(self, network: torch.nn.Module, *, compiled: bool = False) -> None:
        self._network = network
        self._compiled = compiled
        self._idle: list[torch.nn.Module] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def training(self) -> Iterator[torch.nn.Module]:
        """A copy in training mode, without gradients, whose batch-norm statistics are the network's and its own."""
        with self._one(weights_of(self._network)) as replica:
            own = statistics_of(replica)
            for name, value in statistics_of(self._network).items():
                own[name].data = value.detach().clone()
            replica.train()
            yield replica

    @contextlib.contextmanager
    def judging(self, weights: Mapping[str, torch.Tensor]) -> Iterator[torch.nn.Module]:
        """A copy in evaluation mode with these weights (see `weights_of`)."""
        with self._one(weights) as replica:
            replica.eval()
            yield replica

    @contextlib.contextmanager
    def _one(self, weights: Mapping[str, torch.Tensor]) -> Iterator[torch.nn.Module]:
        with self._lock:
            replica = self._idle.pop() if self._idle else None
        if replica is None:
            replica = copy.deepcopy(self._network)
            if self._compiled:
                replica.compile()
        for name, tensor in weights_of(replica).items():
            tensor.data = weights[name].data
            tensor.grad = None
        try:
            yield replica
        finally:
            for parameter in replica.parameters():
                parameter.grad = None
            with self._lock:
                self._idle.append(replica)


def vector_of(replica: torch.nn.Module, share: float, exponent: int) -> NDArray[np.float32]:
    """Gradients and batch-norm statistics of a copy after its slice, float32[values].

    share      of the batch that the slice is
    exponent   the statistics are multiplied by 2 to this power

    A parameter that the slice did not reach counts with a gradient of zero.
    """
    parts = [
        torch.zeros_like(parameter).reshape(-1) if parameter.grad is None else parameter.grad.reshape(-1)
        for parameter in trained_parameters(replica)
    ]
    factor = share * math.ldexp(1.0, exponent)
    weighted = [part * share for part in parts] + [
        value.reshape(-1) * factor for value in statistics_of(replica).values()
    ]
    vector: NDArray[np.float32] = torch.cat(weighted).cpu().numpy()
    return vector


def largest_gradient(network: torch.nn.Module, total: NDArray[np.floating]) -> float:
    """The largest magnitude among the gradients of a step's sum (see `take_total`); NaN where one is."""
    gradients = total[: sum(parameter.numel() for parameter in trained_parameters(network))]
    return max(float(gradients.max(initial=0.0)), -float(gradients.min(initial=0.0)))


def take_total(network: torch.nn.Module, total: NDArray[np.floating], exponent: int, largest: float) -> int:
    """Put a step's sum into the network: gradients into `grad`, statistics in place; returns the exponent to use next.

    total      float64[values] or float32[values], as `vector_of` orders them
    exponent   that the statistics were scaled with
    largest    of the gradients
    """
    first = 0
    for parameter in trained_parameters(network):
        values = _piece(total, first, parameter.shape)
        parameter.grad = torch.empty_like(parameter).copy_(torch.from_numpy(values))
        first += parameter.numel()
    gradients = first
    scale = math.ldexp(1.0, -exponent)
    for buffer in statistics_of(network).values():
        buffer.copy_(torch.from_numpy(_piece(total, first, buffer.shape) * scale))
        first += buffer.numel()
    if first == gradients:
        return 0
    return math.frexp(largest)[1] - math.frexp(float(np.abs(total[gradients:] * scale).max()))[1]


def _piece(total: NDArray[np.floating], first: int, shape: Sequence[int]) -> NDArray[np.floating]:
    return total[first : first + math.prod(shape)].reshape(tuple(shape))
