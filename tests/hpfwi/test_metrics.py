"""Model errors: units, halves, mask, SSIM convention."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from hpfwi.errors import DataError
from hpfwi.inversion.metrics import model_metrics, rms_mps, ssim_map


def pair(shape: tuple[int, int] = (21, 16)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = (2000.0 + 1500.0 * np.linspace(0, 1, shape[0])[:, None] + rng.normal(0, 50, shape)).astype(np.float32)
    return (true + rng.normal(0, 120, shape)).astype(np.float32), true


def test_a_constant_error_has_the_expected_units() -> None:
    _, true = pair()
    scores = model_metrics(true + np.float32(200.0), true)
    for suffix in ("", "_shallow", "_deep"):
        assert scores[f"mse{suffix}_kmps2"] == pytest.approx(0.04, rel=1e-5)
        assert scores[f"mae{suffix}_mps"] == pytest.approx(200.0, rel=1e-5)
    assert rms_mps(np.full((3, 3), -200.0)) == pytest.approx(200.0)


def test_the_true_model_scores_perfectly() -> None:
    _, true = pair()
    scores = model_metrics(true, true)
    assert scores["mse_kmps2"] == scores["mae_mps"] == 0.0
    assert scores["ssim"] == pytest.approx(1.0)


def test_halves_split_at_the_middle_row() -> None:
    _, true = pair()
    wrong = true.copy()
    wrong[10:] += 300.0
    scores = model_metrics(wrong, true)
    assert scores["mae_shallow_mps"] == 0.0
    assert scores["mae_deep_mps"] == pytest.approx(300.0, rel=1e-5)
    assert scores["mae_mps"] == pytest.approx(300.0 * 11 / 21, rel=1e-5)
    wrong[10:] = 3000.0
    scores = model_metrics(wrong, true)
    assert scores["ssim_shallow"] > scores["ssim_deep"] + 0.1


def test_masked_cells_do_not_count() -> None:
    velocity, true = pair()
    include = np.ones(true.shape, dtype=bool)
    include[:4] = False
    velocity[:4] = 9000.0
    scores = model_metrics(velocity, true, include)
    assert scores["mse_kmps2"] == pytest.approx(float(np.mean((velocity - true)[4:].astype(float) ** 2)) * 1e-6)
    assert rms_mps(velocity - true, include) ** 2 * 1e-6 == pytest.approx(scores["mse_kmps2"])
    include[:10] = False
    assert "mse_shallow_kmps2" not in model_metrics(velocity, true, include)


def test_ssim_is_the_library_value_with_the_true_model_s_range() -> None:
    velocity, true = pair()
    expected = structural_similarity(
        true.astype(float), velocity.astype(float), data_range=float(true.max() - true.min())
    )
    assert model_metrics(velocity, true)["ssim"] == pytest.approx(float(expected), rel=1e-12)


def test_a_model_too_small_for_the_window_has_no_ssim() -> None:
    velocity, true = pair((6, 30))
    assert ssim_map(velocity, true) is None
    assert not [name for name in model_metrics(velocity, true) if name.startswith("ssim")]


def test_a_constant_true_model_has_a_finite_ssim() -> None:
    true = np.full((9, 9), 2500.0)
    assert np.isfinite(model_metrics(true + 10.0, true)["ssim"])


def test_other_shapes_are_refused() -> None:
    velocity, true = pair()
    with pytest.raises(DataError, match=r"\(20, 16\) cannot be compared with a true one of shape \(21, 16\)"):
        model_metrics(velocity[1:], true)
    with pytest.raises(DataError, match=r"a mask of shape \(20, 16\)"):
        model_metrics(velocity, true, np.ones((20, 16), dtype=bool))
