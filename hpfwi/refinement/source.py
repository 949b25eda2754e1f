"""Whose proposals are refined, and against which records: what every worker opens for itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator, modelling_of
from hpfwi.refinement.settings import RefinementSettings
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.training.geometry import difference, differing
from hpfwi.training.replicas import weights_of
from hpfwi.training.settings import split_of
from hpfwi.training.trained import Trained, Which
from hpfwi.training.weights import open_network


@dataclass(frozen=True)
class RefinementSource:
    """A trained network and the records that its proposals are refined against; can be pickled.

    network, which  folder of a run or file of `hpfwi export`, and the checkpoint of a run
    weights_sha256  that checkpoint's, see `weights_digest`
    data            store of the records
    samples         of that store
    modelling       how its records were made
    known           whether its models are true ones, by which a refinement can be judged
    provenance      what the refined pairs are a function of, plain JSON values
    """

    network: Path
    which: Which
    weights_sha256: str
    data: Path
    samples: range
    modelling: OpenFwiSettings
    settings: RefinementSettings
    known: bool
    provenance: Mapping[str, Any]

    def store(self) -> PairStore:
        """The records; raises DataError where others lie there by now."""
        store = open_pairs(self.data)
        if store.manifest["sha256"] != self.provenance["records"]["sha256"]:
            raise DataError(f"{self.data} was replaced while its records were refined; put it back, or begin anew.")
        return store

    def trained(self, device: str = "cpu") -> Trained:
        """The network; raises DataError where the run has another checkpoint, or the file other weights, by now."""
        trained = open_network(self.network, self.which, device=device)
        if weights_digest(trained) != self.weights_sha256:
            raise DataError(
                f"The {self.which} weights of {self.network} are others than those this refinement began with: let "
                "the run finish first, and begin anew under another name."
            )
        return trained

    def simulator(self, shape: tuple[int, int], device: Any, *, exact: bool) -> OpenFwiSimulator:
        """What models are refined with, or, if exact, what made the records."""
        cpml = not exact and self.settings.boundary == "cpml"
        return OpenFwiSimulator(shape, self.modelling, boundary="cpml" if cpml else "sponge", device=device)


def weights_digest(trained: Trained) -> str:
    """sha256 of a network's weights, and of the configuration that decides what it makes of records."""
    total = hashlib.sha256()
    training = trained.config.training
    total.update(trained.config.network.model_dump_json().encode())
    total.update(training.normalisation.model_dump_json().encode())
    for name, value in sorted(weights_of(trained.network).items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def open_source(
    network: Path,
    data: Path,
    settings: RefinementSettings,
    *,
    split: str = "train",
    samples: int | None = None,
    which: Which = "best",
    say: Callable[[str], None] = lambda sentence: None,
) -> RefinementSource:
    """Look whether a network's proposals for a store's records can be refined.

    network     folder of a training run, or a file of `hpfwi export`
    split       of the store whose samples are refined
    samples     how many of them, from the first; None takes all
    which       checkpoint of a run
    say         called with a sentence about what could not be looked at, or is cut off

    raises      ConfigError: not a training run, a network that does not predict m/s, no such split, too few samples
                DataError: no checkpoint, records of another shape or geometry than the network was trained on, or whose
                modelling is not known
                hpfwi_kernels.errors.StabilityError: bounds up to velocities that cannot be modelled
    """
    network, data = network.absolute(), data.absolute()  # workers may start in another folder
    trained = open_network(network, which)
    config = trained.config
    if config.training.normalisation.normalisation == "per-sample":
        raise ConfigError(
            f"{network} was trained on each sample's own range ('per-sample') and proposes shapes, not m/s, which "
            "waves cannot be modelled in; train with training.normalisation.normalisation = 'range'."
        )
    store = open_pairs(data)
    trained.require_shapes(store)
    modelling = _modelling(store, settings.bounds_mps)
    _tell_of_bounds(trained, settings, say)
    _require_same_geometry(trained, network, store, say)
    chosen = split_of(store, split)
    if samples is not None and samples > len(chosen):
        raise ConfigError(
            f"-n {samples} is more than the {len(chosen)} samples of split {split!r} of {data}; give at most that many."
        )
    digest = weights_digest(trained)
    chosen = chosen[:samples]
    return RefinementSource(
        network=network,
        which=which,
        weights_sha256=digest,
        data=data,
        samples=chosen,
        modelling=modelling,
        settings=settings,
        known="refinement" not in store.manifest.get("provenance", {}),
        provenance={
            "refinement": settings.model_dump(mode="json"),
            "run": config.name,
            "network": config.network.name,
            "step": trained.step,
            "weights_sha256": digest,
            "records": {
                "family": store.family,
                "sha256": store.manifest["sha256"],
                "samples": [chosen.start, chosen.stop],
            },
        },
    )


def _modelling(store: PairStore, bounds_mps: tuple[float, float]) -> OpenFwiSettings:
    """How a store's records were made.

    raises  DataError: it does not say, or says what is not so
            hpfwi_kernels.errors.StabilityError: velocities within these bounds cannot be modelled in this way
    """
    try:
        modelling = modelling_of(store.physics, store.records_shape)
        simulator = OpenFwiSimulator(store.model_shape, modelling)
    except DataError as error:
        raise DataError(f"The records of {store.path} cannot be modelled: {error}") from error
    said, made = store.physics, simulator.physics
    differs = differing(said, made)
    if simulator.records_shape != store.records_shape or differs:
        what = ", ".join(differs) or f"records of shape {list(store.records_shape)}"
        raise DataError(
            f"The records of {store.path} cannot be modelled: the recipe that it names does not give its {what}; make "
            "the store again."
        )
    extremes = np.full(store.model_shape, bounds_mps[0], np.float32)
    extremes[-1] = bounds_mps[1]
    simulator.records(extremes)  # what would be unstable is refused now, and not after hours
    return modelling


def _tell_of_bounds(trained: Trained, settings: RefinementSettings, say: Callable[[str], None]) -> None:
    """Say where the network was trained on velocities that the refinement cuts off."""
    learnt = trained.config.training.normalisation.range_mps
    low, high = settings.bounds_mps
    if learnt is not None and (learnt[0] < low or learnt[1] > high):
        say(
            f"The network was trained on {learnt[0]:g} to {learnt[1]:g} m/s, and refined models keep to {low:g} to "
            f"{high:g}; change that with --set bounds_mps=[{min(low, learnt[0]):g},{max(high, learnt[1]):g}]."
        )


def _require_same_geometry(trained: Trained, network: Path, store: PairStore, say: Callable[[str], None]) -> None:
    """Raise DataError where records were made with another geometry, time step or wavelet than those that trained."""
    physics = trained.trained_on.physics
    if physics is None:
        say(f"{network} does not say how the records that trained it were made; only shapes could be compared.")
        return
    if (differs := difference(physics, store)) is not None:
        raise DataError(f"{differs}: what it learnt does not hold there; give records of the same modelling.")
