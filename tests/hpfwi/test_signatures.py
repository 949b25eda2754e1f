"""Failure signatures: each is shown a history that has it and some that have not."""

import numpy as np
import pytest

from hpfwi.inversion.signatures import (
    Verdict,
    blurring,
    bound_share,
    bound_sticking,
    cycle_skipped_share,
    cycle_skipping,
    oscillation,
    oscillation_index,
    pass_means,
    say,
    stagnation,
)

FALLING = [float(np.exp(-iteration / 40.0)) for iteration in range(150)]
FLAT = [1.0] * 10 + [0.6 * (1.0 - 1e-5 * iteration) for iteration in range(140)]


def test_stagnation_needs_a_standstill_a_high_misfit_and_a_model_that_has_not_moved() -> None:
    def judge(misfits: list[float], moved: float, wanted: float | None = 400.0) -> bool:
        verdict = stagnation(misfits, moved, wanted_rms_mps=wanted, mean_velocity_mps=3000.0)
        assert verdict.judged
        return verdict.present

    assert judge(FLAT, 50.0)
    assert not judge(FALLING, 50.0)
    assert not judge(FLAT, 150.0)
    assert not judge([1.0] * 10 + [0.04] * 140, 50.0)
    # Without a true model the limit is 2 % of the mean velocity, 60 m/s.
    assert judge(FLAT, 50.0, None)
    assert not judge(FLAT, 70.0, None)
    # One stagnant window after a falling one is not enough.
    assert not judge([*FALLING[:100], *[FALLING[99]] * 50], 50.0)


def test_stagnation_says_its_numbers_and_waits_for_two_windows() -> None:
    sentence = stagnation(FLAT, 50.0, wanted_rms_mps=400.0, mean_velocity_mps=3000.0).sentence
    assert "59.9% of its start" in sentence
    assert "50 m/s rms (limit 100 m/s" in sentence
    verdict = stagnation(FLAT[:100], 50.0, mean_velocity_mps=3000.0)
    assert (verdict.present, verdict.judged) == (False, False)
    assert "100 iterations are too few" in verdict.sentence


def test_oscillation_is_scatter_around_the_trend_not_the_trend() -> None:
    jumping = [value * (3.0 if index % 2 else 1.0) for index, value in enumerate(FALLING)]
    assert oscillation(jumping).present
    assert not oscillation(FALLING).present
    assert not oscillation([10.0 ** (-index) for index in range(40)]).present
    rng = np.random.default_rng(0)
    assert not oscillation(list(np.array(FALLING) * 10 ** rng.normal(0, 0.02, 150))).present
    # The published loss values between iterations 975 and 999 of an implicit inversion that oscillates.
    assert oscillation([3.06e-4, 1.45e-3, 3.3e-4, 7.2e-4] * 5).present
    assert not oscillation(FALLING[:19]).judged


def test_a_wide_range_with_many_rising_steps_is_oscillation_even_below_the_index_limit() -> None:
    logs = np.array([0.0] * 18 + [0.25, -0.25])
    assert oscillation_index(list(10**logs)) < 0.10
    logs[:18:2] += 0.01
    assert oscillation(list(10**logs)).present


def test_oscillation_index_is_the_standard_deviation_of_the_logarithm() -> None:
    wiggle = 0.2 * np.array([1, -1, -1, 1] * 5)
    assert oscillation_index(list(10.0 ** (wiggle - 0.1 * np.arange(20)))) == pytest.approx(0.2, rel=0.01)


def test_blurring_by_amplitude_and_by_similarity() -> None:
    assert blurring([0.9, 0.8, 0.5, 0.2]).present
    assert blurring([np.nan, 0.8, 0.5, 0.2]).present
    assert not blurring([0.9, 0.9, 0.8, 0.6]).present
    assert not blurring([0.3, 0.3, 0.2, 0.1]).present
    assert blurring([0.9, 0.9, 0.9, 0.9], ssim_shallow=0.8, ssim_deep=0.6).present
    assert not blurring([0.9, 0.9, 0.9, 0.9], ssim_shallow=0.8, ssim_deep=0.7).present
    assert not blurring([np.nan, 0.9]).judged
    assert "20% at the shortest" in blurring([0.9, 0.8, 0.5, 0.2]).sentence
    # The reason comes first.
    assert blurring([0.9, 0.2], ssim_shallow=0.8, ssim_deep=0.7).sentence.startswith("The deep half holds")
    assert blurring([0.9, 0.9], ssim_shallow=0.8, ssim_deep=0.6).sentence.startswith("SSIM is 0.800")


def test_cycle_skipping_by_rising_share_or_by_error_against_misfit() -> None:
    assert cycle_skipping(FALLING, skipped_shares=[0.10, 0.11, 0.15, 0.2]).present
    assert not cycle_skipping(FALLING, skipped_shares=[0.30, 0.25, 0.2, 0.1]).present
    assert not cycle_skipping(FALLING, skipped_shares=[0.30, 0.31, 0.3, 0.31]).present
    assert cycle_skipping(FALLING, mse_kmps2=[0.25, 0.27, 0.29]).present
    assert not cycle_skipping(FALLING, mse_kmps2=[0.25, 0.24, 0.23]).present
    assert not cycle_skipping(FLAT[::-1], mse_kmps2=[0.25, 0.27, 0.29]).present
    assert not cycle_skipping(FALLING[:20], mse_kmps2=[0.25, 0.27]).judged
    assert "0.2500 to 0.2900 (km/s)²" in cycle_skipping(FALLING, mse_kmps2=[0.25, 0.27, 0.29]).sentence


def test_bound_share_counts_cells_at_either_bound() -> None:
    model = np.full((10, 10), 3000.0)
    model[0, :3] = 1500.0
    model[9, :2] = 5500.0
    assert bound_share(model, (1500.0, 5500.0)) == pytest.approx(0.05)
    include = np.ones((10, 10), dtype=bool)
    include[0] = False
    assert bound_share(model, (1500.0, 5500.0), include) == pytest.approx(2 / 90)
    assert bound_sticking(0.05).present
    assert not bound_sticking(0.01).present
    assert not bound_sticking(0.05, initial_share=0.04).present


def ricker(delay_s: float, peak_hz: float = 8.0, dt_s: float = 0.002, samples: int = 600) -> np.ndarray:
    argument = (np.pi * peak_hz * (np.arange(samples) * dt_s - delay_s)) ** 2
    return (1 - 2 * argument) * np.exp(-argument)


def test_skipped_traces_are_those_more_than_half_a_period_off() -> None:
    half_period = 0.5 / 8.0
    shifts = [0.0, 0.9 * half_period, 1.1 * half_period, -0.9 * half_period, -1.1 * half_period, 0.5, -0.3]
    observed = np.stack([ricker(0.6) for _ in shifts])[None].astype(np.float32)
    predicted = np.stack([ricker(0.6 + shift) for shift in shifts])[None].astype(np.float32)
    assert cycle_skipped_share(predicted, observed, 0.002, 8.0) == pytest.approx(4 / 7)
    assert cycle_skipped_share(1e-6 * predicted, observed, 0.002, 8.0) == pytest.approx(4 / 7)


def test_dead_and_missing_traces_do_not_count() -> None:
    observed = np.stack([ricker(0.6)] * 4)
    predicted = np.stack([ricker(0.6), ricker(0.9), np.zeros(600), ricker(0.9)])
    observed[3, 7] = np.nan
    assert cycle_skipped_share(predicted, observed, 0.002, 8.0) == pytest.approx(0.5)
    assert cycle_skipped_share(0 * observed[:2], observed[:2], 0.002, 8.0) == 0.0


def test_pass_means_make_batched_misfits_comparable() -> None:
    # Two batches of very different size of misfit, falling smoothly from pass to pass.
    batched = [value * (5.0 if index % 2 else 1.0) for index, value in enumerate(FALLING)]
    assert oscillation(batched).present
    assert not oscillation(pass_means(batched, 2)).present


def test_the_verdicts_are_said_in_words() -> None:
    verdicts = [
        Verdict("stagnation", True, "It stands still."),
        Verdict("oscillation", False, "x"),
        Verdict("blurring", False, "y"),
        Verdict("bound sticking", False, "z"),
        Verdict("cycle skipping", False, "w", judged=False),
    ]
    assert say(verdicts) == (
        "Stagnation: It stands still.\nNo sign of oscillation, blurring or bound sticking.\n"
        "Too little to judge cycle skipping."
    )
    assert say(verdicts[1:2]) == "No sign of oscillation."
