"""Known ways in which an inversion fails, recognised from its history and said in words.

Every function is pure: histories in, one `Verdict` out. The thresholds are working definitions, named here so that a
report can print them. Misfits of random batches are not comparable from one iteration to the next: average them over
whole passes first (`pass_means`), and read "iterations" below as passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 50
"""Iterations over which stagnation and cycle skipping are judged."""
STAGNANT_GAIN = 0.01
"""A window in which the misfit falls by less than this share of itself is stagnant; it takes two in a row."""
CONVERGED_MISFIT = 0.05
"""Below this share of its first value a misfit may well stand still."""
TRAVELLED = 0.25
"""Share of the way to the true model (rms) beyond which a standstill is not called stagnation."""
TRAVELLED_UNKNOWN = 0.02
"""The same without a true model, as a share of the mean velocity."""
OSCILLATION_WINDOW = 20
OSCILLATION_INDEX = 0.10
"""Standard deviation of log10 misfit around its straight line."""
UP_STEPS = 0.40
UP_RANGE = 3.0
"""More than this share of rising steps together with this ratio of largest to smallest misfit is oscillation too."""
FINE_AMPLITUDE = 0.3
COARSE_AMPLITUDE = 0.7
"""Share of the true amplitude below which short wavelengths are missing, and above which long ones are found."""
SSIM_GAP = 0.15
"""Difference of SSIM between shallow and deep half that counts as blurring."""
SKIPPED_RISE = 0.02
"""Rise of the share of skipped traces, between the two halves of a window, that counts as rising."""
ERROR_RISE = 0.02
"""Relative rise of the model error within a window that counts as rising."""
STUCK_SHARE = 0.02
"""Rise of the share of cells at a bound, since the start, that counts as sticking."""


@dataclass(frozen=True)
class Verdict:
    """Whether one failure signature is present, and the sentence with the numbers that decide it."""

    signature: str
    present: bool
    sentence: str
    judged: bool = True
    """False when the history does not suffice; then `present` is False too."""


def pass_means(values: Sequence[float], iterations_per_pass: int) -> list[float]:
    """Mean over each complete pass through the items; an unfinished last pass is left out.

    >>> pass_means([1.0, 3.0, 2.0, 4.0, 9.0], 2)
    [2.0, 3.0]
    """
    complete = len(values) // iterations_per_pass
    return [
        math.fsum(values[number * iterations_per_pass : (number + 1) * iterations_per_pass]) / iterations_per_pass
        for number in range(complete)
    ]


def means_of_passes(misfits: Sequence[float], iterations_per_pass: int, first: int = 0) -> list[float]:
    """`pass_means` of the iterations from `first` on; these themselves where they hold no whole pass.

    Passes begin at multiples of their length, wherever `first` is.

    >>> means_of_passes([9.0, 9.0, 9.0, 1.0, 3.0], 2, 1), means_of_passes([9.0, 5.0, 4.0], 2, 1)
    ([5.0], [5.0, 4.0])
    """
    whole = -(-first // iterations_per_pass) * iterations_per_pass
    return pass_means(misfits[whole:], iterations_per_pass) or list(misfits[first:])


def stagnation(
    misfits: Sequence[float],
    update_rms_mps: float,
    *,
    wanted_rms_mps: float | None = None,
    mean_velocity_mps: float,
    window: int = WINDOW,
) -> Verdict:
    """The misfit stands still, high, while the model is still close to where it started.

    update_rms_mps   rms(m - m_initial)
    wanted_rms_mps   rms(m_true - m_initial), None where the true model is unknown
    """
    name = "stagnation"
    if len(misfits) < 2 * window + 1:
        return _too_short(name, len(misfits), 2 * window + 1)
    latest, middle, earlier = misfits[-1], misfits[-1 - window], misfits[-1 - 2 * window]
    gains = [
        (before - after) / before if before > 0 else 0.0 for before, after in ((earlier, middle), (middle, latest))
    ]
    left = latest / misfits[0] if misfits[0] > 0 else 0.0
    if wanted_rms_mps is None:
        limit, of = TRAVELLED_UNKNOWN * mean_velocity_mps, f"{TRAVELLED_UNKNOWN:.0%} of the mean velocity"
    else:
        limit, of = TRAVELLED * wanted_rms_mps, f"{TRAVELLED:.0%} of the way to the true model"
    present = max(gains) < STAGNANT_GAIN and left > CONVERGED_MISFIT and update_rms_mps < limit
    return Verdict(
        name,
        present,
        f"In the last two windows of {window} iterations the misfit fell by {gains[0]:.1%} and {gains[1]:.1%}, to "
        f"{left:.1%} of its start, and the model has moved {update_rms_mps:.0f} m/s rms (limit "
        f"{limit:.0f} m/s, {of}).",
    )


def oscillation_index(misfits: Sequence[float], window: int = OSCILLATION_WINDOW) -> float:
    """Standard deviation of log10 misfit around its least-squares line over the last `window` iterations."""
    logs = np.log10(np.maximum(np.asarray(misfits[-window:], dtype=np.float64), np.finfo(np.float64).tiny))
    steps = np.arange(len(logs), dtype=np.float64)
    slope, start = np.polyfit(steps, logs, 1)
    return float(np.std(logs - (slope * steps + start)))


def oscillation(misfits: Sequence[float], *, window: int = OSCILLATION_WINDOW) -> Verdict:
    """The misfit jumps up and down instead of falling."""
    name = "oscillation"
    if len(misfits) < window:
        return _too_short(name, len(misfits), window)
    index = oscillation_index(misfits, window)
    recent = np.asarray(misfits[-window:], dtype=np.float64)
    up = float(np.mean(np.diff(recent) > 0))
    ratio = float(recent.max() / max(float(recent.min()), np.finfo(np.float64).tiny))
    present = index > OSCILLATION_INDEX or (up > UP_STEPS and ratio > UP_RANGE)
    return Verdict(
        name,
        present,
        f"Over the last {window} iterations log10 of the misfit scatters by {index:.3f} around its trend (limit "
        f"{OSCILLATION_INDEX:g}), {up:.0%} of the steps go up and the largest misfit is {ratio:.2f} times the least.",
    )


def blurring(
    deep_amplitude: Sequence[float], *, ssim_shallow: float | None = None, ssim_deep: float | None = None
) -> Verdict:
    """Long wavelengths of the deep half are found, short ones are not; or the deep half looks much worse.

    deep_amplitude   amplitude ratio of the resolvable bands of the deep half, long wavelengths first (`spectra`); NaN
                     marks a band without content
    """
    name = "blurring"
    bands = [ratio for ratio in deep_amplitude if math.isfinite(ratio)]
    parts: list[tuple[bool, str]] = []
    if len(bands) >= 2:
        parts.append(
            (
                bands[-1] < FINE_AMPLITUDE and bands[0] > COARSE_AMPLITUDE,
                f"the deep half holds {bands[0]:.0%} of the true amplitude at the longest wavelengths, {bands[-1]:.0%} "
                f"at the shortest resolvable ones (blurred: above {COARSE_AMPLITUDE:.0%} and below "
                f"{FINE_AMPLITUDE:.0%})",
            )
        )
    if ssim_shallow is not None and ssim_deep is not None:
        parts.append(
            (
                ssim_shallow - ssim_deep > SSIM_GAP,
                f"SSIM is {ssim_shallow:.3f} in the shallow and {ssim_deep:.3f} in the deep half (blurred: more than "
                f"{SSIM_GAP:g} apart)",
            )
        )
    if not parts:
        return Verdict(name, False, "Blurring cannot be judged without a true model.", judged=False)
    parts.sort(key=lambda part: not part[0])  # what was seen comes first
    text = "; ".join(sentence for _, sentence in parts)
    return Verdict(name, parts[0][0], f"{text[0].upper()}{text[1:]}.")


def cycle_skipping(
    misfits: Sequence[float],
    *,
    skipped_shares: Sequence[float] = (),
    mse_kmps2: Sequence[float] = (),
    window: int = WINDOW,
) -> Verdict:
    """Predicted and observed wiggles are matched one cycle off: the misfit falls while the model gets worse.

    misfits          one for each iteration
    skipped_shares   share of skipped traces (`cycle_skipped_share`) at the diagnosed iterations of the last window
    mse_kmps2        model error at the diagnosed iterations of the last window
    """
    name = "cycle skipping"
    parts, present = [], False
    if len(skipped_shares) >= 2:
        half = len(skipped_shares) // 2
        early, late = float(np.mean(skipped_shares[:half])), float(np.mean(skipped_shares[-half:]))
        present = late - early > SKIPPED_RISE
        parts.append(f"the share of traces more than half a period off went from {early:.1%} to {late:.1%}")
    if len(mse_kmps2) >= 2 and len(misfits) > window:
        falls = misfits[-1] < misfits[-1 - window]
        present = present or (falls and mse_kmps2[-1] > (1.0 + ERROR_RISE) * mse_kmps2[0])
        parts.append(
            f"within {window} iterations the misfit went from {misfits[-1 - window]:.4g} to {misfits[-1]:.4g}, the "
            f"model error from {mse_kmps2[0]:.4f} to {mse_kmps2[-1]:.4f} (km/s)²"
        )
    if not parts:
        return Verdict(name, False, "Cycle skipping is judged from two diagnosed iterations on.", judged=False)
    text = "; ".join(parts)
    return Verdict(name, present, f"{text[0].upper()}{text[1:]}.")


def bound_share(
    velocity: NDArray[np.floating], bounds_mps: tuple[float, float], include: NDArray[np.bool_] | None = None
) -> float:
    """Share of the counted cells of a model[z, x] that lie at a bound, to 0.1 % of the range between the bounds."""
    low, high = bounds_mps
    counted = velocity if include is None else velocity[include]
    margin = 1e-3 * (high - low)
    return float(np.mean((counted <= low + margin) | (counted >= high - margin)))


def bound_sticking(share: float, initial_share: float = 0.0) -> Verdict:
    """Many cells lie at a velocity bound. Cells that started there do not count: pass their share."""
    return Verdict(
        "bound sticking",
        share - initial_share > STUCK_SHARE,
        f"{share:.1%} of the cells lie at a velocity bound, {initial_share:.1%} did at the start (limit of the rise "
        f"{STUCK_SHARE:.0%}).",
    )


def cycle_skipped_share(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], dt_s: float, peak_hz: float
) -> float:
    """Share of live traces whose best correlation lag exceeds half a dominant period, 1 / (2 peak_hz).

    predicted, observed   floating[..., time]; a trace that is zero or not finite in either does not count
    returns               0 to 1; 0 when no trace is live
    """
    samples = observed.shape[-1]
    ours = np.reshape(predicted, (-1, samples)).astype(np.float64)
    theirs = np.reshape(observed, (-1, samples)).astype(np.float64)
    live = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)
    live &= np.any(ours != 0, axis=1) & np.any(theirs != 0, axis=1)
    if not live.any():
        return 0.0
    from scipy.fft import irfft, next_fast_len, rfft

    length = next_fast_len(2 * samples - 1, real=True)
    correlation = irfft(rfft(ours[live], length) * rfft(theirs[live], length).conj(), length)
    lag = np.argmax(correlation, axis=1)
    lag = np.where(lag > length // 2, lag - length, lag)
    return float(np.mean(np.abs(lag) * dt_s * peak_hz > 0.5))


def say(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in words: present signatures with their numbers, then the absent and the unjudged ones by name."""
    present = [verdict for verdict in verdicts if verdict.present]
    absent = [verdict.signature for verdict in verdicts if verdict.judged and not verdict.present]
    unjudged = [verdict.signature for verdict in verdicts if not verdict.judged]
    lines = [f"{verdict.signature.capitalize()}: {verdict.sentence}" for verdict in present]
    if absent:
        lines.append(f"No sign of {_listed(absent)}.")
    if unjudged:
        lines.append(f"Too little to judge {_listed(unjudged)}.")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _too_short(name: str, have: int, need: int) -> Verdict:
    return Verdict(name, False, f"{have} iterations are too few to judge {name}, which takes {need}.", judged=False)
