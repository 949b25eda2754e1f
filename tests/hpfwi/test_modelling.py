import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.derived import derived
from hpfwi.physics.discretisation import POINTS_PER_WAVELENGTH
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel, constant, linear_gradient, smooth
from hpfwi.physics.modelling import simulate, simulate_observed
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import SourceSettings, build_wavelet
from hpfwi.physics.survey import Survey, SurveySettings, build_survey
from hpfwi.synthetic.velocity import procedural_marmousi_like
from hpfwi_kernels.errors import KernelError, StabilityError
from hpfwi_kernels.stencils import second_derivative

GRID = Grid((40, 60), (15.0, 15.0))
SURVEY = build_survey(SurveySettings(shots=3, receivers=12, dt_s=0.002, samples=250), GRID)
WAVELET = build_wavelet(SourceSettings(peak_hz=8.0), SURVEY)
MODEL = EarthModel(procedural_marmousi_like(GRID.shape, GRID.spacing_m, 0), GRID)
START = smooth(MODEL, 6.0)
MAX_MPS = 5000.0

FAR = np.abs(SURVEY.receivers_m[..., 1] - SURVEY.sources_m[..., 1]) > 3 * 15.0
"""bool[shot, receiver]: a receiver a cell or two from the source feels how the grid renders a point."""


def simulator(**options: object) -> Simulator:
    return Simulator(GRID, SURVEY, WAVELET, ModellingSettings.model_validate(options), MAX_MPS)


def relative(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def test_predict_records_every_shot_in_the_order_asked() -> None:
    velocity = torch.tensor(MODEL.velocity)
    everything = simulator().predict(velocity, range(3), threads=2)
    assert everything.shape == (3, 12, 250)
    assert everything.dtype == torch.float32
    assert torch.equal(simulator().predict(velocity, [2, 0]), everything[[2, 0]])
    assert np.array_equal(
        simulate(MODEL, SURVEY, WAVELET, ModellingSettings(), max_velocity_mps=MAX_MPS), everything.numpy()
    )


def test_direct_wave_has_the_amplitude_and_time_of_a_line_source() -> None:
    """Against the exact field of a line source in a whole space, u(t) = ∫ s(t - τ) / (2π √(τ² - τ₀²)) dτ for a wavelet
    s in Pa, with τ₀ = distance / velocity."""
    velocity_mps, dt_s = 2000.0, 0.001
    grid = Grid((41, 61), (10.0, 10.0))
    survey = Survey(np.array([[[200.0, 150.0]]]), np.array([[[200.0, 450.0]]]), dt_s, 400)
    wavelet = build_wavelet(SourceSettings(peak_hz=10.0), survey)
    settings = ModellingSettings(free_surface=False)
    record = simulate(constant(grid, velocity_mps), survey, wavelet, settings)[0, 0]

    arrival_s = 300.0 / velocity_mps
    # τ = τ₀ cosh(q) takes the singularity at the arrival out of the integral.
    q = (np.arange(4000) + 0.5) * 0.001
    delays_s = arrival_s * np.cosh(q)
    times_s = dt_s * np.arange(400)
    past = np.interp(times_s[:, None] - delays_s, times_s, wavelet[0, 0].astype(float), left=0.0)
    exact = past.sum(axis=1) * 0.001 / (2 * math.pi)
    assert relative(record, exact) < 0.02


@pytest.mark.parametrize("free_surface", [True, False])
def test_amplitudes_do_not_depend_on_the_cell_size(free_surface: bool) -> None:
    earth = linear_gradient(GRID, 1800.0, 2600.0)
    settings = ModellingSettings(free_surface=free_surface)
    coarse = simulate(earth, SURVEY, WAVELET, settings, threads=2)
    fine = simulate_observed(earth, SURVEY, WAVELET, settings, refine=2, threads=2)
    assert relative(coarse[FAR], fine[FAR]) < 0.02


def test_observed_records_are_close_to_but_not_those_of_the_inversion() -> None:
    settings = ModellingSettings()
    coarse = simulate(MODEL, SURVEY, WAVELET, settings, threads=2)
    observed = simulate_observed(MODEL, SURVEY, WAVELET, settings, refine=2, order=4, threads=2)
    assert observed.shape == coarse.shape
    assert 1e-3 < relative(coarse, observed) < 0.2
    # Finer grids agree better with each other than with the grid of the inversion.
    twice, thrice = (simulate_observed(MODEL, SURVEY, WAVELET, settings, refine=k, threads=2)[FAR] for k in (2, 3))
    assert relative(coarse[FAR], thrice) > 0.01
    assert relative(twice, thrice) < 0.3 * relative(coarse[FAR], thrice)
    same = simulate_observed(MODEL, SURVEY, WAVELET, settings, refine=1, threads=2)
    assert np.array_equal(same, coarse)


def test_gradient_is_the_derivative_of_the_misfit() -> None:
    """Central difference along a smooth direction in float64, with a snapshot at every step."""
    exact = simulator(store_every=1)
    shots = [0, 2]
    observed = exact.predict(torch.tensor(MODEL.velocity, dtype=torch.float64), shots)

    def misfit(velocity: torch.Tensor) -> torch.Tensor:
        return 0.5 * (exact.predict(velocity, shots) - observed).square().sum()

    start = torch.tensor(START.velocity, dtype=torch.float64)
    direction = torch.tensor(MODEL.velocity - START.velocity, dtype=torch.float64) / 1000
    at_start = start.clone().requires_grad_()
    misfit(at_start).backward()
    assert at_start.grad is not None
    slope = float((at_start.grad * direction).sum())
    difference = float(misfit(start + direction) - misfit(start - direction)) / 2
    assert slope == pytest.approx(difference, rel=1e-4)


def test_snapshots_as_rare_as_chosen_leave_the_gradient_alone() -> None:
    gradients = []
    for store_every in (1, "auto"):
        chosen = simulator(store_every=store_every)
        observed = chosen.predict(torch.tensor(MODEL.velocity), [1])
        velocity = torch.tensor(START.velocity, requires_grad=True)
        (0.5 * (chosen.predict(velocity, [1]) - observed).square().sum()).backward()
        assert velocity.grad is not None
        gradients.append(velocity.grad.numpy())
    assert chosen.scheme.store_every > 5
    assert 0 < relative(gradients[1], gradients[0]) < 3e-3


def test_several_threads_may_predict_at_once_and_bits_do_not_change() -> None:
    shared = simulator()
    velocity = torch.tensor(MODEL.velocity)
    alone = [shared.predict(velocity, [shot]) for shot in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda shot: shared.predict(velocity, [shot], threads=2), [0, 1, 2]))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_groups_and_progress_do_not_change_the_gathers() -> None:
    done: list[tuple[int, int]] = []
    grouped = simulate(
        MODEL, SURVEY, WAVELET, ModellingSettings(), group_bytes=1, progress=lambda *counts: done.append(counts)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert np.array_equal(grouped, simulate(MODEL, SURVEY, WAVELET, ModellingSettings(), threads=2))


def test_absent_receivers_record_zeros() -> None:
    survey = build_survey(SurveySettings(shots=3, receivers=12, max_offset_m=300.0, dt_s=0.002, samples=250), GRID)
    gathers = simulate(MODEL, survey, WAVELET, ModellingSettings())
    assert not gathers[~survey.live_receivers()].any()
    full = simulate(MODEL, SURVEY, WAVELET, ModellingSettings())
    assert np.array_equal(gathers[survey.live_receivers()], full[survey.live_receivers()])
    # Shots with receivers of their own keep them in any order.
    moving = Simulator(GRID, survey, WAVELET, ModellingSettings(), MODEL.fastest_mps)
    assert np.array_equal(moving.predict(torch.tensor(MODEL.velocity), [2, 0]).numpy(), gathers[[2, 0]])


def test_the_time_step_is_split_for_the_fastest_velocity_of_the_run() -> None:
    assert simulator().scheme.substeps == 2
    assert Simulator(GRID, SURVEY, WAVELET, ModellingSettings(), 2000.0).scheme.substeps == 1
    assert simulator(substeps=4).scheme.substeps == 4
    with pytest.raises(StabilityError, match="substeps=2"):
        simulator(substeps=1)
    with pytest.raises(StabilityError):
        Simulator(GRID, SURVEY, WAVELET, ModellingSettings(), 2000.0).predict(torch.tensor(MODEL.velocity), [0])


def test_defaults_that_follow_from_the_wavelet() -> None:
    scheme = simulator().scheme
    assert scheme.pml_hz == pytest.approx(8.0, rel=0.01)
    assert scheme.absorbing == (0, 20, 20, 20)
    assert simulator(free_surface=False).scheme.absorbing == (20, 20, 20, 20)
    assert simulator(absorbing_cells=[0, 5, 6, 7], pml_hz=3.0).scheme.absorbing == (0, 5, 6, 7)
    # Snapshots sample twice the highest frequency, 20.4 Hz: 1 / (2 * 2 * 20.4 Hz * 1 ms) = 12.3.
    assert scheme.store_every == 12
    assert simulator(store_every=3).scheme.store_every == 3


def test_derived_values_have_reasons() -> None:
    values = {entry.name: entry for entry in derived(simulator(), 1500.0, 1)}
    assert values["peak_hz"].value == pytest.approx(8.0, rel=0.01)
    assert values["highest_hz"].value == pytest.approx(20.4, rel=0.02)
    assert values["substeps"].value == 2
    assert "below the limit 0.784 of order 8" in values["substeps"].reason
    assert values["absorbing_cells"].value == "0/20/20/20"
    assert values["updates_per_shot"].value == 60 * 100 * 250 * 2
    snapshots = math.ceil(500 / simulator().scheme.store_every)
    assert values["snapshot_megabytes_per_shot"].value == pytest.approx(4 * 60 * 100 * snapshots / 1e6, abs=0.01)
    assert not any(entry.warning for entry in values.values())
    assert all(entry.reason and "\n" not in entry.reason for entry in values.values())


def test_a_grid_too_coarse_for_the_wavelet_is_pointed_out() -> None:
    for order, slowest_mps, warns in ((8, 1400.0, False), (8, 1300.0, True), (4, 1500.0, True), (4, 2600.0, False)):
        points = next(
            entry for entry in derived(simulator(order=order), slowest_mps, 1) if entry.name == "points_per_wavelength"
        )
        assert points.warning is warns
        assert ("below the" in points.reason) is warns


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_points_per_wavelength_hold_the_stated_dispersion(order: int) -> None:
    """The numerical phase velocity along an axis at the limit is 0.2 % low, from the symbol of the stencil itself."""
    kh = 2 * math.pi / POINTS_PER_WAVELENGTH[order]
    centre, *pairs = second_derivative(order)
    symbol = -centre - 2 * sum(weight * math.cos(m * kh) for m, weight in enumerate(pairs, start=1))
    assert 1 - math.sqrt(symbol) / kh == pytest.approx(0.002, rel=0.02)


def test_points_on_and_under_the_free_surface() -> None:
    survey = build_survey(SurveySettings(shots=1, source_depth_m=0.0, dt_s=0.002, samples=50), GRID)
    wavelet = np.ones((1, 1, 50), dtype=np.float32)
    with pytest.raises(DataError, match=r"Shot 0: source 0 lies on the free surface at z=0 m.*move it down by a cell"):
        Simulator(GRID, survey, wavelet, ModellingSettings(), MAX_MPS)
    Simulator(GRID, survey, wavelet, ModellingSettings(free_surface=False), MAX_MPS)
    survey = build_survey(SurveySettings(shots=1, receiver_depth_m=0.0, dt_s=0.002, samples=50), GRID)
    with pytest.raises(DataError, match="Shot 0: receiver 0 lies on the free surface"):
        Simulator(GRID, survey, wavelet, ModellingSettings(), MAX_MPS)


def test_refusals() -> None:
    with pytest.raises(DataError, match="shot 3 does not exist; the survey has shots 0 to 2"):
        simulator().predict(torch.tensor(MODEL.velocity), [3])
    with pytest.raises(DataError, match="no shot is asked for"):
        simulator().predict(torch.tensor(MODEL.velocity), [])
    with pytest.raises(DataError, match=r"shape \(10, 10\) does not fit"):
        simulator().predict(torch.ones(10, 10), [0])
    with pytest.raises(DataError, match=r"wavelet of shape \(2, 1, 250\) does not fit"):
        Simulator(GRID, SURVEY, WAVELET[:2], ModellingSettings(), MAX_MPS)
    broken = WAVELET.copy()
    broken[1, 0, 5] = np.nan
    with pytest.raises(DataError, match="wavelet of shot 1 holds NaN"):
        Simulator(GRID, SURVEY, broken, ModellingSettings(), MAX_MPS)
    with pytest.raises(DataError, match="outside the model"):
        Simulator(Grid((10, 10), (15.0, 15.0)), SURVEY, WAVELET, ModellingSettings(), MAX_MPS)
    with pytest.raises(ConfigError, match="min_velocity_mps"):
        simulator(boundary="sponge")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": 5}, "order"),
        ({"absorbing_cells": -1}, "must not be negative"),
        ({"absorbing_cells": (20, 20, 20, 20)}, "has 20 cells at the top, where free_surface=true reflects"),
        ({"substeps": 0}, "substeps=0 must be at least 1"),
        ({"store_every": 0}, "store_every=0 must be at least 1"),
        ({"pml_hz": 0.0}, "greater than 0"),
    ],
)
def test_settings_refuse(options: dict, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ModellingSettings(**options)


def test_a_sponge_absorbs_too() -> None:
    gathers = simulate(MODEL, SURVEY, WAVELET, ModellingSettings(boundary="sponge", absorbing_cells=30))
    assert relative(gathers, simulate(MODEL, SURVEY, WAVELET, ModellingSettings(absorbing_cells=30))) < 0.2


def test_memory_is_chosen_for_the_budget_and_leaves_the_gradient_as_it_is() -> None:
    """Wavefields that do not fit are computed again, to the same bits; what fits nowhere is refused with the needs."""
    ample, tight = simulator(), simulator(memory_budget_gb=0.0028)
    assert ample.held(2).memory.mode == "store"
    assert tight.held(2).memory.mode == "checkpoint"
    gradients = []
    for engine in (ample, tight):
        velocity = torch.tensor(MODEL.velocity, requires_grad=True)
        engine.predict(velocity, [0, 1]).square().sum().backward()
        assert velocity.grad is not None
        gradients.append(velocity.grad)
    assert torch.equal(gradients[0], gradients[1])
    with pytest.raises(KernelError, match=r"needs .* MB in mode 'store' or .* in mode 'checkpoint' or .*'boundary'"):
        simulator(memory_budget_gb=1e-4).held(2)
    assert simulator(memory="boundary").held(2).memory.mode == "boundary"
