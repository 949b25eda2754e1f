"""Inspecting and verifying pairs: what is damaged, odd or paired wrongly is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hpfwi.errors import DataError
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.store.openfwi_families import FAMILIES, physics_of
from hpfwi.store.pair_check import FIRST_OF_WAVELET, inspect_pairs, verify_pairs
from hpfwi.store.pair_writer import create_pairs

SAMPLES, RECORDS, MODEL = 24, (3, 8, 6), (5, 6)
PHYSICS = physics_of(FAMILIES[0], RECORDS, MODEL)


class Listed:
    """Pairs in memory."""

    family = "FlatVel-A"
    samples, records_shape, model_shape = SAMPLES, RECORDS, MODEL
    physics: dict[str, Any] = PHYSICS
    splits: ClassVar[dict[str, range]] = {"train": range(16), "test": range(16, 24)}

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.models = random.uniform(1500, 4500, (SAMPLES, *MODEL)).astype(np.float32)
        self.records = random.normal(size=(SAMPLES, *RECORDS)).astype(np.float32)
        # What OpenFWI's scheme records at the sources' own receivers in the first step.
        for shot, (_, x_m) in enumerate(PHYSICS["sources_m"]):
            column = round(x_m / 10.0)
            self.records[:, shot, 0, column] = (self.models[:, 1, column] * 0.001) ** 2 * FIRST_OF_WAVELET

    def read(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        if 13 in indices and self.models[13, 0, 0] < -1e30:
            raise DataError("Shard 1 is damaged.")
        return self.records[list(indices)], self.models[list(indices)]

    def written(self, path: Path) -> PairStore:
        writer = create_pairs(
            path,
            samples=SAMPLES,
            records_shape=RECORDS,
            model_shape=MODEL,
            family=self.family,
            physics=PHYSICS,
            splits=self.splits,
            shard_samples=10,
        )
        writer.write(0, self.records, self.models)
        return writer.finish()


@pytest.fixture
def pairs() -> Listed:
    return Listed()


def test_sound_pairs_have_no_findings(pairs: Listed, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for one in (pairs, pairs.written(tmp_path / "a.zarr")):
        seen.clear()
        findings = inspect_pairs(one, progress=lambda *now: seen.append(now))
        assert (findings.defects, findings.remarks) == ([], [])
        assert findings.statistics["models"]["max"] == pairs.models.max()
        assert findings.statistics["records"]["std"] == pytest.approx(pairs.records.std(dtype=np.float64), rel=1e-12)
        assert seen[-1] == (SAMPLES, SAMPLES)


def test_everything_odd_is_found(pairs: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs.records[2, 1, 3, 4] = np.nan
    pairs.models[3, 0, 0] = np.inf
    pairs.models[5, 4, 4] = -1.0
    pairs.models[7] = 2000.0
    pairs.records[9, 1] = 0.0
    pairs.models[20] = pairs.models[6]
    pairs.models[13, 0, 0] = -2e30
    pairs.records[15, 0, 5, 5] = 60.0
    for block in (1, 10**9):
        monkeypatch.setattr("hpfwi.store.pair_check.BLOCK_BYTES", block)
        findings = inspect_pairs(pairs)
        assert sorted(findings.defects) == [
            "1 sample (13) cannot be read: Shard 1 is damaged.",
            "NaN or infinity in 2 samples (2, 3).",
            "Velocities that are not positive in 1 sample (5).",
        ]
        assert [remark.split(" beyond")[0] for remark in findings.remarks] == [
            "A constant model in 1 sample (7).",
            "A shot that recorded nothing but zeros in 1 sample (9).",
            "Records that tell a velocity under their sources more than 1% off their model in 3 samples (7, 9, 20): "
            "are they paired rightly?",
            "The model of an earlier sample once more in 1 sample (20).",
            "Models that are in more than one split: 1.",
            f"The records span {findings.statistics['records']['min']:.4g} to 60,",
        ]


def test_models_in_km_per_s_are_found_before_they_are_converted(pairs: Listed) -> None:
    pairs.models[[1, 4]] /= 1000
    assert inspect_pairs(pairs).defects == ["Models below 20 m/s everywhere, as if in km/s, in 2 samples (1, 4)."]


def test_records_paired_with_the_next_model_are_noticed(pairs: Listed) -> None:
    pairs.models = np.roll(pairs.models, 1, axis=0)
    (remark,) = inspect_pairs(pairs).remarks
    assert remark.endswith("off their model in 24 samples (0, 1, 2, 3, …): are they paired rightly?")


def test_the_first_value_of_the_wavelet() -> None:
    """A Ricker of 15 Hz sampled every millisecond, 73 samples before its centre, by its usual form."""
    phase = np.pi * 15.0 * 0.073
    assert pytest.approx((1 - 2 * phase**2) * np.exp(-(phase**2)), rel=1e-14) == FIRST_OF_WAVELET


@pytest.mark.parametrize(
    ("file", "samples"),
    [("records/c/1/0/0/0", " (samples 10 to 19)"), ("models/zarr.json", ""), ("models/c/2/0/0", "")],
)
def test_one_wrong_bit_is_found_and_named(pairs: Listed, tmp_path: Path, file: str, samples: str) -> None:
    store = pairs.written(tmp_path / "a.zarr")
    manifest = dict(store.manifest)
    seen: list[tuple[int, int]] = []
    assert verify_pairs(store.path, manifest, progress=lambda *now: seen.append(now)) == []
    assert seen[-1] == (8, 8)
    path = store.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    (problem,) = verify_pairs(store.path, manifest)
    assert problem.startswith(f"{path}{samples}")
    assert problem.endswith("does not match its sha256: it is damaged.")
    path.unlink()
    (problem,) = verify_pairs(store.path, manifest)
    assert problem.endswith("cannot be read (No such file or directory).")


def test_a_damaged_shard_does_not_hide_the_others(pairs: Listed, tmp_path: Path) -> None:
    store = pairs.written(tmp_path / "a.zarr")
    (store.path / "records/c/1/0/0/0").unlink()
    findings = inspect_pairs(open_pairs(store.path))
    (defect,) = findings.defects
    assert defect.startswith("10 samples (10, 11, 12, 13, …) cannot be read: Shard ")
    kept = np.r_[0:10, 20:24]
    assert findings.statistics["models"]["mean"] == pytest.approx(pairs.models[kept].mean(dtype=np.float64), rel=1e-12)
