"""results.zarr of a run folder: models along the way and at the end, and the gathers of a few shots.

    model/true, model/initial, model/inverted, model/best    float32[z, x] or [z, y, x], m/s
    model/history                                            float32[record, …], m/s; its iterations beside it
    gathers/observed, gathers/initial, gathers/predicted     float32[k, receiver, time] of the shots in gathers/shots
    gathers/window                                           float32[k, receiver, time], 0 to 1: what data.mute leaves
    gathers/receivers_m, gathers/sources_m                   float64[k, receiver or source, axis], NaN = absent
    survey/sources_m, survey/receivers_m                     float64[n, axis]: every position, once
    wavelet                                                  float32[shot, source, time] of every shot, Pa, in 3-D Pa m
    water                                                    bool[z, x] or [z, y, x]: cells that keep their velocity
    attributes of the root                                   name, spacing_m, origin_m, dt_s, observed_rms,
                                                             band_rms where the inversion has bands, silent_shots
                                                             where there are any

Positions, spacing and origin are (z, x) or (z, y, x), as the model.

Checkpoints are what a run goes on from; everything here can be computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpfwi.errors import DiskError

if TYPE_CHECKING:
    from hpfwi.physics.survey import Survey

HISTORY_CHUNK = 4096
"""Records per chunk of model/history_iteration: one chunk for any run that ends."""


class Results:
    """Writes the arrays of one run; each call leaves a store that can be read.

    raises      DiskError from every method when the disk refuses
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self, *, name: str, spacing_m: tuple[float, ...], origin_m: tuple[float, ...], dt_s: float) -> None:
        """Set the attributes that the axes of every figure come from."""
        with _disk(self.path):
            self._root().attrs.update(
                {"name": name, "spacing_m": list(spacing_m), "origin_m": list(origin_m), "dt_s": dt_s}
            )

    def observed_rms(self, rms: float, *in_bands: float) -> None:
        """Set the root mean square of all observed samples, Pa: the unit in which an inversion counts residuals.

        in_bands    the same below each corner of inversion.bands_hz
        """
        with _disk(self.path):
            self._root().attrs["observed_rms"] = rms
            if in_bands:
                self._root().attrs["band_rms"] = list(in_bands)

    def silent_shots(self, shots: Sequence[int]) -> None:
        """Say which shots are left out of the inversion, because they have no signal."""
        with _disk(self.path):
            self._root().attrs["silent_shots"] = list(shots)

    def model(self, name: str, velocity: np.ndarray) -> None:
        """Store a model in m/s as model/`name`, in place of an earlier one."""
        with _disk(self.path):
            self._put(f"model/{name}", np.asarray(velocity, np.float32))

    def gathers(self, name: str, gathers: np.ndarray) -> None:
        """Store gathers [k, receiver, time] of the shots in gathers/shots; see the head of this file for the names."""
        with _disk(self.path):
            self._put(f"gathers/{name}", np.asarray(gathers, np.float32))

    def shots(self, shots: Sequence[int]) -> None:
        """Say which shots the gathers here belong to."""
        with _disk(self.path):
            self._put("gathers/shots", np.asarray(shots, np.int64))

    def positions(self, survey: Survey, shots: Sequence[int]) -> None:
        """Store the number of shots, every position once, and where the shots in gathers/shots were and were heard."""
        with _disk(self.path):
            self._root().attrs["survey_shots"] = survey.shots
            self._put("gathers/receivers_m", survey.receivers_m[list(shots)])
            self._put("gathers/sources_m", survey.sources_m[list(shots)])
            self._put("survey/sources_m", _distinct(survey.sources_m))
            self._put("survey/receivers_m", _distinct(survey.receivers_m))

    def wavelet(self, wavelet: np.ndarray) -> None:
        """Store the wavelet [shot, source, time], for a resume when its file is another one by then."""
        with _disk(self.path):
            self._put("wavelet", np.asarray(wavelet, np.float32))

    def water(self, mask: np.ndarray) -> None:
        """Store which cells are water, bool of the model's shape, for a resume like the wavelet."""
        with _disk(self.path):
            self._put("water", np.asarray(mask, np.bool_))

    def append_history(self, iteration: int, velocity: np.ndarray) -> None:
        """Add the model in m/s of `iteration` to the history, dropping records of that iteration and later ones.

        The iteration's number is written last, so a record without one is one that a kill interrupted.
        """
        velocity = np.asarray(velocity, np.float32)
        with _disk(self.path):
            history, iterations = self._history(velocity.shape)
            kept = int(np.searchsorted(iterations[:], iteration))
            history.resize((kept + 1, *velocity.shape))
            history[kept] = velocity
            iterations.resize((kept,))
            iterations.append(np.array([iteration], np.int64))

    def truncate_history_after(self, iteration: int) -> None:
        """Drop the records of later iterations."""
        with _disk(self.path):
            root = self._root()
            if "model/history" not in root:
                return
            history, iterations = root["model/history"], root["model/history_iteration"]
            kept = int(np.searchsorted(iterations[:], iteration, side="right"))
            iterations.resize((kept,))
            history.resize((kept, *history.shape[1:]))

    def _root(self) -> Any:
        import zarr

        return zarr.open_group(self.path, mode="a")

    def _put(self, name: str, array: np.ndarray) -> None:
        self._root().create_array(name, data=array, chunks=array.shape, overwrite=True)

    def _history(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        root = self._root()
        if "model/history_iteration" not in root:
            chunks = (1, *shape)
            root.create_array("model/history", shape=(0, *shape), chunks=chunks, dtype="float32", overwrite=True)
            root.create_array("model/history_iteration", shape=(0,), chunks=(HISTORY_CHUNK,), dtype="int64")
        return root["model/history"], root["model/history_iteration"]


def _distinct(positions_m: np.ndarray) -> np.ndarray:
    """float64[n, axis]: the positions [shot, point, axis] without absent ones and repetitions, in a fixed order."""
    flat = positions_m.reshape(-1, positions_m.shape[-1])
    return np.unique(flat[np.isfinite(flat).all(axis=1)], axis=0)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn the refusal of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written ({error.strerror or error}); make room there and resume the run."
        ) from error
