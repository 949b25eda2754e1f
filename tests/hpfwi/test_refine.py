"""One refinement: what it lowers, what it keeps, what has no say, and what cannot be refined."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator, modelling_of
from hpfwi.refinement.refine import refine
from hpfwi.refinement.settings import load_refinement
from hpfwi.store.openfwi_families import FAMILIES, physics_of

SHAPE = (16, 20)
TOY = OpenFwiSettings(shots=2, steps=120, peak_hz=30.0, absorbing_cells=30)
SMALL = [
    *("parameterisation.network.width=16", "parameterisation.network.hidden_layers=2"),
    *("parameterisation.lr_network=3e-3", "parameterisation.lr_pixel_mps=20"),
]


@pytest.fixture(scope="module")
def true() -> NDArray[np.float32]:
    """Return a step of velocity that dips, float32[z, x], m/s."""
    rows, columns = np.indices(SHAPE)
    return np.where(rows > 6 + columns / 8, 2600.0, 1900.0).astype(np.float32)


@pytest.fixture(scope="module")
def simulator() -> OpenFwiSimulator:
    return OpenFwiSimulator(SHAPE, TOY, boundary="cpml", device="cpu")


def share(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> float:
    residual = predicted.astype(np.float64) - observed
    return float(np.square(residual).sum() / np.square(observed, dtype=np.float64).sum())


@pytest.mark.parametrize("kind", ["s-denorm", "pixel"])
def test_a_blurred_model_is_made_to_fit(kind: str, true: NDArray[np.float32], simulator: OpenFwiSimulator) -> None:
    observed = simulator.records(true)
    proposal = gaussian_filter(true, 3.0)
    settings, _ = load_refinement([*SMALL, "iterations=25", f"parameterisation.kind={kind}"])
    found = refine(proposal, observed, simulator, settings)
    assert found.proposed == pytest.approx(share(simulator.records(proposal), observed), rel=1e-6)
    assert found.refined == pytest.approx(share(simulator.records(found.velocity), observed), rel=1e-6)
    assert found.refined < 0.5 * found.proposed
    if kind == "s-denorm":  # pixels fit the records by noise where they see little
        assert np.abs(found.velocity - true).mean() < np.abs(proposal - true).mean()
    again = refine(proposal, observed, simulator, settings)
    assert np.array_equal(again.velocity, found.velocity)


def test_the_model_of_least_misfit_is_kept(true: NDArray[np.float32], simulator: OpenFwiSimulator) -> None:
    observed = simulator.records(true)
    wild, _ = load_refinement(
        ["iterations=4", "parameterisation.kind=pixel", "parameterisation.lr_pixel_mps=900", "bounds_mps=[1000,5000]"]
    )
    found = refine(true, observed, simulator, wild)  # nothing is left to gain
    assert (found.iteration, found.proposed, found.refined) == (0, 0.0, 0.0)
    assert np.array_equal(found.velocity, true)
    one, _ = load_refinement(["iterations=1", *SMALL])
    found = refine(gaussian_filter(true, 3.0), observed, simulator, one)
    assert found.iteration == 1  # the model after the last step counts as well
    assert found.refined < found.proposed


def test_no_iterations_keep_the_proposal_within_bounds(true: NDArray[np.float32], simulator: OpenFwiSimulator) -> None:
    settings, _ = load_refinement(["iterations=0", "bounds_mps=[2000.7,2500.3]"])
    found = refine(true, simulator.records(true), simulator, settings)
    assert np.array_equal(found.velocity, np.clip(true, np.float32(2000.7), np.float32(2500.3)))
    settings, _ = load_refinement(["iterations=1", "bounds_mps=[2000.7,2500.3]", *SMALL])
    refine(true, simulator.records(true), simulator, settings)  # bounds that float32 rounds are no bounds to refuse


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_records_without_a_signal_are_refused(
    value: float, true: NDArray[np.float32], simulator: OpenFwiSimulator
) -> None:
    settings, _ = load_refinement(["iterations=1"])
    records = np.full(simulator.records_shape, value, np.float32)
    with pytest.raises(DataError, match=r"hold no signal, or NaN or infinity; leave them out\.$"):
        refine(true, records, simulator, settings)


def test_what_is_raised_by_a_look_ends_it(true: NDArray[np.float32], simulator: OpenFwiSimulator) -> None:
    def look() -> None:
        raise KeyboardInterrupt

    settings, _ = load_refinement(["iterations=1"])
    with pytest.raises(KeyboardInterrupt):
        refine(true, simulator.records(true), simulator, settings, look=look)


def test_a_cpml_gives_the_records_of_a_wide_sponge(true: NDArray[np.float32], simulator: OpenFwiSimulator) -> None:
    wide = TOY.model_copy(update={"absorbing_cells": 120})
    sponge = OpenFwiSimulator(SHAPE, wide, device="cpu").records(true)
    assert share(simulator.records(true), sponge) < 1e-5
    assert simulator.updates < OpenFwiSimulator(SHAPE, wide).updates / 10


def test_a_store_says_how_its_records_were_made() -> None:
    assert modelling_of(OpenFwiSimulator(SHAPE, TOY).physics, (2, 120, 20)) == TOY
    vel, marmousi = FAMILIES[0], FAMILIES[-1]
    assert modelling_of(physics_of(vel, (5, 1000, 70), (70, 70)), (5, 1000, 70)) == OpenFwiSettings()
    with pytest.raises(DataError, match="does not say how they were made; take pairs of"):
        modelling_of(physics_of(marmousi, (5, 1000, 70), (70, 70)), (5, 1000, 70))
    with pytest.raises(DataError, match="its scheme is not one of this program"):
        modelling_of({"scheme": {"steps": 100, "colour": "red"}}, (5, 100, 70))


def test_options_keep_the_defaults_of_a_refinement() -> None:
    settings, origins = load_refinement(["parameterisation.network.width=64", "parameterisation.kind=pretrain"])
    assert settings.parameterisation.network.zero_last
    assert settings.parameterisation.lr_network == load_refinement()[0].parameterisation.lr_network
    assert origins["parameterisation.kind"] == "--set"
    for wrong, sentence in {
        "iteration=3": "iteration is not an option; did you mean iterations?",
        "iterations=-1": "give at least 0",
        "bounds_mps=[3000,2000]": "holds no velocity; give 0 < low < high in m/s",
        "records=both": 'give "observed" or "modelled"',
    }.items():
        with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
            load_refinement([wrong])
