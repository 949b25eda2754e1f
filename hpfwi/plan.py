"""What a run will do and cost, said before anything heavy starts."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpfwi.experiment import Experiment, cluster_of
from hpfwi.inversion.bands import sparse_bands, stages_of
from hpfwi.inversion.prepare import shown_shots
from hpfwi.inversion.task import window_of
from hpfwi.networks.siren import PIECE
from hpfwi.parallel import ClusterSettings, local_threads
from hpfwi.physics.bands import band_passed, simulator_of_band
from hpfwi.physics.derived import Derived, derived
from hpfwi.physics.device import usable_gpus
from hpfwi.physics.grid import Grid, in_cells
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.source import differ_by_shot
from hpfwi.progress import clock

if TYPE_CHECKING:
    from rich.table import Table

    from hpfwi.config import RunConfig

LEAST_HEARD = 0.01
"""A mute that leaves less than this share of the samples is more likely a slip than a wish."""

CALIBRATION_SAMPLES = 100
"""Samples of the one shot that is timed: long enough to outweigh the start of a call, short enough for a second."""


def derived_settings(experiment: Experiment, gpus: int | None = None) -> list[Derived]:
    """The values that follow from the configuration, each with its reason; no wave is computed.

    gpus    of this machine that can be used; None counts them
    """
    config, survey = experiment.config, experiment.survey
    gpus = usable_gpus() if gpus is None else gpus
    grid = experiment.simulator.grid
    cluster = cluster_of(config, gpus)
    shots = config.inversion.shots_per_iteration or survey.shots
    items = -(-shots // config.inversion.shots_per_item)
    at_once = min(cluster.threads_per_worker, shots)
    gathers_mb = 4 * survey.shots * survey.receivers * survey.samples / 1e6
    memory_mb = at_once * experiment.simulator.stored_bytes_per_shot / 1e6
    return [
        Derived("cells", in_cells(grid.shape), _lengths(grid)),
        Derived(
            "shots_per_iteration",
            shots,
            f"all {survey.shots} of the survey" if shots == survey.shots else f"drawn from {survey.shots}",
        ),
        _wavelet(experiment),
        *derived(experiment.simulator, experiment.slowest_mps, min(config.inversion.shots_per_item, survey.shots)),
        *_stages(experiment),
        *_mute(experiment),
        Derived("device", cluster.device, _why_there(config, cluster, gpus)),
        Derived("workers", cluster.worker_count(), _why_so_many(cluster, items)),
        Derived("snapshot_megabytes_per_worker", round(memory_mb, 1), f"{counted(at_once, 'shot')} at a time"),
        *_network(experiment),
        Derived(
            "gathers_megabytes",
            round(gathers_mb, 1),
            f"{survey.shots} shots x {survey.receivers} receivers x {survey.samples} samples in float32",
        ),
    ]


def _lengths(grid: Grid) -> str:
    """
    >>> _lengths(Grid((10, 40), (5.0, 10.0))), _lengths(Grid((10, 20, 40), (5.0, 5.0, 10.0)))
    ('50 m deep and 400 m long', '50 m deep, 100 m wide and 400 m long')
    """
    deep, *wide, long = (f"{cells * step:g} m" for cells, step in zip(grid.shape, grid.spacing_m, strict=True))
    return f"{deep} deep{''.join(f', {size} wide' for size in wide)} and {long} long"


def _why_so_many(cluster: ClusterSettings, items: int) -> str:
    """What the workers are, and whether the items of an iteration keep them busy."""
    workers, threads = cluster.worker_count(), cluster.threads_per_worker
    if not workers:
        return "in this process, without Ray"
    on_gpus = cluster.device == "cuda"
    processes = f"processes of {counted(threads, 'thread')}" + ", each with a GPU of its own" * on_gpus
    if workers < items:
        return processes
    processes += f", for {counted(items, 'group')} of shots in an iteration"
    share = local_threads(cluster) // workers
    if workers > items:
        processes += f"; {workers - items} of them have nothing to do"
    elif not on_gpus and not cluster.joins and share > threads:
        processes += f"; cluster.threads_per_worker = {share} lets this machine's cores share them"
    return processes


def _wavelet(experiment: Experiment) -> Derived:
    """Where the wavelet comes from; a guess for records that somebody measured is worth a warning."""
    config = experiment.config
    if experiment.guessed:
        return Derived(
            "wavelet",
            "ricker",
            "the gathers bring no wavelet, and a Ricker is hardly theirs: `hpfwi wavelet` estimates it from them",
            warning=True,
        )
    if config.source.wavelet != "ricker":
        return Derived("wavelet", Path(config.source.wavelet).name, f"source.wavelet{_whose(experiment)}")
    if config.data.observed is not None:
        stored = f"stored with the gathers{_whose(experiment)}; options of [source] have no say"
        return Derived("wavelet", "own", stored)
    return Derived("wavelet", "ricker", f"of strength {config.source.strength:g}")


def _whose(experiment: Experiment) -> str:
    """That shots have wavelets of their own, where they do."""
    return f", one for each of {experiment.survey.shots} shots" if differ_by_shot(experiment.wavelet) else ""


def _stages(experiment: Experiment) -> list[Derived]:
    """The bands that the run listens to one after the other; none where it takes the whole band all the time."""
    config, wavelet = experiment.config, experiment.wavelet
    bands_hz = config.inversion.bands_hz
    energy = float(np.square(wavelet, dtype=np.float64).sum())
    rows: list[Derived] = []
    for stage in stages_of(bands_hz, config.inversion.iterations) if bands_hz else ():
        reason, warning = f"iterations {stage.first} to {stage.end - 1}", False
        if stage.corner_hz is not None:
            filtered = band_passed(wavelet, experiment.survey.dt_s, 0.0, stage.corner_hz)
            share = float(np.square(filtered, dtype=np.float64).sum()) / energy
            simulator = simulator_of_band(experiment.simulator, filtered, config.model.bounds_mps)
            reason += f", a snapshot every {simulator.scheme.store_every} steps, "
            doubts = [doubt for _, doubt in sparse_bands([share], [stage.corner_hz], "wavelet")]
            if simulator.highest_hz > experiment.simulator.highest_hz:  # a low-pass adds none but by being cut off
                doubts.append("the end of the records cuts the filtered wavelet off: leave that corner out")
            reason += doubts[0] if doubts else f"{100 * share:.3g} % of the wavelet's energy"
            warning = bool(doubts)
        rows.append(Derived(f"stage_{stage.number}", stage.band, reason, warning))
    return rows


def _mute(experiment: Experiment) -> list[Derived]:
    """How much of the gathers counts; nothing is said where all of it does."""
    mute, survey = experiment.config.data.mute, experiment.survey
    if not mute.active:
        return []
    shots = shown_shots(range(survey.shots))
    window = window_of(mute, survey, shots, stages_of((), 1)[0])
    live = int(survey.live_receivers()[shots].sum())
    share = float(np.square(window, dtype=np.float64).sum()) / (live * survey.samples)
    heard = int(window.any(axis=-1).sum())
    return [
        Derived(
            "mute",
            f"{100 * share:.3g} %",
            f"of the samples of {len(shots)} shots count, on {heard} of {live} traces"
            + ("; check the times and offsets of data.mute" if share < LEAST_HEARD else ""),
            warning=share < LEAST_HEARD,
        )
    ]


def _network(experiment: Experiment) -> list[Derived]:
    """Memory for what a network keeps of an iteration for its step; nothing is said where every cell is trained."""
    settings = experiment.config.inversion.parameterisation
    if settings.kind == "pixel":
        return []
    cells = math.prod(experiment.simulator.grid.shape)
    kept, network = min(cells, PIECE), settings.network
    # A sine layer keeps its phases and its activations.
    floats = 2 * network.width * network.hidden_layers
    reason = f"activations of {counted(network.hidden_layers, 'layer')} of {network.width} units at {kept:,} cells"
    if kept < cells:
        reason += ", computed again for each so many cells"
    return [Derived("network_megabytes_per_worker", round(4 * floats * kept / 1e6, 1), reason)]


def _why_there(config: RunConfig, cluster: ClusterSettings, gpus: int) -> str:
    """Why a run computes where it does."""
    if config.cluster.device != "auto":
        return "as set"
    if config.modelling.engine != "hpfwi":
        return f"{config.modelling.engine} computes on the CPU here"
    if not gpus:
        return "no GPU here that can be used"
    here = f"{counted(gpus, 'GPU')} here that can be used"
    return here if cluster.device == "cuda" else f"{here}, fewer than the {cluster.worker_count()} workers asked for"


def estimated_time(experiment: Experiment) -> list[Derived]:
    """Time of an iteration and of the run, from the gradient of one shortened shot computed here and now.

    The estimate leaves out start-up, diagnostics and the simulation of observed gathers, and takes every worker to be
    as fast as this process.
    """
    config = experiment.config
    seconds_per_update = _seconds_of_a_short_shot(experiment)
    updates = experiment.simulator.updates_per_shot
    shots = config.inversion.shots_per_iteration or experiment.survey.shots
    cluster = cluster_of(config)
    workers = cluster.worker_count()
    lanes = workers * cluster.threads_per_worker if workers else local_threads(cluster)
    rounds = math.ceil(math.ceil(shots / config.inversion.shots_per_item) / lanes) * config.inversion.shots_per_item
    per_shot_s = seconds_per_update * updates
    per_iteration_s = per_shot_s * rounds
    total_s = per_iteration_s * config.inversion.iterations
    return [
        Derived("seconds_per_shot", float(f"{per_shot_s:.2g}"), "timed on a short shot just now, gradient included"),
        Derived("seconds_per_iteration", float(f"{per_iteration_s:.2g}"), f"{shots} shots, {lanes} at the same time"),
        Derived("estimated_time", clock(total_s), f"{config.inversion.iterations} iterations, without start-up"),
    ]


def _seconds_of_a_short_shot(experiment: Experiment) -> float:
    """Seconds per update of the wavefield, over the forward and the backward pass of one shot."""
    import torch

    samples = min(CALIBRATION_SAMPLES, experiment.survey.samples)
    survey = dataclasses.replace(experiment.survey.subset([0]), samples=samples)
    full = experiment.simulator
    # Noise, because the beginning of a wavelet may be so weak that the processor takes its slow path for tiny numbers;
    # the scheme of the run is set explicitly, because this wavelet would derive another one.
    wavelet = np.random.default_rng(0).standard_normal((1, survey.sources_m.shape[1], samples), dtype=np.float32)
    settings = full.settings.model_copy(
        update={
            "substeps": full.scheme.substeps,
            "store_every": full.scheme.store_every,
            "pml_hz": full.scheme.pml_hz,
            "quality_hz": full.settings.quality_hz or full.peak_hz,
        }
    )
    low_mps, high_mps = experiment.config.model.bounds_mps
    simulator = Simulator(full.grid, survey, wavelet, settings, high_mps, low_mps, device=full.device)
    velocity = torch.tensor(experiment.models.initial.velocity, requires_grad=True)
    best = math.inf
    for _ in range(3):  # the first one may compile
        start = time.perf_counter()
        simulator.predict(velocity, [0]).sum().backward()
        best = min(best, time.perf_counter() - start)
    return best / simulator.updates_per_shot


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "shot"), counted(2, "shot")
    ('1 shot', '2 shots')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_brief(rows: list[Derived]) -> list[str]:
    """One line of the values that matter most, and one for each that is outside what gives good results."""
    value = {row.name: row.value for row in rows}
    workers = value["workers"]
    first = (
        f"{value['cells']} cells, {value['shots_per_iteration']} shots per iteration, {value['points_per_wavelength']} "
        f"points per wavelength, {counted(int(value['substeps']), 'time step')} per sample, {value['engine']} engine, "
        f"{counted(int(workers), 'worker') if workers else 'no Ray'}{' on GPUs' if value['device'] == 'cuda' else ''}"
    )
    return [first, *(f"Warning: {row.name} = {row.value}: {row.reason}." for row in rows if row.warning)]


def as_table(rows: list[Derived], title: str) -> Table:
    """Name, value and reason as a table for the terminal; values outside what gives good results are marked."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("setting", no_wrap=True)
    table.add_column("value", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in rows:
        style = "yellow" if row.warning else ""
        value = f"{row.value:,}" if isinstance(row.value, int) else str(row.value)
        table.add_row(row.name, Text(value, style), Text(f"{'WARNING: ' if row.warning else ''}{row.reason}", style))
    return table
