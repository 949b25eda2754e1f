"""How a finished run ended: its numbers, and what its course shows of the known ways to fail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hpfwi.inversion import signatures


@dataclass(frozen=True)
class Outcome:
    """How a finished run ended.

    misfit_*      Σ residual² / Σ observed² of the first and of the last pass through the shots, in the last band
    last_band     the iteration with which that band begins
    mse_*_kmps2   mean squared velocity error at the start and at the end, (km/s)², None without a true model
    verdict       the failure signatures in words
    """

    iterations: int
    seconds: float
    misfit_first: float
    misfit_last: float
    last_band: int
    mse_first_kmps2: float | None
    mse_last_kmps2: float | None
    verdict: str


@dataclass(frozen=True)
class Course:
    """What was seen of a run.

    misfits      of every iteration     diagnosed   the diagnostics events, in order, the last one of the final model
    stage_first  the first iteration in the last band: misfits and lags of other bands do not compare with its own
    """

    misfits: list[float]
    diagnosed: list[dict[str, Any]]
    iterations_per_pass: int
    stage_first: int = 0

    @property
    def misfit_of_passes(self) -> list[float]:
        """Mean misfit of every whole pass of the last stage; of its iterations where there was no whole pass."""
        return signatures.means_of_passes(self.misfits, self.iterations_per_pass, self.stage_first)

    def lately(self, name: str) -> list[float]:
        """A scalar of the diagnosed iterations in the last `signatures.WINDOW` passes of the last stage."""
        window = len(self.misfits) - signatures.WINDOW * self.iterations_per_pass
        first = max(window, self.stage_first)
        return [event[name] for event in self.diagnosed if event.get(name) is not None and event["iteration"] >= first]


def verdicts(course: Course, mean_velocity_mps: float, *, true_known: bool) -> list[signatures.Verdict]:
    """Every failure signature, judged on the course of a run.

    mean_velocity_mps   of the initial model     true_known   whether errors were taken against a true model
    """
    misfits = course.misfit_of_passes
    last, first = course.diagnosed[-1], course.diagnosed[0]
    deep = [last.get(f"spectra/amplitude_deep_{band}") for band in range(1, 4)]
    return [
        signatures.stagnation(
            misfits,
            last["model/update_rms_mps"],
            wanted_rms_mps=last.get("model/wanted_rms_mps"),
            mean_velocity_mps=mean_velocity_mps,
        ),
        signatures.oscillation(misfits),
        signatures.blurring(
            [math.nan if value is None else value for value in deep] if true_known else [],
            ssim_shallow=last.get("ssim_shallow"),
            ssim_deep=last.get("ssim_deep"),
        ),
        signatures.cycle_skipping(
            misfits,
            skipped_shares=course.lately("skipped_share"),
            mse_kmps2=course.lately("mse_kmps2"),
        ),
        signatures.bound_sticking(last["model/bound_share"], first["model/bound_share"]),
    ]
