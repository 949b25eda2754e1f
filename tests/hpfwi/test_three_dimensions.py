"""Models [z, y, x] and surveys over them: what the layer of grids, positions and waves makes of three dimensions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from hpfwi.config import load_config
from hpfwi.errors import ConfigError, DataError
from hpfwi.experiment import build_experiment, cluster_of
from hpfwi.inversion import spectra
from hpfwi.inversion.denormalisation import Denormalised
from hpfwi.inversion.misfit import l2
from hpfwi.inversion.parameterisation import ParameterisationSettings, build_parameterisation
from hpfwi.inversion.regularise import Regulariser, RegulariseSettings
from hpfwi.inversion.windows import MuteSettings, trace_weights
from hpfwi.networks import siren
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel, ModelSettings, constant, load_models
from hpfwi.physics.modelling import simulate, simulate_observed
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import SourceSettings, build_wavelet, ricker
from hpfwi.physics.survey import Survey, SurveySettings, build_survey, horizontal_m
from hpfwi.physics.water import water_cells
from hpfwi.plan import derived_settings
from hpfwi.store.gathers import open_gathers, write_gathers
from hpfwi.store.models import read_model, write_model_zarr
from hpfwi.synthetic.velocity import procedural_marmousi_like
from hpfwi_kernels.acoustic import Scheme, off_grid, reference

GRID = Grid((10, 9, 12), (10.0, 12.0, 11.0), (5.0, -30.0, 100.0))
SAMPLES, DT_S = 70, 1.5e-3
WIDTHS = (0, 5, 3, 4, 5, 3)


def slope(grid: Grid) -> EarthModel:
    """Return a velocity that is linear along every axis."""
    z, y, x = np.meshgrid(*(grid.nodes_m(axis) for axis in range(3)), indexing="ij")
    return EarthModel((1600.0 + 2.0 * z + 1.5 * (y + 30.0) + 0.5 * (x - 100.0)).astype(np.float32), grid)


def places() -> Survey:
    """Return two shots with receivers on nodes and between them, one of which is absent."""
    low, high = np.array(GRID.origin_m), np.array(GRID.last_m)
    shares = np.random.default_rng(3).uniform(0.15, 0.85, (2, 5, 3))
    points = low + shares * (high - low)
    points[0, 0] = low + 3 * np.array(GRID.spacing_m)
    points[1, 3] = np.nan
    return Survey(points[:, :1], points[:, 1:], DT_S, SAMPLES)


def simulator(**options: object) -> Simulator:
    survey = places()
    wavelet = np.tile(ricker(20.0, DT_S, SAMPLES, 0.04), (2, 1, 1)).astype(np.float32) * 1e6
    settings = ModellingSettings.model_validate({"order": 4, "absorbing_cells": WIDTHS, "store_every": 1} | options)
    return Simulator(GRID, survey, wavelet, settings, 2500.0)


def test_every_axis_has_its_own_nodes() -> None:
    assert GRID.last_m == (95.0, 66.0, 221.0)
    assert GRID.nodes_m(1).tolist() == [-30.0 + 12.0 * row for row in range(9)]
    assert GRID.cells_of([15.0, -18.0, 122.0]).tolist() == [1.0, 1.0, 2.0]
    fine = GRID.refined(3)
    assert fine.shape == (28, 25, 34)
    assert fine.last_m == pytest.approx(GRID.last_m)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((4, 5, 6), (10.0, 10.0)), r"spacing_m=\(10.0, 10.0\) does not fit a model of 4 x 5 x 6 cells: give \(dz, dy"),
        (((4, 1, 6), (10.0,) * 3), "4 x 1 x 6 cells is too small: all counts must be at least 2"),
        (((4, 5, 6), (10.0, 0.0, 10.0)), r"all spacings \(dz, dy, dx\) must be positive"),
        (((4, 5, 6), (10.0,) * 3, (0.0, 0.0)), r"the 3 values \(z, y, x\) must be finite"),
        (((4, 5, 6, 7), (10.0,) * 4), r"give \(nz, nx\) or \(nz, ny, nx\) cells"),
    ],
)
def test_grids_that_are_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Grid(*arguments)


def test_an_areal_survey_stands_on_nodes_line_after_line() -> None:
    settings = SurveySettings(shots=3, source_lines=2, receivers=4, receiver_lines=3, source_depth_m=20.0)
    grid = Grid((8, 13, 25), (10.0, 10.0, 10.0))
    survey = build_survey(settings, grid)
    assert survey.sources_m[:, 0].tolist() == [[20.0, y, x] for y in (30.0, 90.0) for x in (40.0, 120.0, 200.0)]
    assert survey.receivers_m[4].tolist() == [[10.0, y, x] for y in (0.0, 60.0, 120.0) for x in (0, 80, 160, 240)]
    assert settings.every_shot == survey.shots
    placed = settings.model_copy(update={"first_source_line_m": 10.0, "source_line_spacing_m": 25.0})
    assert build_survey(placed, grid).sources_m[::3, 0, 1].tolist() == [10.0, 35.0]
    near = build_survey(settings.model_copy(update={"max_offset_m": 95.0}), grid)
    # The source is at y = 90, x = 120: 40 m along x are near enough on lines 30 m away, not on the one 90 m away.
    assert near.receivers_m[4, near.live_receivers()[4]][:, 1:].tolist() == [
        [y, x] for y in (60.0, 120.0) for x in (80.0, 160.0)
    ]


def test_a_position_outside_in_y_is_named() -> None:
    settings = SurveySettings(shots=1, first_source_line_m=70.0)
    with pytest.raises(DataError, match=r"source 0 at z=15 m, y=70 m, x=166 m is outside .* y=-30 to 66 m and x=100"):
        build_survey(settings, GRID)


@pytest.mark.parametrize("option", [{"source_lines": 2}, {"receiver_lines": 3}, {"first_source_line_m": 0.0}])
def test_lines_need_a_model_with_a_y(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"survey.{next(iter(option))} = .* which a 2-D model .* does not have"):
        build_survey(SurveySettings.model_validate(option), Grid((10, 20), (10.0, 10.0)))


def test_survey_and_model_of_different_dimensions_are_refused() -> None:
    line = build_survey(SurveySettings(shots=2), Grid((10, 20), (10.0, 10.0)))
    with pytest.raises(
        DataError, match=r"positions are \(z, x\) and the model is \[z, y, x\]: a 2-D survey needs a 2-D"
    ):
        line.check(GRID)
    with pytest.raises(DataError, match="sources have 2 coordinates and its receivers 3"):
        Survey(line.sources_m, np.zeros((2, 4, 3)), DT_S, 10)


def test_refining_and_resampling_keep_what_is_linear() -> None:
    earth = slope(GRID)
    fine = earth.refined(2)
    assert fine.velocity == pytest.approx(slope(fine.grid).velocity, rel=1e-6)
    assert np.array_equal(fine.velocity[::2, ::2, ::2], earth.velocity)
    halves = slope(Grid((10, 8, 12), GRID.spacing_m)).resampled((5, 4, 6))
    assert halves.grid.spacing_m == (20.0, 24.0, 22.0)
    # The mean of eight cells is the value half a cell from the first of them.
    assert halves.velocity[0, 0, 0] == pytest.approx(1600.0 + 2.0 * 5.0 + 1.5 * 36.0 + 0.5 * (5.5 - 100.0))
    with pytest.raises(DataError, match="10 x 9 x 12 cells cannot be resampled to 5 x 6: give 3 counts"):
        earth.resampled((5, 6))


def test_water_and_starting_models_are_made_of_whole_planes() -> None:
    settings = ModelSettings(
        true=None, initial="linear", shape=(6, 4, 5), spacing_m=20.0, water_depth_m=40.0, linear_mps=(1600.0, 2200.0)
    )
    pair = load_models(settings)
    assert pair.initial.grid.spacing_m == (20.0, 20.0, 20.0)
    assert (pair.initial.velocity == pair.initial.velocity[:, :1, :1]).all()
    assert pair.initial.velocity[:, 0, 0].tolist() == [1500.0, 1500.0, 1600.0, 1800.0, 2000.0, 2200.0]
    assert pair.water_mask.all(axis=(1, 2)).tolist() == [True, True, False, False, False, False]
    assert pair.water_mask.sum() == 2 * 4 * 5


def test_a_made_up_block_strikes_obliquely_through_the_section_of_its_seed() -> None:
    block = procedural_marmousi_like((30, 9, 40), (15.0, 15.0, 15.0), 2)
    section = procedural_marmousi_like((30, 40), (15.0, 15.0), 2)
    assert np.array_equal(block, procedural_marmousi_like((30, 9, 40), (15.0, 15.0, 15.0), 2))
    distances = [float(np.abs(plane - section).mean()) for plane in np.moveaxis(block, 1, 0)]
    assert np.argmin(distances) == 4
    assert distances[4] < 40.0 < 60.0 < min(distances[0], distances[8])


def test_models_in_files(tmp_path: Path) -> None:
    earth = slope(GRID)
    np.save(tmp_path / "block.npy", earth.velocity)
    np.savez(tmp_path / "block.npz", vp=earth.velocity)
    write_model_zarr(tmp_path / "block.zarr", earth)
    assert read_model(tmp_path / "block.zarr").grid == GRID
    for name in ("block.npy", "block.npz"):
        assert np.array_equal(read_model(tmp_path / name, GRID.spacing_m).velocity, earth.velocity)
        assert read_model(tmp_path / name, 10.0).grid == Grid(GRID.shape, (10.0,) * 3)
    with pytest.raises(DataError, match=r"spacing_m=\(10.0, 20.0\) does not fit .* give \(dz, dy, dx\)"):
        read_model(tmp_path / "block.npy", (10.0, 20.0))
    with pytest.raises(DataError, match=r"give it in metres as spacing_m = \[dz, dy, dx\]"):
        read_model(tmp_path / "block.npy")


def test_gathers_in_files_keep_three_coordinates(tmp_path: Path) -> None:
    survey = places()
    write_gathers(tmp_path / "g.zarr", np.ones((2, 4, SAMPLES), np.float32), survey, None)
    np.testing.assert_array_equal(open_gathers(tmp_path / "g.zarr").survey.receivers_m, survey.receivers_m)


def test_offsets_are_horizontal_distances() -> None:
    survey = Survey(np.array([[[9.0, 0.0, 0.0]]]), np.array([[[0.0, 30.0, 40.0], [0.0, 3.0, 4.0]]]), DT_S, 10)
    assert trace_weights(MuteSettings(max_offset_m=49.0), survey, [0]).tolist() == [[0.0, 1.0]]
    assert trace_weights(MuteSettings(max_offset_m=51.0), survey, [0]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("free_surface", [True, False])
def test_the_simulator_is_the_definition_of_the_kernels(free_surface: bool) -> None:
    """Positions in metres, widths by side, and the wavelet over the volume of a cell, in float64."""
    one = simulator(free_surface=free_surface, absorbing_cells=(0 if free_surface else 4, *WIDTHS[1:]))
    velocity = torch.from_numpy(slope(GRID).velocity.astype(np.float64))
    found = one.predict(velocity, [1, 0]).numpy()
    cells = [GRID.cells_of(positions)[[1, 0]] for positions in (one.survey.sources_m, one.survey.receivers_m)]
    sources, receivers = (off_grid(each, GRID.shape, free_surface=free_surface) for each in cells)
    scheme = Scheme(
        spacing_m=GRID.spacing_m,
        dt_s=DT_S,
        order=4,
        absorbing=(0 if free_surface else 4, *WIDTHS[1:]),
        boundary="cpml",
        free_surface=free_surface,
        pml_hz=one.peak_hz,
        max_velocity_mps=2500.0,
    )
    drive = np.tile(ricker(20.0, DT_S, SAMPLES, 0.04), (2, 1, 1)).astype(np.float32) * 1e6
    wanted, _ = reference.forward(
        velocity.numpy(), drive.astype(np.float64) / (10.0 * 12.0 * 11.0), sources, receivers, scheme, store=False
    )
    assert np.linalg.norm(found - wanted) <= 1e-11 * np.linalg.norm(wanted)
    assert not found[0, 2].any()  # the absent receiver of shot 1


def test_a_point_source_has_the_amplitude_and_time_of_the_exact_field() -> None:
    """w(t - r/v) / (4 pi r) in a whole space, for a wavelet of 1 Pa m, on cells of three sizes."""
    velocity_mps, dt_s = 2000.0, 1e-3
    grid = Grid((26, 28, 30), (10.0, 9.0, 8.0))
    source, receivers = np.array([80.0, 70.0, 60.0]), np.array([[200.0, 70.0, 60.0], [170.0, 171.0, 162.0]])
    survey = Survey(source[None, None], receivers[None], dt_s, 260)
    wavelet = build_wavelet(SourceSettings(peak_hz=15.0), survey)
    settings = ModellingSettings(free_surface=False, absorbing_cells=10)
    records = simulate(constant(grid, velocity_mps), survey, wavelet, settings)[0]
    for record, place in zip(records, receivers, strict=True):
        distance_m = float(np.linalg.norm(place - source))
        delay_s = 1.5 / 15.0 + distance_m / velocity_mps
        exact = ricker(15.0, dt_s, 260, delay_s) / (4.0 * math.pi * distance_m)
        assert np.linalg.norm(record - exact) <= 0.01 * np.linalg.norm(exact)


def test_gathers_do_not_depend_on_the_cell_size() -> None:
    grid = Grid((14, 15, 18), (20.0, 20.0, 20.0))
    survey = build_survey(SurveySettings(shots=1, receivers=6, receiver_lines=1, dt_s=0.003, samples=90), grid)
    wavelet = build_wavelet(SourceSettings(peak_hz=8.0, delay_s=0.1), survey)
    settings = ModellingSettings(absorbing_cells=(0, 4, 5, 4, 5, 4), order=8)
    coarse = simulate(slope(grid), survey, wavelet, settings)
    fine = simulate_observed(slope(grid), survey, wavelet, settings, refine=2)
    far = horizontal_m(survey.receivers_m, survey.sources_m[:, :1]) > 60.0
    assert 0 < far.sum() < far.size
    assert np.linalg.norm(coarse[far] - fine[far]) <= 0.03 * np.linalg.norm(fine[far])


@pytest.mark.parametrize("kind", ["pixel", "s-denorm"])
def test_the_gradient_passes_a_taylor_test(kind: str) -> None:
    one, settings = simulator(), {"kind": kind, "network": {"width": 8, "hidden_layers": 2}}
    written = build_parameterisation(
        ParameterisationSettings.model_validate(settings), slope(GRID), (1500.0, 2500.0), water_cells(GRID, 10.0), 1
    ).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        bump = 1.0 + 0.05 * torch.rand(GRID.shape, generator=generator, dtype=torch.float64)
        observed = one.predict(written() * bump, [0, 1])
    parameters = list(written.parameters())
    start = l2(one.predict(written(), [0, 1]), observed)
    ways = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64) * (10.0 if kind == "pixel" else 0.01)
        for each in parameters
    ]
    gradients = torch.autograd.grad(start, parameters)
    rise = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
    before, rests, steps = [each.detach().clone() for each in parameters], [], 0.5 ** np.arange(5, 10)
    with torch.no_grad():
        for step in steps:
            for parameter, value, way in zip(parameters, before, ways, strict=True):
                parameter.copy_(value + step * way)
            rests.append(abs(float(l2(one.predict(written(), [0, 1]), observed) - start) - step * rise))
    assert np.polyfit(np.log(steps), np.log(rests), 1)[0] == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("cells_at_once", [100, 540])
def test_a_large_block_is_written_piece_by_piece(cells_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same model and same gradients, also where diagnostics ask for two gradients of one model."""
    settings = ParameterisationSettings.model_validate({"kind": "s-denorm", "network": {"width": 8}})
    arguments = (settings, slope(GRID), (1500.0, 2500.0), water_cells(GRID, 10.0), 1)
    gradient = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, calls = [], []
    for piece in (10**6, cells_at_once):
        monkeypatch.setattr(siren, "PIECE", piece)
        written = build_parameterisation(*arguments).double()
        assert isinstance(written, Denormalised)
        written.network.register_forward_hook(lambda network, inputs, output: calls.append(len(output)))
        weights = list(written.parameters())
        model = written()
        first = torch.autograd.grad(model, weights, gradient, retain_graph=True)
        second = torch.autograd.grad(model, weights, 2 * gradient)
        for one, two in zip(first, second, strict=True):
            assert torch.equal(2 * one, two)
        found.append([model.detach(), *first])
    for whole, pieces in zip(*found, strict=True):
        assert float((whole - pieces).norm()) <= 1e-12 * float(whole.norm())
    assert calls[0] == 1080
    assert max(calls[1:]) == cells_at_once


def test_waves_of_one_length_are_in_one_band_along_every_axis() -> None:
    shape, spacing_m = (20, 24, 30), (10.0, 10.0, 10.0)
    for axis in range(3):
        wave = np.cos(2 * math.pi * np.arange(shape[axis]) / 6).reshape([-1 if a == axis else 1 for a in range(3)])
        shares = spectra.band_shares(np.broadcast_to(wave, shape), spacing_m, 100.0)
        assert np.argmax(shares) == 3  # 60 m lies between one wavelength and half of one
        assert shares[3] > 0.6


def test_the_penalty_has_the_gradient_of_its_value() -> None:
    water = water_cells(GRID, 20.0)
    earth = slope(GRID).velocity.astype(np.float64)
    penalty = Regulariser(RegulariseSettings(tv=0.5, tikhonov=0.2), slope(GRID).velocity, GRID.spacing_m, water)

    def value(model: NDArray[np.float64]) -> float:
        return sum(penalty.penalties(model).values())

    generator = np.random.default_rng(1)
    noisy, way = earth + generator.normal(0.0, 50.0, GRID.shape), generator.normal(0.0, 1.0, GRID.shape)
    rise = (value(noisy + 0.01 * way) - value(noisy - 0.01 * way)) / 0.02
    assert rise == pytest.approx(float(np.vdot(penalty.gradient(noisy), way)), rel=1e-5)
    # A slope along y costs what the same slope along x costs.
    y_only, x_only = (np.broadcast_to(np.arange(6.0) * 30.0 + 2000.0, (6, 6, 6)).swapaxes(axis, 2) for axis in (1, 2))
    cube = Regulariser(RegulariseSettings(tv=1.0), x_only.astype(np.float32), (9.0,) * 3, np.zeros((6, 6, 6), bool))
    assert cube.penalties(y_only)["tv"] == pytest.approx(cube.penalties(x_only)["tv"])


def test_a_plan_names_all_sides_and_counts_all_lines() -> None:
    config, _ = load_config("demo_3d", ["cluster.workers=0"])
    assert cluster_of(config, 0).worker_count() == 0
    experiment = build_experiment(config)
    assert experiment.survey.shots == 16
    rows = {row.name: row for row in derived_settings(experiment, gpus=0)}
    assert rows["cells"].value == "24 x 33 x 33"
    assert rows["cells"].reason == "600 m deep, 825 m wide and 825 m long"
    assert rows["absorbing_cells"].value == "0/10/10/10/10/10"
    network = rows["network_megabytes_per_worker"]
    assert network.value == pytest.approx(24 * 33 * 33 * 4 * (2 * 128) * 4 / 1e6, abs=0.1)
    assert network.reason == "activations of 4 layers of 128 units at 26,136 cells"
    assert rows["updates_per_shot"].value == 34 * 53 * 53 * 500
    assert not [row.name for row in rows.values() if row.warning]


def test_what_stays_two_dimensional_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match='engine = "deepwave" computes 2-D models here, not one of 10 x 9 x 12'):
        simulator(engine="deepwave", absorbing_cells=5)
    with pytest.raises(
        ConfigError, match=r"absorbing_cells = \[0, 5, 5, 5\] has 4 widths, and a 3-D model has 6 sides"
    ):
        simulator(absorbing_cells=(0, 5, 5, 5))
    with pytest.raises(ValidationError, match=r"must be one number, four \(2-D\) or six \(3-D\)"):
        ModellingSettings(absorbing_cells=(0, 5, 5))
    with pytest.raises(ConfigError, match=r"model.shape = \[4, 5, 6, 7\].*\(nz, ny, nx\) likewise"):
        load_config(None, ["model.shape=[4,5,6,7]"])
