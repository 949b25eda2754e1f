"""How a run stands, read from its folder alone: no worker is asked and nothing in the folder changes."""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpfwi.commands import command_on
from hpfwi.folder_lock import FILE_NAME
from hpfwi.inversion.silent_shots import named
from hpfwi.progress import RECENT, clock
from hpfwi.run_folder import is_done, read_events, require_run

State = Literal["starting", "running", "silent", "stopped", "failed", "dead", "finished"]

SILENCE = 20.0
"""A run on another machine counts as silent after so many of its usual iterations without a sign of life."""

SILENCE_S = 300.0
"""And never before so long: checkpoints, validations and the loss of a worker take their time, s."""


@dataclass(frozen=True)
class Status:
    """What the folder of a run says about it.

    state               silent: of another machine, and nothing was heard for long; failed: ended with an error; dead:
                        its process is gone without a word
    why                 the reason for the state, one clause
    band                that the next iteration listens to, or the last one did; None where there is one band only
    done, total         iterations or steps, as `unit` says; total is None where it is not known yet
    items               shots or samples computed in the iterations that count, as `item` says
    items_per_s         over the recent iterations
    value               of the last iteration: its misfit or loss, as `measure` says
    wait_share          share of the workers' time without an item in work, over the recent iterations
    data_wait_share     share of the items' time spent waiting for data; None for an inversion
    silent_shots        that an inversion leaves out, because they recorded nothing
    last_event_s        time since the last sign of life, s
    checkpoint_done     iterations that the newest checkpoint holds; None without one
    checkpoint_age_s    time since it was written, s
    remaining_s         to the end at the recent pace, s; None where it is not known or the run does not go on
    """

    path: str
    name: str
    kind: Literal["inversion", "training"]
    state: State
    why: str
    unit: Literal["iteration", "step"]
    band: str | None
    done: int
    total: int | None
    item: Literal["shots", "samples"]
    items: int
    items_per_s: float | None
    measure: Literal["misfit", "loss"]
    value: float | None
    wait_share: float | None
    data_wait_share: float | None
    workers: int | None
    workers_lost: int
    silent_shots: list[int]
    last_event_s: float | None
    checkpoint: str | None
    checkpoint_done: int | None
    checkpoint_age_s: float | None
    remaining_s: float | None

    def as_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(asdict(self), indent=1)


def status(path: Path, *, now: float | None = None) -> Status:
    """Read how the run in this folder stands.

    now     the time to reckon from, s since the epoch; None is the present

    raises  ConfigError: this is not a run folder; DataError: its log is damaged
    """
    from hpfwi.training.settings import is_training

    require_run(path)
    now = time.time() if now is None else now
    events = read_events(path)
    training = is_training(path)
    config = _config(path, training)
    steps = [event for event in events if event["kind"] == ("step" if training else "iteration")]
    # Of a training run not every step is logged, and a checkpoint counts what it holds.
    counted = [event for event in events if event["kind"] == "checkpoint"] + steps
    done = max([event["iteration"] + 1 for event in counted if event["iteration"] >= 0], default=0)
    recent = steps[-RECENT:]
    total = _steps_in_all(config, events) if training else int(config.inversion.iterations)
    batch = config.training.batch if training else None
    quiet_s = now - max([event["time"] for event in events], default=now) if events else None
    pace_s = _pace_s(recent)
    state, why = _state(path, events, quiet_s, pace_s, done)
    kept = next((event for event in reversed(events) if event["kind"] == "checkpoint"), None)
    starts = [event for event in events if event["kind"] in ("start", "resume")]
    goes_on = state in ("starting", "running")
    left = None if total is None or pace_s is None or not goes_on else max(total - done, 0) * pace_s
    return Status(
        path=str(path),
        name=config.name,
        kind="training" if training else "inversion",
        state=state,
        why=why,
        unit="step" if training else "iteration",
        band=None if training else _band(config, done),
        done=done,
        total=total,
        item="samples" if training else "shots",
        items=done * batch if batch is not None else sum(event["shots"] for event in steps),
        items_per_s=_mean(recent, "samples_per_s" if training else "shots_per_s"),
        measure="loss" if training else "misfit",
        value=recent[-1]["loss" if training else "misfit"] if recent else None,
        wait_share=_mean(recent, "wait_share"),
        data_wait_share=_mean(recent, "data_wait_share") if training else None,
        workers=starts[-1].get("workers") if starts else None,
        workers_lost=sum(event["kind"] == "worker_lost" for event in events),
        silent_shots=next((event["value"] for event in events if event.get("name") == "silent_shots"), []),
        last_event_s=quiet_s,
        checkpoint=None if kept is None else str(path / kept["path"]),
        checkpoint_done=None if kept is None else kept["iteration"] + 1,
        checkpoint_age_s=None if kept is None else now - kept["time"],
        remaining_s=left,
    )


def as_text(found: Status) -> list[str]:
    """The status in lines for people."""
    of = "" if found.total is None else f" of {found.total}"
    share = f" ({found.done / found.total:.0%})".replace("%", " %") if found.total else ""
    lines = [
        ("Run", f"{found.path}, {found.kind} {found.name}"),
        ("State", f"{found.state}: {found.why}"),
        (found.unit.capitalize(), f"{found.done}{of}{share}, {found.items} {found.item}"),
    ]
    if found.band is not None:
        lines.append(("Band", found.band))
    if found.silent_shots:
        lines.append(("Left out", f"{named(found.silent_shots)}, without a signal"))
    if found.value is not None:
        lines.append((found.measure.capitalize(), f"{found.value:.4g}"))
    if found.items_per_s is not None:
        waits = "" if found.wait_share is None else f", workers waiting {found.wait_share:.0%}"
        waits += "" if found.data_wait_share is None else f", for data {found.data_wait_share:.0%}"
        lines.append(("Speed", f"{found.items_per_s:.3g} {found.item}/s{waits}".replace("%", " %")))
    if found.workers is not None:
        lost = f", {found.workers_lost} lost so far" if found.workers_lost else ""
        lines.append(("Workers", f"{found.workers or 'none, in one process'}{lost}"))
    if found.checkpoint is not None and found.checkpoint_age_s is not None:
        lines.append(
            (
                "Checkpoint",
                f"{found.checkpoint}, after {found.unit} {found.checkpoint_done}, {_ago(found.checkpoint_age_s)}",
            )
        )
    if found.last_event_s is not None:
        lines.append(("Last sign", _ago(found.last_event_s)))
    if found.remaining_s is not None:
        lines.append(("Left", clock(found.remaining_s)))
    if found.state in ("stopped", "failed", "dead"):
        lines.append(("Next", command_on("resume", Path(found.path))))
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {text}" for name, text in lines]


def _config(path: Path, training: bool) -> Any:
    from hpfwi.config import load_config
    from hpfwi.training.settings import load_train_config

    return (load_train_config if training else load_config)(path / "config.toml", [])[0]


def _band(config: Any, done: int) -> str | None:
    """The band that an inversion listens to after so many iterations, and where it stands in the row of bands."""
    from hpfwi.inversion.bands import stage_at, stages_of

    if not config.inversion.bands_hz:
        return None
    stages = stages_of(config.inversion.bands_hz, config.inversion.iterations)
    stage = stage_at(stages, done)
    return f"{stage.band}, stage {stage.number} of {len(stages)}"


def _steps_in_all(config: Any, events: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of a training run, once its log says how many samples it has."""
    from hpfwi.training.order import steps_per_epoch

    data = next((event for event in events if event["kind"] == "data"), None)
    if data is None:
        return None
    return int(steps_per_epoch(data["train"], config.training.batch) * config.training.epochs)


def _state(
    path: Path, events: Sequence[Mapping[str, Any]], quiet_s: float | None, pace_s: float | None, done: int
) -> tuple[State, str]:
    if is_done(path):
        early = next((event for event in reversed(events) if event["kind"] == "done" and event.get("early")), None)
        if early is not None:
            return "finished", f"early; validations in a row without a gain: {early['without_gain']}"
        return "finished", "done.json is there"
    held, who, alive = _holder(path / FILE_NAME)
    if not held:
        last = next((event for event in reversed(events) if event["kind"] in ("stop", "start", "resume")), None)
        if last is not None and last["kind"] == "stop":
            return "stopped", f"{last.get('reason') or 'asked to'}; it can be resumed"
        return "failed", "it ended with an error before its end; it can be resumed once the cause is gone"
    if alive is False:
        return "dead", f"{who} is gone; it can be resumed"
    if alive is None:
        limit_s = max(SILENCE_S, SILENCE * (pace_s or 0.0))
        if quiet_s is not None and quiet_s > limit_s:
            return "silent", f"nothing from {who} for {clock(quiet_s)}, usual are {clock(pace_s or 0.0)}"
    return ("running" if done else "starting"), who


def _holder(lock: Path) -> tuple[bool, str, bool | None]:
    """Whether somebody holds the lock, who, and whether that process lives; None: it is on another machine."""
    try:
        text = lock.read_text()
        written = lock.stat().st_mtime
    except OSError:
        return False, "", False
    if not text:
        return False, "", False
    try:
        holder = json.loads(text)
        pid, host = int(holder["pid"]), str(holder["host"])
    except (ValueError, KeyError, TypeError):
        return True, "an unknown process", None
    who = f"process {pid} on {host}"
    return True, who, _lives(pid, written) if host == socket.gethostname() else None


def _lives(pid: int, since: float) -> bool:
    """Whether the process that took a lock at a time lives: one that started later only has its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = next(
            int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")
        )
    except (OSError, StopIteration):
        return False
    started = booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] not in "ZX" and started <= since + 2.0  # the time of booting is known to a second


def _pace_s(recent: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds per iteration lately, with what happens between them; an interruption does not count."""
    gaps = [
        (later["time"] - earlier["time"]) / (later["iteration"] - earlier["iteration"])
        for earlier, later in itertools.pairwise(recent)
        if later["iteration"] > earlier["iteration"]
    ]
    if gaps:
        return statistics.median(gaps)
    return recent[-1]["seconds"] if recent else None


def _mean(events: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [event[name] for event in events if event.get(name) is not None]
    return statistics.fmean(values) if values else None


def _ago(seconds: float) -> str:
    return f"{clock(max(seconds, 0.0))} ago"
