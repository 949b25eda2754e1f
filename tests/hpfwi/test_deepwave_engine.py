"""deepwave behind hpfwi's interface: the same gathers where both engines can compute them, right physics elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from hpfwi import cli, figures
from hpfwi.config import load_config
from hpfwi.errors import ConfigError, DataError, NumericsError
from hpfwi.experiment import build_experiment
from hpfwi.physics.derived import derived
from hpfwi.physics.grid import Grid
from hpfwi.physics.medium import build_medium
from hpfwi.physics.model import constant, linear_gradient
from hpfwi.physics.modelling import simulate, simulate_observed
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import SourceSettings, build_wavelet
from hpfwi.physics.survey import Survey
from hpfwi.plan import derived_settings, in_brief
from hpfwi_kernels.errors import StabilityError

GRID = Grid((30, 50), (10.0, 10.0))
LOW_MPS, HIGH_MPS = 1500.0, 3000.0
SURVEY = Survey(
    np.array([[[150.0, 250.0]], [[120.0, 133.0]]]),
    np.array([[[52.0 + 5 * i, 100.0 + 30 * i] for i in range(10)]] * 2),
    0.002,
    100,
)
"""Two shots; the second source and most receivers lie between cells."""
WAVELET = build_wavelet(SourceSettings(peak_hz=12.0), SURVEY)
VELOCITY = torch.from_numpy(np.random.default_rng(0).uniform(1800.0, 2600.0, GRID.shape))

PHYSICS: dict[str, dict[str, Any]] = {
    "variable-density": {"density": 1000.0},
    "elastic": {"density": 1000.0},
    "viscoacoustic": {"density": 1000.0, "quality_factor": 1e12},
}
"""Options that leave nothing but acoustic waves at constant density (elastic: with a shear velocity of 0)."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def liquid(tmp_path: Path) -> Callable[[tuple[int, int]], dict[str, str]]:
    """Return a function that writes a shear velocity of 0 and gives the option that names it."""

    def options(shape: tuple[int, int]) -> dict[str, str]:
        np.save(tmp_path / "zero.npy", np.zeros(shape))
        return {"shear_velocity": str(tmp_path / "zero.npy")}

    return options


def simulator(grid: Grid = GRID, survey: Survey = SURVEY, wavelet: np.ndarray = WAVELET, **options: Any) -> Simulator:
    return Simulator(grid, survey, wavelet, ModellingSettings(**options), HIGH_MPS, LOW_MPS)


def answer(engine: Simulator, velocity: torch.Tensor = VELOCITY) -> tuple[np.ndarray, np.ndarray]:
    """Gathers of all shots, and the gradient of half the sum of their squares."""
    velocity = velocity.clone().requires_grad_()
    gathers = engine.predict(velocity, range(engine.survey.shots))
    (gradient,) = torch.autograd.grad(0.5 * gathers.square().sum(), velocity)
    return gathers.detach().numpy(), gradient.numpy()


def relative(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


@pytest.mark.parametrize("free_surface", [True, False])
@pytest.mark.parametrize(("options", "substeps"), [({"order": 8, "store_every": 3}, 2), ({"order": 4}, 1)])
def test_acoustic_gathers_and_gradient_are_those_of_hpfwi(
    options: dict[str, Any], substeps: int, free_surface: bool
) -> None:
    """1e-11 in float64 as in the kernels' own comparison, 1e-5 in float32: rounding adds up along a record."""
    common = options | {"free_surface": free_surface}
    ours = simulator(**common)
    theirs = simulator(**common, engine="deepwave")
    assert theirs.scheme == ours.scheme
    assert ours.scheme.substeps == substeps
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        gathers, gradient = answer(theirs, VELOCITY.to(dtype))
        expected, expected_gradient = answer(ours, VELOCITY.to(dtype))
        assert gathers.dtype == expected.dtype
        assert relative(gathers, expected) < tolerance
        assert relative(gradient, expected_gradient) < tolerance


@pytest.mark.parametrize(
    ("physics", "free_surface"),
    [("variable-density", True), ("variable-density", False), ("viscoacoustic", True), ("elastic", False)],
)
def test_order_2_at_constant_density_is_the_same_scheme(
    physics: str, free_surface: bool, liquid: Callable[..., dict[str, str]]
) -> None:
    """The staggered step of order 2 is the second difference, so nothing but rounding tells the engines apart until a
    field has been to the absorbing layer, at one cell per time step; 1/Q of 1e-12 is below the bar too."""
    grid = Grid((41, 61), (10.0, 10.0))
    row = 5 if free_surface else 20
    receivers = [[10.0 * (row + z), 300.0 + 10.0 * x] for z, x in ((-3, -4), (1, 5), (4, 0), (0, -2))]
    survey = Survey(np.array([[[10.0 * row, 300.0]]]), np.array([receivers]), 0.0015, 34)
    noise = np.random.default_rng(1).standard_normal((1, 1, 34), dtype=np.float32)
    common: dict[str, Any] = {"order": 2, "free_surface": free_surface, "store_every": 1, "pml_hz": 10.0, "substeps": 1}
    velocity = torch.from_numpy(np.random.default_rng(2).uniform(1500.0, 2500.0, grid.shape))
    options = PHYSICS[physics] | (liquid(grid.shape) if physics == "elastic" else {})
    expected = answer(Simulator(grid, survey, noise, ModellingSettings(**common), 2500.0, 1500.0), velocity)
    settings = ModellingSettings(**common, engine="deepwave", physics=physics, quality_hz=10.0, **options)
    got = answer(Simulator(grid, survey, noise, settings, 2500.0, 1500.0), velocity)
    assert relative(got[0], expected[0]) < 1e-10
    assert relative(got[1], expected[1]) < 1e-10


@pytest.mark.parametrize("physics", PHYSICS)
def test_order_8_at_constant_density_agrees_to_the_discretisation(
    physics: str, liquid: Callable[..., dict[str, str]]
) -> None:
    """Two differences of order 8 one after the other are not one second difference, and the layers differ: 1.3e-4."""
    common: dict[str, Any] = {"free_surface": False, "store_every": 1, "substeps": 3}
    options = PHYSICS[physics] | (liquid(GRID.shape) if physics == "elastic" else {})
    gathers, gradient = answer(simulator(**common, engine="deepwave", physics=physics, **options))
    expected, expected_gradient = answer(simulator(**common))
    assert relative(gathers, expected) < 1e-3
    assert relative(gradient, expected_gradient) < 1e-2


@pytest.mark.parametrize("free_surface", [True, False])
def test_points_near_an_edge_reach_over_it(free_surface: bool) -> None:
    survey = Survey(
        np.array([[[137.0, 13.0]]]), np.array([[[14.0, 3.0 + 54.0 * i] for i in range(9)]]), SURVEY.dt_s, SURVEY.samples
    )
    common: dict[str, Any] = {"free_surface": free_surface, "store_every": 1}
    got = answer(simulator(survey=survey, wavelet=WAVELET[:1], **common, engine="deepwave"))
    expected = answer(simulator(survey=survey, wavelet=WAVELET[:1], **common))
    assert relative(got[0], expected[0]) < 1e-3
    assert relative(got[1], expected[1]) < 0.05


def test_absent_receivers_record_zeros_and_shots_keep_their_order() -> None:
    receivers = SURVEY.receivers_m.copy()
    receivers[0, 3] = receivers[1, 0] = np.nan
    moving = Survey(SURVEY.sources_m, receivers, SURVEY.dt_s, SURVEY.samples)
    full = simulator(engine="deepwave").predict(VELOCITY, [0, 1])
    gathers = simulator(survey=moving, engine="deepwave").predict(VELOCITY, [1, 0]).flip(0)
    assert not gathers[~torch.from_numpy(moving.live_receivers())].any()
    live = torch.from_numpy(moving.live_receivers())
    torch.testing.assert_close(gathers[live], full[live], rtol=0, atol=1e-12 * float(full.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {"physics": "variable-density"},
        {"physics": "elastic"},
        {"physics": "elastic", "free_surface": False, "vp_vs_ratio": 2.0},
        {"physics": "viscoacoustic", "quality_factor": 20.0},
    ],
)
def test_gradient_is_the_derivative_of_the_misfit(options: dict[str, Any]) -> None:
    """Central difference along a smooth direction in float64; density, shear and source follow the velocity."""
    engine = simulator(engine="deepwave", store_every=1, **options)
    start = torch.tensor(linear_gradient(GRID, 1800.0, 2600.0).velocity).double()
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 30).double(), torch.linspace(0, 5, 50).double(), indexing="ij")
    direction = torch.sin(rows) * torch.cos(columns) + 0.3

    def misfit(velocity: torch.Tensor) -> float:
        with torch.no_grad():
            return float(0.5 * engine.predict(velocity, [0, 1]).square().sum())

    _, gradient = answer(engine, start)
    slope = float((torch.from_numpy(gradient) * direction).sum())
    assert slope == pytest.approx((misfit(start + direction) - misfit(start - direction)) / 2, rel=1e-4)
    # Snapshots as rare as the wavelet allows leave it alone.
    rare = simulator(engine="deepwave", **options)
    assert rare.scheme.store_every > 3
    assert 0 < relative(answer(rare, start)[1], gradient) < 1e-2


@pytest.mark.parametrize("quality", [10.0, 30.0, 50.0, 77.0, 200.0])
def test_a_model_as_fast_as_it_may_be_can_be_computed(quality: float) -> None:
    """deepwave checks the fastest wave in float32, where attenuation may round it up."""
    engine = simulator(engine="deepwave", physics="viscoacoustic", quality_factor=quality)
    fast = torch.full(GRID.shape, HIGH_MPS, dtype=torch.float32)
    assert torch.isfinite(engine.predict(fast, [0])).all()


def test_bits_depend_on_nothing_but_the_shots() -> None:
    """Repeats, torch's threads, and calls from several threads at once, as hpfwi's workers make them."""
    survey = Survey(SURVEY.sources_m, SURVEY.receivers_m, SURVEY.dt_s, 25)
    engine = simulator(survey=survey, wavelet=WAVELET[..., 20:45], engine="deepwave", physics="variable-density")
    velocity = VELOCITY.float()
    first = answer(engine, velocity)
    torch.set_num_threads(2)
    second = answer(engine, velocity)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda _: answer(engine, velocity), range(2)))
    for gathers, gradient in (second, *others):
        assert np.array_equal(gathers, first[0])
        assert np.array_equal(gradient, first[1])
    assert np.array_equal(engine.predict(velocity, [1], threads=2).numpy(), first[0][1:])


def test_attenuation_is_that_of_the_quality_factor_and_velocity_holds_at_its_frequency() -> None:
    """exp(-π f Δx / (c Q)) between two receivers, and no shift of phase against the same earth without attenuation."""
    grid = Grid((41, 121), (10.0, 10.0))
    survey = Survey(np.array([[[200.0, 100.0]]]), np.array([[[200.0, 400.0], [200.0, 1000.0]]]), 0.002, 450)
    wavelet = build_wavelet(SourceSettings(peak_hz=12.0), survey)
    options: dict[str, Any] = {"physics": "viscoacoustic", "density": 2000.0, "free_surface": False, "quality_hz": 12.0}
    quality, velocity_mps = 30.0, 2000.0
    records = [
        simulate(
            constant(grid, velocity_mps),
            survey,
            wavelet,
            ModellingSettings(engine="deepwave", quality_factor=factor, **options),
        )[0]
        for factor in (1e12, quality)
    ]
    cycle = np.exp(-2j * math.pi * 12.0 * survey.dt_s * np.arange(survey.samples))
    lossless, lossy = (record @ cycle for record in records)
    decay = (lossy[1] / lossless[1]) / (lossy[0] / lossless[0])
    assert np.log(abs(decay)) == pytest.approx(-math.pi * 12.0 * 600.0 / (velocity_mps * quality), rel=0.02)
    assert abs(np.angle(decay)) < 0.01  # 0.28 where the velocity held at zero frequency


def test_elastic_surface_waves_converge_with_the_grid() -> None:
    """The free surface stays on the first row when cells get smaller: the finer grids agree ever better."""
    grid = Grid((24, 44), (10.0, 10.0))
    survey = Survey(np.array([[[40.0, 80.0]]]), np.array([[[30.0, 200.0 + 40 * i] for i in range(5)]]), 0.002, 180)
    wavelet = build_wavelet(SourceSettings(peak_hz=6.0), survey)
    settings = ModellingSettings(engine="deepwave", physics="elastic")
    earth = linear_gradient(grid, 2000.0, 2600.0)
    once, twice, thrice = (simulate_observed(earth, survey, wavelet, settings, refine=k) for k in (1, 2, 3))
    assert relative(once, thrice) < 0.04
    assert relative(twice, thrice) < 0.4 * relative(once, thrice)
    acoustic = simulate(earth, survey, wavelet, ModellingSettings())
    assert relative(once, acoustic) > 0.5  # acoustic waves have no surface wave


def test_arrays_follow_the_grid_when_it_is_refined(tmp_path: Path) -> None:
    rho = np.add.outer(1000.0 + 10.0 * np.arange(30), 3.0 * np.arange(50))
    np.save(tmp_path / "rho.npy", rho)
    settings = ModellingSettings(engine="deepwave", physics="variable-density", density=str(tmp_path / "rho.npy"))
    medium = build_medium(settings, GRID.refined(2), 10.0)
    assert medium.density is not None
    assert medium.density.shape == (59, 99)
    np.testing.assert_allclose(medium.density[::2, ::2], rho)
    np.testing.assert_allclose(medium.density[1, 1], (rho[0, 0] + rho[1, 1]) / 2)
    # A density that is the same everywhere has no effect on pressure, and one that is not has.
    same = simulator(engine="deepwave", physics="variable-density", density=1000.0).predict(VELOCITY, [0])
    other = simulator(engine="deepwave", physics="variable-density", density=2500.0).predict(VELOCITY, [0])
    assert relative(other.numpy(), same.numpy()) < 1e-12
    files = simulator(engine="deepwave", physics="variable-density", density=str(tmp_path / "rho.npy"))
    assert relative(files.predict(VELOCITY, [0]).numpy(), same.numpy()) > 1e-3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"physics": "elastic"}, r'physics="elastic" is beyond hpfwi.s own propagator: use engine="deepwave"'),
        ({"engine": "deepwave", "boundary": "sponge"}, r'boundary="sponge" is not in deepwave: use boundary="cpml"'),
        (
            {"engine": "deepwave", "memory": "checkpoint"},
            r'memory="checkpoint" is not available with engine="deepwave"',
        ),
        ({"engine": "deepwave", "absorbing_cells": (0, 9, 0, 9)}, r"\[0, 9, 0, 9\] leaves a side without a layer"),
        ({"vp_vs_ratio": 1.1}, "greater than 1.15"),
    ],
)
def test_settings_refuse(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ModellingSettings(**options)


def test_the_command_line_gets_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r'^\[modelling\] physics="viscoacoustic" is beyond .* use engine="deepwave"'):
        load_config("demo", ["modelling.physics=viscoacoustic"])


def test_runs_refuse(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "deepwave", "physics": "variable-density"}
    with pytest.raises(StabilityError, match=r"substeps=1 is unstable: .* variable-density .* use substeps=2"):
        simulator(**options, substeps=1)
    with pytest.raises(ConfigError, match='density="gardner" needs the lowest velocity'):
        Simulator(GRID, SURVEY, WAVELET, ModellingSettings(**options), HIGH_MPS)
    with pytest.raises(ConfigError, match=r"wavefields of 2 shots take .* memory_budget_gb=0.0001"):
        simulator(**options, memory_budget_gb=1e-4).predict(VELOCITY.clone().requires_grad_(), [0, 1])
    engine = simulator(**options)
    with pytest.raises(NumericsError, match="reaches 3100 m/s, above the 3000 m/s"):
        engine.predict(torch.full(GRID.shape, 3100.0), [0])
    with pytest.raises(NumericsError, match="must be positive and finite"):
        engine.predict(torch.full(GRID.shape, math.nan), [0])
    np.save(tmp_path / "fast.npy", np.full(GRID.shape, 1700.0))
    solid = simulator(engine="deepwave", physics="elastic", shear_velocity=str(tmp_path / "fast.npy"))
    with pytest.raises(NumericsError, match=r"falls to 1.06 times the shear velocity"):
        solid.predict(VELOCITY, [0])


def test_files_refuse(tmp_path: Path, liquid: Callable[..., dict[str, str]]) -> None:
    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises(DataError, match=sentence):
            simulator(engine="deepwave", **options)

    def file(values: np.ndarray) -> str:
        np.save(tmp_path / "field.npy", values)
        return str(tmp_path / "field.npy")

    refused("shear_velocity = .* holds 0 m/s: give values > 0 under a free", physics="elastic", **liquid(GRID.shape))
    refused("No such file", physics="variable-density", density=str(tmp_path / "none.npy"))
    refused("it is no NumPy file", physics="variable-density", density=__file__)
    refused(r"shape \(7, 50\), which does not fit", physics="variable-density", density=file(np.ones((7, 50))))
    refused("looks like g/cm³", physics="variable-density", density=file(np.full(GRID.shape, 2.3)))
    refused("holds 0 kg/m³", physics="variable-density", density=file(np.zeros(GRID.shape)))
    refused("holds NaN", physics="variable-density", density=file(np.full(GRID.shape, np.nan)))
    refused("quality_factor = 0.5 holds 0.5: give 1 or more", physics="viscoacoustic", quality_factor=0.5)


def test_the_plan_says_which_engine_and_why() -> None:
    def rows(**options: Any) -> dict[str, Any]:
        return {row.name: row for row in derived(simulator(**options), LOW_MPS, 1)}

    assert rows()["engine"].value == "hpfwi"
    assert "hpfwi's own kernel" in rows()["engine"].reason
    elastic = rows(engine="deepwave", physics="elastic")
    assert elastic["engine"].value == "deepwave"
    assert "elastic waves are beyond hpfwi's own kernel: deepwave.elastic, density from" in elastic["engine"].reason
    # The slowest waves are now shear waves, and each snapshot is five fields.
    assert elastic["points_per_wavelength"].value == pytest.approx(
        rows()["points_per_wavelength"].value / math.sqrt(3), abs=0.01
    )
    assert "5 wavefields each" in elastic["snapshot_megabytes_per_shot"].reason
    assert "deepwave keeps its wavefields" in elastic["memory"].reason


def test_an_inversion_with_variable_density_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", ())  # whose drawing takes longer than the waves, and is tested elsewhere
    settings = {
        "model.shape": "[20, 30]",
        "survey.shots": "2",
        "survey.dt_s": "0.002",
        "survey.samples": "80",
        "source.peak_hz": "12.0",
        "source.delay_s": "0.05",
        "modelling.absorbing_cells": "8",
        "modelling.engine": "deepwave",
        "modelling.physics": "variable-density",
        "data.refine": "2",
        "inversion.iterations": "2",
        "inversion.shots_per_iteration": "none",
        "inversion.parameterisation.network.width": "16",
        "inversion.parameterisation.network.hidden_layers": "2",
        "cluster.workers": "0",
        "output.folder": str(tmp_path),
    }
    options = [f"{name}={value}" for name, value in settings.items()]
    experiment = build_experiment(load_config("demo", options)[0])
    assert "deepwave engine" in in_brief(derived_settings(experiment))[0]
    result = CliRunner().invoke(cli.app, ["invert", "demo", *(f"--set={option}" for option in options)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "demo" / "done.json").is_file()
