"""Scores of predicted velocities: each against a slow definition or a library, and the conventions around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from hpfwi.errors import DataError
from hpfwi.inversion.metrics import model_metrics
from hpfwi.training.edges import edge_masks
from hpfwi.training.lpips import read_lpips
from hpfwi.training.metrics import (
    benchmark_scores,
    column_ssim,
    published_scores,
    quality_index,
    scores_in_mps,
)

Maps = NDArray[np.float64]


def pair(samples: int = 2, shape: tuple[int, int] = (19, 16)) -> tuple[Maps, Maps]:
    """Predicted and true velocities in m/s: layers of some cells, and noise."""
    rng = np.random.default_rng(0)
    layers = 1800.0 + 350.0 * (np.arange(shape[0]) // 5)[:, None] + np.zeros(shape)
    true = layers + rng.normal(0, 40, (samples, *shape)) + 200.0 * np.arange(samples)[:, None, None]
    return true + rng.normal(0, 120, true.shape), true


def test_errors_in_mps_are_the_inversion_s_own() -> None:
    predicted, true = pair()
    scores = scores_in_mps(predicted, true)
    for sample in range(2):
        expected = model_metrics(predicted[sample], true[sample])
        assert scores["mae_mps"][sample] == pytest.approx(expected["mae_mps"])
        assert scores["mse_kmps2"][sample] == pytest.approx(expected["mse_kmps2"])
        assert scores["rmse_mps"][sample] ** 2 * 1e-6 == pytest.approx(expected["mse_kmps2"])
        assert scores["ssim"][sample] == pytest.approx(expected["ssim"])
    assert set(scores) == {
        *("mae_mps", "rmse_mps", "local_mae_mps", "boundary_mae_mps"),
        *("mse_kmps2", "local_mse_kmps2", "boundary_mse_kmps2"),
        *("psnr_db", "ssim", "ssim_columns", "uqi"),
    }


def test_the_published_scale_is_the_true_map_s_own_range_and_negatives_are_cut() -> None:
    predicted, true = pair()
    predicted[:, 0] = true.min() - 500.0
    scores = published_scores(predicted, true)
    for sample in range(2):
        low, span = true[sample].min(), np.ptp(true[sample])
        p, g = np.maximum((predicted[sample] - low) / span, 0), (true[sample] - low) / span
        assert scores["mse"][sample] == pytest.approx(((p - g) ** 2).mean())
        assert scores["mae"][sample] == pytest.approx(np.abs(p - g).mean())
        assert scores["psnr_db"][sample] == pytest.approx(-10 * np.log10(((p - g) ** 2).mean()))
        assert scores["ssim"][sample] == pytest.approx(structural_similarity(g, p, data_range=1.0))
    assert "lpips" not in scores


def test_published_scores_of_seg_stay_in_mps() -> None:
    predicted, true = pair()
    predicted[0, 0, 0] = -300.0
    scores = published_scores(predicted, true, per_sample=False)
    clipped = np.maximum(predicted, 0)
    mse = ((clipped - true) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(scores["mse"], mse)
    np.testing.assert_allclose(scores["psnr_db"], 20 * np.log10(true.max(axis=(1, 2)) / np.sqrt(mse)))


def test_column_ssim_is_the_library_s_with_columns_as_channels() -> None:
    predicted, true = pair()
    for sample, found in enumerate(column_ssim(predicted, true)):
        expected = structural_similarity(
            true[sample], predicted[sample], win_size=7, channel_axis=1, data_range=np.ptp(true[sample])
        )
        assert found == pytest.approx(expected, rel=1e-10)
        assert abs(found - model_metrics(predicted[sample], true[sample])["ssim"]) > 1e-3


def slow_quality_index(predicted: Maps, true: Maps) -> float:
    """The published formula around each inner cell, windows of 4 cells before and 3 after."""
    p, g = (np.pad(image, 4, mode="symmetric") for image in (predicted, true))
    values = []
    for row in range(4, true.shape[0] - 4):
        for column in range(4, true.shape[1] - 4):
            here = np.s_[row : row + 8, column : column + 8]
            mp, mg, mpg = p[here].mean(), g[here].mean(), (p[here] * g[here]).mean()
            squares = mp**2 + mg**2
            spread = 64 * ((p[here] ** 2).mean() + (g[here] ** 2).mean()) - squares
            numerator = 4 * (64 * mpg - mp * mg) * mp * mg
            values.append(numerator / (spread * squares) if spread * squares else 1.0)
    return float(np.mean(values))


def test_the_quality_index_is_the_published_formula() -> None:
    predicted, true = pair()
    for scale in (1.0, 1e-4):
        found = quality_index(predicted * scale, true * scale)
        expected = [slow_quality_index(predicted[sample], true[sample]) for sample in range(2)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Where both maps are 0 the index is 1.
    predicted[0, :14], true[0, :14] = 0.0, 0.0
    assert quality_index(predicted, true)[0] == pytest.approx(slow_quality_index(predicted[0], true[0]))


def test_errors_near_edges_are_divided_by_all_cells_or_by_those_near_edges() -> None:
    predicted, true = pair(1)
    near = np.zeros((19, 16), dtype=bool)
    for row, column in np.argwhere(edge_masks(true)[0]):
        near[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert 0 < near.sum() < near.size
    error = (predicted - true)[0]
    scores = scores_in_mps(predicted, true)
    assert scores["local_mae_mps"][0] == pytest.approx(np.abs(error[near]).sum() / near.size)
    assert scores["boundary_mae_mps"][0] == pytest.approx(np.abs(error[near]).mean())
    assert scores["local_mse_kmps2"][0] == pytest.approx((error[near] ** 2).sum() / near.size * 1e-6)
    assert scores["boundary_mse_kmps2"][0] == pytest.approx((error[near] ** 2).mean() * 1e-6)


def test_constant_and_perfect_maps() -> None:
    _, true = pair()
    perfect = published_scores(true, true)
    assert np.isposinf(perfect["psnr_db"]).all()
    np.testing.assert_allclose(perfect["ssim"], 1.0)
    np.testing.assert_allclose(perfect["ssim_columns"], 1.0)
    constant = np.full((1, 19, 16), 2500.0)
    scores = published_scores(constant + 10.0, constant)
    assert scores["local_mae"][0] == 0.0
    assert np.isnan(scores["boundary_mae"][0])
    assert scores["mae"][0] == 10.0
    assert np.isfinite(scores["ssim_columns"][0])


def test_maps_too_small_for_a_window_have_no_such_score() -> None:
    predicted, true = pair(1, (6, 8))
    scores = scores_in_mps(predicted, true)
    assert [name for name, values in scores.items() if np.isnan(values[0])] == ["ssim", "ssim_columns", "uqi"]


def test_benchmark_scores_on_the_fixed_scale() -> None:
    predicted, true = pair(2, (24, 20))
    scores = benchmark_scores(predicted, true, (1500.0, 4500.0))
    np.testing.assert_allclose(scores["mae"], np.abs(predicted - true).mean(axis=(1, 2)) / 1500.0)
    np.testing.assert_allclose(scores["mse"], ((predicted - true) ** 2).mean(axis=(1, 2)) / 1500.0**2)
    # The library leaves a border of 5 out: zeros around the maps must not have touched the rest.
    p, g = ((maps - 1500.0) / 3000.0 for maps in (predicted, true))
    wide = [np.pad(maps, ((0, 0), (5, 5), (5, 5))) for maps in (p, g)]
    for sample in range(2):
        expected = structural_similarity(
            wide[1][sample],
            wide[0][sample],
            win_size=11,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        assert scores["ssim"][sample] == pytest.approx(expected, rel=1e-9)


def test_other_shapes_are_refused() -> None:
    predicted, true = pair()
    for score in (scores_in_mps, published_scores):
        with pytest.raises(DataError, match=r"shape \(1, 19, 16\) and true velocities of shape \(2, 19, 16\)"):
            score(predicted[:1], true)
        with pytest.raises(DataError, match=r"give two stacks \[sample, z, x\]"):
            score(predicted[0], true[0])


def alexnet() -> torch.nn.Sequential:
    """AlexNet's convolutional part, as its paper's single-column form is built everywhere."""
    layers: list[torch.nn.Module] = []
    for outputs, inputs, side, stride, padding, pool in (
        (64, 3, 11, 4, 2, True),
        (192, 64, 5, 1, 2, True),
        (384, 192, 3, 1, 1, False),
        (256, 384, 3, 1, 1, False),
        (256, 256, 3, 1, 1, False),
    ):
        layers += [torch.nn.Conv2d(inputs, outputs, side, stride, padding), torch.nn.ReLU()]
        if pool:
            layers.append(torch.nn.MaxPool2d(3, 2))
    return torch.nn.Sequential(*layers)


def test_lpips_is_its_definition_with_the_user_s_weights(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = alexnet().eval()
        weights = {f"features.{key}": value.detach() for key, value in network.state_dict().items()}
        weights |= {f"lin{k}.weight": torch.rand(1, n, 1, 1) for k, n in enumerate((64, 192, 384, 256, 256))}
    save_file(weights, tmp_path / "lpips.safetensors")
    predicted, true = pair(2, (40, 37))
    low, span = true.min(axis=(1, 2), keepdims=True), np.ptp(true, axis=(1, 2), keepdims=True)
    levels: list[list[torch.Tensor]] = []
    for maps in (np.maximum((predicted - low) / span, 0), (true - low) / span):
        features = torch.from_numpy(maps).float().unsqueeze(1).expand(-1, 3, -1, -1)
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        features = (features - shift.reshape(3, 1, 1)) / scale.reshape(3, 1, 1)
        taps = []
        with torch.no_grad():
            for layer in network:
                features = layer(features)
                if isinstance(layer, torch.nn.ReLU):
                    taps.append(features / features.square().sum(dim=1, keepdim=True).sqrt())
        levels.append(taps)
    expected = sum(
        ((one - other).square() * weights[f"lin{k}.weight"]).sum(dim=1).mean(dim=(1, 2))
        for k, (one, other) in enumerate(zip(*levels, strict=True))
    )
    assert isinstance(expected, torch.Tensor)
    scores = published_scores(predicted, true, lpips=read_lpips(tmp_path / "lpips.safetensors"))
    np.testing.assert_allclose(scores["lpips"], expected.numpy(), rtol=1e-4)
    assert (scores["lpips"] > 0).all()


def test_unusable_lpips_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_lpips(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="give a whole safetensors file"):
        read_lpips(tmp_path / "broken.safetensors")
    save_file({"features.0.weight": torch.zeros(64, 1, 11, 11)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"hold \(64, 1, 11, 11\) under 'features.0.weight' where \(64, 3, 11, 11\)"):
        read_lpips(tmp_path / "other.safetensors")
