"""Options for field records: what normalised misfit, smoothed gradient, mutes and penalties change in an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from hpfwi.config import load_config
from hpfwi.errors import DataError
from hpfwi.experiment import build_experiment
from hpfwi.figures import gathers as gathers_figure
from hpfwi.figures.record import read_record
from hpfwi.inversion.bands import stages_of
from hpfwi.inversion.prepare import doubtful_strength
from hpfwi.inversion.task import InversionTask, window_of
from hpfwi.inversion.windows import trace_weights
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.plan import derived_settings, in_brief
from hpfwi.store.gathers import GathersStore, open_gathers, write_gathers

SPIKE = (12, 20)


def task_of(reference: Any, observed: GathersStore, *overrides: str, model: str = "initial") -> InversionTask:
    """A replica of the reference run with other options or gathers, at one of its models."""
    config, _ = load_config(reference.path / "config.toml", overrides)
    grid = Grid((24, 40), (15.0, 15.0))
    return InversionTask(config, EarthModel(reference.array(f"model/{model}"), grid), observed, 1e-3, device="cpu")


def moved(task: InversionTask, spike: tuple[int, int]) -> np.ndarray:
    """Where one step with a gradient of a single cell moves the model, bool[z, x]."""
    before = task.model().copy()
    gradient = np.zeros((24, 40))
    gradient[spike] = 1.0
    task.begin(0)
    task.advance(0, gradient)
    return task.model() != before


def test_a_normalised_misfit_does_not_know_the_strength_of_a_trace(reference: Any, tmp_path: Path) -> None:
    store = open_gathers(reference.path / "observed.zarr")
    gathers = store.read(range(6))
    strengths = 10.0 ** np.random.default_rng(1).uniform(-3, 3, gathers.shape[:2]).astype(np.float32)
    write_gathers(tmp_path / "uneven.zarr", gathers * strengths[..., None], store.survey, store.wavelet)
    uneven = open_gathers(tmp_path / "uneven.zarr")
    found = {}
    for misfit in ("l2", "normalised"):
        for gathers_of in (store, uneven):
            task = task_of(reference, gathers_of, f"inversion.misfit={misfit}")
            task.begin(0)
            gradient, scalars = task.gradient([2])
            found[misfit, gathers_of is uneven] = gradient, scalars["residual_energy"] / scalars["observed_energy"]
    even, odd = found["normalised", False], found["normalised", True]
    assert np.abs(even[0]).max() > 0
    assert odd[0] == pytest.approx(even[0], rel=1e-3, abs=1e-5 * float(np.abs(even[0]).max()))
    assert odd[1] == pytest.approx(even[1], rel=1e-5)
    assert found["l2", True][1] != pytest.approx(found["l2", False][1], rel=0.1)


STRENGTHS = np.array([1.0, 0.2, 5.0, 0.7, 3.0, 0.4], np.float32)


@pytest.fixture(scope="module")
def uneven(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[GathersStore, Path]:
    """Gathers of the reference run with another strength for each shot, without a wavelet; and a file of theirs."""
    place = tmp_path_factory.mktemp("uneven")
    store = open_gathers(reference.path / "observed.zarr")
    assert store.wavelet is not None
    np.save(place / "wavelets.npy", STRENGTHS[:, None] * store.wavelet[:, 0])
    write_gathers(place / "uneven.zarr", STRENGTHS[:, None, None] * store.read(range(6)), store.survey, None)
    return open_gathers(place / "uneven.zarr"), place / "wavelets.npy"


def test_every_shot_is_predicted_with_its_own_wavelet(reference: Any, uneven: tuple[GathersStore, Path]) -> None:
    store, wavelets = uneven
    options = (f"data.observed={store.path}", f"source.wavelet={wavelets}", "inversion.parameterisation.kind=pixel")
    task = task_of(reference, store, *options, model="true")
    task.begin(0)
    for shots in ([0], [4], [1, 2], [5, 3]):
        numbers = task.gradient(shots)[1]
        assert numbers["residual_energy"] < 1e-6 * numbers["observed_energy"]


def test_a_resume_has_the_wavelets_and_the_sea_floor_that_the_run_began_with(
    run: Any, resume: Any, uneven: tuple[GathersStore, Path], tmp_path: Path
) -> None:
    store, wavelets = uneven
    mine, floor = tmp_path / "mine.npy", tmp_path / "floor.npy"
    mine.write_bytes(wavelets.read_bytes())
    np.save(floor, np.repeat([15.0, 45.0], 20))
    changes: dict[str, Any] = {
        "model__true": "none",
        "model__initial": "linear",
        "data__observed": store.path,
        "source__wavelet": mine,
        "model__sea_floor": floor,
        "inversion__iterations": 3,
        "inversion__bands_hz": [20.0],
    }
    straight = run(tmp_path / "straight", **changes)
    stopped = run(tmp_path / "stopped", stop_after=2, **changes)
    np.save(mine, np.load(wavelets)[::-1])
    np.save(floor, np.full(40, 60.0))
    assert resume(stopped).bits == straight.bits
    start, end = (straight.array(f"model/{name}") for name in ("initial", "inverted"))
    assert (start == end).sum(axis=0).tolist() == [1] * 20 + [3] * 20


def test_a_smoothed_gradient_moves_the_neighbours_too_and_never_the_water(reference: Any) -> None:
    observed = open_gathers(reference.path / "observed.zarr")
    pixel = ("inversion.parameterisation.kind=pixel", "model.water_depth_m=75.0")
    smooth = (*pixel, "inversion.smooth_gradient_m=20.0")
    rough = moved(task_of(reference, observed, *pixel), SPIKE)
    assert np.argwhere(rough).tolist() == [list(SPIKE)]
    wide = moved(task_of(reference, observed, *smooth), SPIKE)
    assert wide[SPIKE[0] - 2 : SPIKE[0] + 3, SPIKE[1] - 2 : SPIKE[1] + 3].all()
    assert not wide[:5].any()
    assert not moved(task_of(reference, observed, *smooth), (4, 20)).any()


MUTE = (
    "data.mute.after_s=0.05",
    "data.mute.after_mps=2500.0",
    "data.mute.taper_s=0.02",
    "data.mute.max_offset_m=400.0",
)


@pytest.mark.parametrize("misfit", ["l2", "normalised"])
def test_what_is_muted_does_not_count_in_either_gather(misfit: str, reference: Any, tmp_path: Path) -> None:
    store = open_gathers(reference.path / "observed.zarr")
    window = window_of(load_config("demo", MUTE)[0].data.mute, store.survey, range(6), stages_of((), 1)[0])
    assert 0.05 < window.mean() < 0.6
    noise = np.random.default_rng(3).normal(size=store.shape).astype(np.float32)
    write_gathers(tmp_path / "noisy.zarr", store.read(range(6)) + (window == 0) * noise, store.survey, store.wavelet)
    noisy = open_gathers(tmp_path / "noisy.zarr")
    pixel = (f"inversion.misfit={misfit}", "inversion.parameterisation.kind=pixel", "modelling.store_every=1")
    found = {}
    for options in (MUTE, ()):
        for gathers in (store, noisy):
            task = task_of(reference, gathers, *pixel, *options)
            task.begin(0)
            found[options, gathers is noisy] = task.gradient([2])
    assert np.array_equal(found[MUTE, True][0], found[MUTE, False][0])
    assert found[MUTE, True][1] == found[MUTE, False][1]
    assert not np.allclose(found[(), True][0], found[(), False][0], rtol=0.1)
    at_truth = task_of(reference, store, *pixel, *MUTE, model="true")
    at_truth.begin(0)
    numbers = at_truth.gradient([2])[1]
    assert numbers["residual_energy"] < 1e-6 * numbers["observed_energy"]
    muted = task_of(reference, store, *pixel, *MUTE)
    gradient, energies = found[MUTE, False][0], []
    way = np.sign(gradient) * (np.abs(gradient) > 0.2 * np.abs(gradient).max())
    for step in (4.0, -8.0):
        muted.parameterisation.get_parameter("pixels").data += torch.from_numpy(step * way)
        muted.begin(1)
        energies.append(muted.gradient([2])[1]["residual_energy"])
    assert 0.5 * (energies[0] - energies[1]) / 8.0 == pytest.approx(float((gradient * way).sum()), rel=0.01)


def test_equal_traces_keep_the_weights_of_their_offsets(reference: Any) -> None:
    """The penalties' unit follows: the energy of equal traces is their number times the squares of their weights."""
    options = ("inversion.misfit=normalised", "data.mute.max_offset_m=300.0", "data.mute.offset_taper_m=200.0")
    task = task_of(reference, open_gathers(reference.path / "observed.zarr"), *options)
    task.begin(0)
    energies = [task.gradient([shot])[1]["observed_energy"] for shot in range(6)]
    mute = load_config("demo", options)[0].data.mute
    each = np.square(trace_weights(mute, task.simulator.survey, range(6)))
    assert 0 < np.count_nonzero((each > 0) & (each < 1)) < each.size
    assert energies == pytest.approx(list(80 * each.sum(axis=1)), rel=1e-5)
    assert task._energy_of_iteration() == pytest.approx(sum(energies), rel=1e-5)


def test_a_run_counts_in_units_of_what_is_left_and_shows_it(run: Any, tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        inversion__iterations=2,
        **{option.split("=")[0].replace(".", "__"): option.split("=")[1] for option in MUTE},
    )
    store = open_gathers(ended.path / "observed.zarr")
    window = window_of(load_config("demo", MUTE)[0].data.mute, store.survey, range(6), stages_of((), 1)[0])
    attrs: Any = zarr.open_group(ended.path / "results.zarr", mode="r").attrs
    assert attrs["observed_rms"] == pytest.approx(
        float(np.sqrt(np.square(window * store.read(range(6))).mean())), rel=1e-5
    )
    assert np.array_equal(ended.array("gathers/window"), window[ended.array("gathers/shots")])
    picture = gathers_figure.gathers(read_record(ended.path))
    assert picture is not None
    assert "muted" in picture.caption


def test_a_mute_that_leaves_nothing_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is zero after data.mute, in one of the bands at least; leave more of them"):
        run(tmp_path, data__mute__after_s=9.0)
    rows = {row.name: row for row in derived_settings(build_experiment(load_config("demo", MUTE)[0]))}
    assert rows["mute"].reason.endswith("traces")
    assert not rows["mute"].warning
    empty = derived_settings(build_experiment(load_config("demo", ["data.mute.after_s=9.0"])[0]))
    assert any("check the times and offsets of data.mute" in line for line in in_brief(empty))


def test_penalties_pull_in_units_of_the_misfit(reference: Any) -> None:
    """A gradient of waves that is opposite to the penalties' stops the model: half the expected energy times theirs."""
    observed = open_gathers(reference.path / "observed.zarr")
    options = ("inversion.parameterisation.kind=pixel", "inversion.shots_per_iteration=3")
    assert task_of(reference, observed, *options).regulariser is None
    task = task_of(reference, observed, *options, "inversion.regularise.tv=0.1", "inversion.regularise.tikhonov=0.02")
    assert task.regulariser is not None
    start = task.model().copy()
    pull = task.regulariser.gradient(start)
    task.begin(0)
    task.advance(0, -0.5 * (3 * 40 * 80) * pull)
    assert np.array_equal(task.model(), start)
    task.begin(1)
    task.advance(1, np.zeros((24, 40)))
    inside = (start > 1400.0) & (start < 5600.0)
    assert np.array_equal(np.sign(start - task.model())[inside], np.sign(pull)[inside])


def test_a_run_shows_its_penalties_and_goes_on_with_them(run: Any, resume: Any, reference: Any, tmp_path: Path) -> None:
    changes = {"inversion__regularise__tv": 0.05, "inversion__iterations": 4}
    ended = run(tmp_path / "straight", **changes)
    shown = [event["regularisation/tv"] for event in ended.of_kind("diagnostics")]
    assert len(shown) == 3
    assert all(0.0 < value < 0.5 for value in shown)
    assert not any("regularisation/tikhonov" in event for event in ended.of_kind("diagnostics"))
    assert not any(key.startswith("regularisation") for event in reference.of_kind("diagnostics") for key in event)
    assert resume(run(tmp_path / "stopped", stop_after=2, **changes)).bits == ended.bits


def test_strengths_that_no_velocity_explains_are_told() -> None:
    gathers = np.random.default_rng(2).normal(size=(2, 3, 50)).astype(np.float32)
    assert doubtful_strength(gathers, 9 * gathers) is None
    for factor in (1e-3, 11.0):
        doubt = doubtful_strength(factor * gathers, gathers)
        assert doubt is not None
        assert doubt[0] == pytest.approx(factor, rel=1e-5)
        assert "hpfwi wavelet" in doubt[1]


def test_gathers_are_kept_where_memory_allows_and_read_again_where_not(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = open_gathers(reference.path / "observed.zarr"), []
    whole = GathersStore.read

    def counted(self: GathersStore, shots: Any) -> np.ndarray:
        read.append(tuple(shots))
        return whole(self, shots)

    monkeypatch.setattr(GathersStore, "read", counted)
    gather_bytes = 4 * store.survey.receivers * store.survey.samples
    monkeypatch.setattr("hpfwi.inversion.task.fair_share_bytes", lambda: 2 * (2 * gather_bytes + 1))
    task = task_of(reference, store)
    task.begin(0)
    first = [task.gradient([shot])[0].tobytes() for shot in range(4)]
    assert [task.gradient([shot])[0].tobytes() for shot in range(4)] == first
    assert read == [(0,), (1,), (2,), (3,), (2,), (3,)]
