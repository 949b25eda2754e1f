"""Inversions of seconds, run from the configuration to done.json, and what decides whether two of them are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from hpfwi import checkpoints, tensorboard_view
from hpfwi.config import load_config
from hpfwi.errors import Stopped
from hpfwi.inversion.invert import invert
from hpfwi.run_folder import RunFolder, read_events
from hpfwi.stop import Stop

TINY = {
    "model.shape": "[24, 40]",
    "model.spacing_m": "[15.0, 15.0]",
    "model.seed": "0",
    "model.smooth_sigma_cells": "3.0",
    "survey.shots": "6",
    "survey.source_depth_m": "none",
    "survey.dt_s": "0.002",
    "survey.samples": "80",
    "source.peak_hz": "12.0",
    "source.delay_s": "0.05",
    "modelling.absorbing_cells": "8",
    "data.refine": "1",
    "inversion.iterations": "8",
    "inversion.shots_per_iteration": "none",
    "inversion.diagnostics_every": "3",
    "inversion.snapshot_every": "4",
    "inversion.checkpoint_every": "3",
    "inversion.parameterisation.scale_mps": "1000.0",
    "inversion.parameterisation.network.width": "16",
    "inversion.parameterisation.network.hidden_layers": "2",
    "inversion.parameterisation.lr_network": "1e-3",
    "cluster.workers": "0",
}
"""Options on top of the recipe `demo`: 24 x 40 cells, 6 shots, 8 iterations of 30 ms, checkpoints after 3 and 6."""

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]
"""By name: dtype, shape and bytes of an array."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run folder and what a run in it left."""

    path: Path

    @property
    def checkpoint(self) -> checkpoints.Checkpoint:
        found = checkpoints.load_latest(self.path / "checkpoints")
        assert found is not None
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.path)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def array(self, name: str) -> np.ndarray:
        import zarr

        root: Any = zarr.open_group(self.path / "results.zarr", mode="r")
        return np.asarray(root[name][:])

    @property
    def bits(self) -> Bits:
        """The last checkpoint, the models and gathers of the results, and what the iterations and diagnostics said."""
        found = self.checkpoint
        arrays = dict(found.tensors)
        arrays["exponent"] = np.array(found.meta["exponent"])
        arrays["iteration"] = np.array(found.iteration)
        models = ("inverted", "best", "history", "history_iteration")
        arrays |= {name: self.array(name) for name in (*(f"model/{name}" for name in models), "gathers/predicted")}
        bits = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
        for event in self.of_kind("iteration") + self.of_kind("diagnostics"):
            told = {key: value for key, value in event.items() if key not in CLOCKS}
            bits[f"{event['kind']} {event['iteration']}"] = (repr(sorted(told.items())), (), b"")
        bits["iterations"] = (repr([event["iteration"] for event in self.of_kind("iteration")]), (), b"")
        return bits


CLOCKS = {"time", "seconds", "shots_per_s", "wait_share"}
"""Fields of an event that a clock decides."""


class Run(Protocol):
    """Run the tiny inversion; see `run`."""

    def __call__(self, parent: Path, stop_after: int | None = None, **changes: object) -> Ended: ...


class Resume(Protocol):
    """Go on with a run; see `resume`."""

    def __call__(self, ended: Ended, stop_after: int | None = None, **changes: object) -> Ended: ...


class StopAfter(Stop):
    """Raised by itself once so many iterations are done."""

    def __init__(self, path: Path, iterations: int | None) -> None:
        super().__init__()
        self._path, self._iterations = path, iterations

    @property
    def requested(self) -> bool:
        if self._iterations is not None and len(Ended(self._path).of_kind("iteration")) >= self._iterations:
            self.request("it is time")
        return super().requested


def overrides(changes: dict[str, object]) -> list[str]:
    options = TINY | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return [f"{name}={value}" for name, value in options.items()]


def finish_or_stop(folder: RunFolder, config: Any, *, resume: bool, stop_after: int | None) -> Ended:
    stop = StopAfter(folder.path, stop_after)
    if stop_after is None:
        invert(config, folder, resume=resume, stop=stop)
    else:
        with pytest.raises(Stopped, match=f"Stopped after iteration {stop_after} of"):
            invert(config, folder, resume=resume, stop=stop)
    assert folder.is_done is (stop_after is None)
    return Ended(folder.path)


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """Spare these runs most of their time: what a picture in TensorBoard looks like is tested beside the view."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard_view, "_picture", lambda *arguments: np.zeros((2, 2, 3), np.uint8))
        yield


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs the tiny inversion with some options changed (dots written as __).

    stop_after  iterations after which the run is asked to stop; None lets it end
    """

    def run(parent: Path, stop_after: int | None = None, **changes: object) -> Ended:
        config, _ = load_config("demo", overrides(changes))
        with RunFolder.create(config, "tiny", parent=parent, environment={}) as folder:
            return finish_or_stop(folder, config, resume=False, stop_after=stop_after)

    return run


@pytest.fixture(scope="session")
def resume() -> Resume:
    """Return a function that goes on with a stopped run, with some options changed."""

    def resume(ended: Ended, stop_after: int | None = None, **changes: object) -> Ended:
        with RunFolder.open(ended.path) as folder:
            texts = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
            config, _ = load_config(folder.config_path, texts)
            return finish_or_stop(folder, config, resume=True, stop_after=stop_after)

    return resume


@pytest.fixture(scope="session")
def reference(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return the tiny inversion, undisturbed, in this process."""
    return run(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def tiny_options() -> Callable[..., list[str]]:
    """Return a function that gives the tiny inversion's options as `name=value`."""
    return lambda **changes: overrides(changes)
