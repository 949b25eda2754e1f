"""Which sample comes when: a pure function of seed, epoch and step, in plain integer arithmetic.

No generator is carried along and no library's random stream is used, so any process, on any machine and with any number
of others, finds the samples of any step at once; a resumed run needs to know nothing but where it was.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import ConfigError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The mixing function of SplitMix64 (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of 0 … samples-1, int64[samples], read-only.

    Every sample gets a 64-bit key, a hash of (seed, epoch, sample), and the keys are sorted.

    seed, epoch   from 0 to 2^63 - 1

    >>> order(7, 0, 8).tolist(), order(7, 1, 8).tolist()
    ([3, 7, 1, 6, 4, 0, 5, 2], [2, 1, 5, 3, 6, 0, 7, 4])
    """
    if min(seed, epoch) < 0 or max(seed, epoch) >= 2**63 or samples < 1:
        raise ConfigError(
            f"seed={seed}, epoch={epoch}, samples={samples} give no order: seed and epoch start from 0, samples from 1."
        )
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        start = _mixed(np.array([seed], dtype=np.uint64) + _GAMMA)
        start = _mixed((start ^ np.uint64(epoch)) + _GAMMA)
        keys = _mixed(start + _GAMMA * np.arange(1, samples + 1, dtype=np.uint64))
    found = np.argsort(keys, kind="stable").astype(np.int64)
    found.flags.writeable = False
    return found


def mirrored(seed: int, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which samples an epoch shows mirrored, bool[sample]: each in every second epoch, about half of them in each.

    samples     their numbers, in any order

    >>> mirrored(7, 0, np.arange(8)).tolist()
    [False, True, True, True, False, False, False, True]
    >>> bool(np.any(mirrored(7, 1, np.arange(8)) == mirrored(7, 0, np.arange(8))))
    False
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        start = _mixed(~np.array([seed], dtype=np.uint64) + _GAMMA)  # another stream than the order's
        keys = _mixed(start + _GAMMA * (samples.astype(np.uint64) + np.uint64(1)))
    return (keys & np.uint64(1)).astype(bool) ^ bool(epoch & 1)


def steps_per_epoch(samples: int, batch: int) -> int:
    """Whole batches in an epoch; the samples that are left over are others in every epoch.

    raises  ConfigError: there is not even one

    >>> steps_per_epoch(1030, 20)
    51
    """
    if not 1 <= batch <= samples:
        raise ConfigError(f"A batch of {batch} of {samples} samples is impossible: take 1 to {samples}.")
    return samples // batch


def batch_indices(seed: int, epoch: int, step: int, batch: int, samples: int) -> NDArray[np.int64]:
    """The samples of one step, int64[batch]; steps count from 0 in every epoch.

    raises  ConfigError: a batch larger than the set, a step beyond the epoch
    """
    steps = steps_per_epoch(samples, batch)
    if not 0 <= step < steps:
        raise ConfigError(f"Step {step} is beyond the epoch: {samples} samples make {steps} batches of {batch}.")
    return order(seed, epoch, samples)[step * batch : (step + 1) * batch]


def slice_of(indices: NDArray[np.int64], slot: int, slots: int) -> NDArray[np.int64]:
    """The part of a batch that slot number `slot` of `slots` computes: neighbours, sizes that differ by one at most.

    raises  ConfigError: a slot that does not exist, or more slots than samples

    >>> [slice_of(np.arange(10), slot, 4).tolist() for slot in range(4)]
    [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    """
    size = len(indices)
    if not 0 <= slot < slots <= size:
        raise ConfigError(
            f"Slot {slot} of {slots} of a batch of {size} is impossible: slots are 0 to {slots - 1}, and none is empty."
        )
    return indices[size * slot // slots : size * (slot + 1) // slots]
