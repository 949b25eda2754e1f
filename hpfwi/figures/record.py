"""What a run folder says, read without running anything: the input of every figure and of the report."""

import json
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi.errors import DataError
from hpfwi.inversion.bands import Stage, stages_of
from hpfwi.run_folder import read_events, require_run

Event = dict[str, Any]


@dataclass(frozen=True)
class StoredResults:
    """The arrays of `results.zarr`, read when asked for; whatever a run has not written yet is None.

    group  the open Zarr group: model/* [z, x] or [z, y, x] in m/s, gathers/* [shot, receiver, time]
    """

    group: Any

    @property
    def spacing_m(self) -> tuple[float, ...]:
        """(dz, dx) or (dz, dy, dx) of the model grid."""
        return tuple(float(step) for step in self.group.attrs["spacing_m"])

    @property
    def origin_m(self) -> tuple[float, ...]:
        """Position (z, x) or (z, y, x) of the centre of the first cell."""
        return tuple(float(value) for value in self.group.attrs.get("origin_m", (0.0,) * len(self.spacing_m)))

    @property
    def dt_s(self) -> float | None:
        """Time step of the gathers."""
        value = self.group.attrs.get("dt_s")
        return None if value is None else float(value)

    def array(self, path: str) -> Any | None:
        """The Zarr array at `path`, not read yet, or None."""
        return self.group.get(path, None)

    def model(self, name: str) -> np.ndarray | None:
        """float64[z, x] or [z, y, x] in m/s: "true", "initial", "inverted" or "best"; None where the run has none.

        Before a run is finished, the last record of its history stands for the inverted model.
        """
        stored = self.array(f"model/{name}")
        if stored is None and name == "inverted" and (kept := len(self.history_iterations)):
            stored = self.group["model/history"][kept - 1]
        return None if stored is None else np.asarray(stored[:], dtype=np.float64)

    def history(self, records: Sequence[int]) -> np.ndarray:
        """float64[record, …] in m/s: the chosen records of model/history, and no others are read."""
        stored = self.group["model/history"]
        return np.stack([np.asarray(stored[record], dtype=np.float64) for record in records])

    @property
    def history_iterations(self) -> list[int]:
        """The iteration of every record of model/history; empty where no history is kept."""
        numbers, stored = self.array("model/history_iteration"), self.array("model/history")
        if numbers is None or stored is None:
            return []
        return [int(number) for number in numbers[: stored.shape[0]]]


@dataclass(frozen=True)
class RunRecord:
    """A run folder as it stands: finished, stopped or still growing."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    events: tuple[Event, ...]
    results: StoredResults | None
    done: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The run's name: the configuration's, else the folder's."""
        return str(self.config.get("name") or self.folder.name)

    def of_kind(self, *kinds: str) -> list[Event]:
        """The events of these kinds in the order in which they were written."""
        return [event for event in self.events if event.get("kind") in kinds]

    @cached_property
    def iterations(self) -> list[Event]:
        """One "iteration" event per iteration, in order; where one was computed again, the later counts."""
        return self._by_iteration("iteration")

    @cached_property
    def diagnostics(self) -> list[Event]:
        """One "diagnostics" event per iteration, in order; where one was computed again, the later counts."""
        return [_flattened(event) for event in self._by_iteration("diagnostics")]

    def _by_iteration(self, kind: str) -> list[Event]:
        latest = {event["iteration"]: event for event in self.of_kind(kind) if isinstance(event.get("iteration"), int)}
        return [latest[iteration] for iteration in sorted(latest)]

    @property
    def taken_up_at(self) -> list[int]:
        """The first iteration after each resume and after each return to a checkpoint."""
        places, waiting = [], False
        for event in self.events:
            if event.get("kind") in ("resume", "rewind"):
                waiting = True
            elif waiting and event.get("kind") == "iteration":
                places.append(event["iteration"])
                waiting = False
        return places

    @property
    def inverted_after(self) -> int:
        """The iterations that went into the inverted model; of an unfinished run, into the last one that it kept."""
        history = [] if self.results is None else self.results.history_iterations
        return history[-1] if self.done is None and history else len(self.iterations)

    @property
    def planned_iterations(self) -> int | None:
        """How many iterations the configuration asks for."""
        return as_count(self.config.get("inversion", {}).get("iterations"))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run that have begun, each with its band; one, of all iterations, where it has no bands."""
        corners = self.config.get("inversion", {}).get("bands_hz", [])
        corners = [corner for corner in map(as_number, corners if isinstance(corners, list) else []) if corner]
        done = len(self.iterations)
        planned = self.planned_iterations or max(done, 1)
        return tuple(stage for stage in stages_of(corners, planned) if stage.first < max(done, 1))

    @property
    def iterations_per_pass(self) -> int:
        """Iterations after which every shot has been used about once; 1 where each iteration uses all shots."""
        survey_shots = None if self.results is None else as_count(self.results.group.attrs.get("survey_shots"))
        survey_shots = survey_shots or as_count(self.config.get("survey", {}).get("shots"))
        batch = as_count(self.config.get("inversion", {}).get("shots_per_iteration"))
        return math.ceil(survey_shots / batch) if survey_shots and batch else 1


def _flattened(event: Event) -> Event:
    """The event with nested tables as "table/key"; the table "metrics" goes without its name.

    >>> _flattened({"iteration": 3, "metrics/ssim": 0.5, "spectra": {"error_0": 1.0}})
    {'iteration': 3, 'ssim': 0.5, 'spectra/error_0': 1.0}
    """
    flat: Event = {}
    for key, value in event.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{below}".removeprefix("metrics/"): item for below, item in _flattened(value).items()}
        else:
            flat[key.removeprefix("metrics/")] = value
    return flat


def as_count(value: object) -> int | None:
    """A positive whole number, or None for everything else.

    >>> as_count(12), as_count(True), as_count("auto")
    (12, None, None)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def as_number(value: object) -> float | None:
    """A finite number, or None for everything else.

    >>> as_number(2), as_number(float("nan")), as_number(None)
    (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def series(events: Iterable[Event], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(iterations int64[n], values float64[n]) of the events that hold a finite number under `key`."""
    pairs = [(event["iteration"], value) for event in events if (value := as_number(event.get(key))) is not None]
    return np.array([pair[0] for pair in pairs], dtype=np.int64), np.array([pair[1] for pair in pairs], dtype=float)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, an empty one where the file holds something else, None where there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _open_results(path: Path) -> StoredResults | None:
    """The results of the folder, None where it has none (yet)."""
    import zarr

    if not (path / "zarr.json").exists():
        return None
    group = zarr.open_group(str(path), mode="r")
    return StoredResults(group) if "spacing_m" in group.attrs else None


def read_record(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    raises  ConfigError: this is not a run folder; DataError: its configuration or event log is damaged
    """
    require_run(folder)
    config_path, events_path = folder / "config.toml", folder / "events.jsonl"
    try:
        config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{config_path} is not valid TOML ({error}); restore the file that the run wrote.") from error
    return RunRecord(
        folder=folder,
        config=config,
        environment=_read_json(folder / "env.json") or {},
        events=tuple(read_events(folder)) if events_path.exists() else (),
        results=_open_results(folder / "results.zarr"),
        done=_read_json(folder / "done.json"),
    )
