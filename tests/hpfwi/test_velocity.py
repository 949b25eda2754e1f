import numpy as np
import pytest

from hpfwi.synthetic.velocity import FASTEST_MPS, SLOWEST_MPS, procedural_marmousi_like, undo_faults

SPACING_M = (15.0, 15.0)


@pytest.mark.parametrize("seed", range(6))
def test_it_has_the_character_of_marmousi(seed: int) -> None:
    velocity = procedural_marmousi_like((80, 200), SPACING_M, seed).astype(float)
    assert velocity.min() >= SLOWEST_MPS
    assert velocity.max() <= FASTEST_MPS
    assert velocity.min() < 1600
    assert velocity.max() > 4200
    # Faster with depth, from one fifth of the model to the next.
    means = [rows.mean() for rows in np.array_split(velocity, 5)]
    assert (np.diff(means) > 100).all()
    # Lateral contrasts: a good part of the variance is nothing that a depth profile could explain.
    lateral = velocity - velocity.mean(axis=1, keepdims=True)
    assert lateral.var() > 0.08 * velocity.var()
    # Layers: on the way down the velocity drops as well as rises, in every column.
    steps = np.diff(velocity, axis=0)
    assert ((steps < -30).sum(axis=0) >= 3).all()
    assert ((steps > 30).sum(axis=0) >= 5).all()


@pytest.mark.parametrize("seed", range(4))
def test_faults_drop_blocks_by_more_at_depth(seed: int) -> None:
    depths, distances = np.linspace(0, 1, 200), np.linspace(0, 2.5, 2000)
    z, x = np.meshgrid(depths, distances, indexing="ij")
    before = undo_faults(z, x, 2.5, np.random.default_rng(seed))
    assert (before <= z).all(), "the hanging wall lies lower than it was laid down"
    throws = -np.diff(before, axis=1).min(axis=1)
    assert throws[10] < 0.005
    assert throws[60] < throws[150]
    assert 0.05 < throws[150] < 0.2
    # Three planes, each a jump between neighbouring points on one row.
    assert (np.diff(before[150]) < -0.03).sum() == 3


def test_the_seed_decides() -> None:
    first = procedural_marmousi_like((40, 60), SPACING_M, 5)
    assert first.dtype == np.float32
    assert np.array_equal(first, procedural_marmousi_like((40, 60), SPACING_M, 5))
    other = procedural_marmousi_like((40, 60), SPACING_M, 6)
    assert np.mean(np.abs(first - other)) > 50


def test_the_same_geology_at_two_sizes() -> None:
    coarse = procedural_marmousi_like((40, 100), (30.0, 30.0), 2)
    fine = procedural_marmousi_like((80, 200), SPACING_M, 2)
    averaged = fine.reshape(40, 2, 100, 2).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), averaged.ravel())[0, 1] > 0.995


@pytest.mark.parametrize(
    ("shape", "spacing_m"), [((40, 60), (15.0, 15.0)), ((41, 303), (10.0, 25.0)), ((150, 60), (10.0, 10.0))]
)
def test_any_shape(shape: tuple[int, int], spacing_m: tuple[float, float]) -> None:
    velocity = procedural_marmousi_like(shape, spacing_m, 0)
    assert velocity.shape == shape
    assert np.isfinite(velocity).all()
    assert velocity.std() > 400


def test_water_covers_the_rows_above_its_depth() -> None:
    velocity = procedural_marmousi_like((60, 80), SPACING_M, 0, water_depth_m=150.0, water_mps=1480.0)
    assert (velocity[:10] == 1480.0).all()
    assert (velocity[10:] >= SLOWEST_MPS).all()
    assert not (velocity[10] == 1480.0).any()
