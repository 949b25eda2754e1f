"""Looking at pairs as a whole: do the files of a store match their checksums, and what do its samples look like?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.store.pair_manifest import ARRAYS, layouts_of
from hpfwi.store.pair_values import SLOWEST_PLAUSIBLE_MPS, statistics_of, sums_of

Progress = Callable[[int, int], None]

BLOCK_BYTES = 64_000_000
"""Samples that are looked at together take at most this much memory (a single one may take more)."""

_PHASE = (73 * 15.0 * 0.001 * math.pi) ** 2
FIRST_OF_WAVELET = (1 - 2 * _PHASE) * math.exp(-_PHASE)
"""First value of OpenFWI's wavelet: a Ricker of 15 Hz in 147 samples of 1 ms, 73 samples before its centre."""

SOURCE_VELOCITY_GAP = 0.01
"""Relative distance between two velocities under a source beyond which records and models hardly belong together."""


class Pairs(Protocol):
    """What a store and published files have in common."""

    @property
    def samples(self) -> int: ...
    @property
    def records_shape(self) -> tuple[int, int, int]: ...
    @property
    def model_shape(self) -> tuple[int, int]: ...
    @property
    def family(self) -> str: ...
    @property
    def physics(self) -> dict[str, Any]: ...
    @property
    def splits(self) -> dict[str, range]: ...

    def read(self, indices: range) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Records float32[n, shot, time, receiver] and models float32[n, z, x], m/s."""


@dataclass
class Findings:
    """What an inspection found.

    statistics      min, max, mean, std of "records" and of "models", over the samples that are sound
    defects         sentences about what makes samples unusable
    remarks         sentences about what is unusual, and may be meant
    """

    statistics: dict[str, dict[str, float]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass
class _Block:
    """What was seen in some neighbouring samples; every list holds numbers of samples."""

    sums: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {name: [] for name in ARRAYS})
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    not_positive: list[int] = field(default_factory=list)
    too_slow: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    mismatched: list[int] = field(default_factory=list)
    digests: list[tuple[bytes, int]] = field(default_factory=list)

    def add(self, later: _Block) -> None:
        """Add what was seen in the samples that follow."""
        for name in ARRAYS:
            self.sums[name] += later.sums[name]
        for sentence, samples in later.unreadable.items():
            self.unreadable.setdefault(sentence, []).extend(samples)
        for attribute in ("not_finite", "not_positive", "too_slow", "constant", "silent", "mismatched", "digests"):
            getattr(self, attribute).extend(getattr(later, attribute))


def verify_pairs(
    path: Path, manifest: dict[str, Any], *, threads: int = 2, progress: Progress = lambda done, files: None
) -> list[str]:
    """Compare every file of a store with the sha256 in its manifest; returns one sentence for each that fails.

    progress    called with the files that are compared and all of them
    """
    expected: dict[str, str] = {f"{name}/zarr.json": "" for name in ARRAYS}
    for name, layout in layouts_of(manifest).items():
        for shard in range(layout.shards):
            samples = layout.samples_of(shard)
            expected[f"{name}/{layout.file_of(shard)}"] = f" (samples {samples.start} to {samples.stop - 1})"

    def problem(item: tuple[str, str]) -> str | None:
        file, samples = item
        try:
            with (path / file).open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            return f"{path / file}{samples} cannot be read ({error.strerror or error})."
        if found != manifest["files"].get(file):
            return f"{path / file}{samples} does not match its sha256: it is damaged."
        return None

    problems = []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done, sentence in enumerate(pool.map(problem, expected.items()), start=1):
            problems += [sentence] if sentence else []
            progress(done, len(expected))
    return problems


def inspect_pairs(pairs: Pairs, *, threads: int = 2, progress: Progress = lambda done, samples: None) -> Findings:
    """Read every sample once and say what is in them.

    progress    called with the samples that were read and all of them
    """
    size = 4 * (int(np.prod(pairs.records_shape)) + int(np.prod(pairs.model_shape)))
    step = max(1, BLOCK_BYTES // size)
    blocks = [range(first, min(first + step, pairs.samples)) for first in range(0, pairs.samples, step)]
    whole = _Block()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for samples, block in zip(blocks, pool.map(partial(_look, pairs), blocks), strict=True):
            whole.add(block)
            progress(samples.stop, pairs.samples)
    return _findings(pairs, whole)


def _look(pairs: Pairs, samples: range) -> _Block:
    """What is in these samples; where one cannot be read, the others still are."""
    try:
        records, models = pairs.read(samples)
    except DataError as error:
        if len(samples) == 1:
            return _Block(unreadable={str(error): [samples.start]})
        block = _Block()
        for sample in samples:
            block.add(_look(pairs, range(sample, sample + 1)))
        return block
    block = _Block()
    sound = np.isfinite(records).all(axis=(1, 2, 3)) & np.isfinite(models).all(axis=(1, 2))
    numbers = np.asarray(samples)
    block.not_finite = numbers[~sound].tolist()
    low, high = models.min(axis=(1, 2)), models.max(axis=(1, 2))
    block.not_positive = numbers[sound & (low <= 0)].tolist()
    block.too_slow = numbers[sound & (low > 0) & (high < SLOWEST_PLAUSIBLE_MPS)].tolist()
    block.constant = numbers[sound & (low == high)].tolist()
    block.silent = numbers[sound & (~np.any(records, axis=(2, 3))).any(axis=1)].tolist()
    gap = source_velocity_gap(records, models, pairs.physics)
    if gap is not None:
        block.mismatched = numbers[sound & ~(gap <= SOURCE_VELOCITY_GAP)].tolist()
    block.digests = [
        (hashlib.blake2b(model.tobytes(), digest_size=16).digest(), number)
        for model, number in zip(models, samples, strict=True)
    ]
    for name, values in (("records", records), ("models", models)):
        if sound.any():
            block.sums[name].append(sums_of(values[sound].reshape(int(sound.sum()), -1), as_float16=False))
    return block


def source_velocity_gap(
    records: NDArray[np.float32], models: NDArray[np.float32], physics: dict[str, Any]
) -> NDArray[np.float64] | None:
    """Largest relative distance between the velocity that a record tells under its sources and the model's, by sample.

    In OpenFWI's scheme the first sample of a source's own receiver is (v dt)² times the first value of the wavelet, so
    every record tells those velocities, float64[sample]. None where the records were not made in that way.
    """
    if physics.get("recipe") != "openfwi" or physics.get("receivers_m") is None:
        return None
    step_m, dt_s = float(physics["dx_m"]), float(physics["dt_s"])
    cells = np.rint(np.asarray(physics["sources_m"]) / step_m).astype(int)
    shots = np.arange(len(cells))
    first = records[:, shots, 0, cells[:, 1]].astype(np.float64)
    told = np.sqrt(np.maximum(first / FIRST_OF_WAVELET, 0.0)) / dt_s
    under = models[:, cells[:, 0], cells[:, 1]].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap: NDArray[np.float64] = np.abs(told / under - 1.0).max(axis=1)
    return gap


def _findings(pairs: Pairs, seen: _Block) -> Findings:
    found = Findings()
    for sentence, where in seen.unreadable.items():
        found.defects.append(f"{_listed(where)} cannot be read: {sentence}")
    for where, what in (
        (seen.not_finite, "NaN or infinity in {}."),
        (seen.not_positive, "Velocities that are not positive in {}."),
        (seen.too_slow, f"Models below {SLOWEST_PLAUSIBLE_MPS:g} m/s everywhere, as if in km/s, in {{}}."),
    ):
        found.defects += [what.format(_listed(where))] if where else []
    for where, what in (
        (seen.constant, "A constant model in {}."),
        (seen.silent, "A shot that recorded nothing but zeros in {}."),
        (
            seen.mismatched,
            f"Records that tell a velocity under their sources more than {SOURCE_VELOCITY_GAP:.0%} off their model in "
            "{}: are they paired rightly?",
        ),
    ):
        found.remarks += [what.format(_listed(where))] if where else []
    found.remarks += _repeated(pairs, seen.digests)
    if seen.sums["records"]:
        found.statistics = {name: statistics_of(seen.sums[name]) for name in ARRAYS}
        bounds, span = pairs.physics.get("benchmark_amplitudes"), found.statistics["records"]
        # The benchmark states two decimals.
        if bounds and (span["min"] < bounds[0] - 0.01 or span["max"] > bounds[1] + 0.01):
            found.remarks.append(
                f"The records span {span['min']:.4g} to {span['max']:.4g}, beyond the {bounds[0]:g} to {bounds[1]:g} "
                f"of OpenFWI's benchmark for {pairs.family}."
            )
    return found


def _repeated(pairs: Pairs, digests: list[tuple[bytes, int]]) -> list[str]:
    """Remarks about models that occur more than once, and about those in more than one split."""
    first: dict[bytes, int] = {}
    again = [number for digest, number in digests if first.setdefault(digest, number) != number]
    splits = {digest: set[str]() for digest in first}
    for digest, number in digests:
        splits[digest] |= {name for name, split in pairs.splits.items() if number in split}
    shared = sum(len(names) > 1 for names in splits.values())
    remarks = [f"The model of an earlier sample once more in {_listed(again)}."] if again else []
    return remarks + ([f"Models that are in more than one split: {shared}."] if shared else [])


def _listed(samples: list[int]) -> str:
    """Numbers of samples for people.

    >>> _listed([4]), _listed([1, 2, 3, 4, 5, 6])
    ('1 sample (4)', '6 samples (1, 2, 3, 4, …)')
    """
    shown = ", ".join(map(str, samples[:4])) + (", …" if len(samples) > 4 else "")
    return f"{len(samples)} sample{'s' if len(samples) > 1 else ''} ({shown})"
