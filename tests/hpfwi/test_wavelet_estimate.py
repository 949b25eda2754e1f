from pathlib import Path

import numpy as np
import pytest

from hpfwi.cli_field import _estimated
from hpfwi.config import load_config
from hpfwi.errors import ConfigError, DataError
from hpfwi.experiment import Experiment, build_experiment
from hpfwi.inversion.wavelet_estimate import Estimate, estimate_each, estimate_wavelet, shaping_filter
from hpfwi.physics.modelling import simulate
from hpfwi.physics.source import ricker
from hpfwi.store.gathers import open_gathers, write_gathers

TOY = [
    "model.shape=[24,40]",
    "survey.shots=3",
    "survey.samples=300",
    "survey.dt_s=0.003",
    "source.peak_hz=9.0",
    "data.observed=none",
    "model.initial=constant",
    "model.constant_mps=2000.0",
]


def true_wavelet(dt_s: float, samples: int) -> np.ndarray:
    """Stronger than the probe, later, of another peak, and with a second pulse: float64[time]."""
    first = ricker(7.0, dt_s, samples, 0.18)
    return 250.0 * (first - 0.4 * np.roll(first, 40) * (np.arange(samples) >= 40))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, np.ndarray]:
    """Records of the initial model itself with a wavelet that nobody was told, in a store without one."""
    place = tmp_path_factory.mktemp("measured")
    experiment = build_experiment(load_config(None, TOY)[0])
    survey = experiment.survey
    series = true_wavelet(survey.dt_s, survey.samples)
    wavelet = np.tile(series, (survey.shots, 1, 1)).astype(np.float32)
    gathers = simulate(experiment.models.initial, survey, wavelet, experiment.config.modelling, device="cpu")
    write_gathers(place / "field.zarr", gathers, survey, None)
    overrides = [*TOY[:5], f"data.observed={place / 'field.zarr'}", *TOY[6:]]
    return build_experiment(load_config(None, overrides)[0]), series


def observed(experiment: Experiment, shot: int) -> np.ndarray:
    path = experiment.config.data.observed
    assert path is not None
    return open_gathers(Path(path)).read([shot])[0]


def test_a_wavelet_is_found_with_its_strength_delay_and_shape(measured: tuple[Experiment, np.ndarray]) -> None:
    experiment, series = measured
    assert experiment.guessed
    found = estimate_wavelet(experiment, lambda shot: observed(experiment, shot), [0, 2], length_s=0.6)
    assert found.traces == 80
    assert found.explained > 0.999
    assert len(found.wavelet) == 201
    # The damping and the probe's band leave a percent.
    assert np.abs(found.wavelet - series[:201]).max() < 0.02 * np.abs(series).max()


def test_each_shot_has_a_wavelet_of_its_own(measured: tuple[Experiment, np.ndarray]) -> None:
    """Strength and delay differ from shot to shot: one wavelet for all explains none of them well."""
    experiment, series = measured

    def read(shot: int) -> np.ndarray:
        return (1.0 + shot) * np.roll(observed(experiment, shot), 12 * shot, axis=-1)

    common = estimate_wavelet(experiment, read, [0, 1, 2], length_s=0.6)
    found = estimate_each(experiment, read, common, length_s=0.6)
    assert [one.traces for one in found] == [40, 40, 40]
    for shot, one in enumerate(found):
        assert one.explained > 0.999
        wanted = (1.0 + shot) * np.roll(series, 12 * shot)[:201]
        assert np.abs(one.wavelet - wanted).max() < 0.03 * np.abs(wanted).max()
    assert common.explained < 0.8


def test_a_shot_without_a_wavelet_is_named_and_a_silent_one_takes_the_common(
    measured: tuple[Experiment, np.ndarray],
) -> None:
    experiment, _ = measured
    common = Estimate(np.arange(5.0), 0.5, 120, 1.0)
    with pytest.raises(ConfigError, match=r"Shot 0 has no receiver within -1 m of its source: .* --max-offset-m"):
        estimate_each(experiment, lambda shot: observed(experiment, shot), common, max_offset_m=-1.0)
    found = estimate_each(experiment, lambda shot: observed(experiment, shot) * (shot != 1), common)
    assert found[1].wavelet is common.wavelet
    assert [one.energy > 0 for one in found] == [True, False, True]
    said = _estimated(common, [0, 2], found, experiment.survey)
    assert "Silent       shot 1: the wavelet in common stands in for theirs" in said
    assert [line.split()[:2] for line in said[-2:]] == [["Shot", "0"], ["Shot", "2"]]
    assert not any("explained worst" in line for line in said)


def test_offsets_limit_the_traces(measured: tuple[Experiment, np.ndarray]) -> None:
    experiment, _ = measured

    def read(shot: int) -> np.ndarray:
        return observed(experiment, shot)

    near = estimate_wavelet(experiment, read, [1], max_offset_m=50.0)
    assert near.traces == 7  # every 15 m, to both sides of the source
    with pytest.raises(ConfigError, match="No receiver is within"):
        estimate_wavelet(experiment, read, [0], max_offset_m=-1.0)
    with pytest.raises(ConfigError, match="cannot be found in records of 300 samples"):
        estimate_wavelet(experiment, read, [0], length_s=5.0)


def test_traces_of_zeros_hold_no_wavelet() -> None:
    with pytest.raises(DataError, match="all zero"):
        shaping_filter([(np.ones((2, 20)), np.zeros((2, 20)))], 2, 5)


def test_shaping_is_the_least_squares_solution() -> None:
    """Against dense normal equations, with traces that are zero near their ends so that no edge matters."""
    random = np.random.default_rng(5)
    predicted, wanted = np.zeros((3, 80)), np.zeros((3, 80))
    predicted[:, 20:50] = random.normal(size=(3, 30))
    wanted[:, 20:50] = random.normal(size=(3, 30))
    back, length = 4, 7
    columns = np.stack([np.roll(predicted, lag, axis=1).ravel() for lag in range(-back, length)], axis=1)
    normal = columns.T @ columns
    normal += 1e-3 * normal[0, 0] * np.eye(back + length)
    assert shaping_filter([(predicted, wanted)], back, length) == pytest.approx(
        np.linalg.solve(normal, columns.T @ wanted.ravel()), rel=1e-9, abs=1e-12
    )
