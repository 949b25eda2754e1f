"""How well predicted velocities match true ones, sample by sample, in m/s and as the networks were published.

The two published conventions and ours are never to be compared with each other:

    in m/s        errors in m/s as they are
    published     both maps on the true map's own range, [0, 1], negative predictions set to 0; for SEG in m/s, likewise
    benchmark     `benchmark_scores`: OpenFWI's, both maps on [-1, 1] by one fixed range
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hpfwi.errors import DataError
from hpfwi.inversion.metrics import SSIM_WINDOW, ssim_map
from hpfwi.training.edges import dilated, edge_masks
from hpfwi.training.lpips import Lpips

UQI_WINDOW = 8
SSIM_K1, SSIM_K2 = 0.01, 0.03
BENCHMARK_SIGMA = 1.5
BENCHMARK_RADIUS = 5

Maps = NDArray[np.floating]
Scores = dict[str, NDArray[np.float64]]


def scores_in_mps(predicted_mps: Maps, true_mps: Maps) -> Scores:
    """Scores of each sample with errors in m/s.

    predicted_mps, true_mps   floating[sample, z, x] in m/s
    returns                   mae_mps, rmse_mps, local_mae_mps, boundary_mae_mps, mse_kmps2, local_mse_kmps2,
                              boundary_mse_kmps2, and without unit psnr_db, ssim, ssim_columns and uqi; each
                              float64[sample]. What each is stands at `_scores`.
    raises                    DataError: shapes that differ or are no stack of maps
    """
    scores = _scores(predicted_mps, true_mps)
    named: Scores = {}
    for name, values in scores.items():
        if name.endswith("mse"):
            named[f"{name}_kmps2"] = values * 1e-6
        elif name.endswith("mae"):
            named[f"{name}_mps"] = values
        else:
            named[name] = values
    return named | {"rmse_mps": np.sqrt(scores["mse"])}


def published_scores(
    predicted_mps: Maps, true_mps: Maps, *, per_sample: bool = True, lpips: Lpips | None = None
) -> Scores:
    """Scores of each sample as the code of AMFMS and its rivals computes them.

    predicted_mps, true_mps   floating[sample, z, x] in m/s
    per_sample                bring both maps to the true map's own range first, as for OpenFWI and Marmousi; without,
                              they stay in m/s, as for SEG
    lpips                     the perceptual distance with the user's weights; None: it is not computed
    returns                   psnr_db, ssim, ssim_columns, mse, mae, uqi, local_mse, local_mae, boundary_mse,
                              boundary_mae and, if asked for, lpips; each float64[sample]
    raises                    DataError: shapes that differ or are no stack of maps

    Negative predictions are set to 0 before anything is computed; nothing is cut above.
    """
    _require_maps(predicted_mps, true_mps)
    predicted, true = predicted_mps.astype(np.float64), true_mps.astype(np.float64)
    if per_sample:
        low = true.min(axis=(1, 2), keepdims=True)
        span = np.ptp(true, axis=(1, 2), keepdims=True)
        span[span == 0] = 1.0
        predicted, true = (predicted - low) / span, (true - low) / span
    predicted = np.maximum(predicted, 0.0)
    scores = _scores(predicted, true)
    return scores if lpips is None else scores | {"lpips": lpips.distances(predicted, true)}


def benchmark_scores(predicted_mps: Maps, true_mps: Maps, range_mps: tuple[float, float]) -> Scores:
    """Scores of each sample as OpenFWI's benchmark computes them: mae, mse and ssim, each float64[sample].

    range_mps   what is mapped to -1 and 1; 1500 and 4500 m/s in the benchmark. SSIM is computed on [0, 1] with a
                Gaussian window of 11 cells, sigma 1.5, zeros around the maps, constants 0.01² and 0.03², all cells.
    raises      DataError: shapes that differ or are no stack of maps

    The benchmark's RMSE is the root of the mean mse over a test set.
    """
    _require_maps(predicted_mps, true_mps)
    low, span = range_mps[0], range_mps[1] - range_mps[0]
    predicted, true = ((maps.astype(np.float64) - low) / span for maps in (predicted_mps, true_mps))
    error = 2.0 * (predicted - true)
    position = np.arange(-BENCHMARK_RADIUS, BENCHMARK_RADIUS + 1)
    window = np.exp(-0.5 * (position / BENCHMARK_SIGMA) ** 2)
    window /= window.sum()

    def mean(maps: Maps) -> NDArray[np.float64]:
        rows = ndimage.correlate1d(maps, window, axis=1, mode="constant")
        return ndimage.correlate1d(rows, window, axis=2, mode="constant")

    similarity = _ssim(predicted, true, mean, span=np.ones((len(true), 1, 1)), unbiased=1.0)
    return {
        "mae": np.abs(error).mean(axis=(1, 2)),
        "mse": np.square(error).mean(axis=(1, 2)),
        "ssim": similarity.mean(axis=(1, 2)),
    }


def _scores(predicted: Maps, true: Maps) -> Scores:
    """Scores on whatever scale the maps have, each float64[sample].

    psnr_db             20 log10(|max true| / rms error), infinite for a perfect map
    ssim                2-D, uniform window of 7 x 7, the true map's range; NaN where a side is shorter
    ssim_columns        the same of each column as a signal along z, averaged over columns: what the published code
                        computed with scikit-image before 0.20, where later versions compute `ssim`
    mse, mae            over all cells
    uqi                 `quality_index`
    local_mse/_mae      errors within one cell of an edge of the true map, divided by the number of *all* cells
    boundary_mse/_mae   the same divided by the number of those cells; NaN for a map without edges
    """
    _require_maps(predicted, true)
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    error = predicted - true
    mse, mae = np.square(error).mean(axis=(1, 2)), np.abs(error).mean(axis=(1, 2))
    near = dilated(edge_masks(true))
    near_mse, near_mae = (np.square(error) * near).sum(axis=(1, 2)), (np.abs(error) * near).sum(axis=(1, 2))
    cells, near_cells = true[0].size, near.sum(axis=(1, 2)).astype(np.float64)
    near_cells[near_cells == 0] = np.nan
    with np.errstate(divide="ignore"):
        psnr = 20.0 * np.log10(np.abs(true.max(axis=(1, 2))) / np.sqrt(mse))
    return {
        "psnr_db": psnr,
        "ssim": np.array([_mean_ssim(one, other) for one, other in zip(predicted, true, strict=True)]),
        "ssim_columns": column_ssim(predicted, true),
        "mse": mse,
        "mae": mae,
        "uqi": quality_index(predicted, true),
        "local_mse": near_mse / cells,
        "local_mae": near_mae / cells,
        "boundary_mse": near_mse / near_cells,
        "boundary_mae": near_mae / near_cells,
    }


def _mean_ssim(predicted: Maps, true: Maps) -> float:
    similarity = ssim_map(predicted, true)
    return np.nan if similarity is None else float(np.nanmean(similarity))


def column_ssim(predicted: Maps, true: Maps) -> NDArray[np.float64]:
    """Structural similarity of columns along z, averaged over columns: float64[sample] of floating[sample, z, x].

    Uniform window of 7, sample covariance (factor 7 / 6), data range of the whole true map (1 where it is constant),
    the outermost 3 rows left out; NaN for maps with fewer than 7 rows.
    """
    if true.shape[1] < SSIM_WINDOW:
        return np.full(len(true), np.nan)
    span = np.ptp(true, axis=(1, 2), keepdims=True)
    span[span == 0] = 1.0

    def mean(maps: Maps) -> NDArray[np.float64]:
        return ndimage.uniform_filter1d(maps, SSIM_WINDOW, axis=1)

    similarity = _ssim(predicted, true, mean, span=span, unbiased=SSIM_WINDOW / (SSIM_WINDOW - 1))
    edge = SSIM_WINDOW // 2
    return similarity[:, edge:-edge].mean(axis=(1, 2))


def _ssim(
    predicted: Maps, true: Maps, mean: Callable[[Maps], NDArray[np.float64]], *, span: Maps, unbiased: float
) -> NDArray[np.float64]:
    """Similarity around each cell from the window's mean; `unbiased` turns its variances into sample variances."""
    predicted_mean, true_mean = mean(predicted), mean(true)
    product, squares = predicted_mean * true_mean, predicted_mean**2 + true_mean**2
    covariance = unbiased * (mean(predicted * true) - product)
    variances = unbiased * (mean(predicted**2) + mean(true**2) - squares)
    c1, c2 = (SSIM_K1 * span) ** 2, (SSIM_K2 * span) ** 2
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def quality_index(predicted: Maps, true: Maps) -> NDArray[np.float64]:
    """Universal quality index as published, float64[sample] of floating[sample, z, x]; NaN for sides below 9 cells.

    Means over 8 x 8 cells (4 before, 3 after, borders mirrored) are put into a formula that is meant for sums, which
    gives the covariance 64 times its weight and larger values than the textbook's index. 4 cells on every side are left
    out.
    """
    if min(true.shape[1:]) <= UQI_WINDOW:
        return np.full(len(true), np.nan)

    def mean(maps: Maps) -> NDArray[np.float64]:
        return ndimage.uniform_filter(maps, (0, UQI_WINDOW, UQI_WINDOW))

    count = UQI_WINDOW**2
    predicted_mean, true_mean = mean(predicted), mean(true)
    product, squares = predicted_mean * true_mean, predicted_mean**2 + true_mean**2
    spread = count * (mean(predicted**2) + mean(true**2)) - squares
    whole = spread * squares
    index = np.ones_like(whole)
    level = (spread == 0) & (squares != 0)
    index[level] = 2 * product[level] / squares[level]
    usual = whole != 0
    numerator = 4 * (count * mean(predicted * true) - product) * product
    index[usual] = numerator[usual] / whole[usual]
    edge = UQI_WINDOW // 2
    return index[:, edge:-edge, edge:-edge].mean(axis=(1, 2))


def _require_maps(predicted: Maps, true: Maps) -> None:
    if true.ndim != 3 or predicted.shape != true.shape or not true.size:
        raise DataError(
            f"Predictions of shape {predicted.shape} and true velocities of shape {true.shape} cannot be compared; "
            "give two stacks [sample, z, x] of one shape."
        )
