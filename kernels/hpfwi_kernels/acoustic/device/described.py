"""What a propagation's points and layers come to in a device's memory, kept for calls that ask for the same again.

An inversion propagates between the same points in every iteration; building this takes as long as a small model's run.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.acoustic.cuda_call import Problem, describe, tap_arrays
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme

KEPT = 16
"""Propagations that are kept: bands of an inversion, or surveys that take turns."""


@dataclass(frozen=True, eq=False)
class OwnPart:
    """Which cells the sources' taps lie in, for the part of the velocity's gradient that the wavelets have."""

    source: Tensor
    """int64[tap] source of the tap, of all shots"""
    taps: Tensor
    """int64[group, most taps of one] taps of each cell of each shot, in order; 0 behind the last"""
    there: Tensor
    """bool[group, most taps of one] whether that is one"""
    shot: Tensor
    """int64[group]"""
    cell: Tensor
    """int64[group] cell of the padded model"""


@dataclass(frozen=True, eq=False)
class Described:
    """A description without a model and wavelets, and what its addresses point into."""

    problem: Problem
    """`factor` and `drive` are 0."""
    block: Tensor
    own: OwnPart


class _Asked:
    """What is described as the key of a cache: equal where every byte of it is, by a digest of the points."""

    def __init__(
        self, scheme: Scheme, sources: Points, receivers: Points, models: int, steps: int, device: torch.device
    ) -> None:
        self.scheme, self.points, self.device = scheme, (sources, receivers), device
        self.models, self.steps = models, steps
        digest = hashlib.blake2b(digest_size=32)
        for array in (sources.cells, sources.weights, receivers.cells, receivers.weights):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        self.key = (scheme, sources.shape, models, steps, device, digest.digest())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


def described(
    scheme: Scheme, sources: Points, receivers: Points, *, models: int, steps: int, device: torch.device
) -> Described:
    """The description of a propagation in a device's memory, of the last ones that were asked for or built now.

    models, steps   how many of each
    """
    found = _described(_Asked(scheme, sources, receivers, models, steps, device))
    if device.type == "cuda":  # it may have been built in another stream than the one that reads it
        for one in (found.block, *vars(found.own).values()):
            one.record_stream(torch.cuda.current_stream(device))
    return found


@functools.lru_cache(maxsize=KEPT)
def _described(asked: _Asked) -> Described:
    placed: list[Tensor] = []
    (sources, receivers), device = asked.points, asked.device

    def place(block: NDArray[np.uint8]) -> int:
        placed.append(torch.from_numpy(block).to(device))
        return placed[0].data_ptr()

    problem = describe(
        asked.scheme, sources, receivers, models=asked.models, steps=asked.steps, factor=0, drive=0, place=place
    )
    del asked.points  # the key alone is kept
    return Described(problem, placed[0], _own_part(sources, asked.scheme, device))


def _own_part(sources: Points, scheme: Scheme, device: torch.device) -> OwnPart:
    arrays = {name: array for name, array in tap_arrays(sources, scheme).items() if array.dtype == np.int32}
    starts = arrays["group_starts"].astype(np.int64)
    place = starts[:-1, None] + np.arange(np.diff(starts).max())
    there = place < starts[1:, None]
    taps = np.where(there, arrays["group_taps"][np.where(there, place, 0)], 0)
    of_points, of_groups = np.diff(arrays["point_starts"]), np.diff(arrays["shot_groups"])

    def moved(array: NDArray) -> Tensor:
        return torch.from_numpy(array if array.dtype == bool else array.astype(np.int64)).to(device)

    return OwnPart(
        source=moved(np.repeat(np.arange(len(of_points)), of_points)),
        taps=moved(taps),
        there=moved(there),
        shot=moved(np.repeat(np.arange(len(of_groups)), of_groups)),
        cell=moved(arrays["group_cells"]),
    )
