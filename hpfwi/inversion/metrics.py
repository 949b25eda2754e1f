"""How far a velocity model is from the true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError

SSIM_WINDOW = 7
"""Cells on a side of the uniform SSIM window: scikit-image's default, which the published velocity scores use."""


def model_metrics(
    velocity: NDArray[np.floating], true: NDArray[np.floating], include: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Errors of a model over all cells and over its shallow and deep half, by name.

    velocity, true   floating[z, x] or [z, y, x] in m/s
    include          bool of their shape; cells that count, None: all. Pass the inverse of the water mask to leave water
                     out.
    returns          mse_kmps2 in (km/s)², mae_mps in m/s, ssim without unit, and each again with _shallow (rows above
                     nz // 2) and _deep. A score that cannot be computed is left out: halves without a counted cell,
                     SSIM of a model with fewer than 7 cells along an axis.
    raises           DataError: shapes that differ
    """
    if velocity.shape != true.shape or (include is not None and include.shape != true.shape):
        mask = "" if include is None else f" and a mask of shape {include.shape}"
        raise DataError(
            f"A model of shape {velocity.shape} cannot be compared with a true one of shape {true.shape}{mask}. "
            "Resample one to the other's grid."
        )
    counted = np.ones(true.shape, dtype=bool) if include is None else include
    error = np.asarray(velocity, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    similarity = ssim_map(velocity, true)
    deep = np.zeros(true.shape, dtype=bool)
    deep[true.shape[0] // 2 :] = True
    scores: dict[str, float] = {}
    for suffix, region in (("", counted), ("_shallow", counted & ~deep), ("_deep", counted & deep)):
        if not region.any():
            continue
        scores[f"mse{suffix}_kmps2"] = float(np.mean(error[region] ** 2)) * 1e-6
        scores[f"mae{suffix}_mps"] = float(np.mean(np.abs(error[region])))
        if similarity is not None and np.isfinite(similarity[region]).any():
            scores[f"ssim{suffix}"] = float(np.nanmean(similarity[region]))
    return scores


def ssim_map(velocity: NDArray[np.floating], true: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Structural similarity around each cell, float64 of their shape, or None where a side has fewer than 7 cells.

    Uniform window of 7 cells along each axis, K1 = 0.01, K2 = 0.03, sample covariance, data range
    max(true) - min(true), 1 m/s for a constant true model. The outermost 3 cells, whose windows would leave the model,
    are NaN; the mean of the rest is the value that `skimage.metrics.structural_similarity` returns.
    """
    if min(true.shape) < SSIM_WINDOW:
        return None
    from skimage.metrics import structural_similarity

    span = float(np.ptp(true)) or 1.0
    _, full = structural_similarity(
        np.asarray(true, dtype=np.float64),
        np.asarray(velocity, dtype=np.float64),
        win_size=SSIM_WINDOW,
        data_range=span,
        full=True,
    )
    edge = (SSIM_WINDOW - 1) // 2
    inside = (slice(edge, -edge),) * true.ndim
    inner = np.full(true.shape, np.nan)
    inner[inside] = full[inside]
    return inner


def rms_mps(difference: NDArray[np.floating], include: NDArray[np.bool_] | None = None) -> float:
    """Root of the mean square of a velocity difference in m/s, over the counted cells."""
    counted = difference if include is None else difference[include]
    return float(np.sqrt(np.mean(np.square(counted, dtype=np.float64))))
