"""Velocities for records that came from anywhere: .npy in, .npy out, a few samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.npy_files import open_npy, write_npy
from hpfwi.training.forward import in_mps
from hpfwi.training.outputs import require_free
from hpfwi.training.trained import Which
from hpfwi.training.weights import open_network

_AT_ONCE = 64
"""Samples in memory at a time: about 100 MB of OpenFWI's records."""


def predict(
    network: Path,
    records: Path,
    out: Path,
    *,
    which: Which = "best",
    normalised: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, samples: None,
) -> tuple[int, ...]:
    """Write the velocities that a trained network finds for records; returns the shape of what was written.

    network     folder of a training run, or a file of `hpfwi export`
    records     .npy, real[sample, shot, time, receiver], or one sample without the first axis, in the unit and with
                the geometry that the network was trained on
    out         .npy, float32[sample, z, x] in m/s, or [z, x] for one sample; appears whole or not at all
    which       checkpoint of a run
    normalised  write the network's own scale in place of m/s
    progress    told after every part how many samples of how many are done

    raises      ConfigError: out is there already, or the network cannot tell m/s; DataError: no such
                network, records that do not fit, or a disk that refuses
    """
    require_free(out, overwrite=overwrite)
    trained = open_network(network, which, device=device)
    settings = trained.config.training
    file = open_npy(records)
    single = file.shape == trained.records_shape
    if not single and file.shape[1:] != trained.records_shape:
        wanted = list(trained.records_shape)
        raise DataError(
            f"{records} has shape {list(file.shape)}; this network takes [shot, time, receiver] = {wanted}, with or "
            "without samples before it."
        )
    samples = 1 if single else file.samples
    shape = trained.config.network.model_shape
    assert shape is not None  # a run folder's configuration is resolved

    def velocities() -> Iterator[NDArray[np.float32]]:
        for first in range(0, samples, _AT_ONCE):
            count = min(_AT_ONCE, samples - first)
            part = file.read(0, file.samples)[None] if single else file.read(first, count)
            values = trained.predict(part, first=first)
            yield values if normalised else in_mps(settings, values)
            progress(first + count, samples)

    final = shape if single else (samples, *shape)
    write_npy(out, final, velocities(), overwrite=overwrite)
    return final
