"""Batch norm with the statistics of the whole batch, whichever slices it is cut into and whoever computes them.

A slice halts at every batch norm until the sums of all slices are known: those of its values on the way forward, and
those that its derivative needs on the way back (Ioffe & Szegedy 2015, section 3). What it halts with is one item of an
iteration of the group, so these sums are exact and survive a loss of workers like any other. A slice that another rank
takes up is computed there from its beginning, with the sums that are known.

On the way forward the graph is cut behind each norm: its output is a leaf. On the way back the cuts are taken in
reverse, and by then a leaf has its whole gradient, since everything that used it came after it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALL_BUT_CHANNELS = (0, 2, 3)
Forward = Callable[[torch.nn.Module], dict[str, torch.Tensor]]
"""From a copy of the network to the terms of a slice's loss, each a mean over its samples."""


class SharedNorm(torch.nn.BatchNorm2d):
    """A batch norm that asks, while it is trained by a `HaltedSlice`, for the statistics of the batch."""

    ask: Callable[[SharedNorm, torch.Tensor], torch.Tensor] | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What torch.nn.BatchNorm2d returns, for the batch that these samples are a part of."""
        return super().forward(features) if self.ask is None else self.ask(self, features)


def share_statistics(network: torch.nn.Module) -> int:
    """Put a `SharedNorm` with the same weights in place of every torch.nn.BatchNorm2d; returns how many there are."""
    found: dict[torch.nn.Module, SharedNorm] = {}
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if type(child) is torch.nn.BatchNorm2d:
                if child not in found:
                    found[child] = norm = SharedNorm(child.num_features, child.eps, child.momentum)
                    norm._parameters, norm._buffers = child._parameters, child._buffers
                module._modules[name] = found[child]
    return len(found)


@dataclass(eq=False)
class _Visit:
    """A norm that a slice came by.

    entered   what it was given, with the graph behind it
    left      its output, a leaf
    count     values of a channel over the whole batch
    mean      float32[channel, 1, 1] of them
    scale     float32[channel, 1, 1], one over their deviation
    """

    norm: SharedNorm
    entered: torch.Tensor
    left: torch.Tensor
    count: float
    mean: torch.Tensor
    scale: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        return self.entered.detach().float()

    def gradient(self) -> torch.Tensor:
        """Of the output, once everything that used it was gone back through."""
        return torch.zeros_like(self.values) if self.left.grad is None else self.left.grad.float()

    def own_sums(self) -> NDArray[np.float64]:
        """Sums over this slice of `gradient`, plain and times the standardised values, float64[2, channel]."""
        gradient = self.gradient()
        plain = gradient.sum(dim=_ALL_BUT_CHANNELS, dtype=torch.float64)
        weighted = ((self.values - self.mean) * gradient).sum(dim=_ALL_BUT_CHANNELS, dtype=torch.float64)
        return np.stack([_wide(plain), _wide(weighted * self.scale.flatten())])


class _GivenUp(Exception):
    """Ends the thread of a slice that nobody waits for."""


class HaltedSlice:
    """One slice on its way through a copy of the network and back, from one norm to the next.

    replica   a copy in training mode, this slice's alone until `close`
    forward   called once, in a thread of its own
    share     of the batch that the slice is
    """

    def __init__(self, replica: torch.nn.Module, forward: Forward, share: float) -> None:
        self.terms: dict[str, float] = {}
        """Of the loss, once the way forward is done."""
        self.phase = 0
        """Sums that were given to it so far."""
        self.sums: NDArray[np.float64] | None
        """What it halted with, float64[2 * channel]; None at the end, when the copy has its gradients."""
        self.replica = replica
        self._forward, self._share = forward, share
        self._visits: list[_Visit] = []
        self._pending: tuple[_Visit, NDArray[np.float64]] | None = None
        """The norm whose total is waited for on the way back, and this slice's own sums there."""
        self._answers: queue.SimpleQueue[NDArray[np.float64] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._norms = [module for module in replica.modules() if isinstance(module, SharedNorm)]
        for norm in self._norms:
            norm.ask = self._ask
        threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(threads,), name="hpfwi-slice", daemon=True)
        self._thread.start()
        try:
            self._listen()
        except BaseException:
            self.close()
            raise

    def give(self, total: NDArray[np.float64]) -> None:
        """Go on with the sum over all slices of what they halted with, to where `sums` is asked for next."""
        self.phase += 1
        if self._thread.is_alive():
            self._answers.put(total)
            self._listen()
        else:
            assert self._pending is not None  # there are sums on the way back until the first norm has its total
            self._return_through(*self._pending, total)
            self._halt_on_the_way_back()

    def close(self) -> None:
        """End the thread; the copy of the network may be used for another slice."""
        self._answers.put(None)
        self._thread.join()
        for norm in self._norms:
            norm.ask = None
        self._visits.clear()

    def _run(self, threads: int) -> None:
        """The way forward, in the slice's own thread."""
        torch.set_num_threads(threads)
        try:
            self._told.put(self._forward(self.replica))
        except _GivenUp:
            pass
        except BaseException as error:
            self._told.put(error)

    def _listen(self) -> None:
        """Wait for the way forward to halt or to end."""
        told = self._told.get()
        if isinstance(told, np.ndarray):
            self.sums = told
            return
        self._thread.join()
        if isinstance(told, BaseException):
            raise told
        self.terms = {name: float(value.detach()) for name, value in told.items()}
        # Maps may be shared between what several norms were given, so the graph is kept until the end.
        torch.stack(list(told.values())).sum().backward(retain_graph=True)
        self._halt_on_the_way_back()

    def _ask(self, norm: SharedNorm, features: torch.Tensor) -> torch.Tensor:
        """The output of a norm, once the statistics of the batch are known; runs in the slice's own thread."""
        values = features.detach().float()
        own_variance, own_mean = torch.var_mean(values, dim=_ALL_BUT_CHANNELS, correction=0)
        own_count = values.numel() // values.shape[1]
        own = np.stack([_wide(own_mean), _wide(own_variance)])
        self._told.put(own_count * np.concatenate([own[0], own[1] + np.square(own[0])]))
        total = self._answers.get()
        if total is None:
            raise _GivenUp
        count = own_count / self._share
        mean, square = total.reshape(2, -1) / count
        variance = np.maximum(square - np.square(mean), 0.0)
        with torch.no_grad():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.momentum is not None
            norm.running_mean.lerp_(_narrow(mean, values), norm.momentum)
            norm.running_var.lerp_(_narrow(variance * count / max(1.0, count - 1), values), norm.momentum)
            mean_of, variance_of = _narrow(mean, values), _narrow(variance, values)
            out = torch.nn.functional.batch_norm(
                values, mean_of, variance_of, norm.weight, norm.bias, training=False, eps=norm.eps
            )
            left = out.to(features.dtype).requires_grad_()
            scale = torch.rsqrt(variance_of + norm.eps)
            visit = _Visit(norm, features, left, count, mean_of[:, None, None], scale[:, None, None])
        self._visits.append(visit)
        return visit.left

    def _halt_on_the_way_back(self) -> None:
        """Ask for the sums of the last norm that is left, or end."""
        self._pending = self.sums = None
        if self._visits:
            visit = self._visits.pop()
            own = visit.own_sums()
            self._pending, self.sums = (visit, own), self._share * own.reshape(-1)

    def _return_through(self, visit: _Visit, own: NDArray[np.float64], total: NDArray[np.float64]) -> None:
        """Add the gradients of a norm's weights, and those of all that led to it since the norms before.

        A slice's own gradients are those of its mean loss: they are weighted by its share later. So the batch's means
        are divided by that share here.
        """
        norm = visit.norm
        for weight, sums in ((norm.weight, own[1]), (norm.bias, own[0])):
            gradient = _narrow(sums, visit.left)
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        if not visit.entered.requires_grad:
            return
        plain, weighted = (
            _narrow(mean, visit.left)[:, None, None] for mean in total.reshape(2, -1) / (visit.count * self._share)
        )
        # (gradient - plain - weighted * standardised values) * factor, in few passes over the map.
        factor = visit.scale * norm.weight.detach()[:, None, None]
        slope = weighted * visit.scale * factor
        through = visit.gradient().mul(factor).sub_((visit.values - visit.mean).mul_(slope)).sub_(plain * factor)
        torch.autograd.backward(visit.entered, through.to(visit.entered.dtype), retain_graph=True)


def _wide(values: torch.Tensor) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = values.double().cpu().numpy()
    return wide


def _narrow(values: NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(device=like.device, dtype=torch.float32)
