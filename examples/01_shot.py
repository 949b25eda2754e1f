"""One shot: waves leave a source near the surface of a made-up earth and are recorded along the line.

The model, the survey and the wavelet are those of the recipe `demo`; every option of it can be changed with --set. A
picture shows the model, with the source and receivers on it, beside the gather. The table lists when the first wave
arrives at some receivers. Far ones hear waves that have dived through faster, deeper rock, so the velocity that offset
and time give grows with the offset.

    python examples/01_shot.py
    python examples/01_shot.py --shot 0 --set source.peak_hz=12 --set model.seed=3 --out shot.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.config import load_config
from hpfwi.errors import HpfwiError
from hpfwi.experiment import Experiment, build_experiment
from hpfwi.physics.modelling import simulate

FIRST_ARRIVAL_SHARE = 0.02
"""A wave has arrived where a trace first exceeds this share of its own maximum."""


def first_times_s(traces: NDArray[np.floating], dt_s: float) -> NDArray[np.float64]:
    """Time of the first sample of each trace[..., time] that exceeds the share; float64[...], seconds."""
    size = np.abs(traces)
    arrived = size > FIRST_ARRIVAL_SHARE * size.max(axis=-1, keepdims=True)
    return np.argmax(arrived, axis=-1) * dt_s


def draw(experiment: Experiment, shot: int, gather: NDArray[np.floating], path: Path) -> None:
    """The model in km/s above the gather, both over distance in km."""
    from matplotlib.figure import Figure

    survey, model = experiment.survey, experiment.models.true
    assert model is not None
    source, receivers = survey.sources_m[shot, 0] / 1000, survey.receivers_m[shot] / 1000
    depths, distances = model.grid.depths_m() / 1000, model.grid.distances_m() / 1000
    figure = Figure(figsize=(7, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    image = above.pcolormesh(distances, depths, model.velocity / 1000, shading="nearest", rasterized=True)
    above.plot(receivers[:, 1], receivers[:, 0], "k.", markersize=1)
    above.plot(source[1], source[0], "r*", markersize=12)
    above.set(ylabel="depth, km", title=f"shot {shot}: the star is the source, the dots are receivers")
    above.invert_yaxis()
    figure.colorbar(image, ax=above, label="velocity, km/s")
    # The direct wave is much stronger than reflections: the grey scale ends where 2 % of the samples lie beyond it.
    limit = float(np.percentile(np.abs(gather), 98)) or 1.0
    times = survey.dt_s * np.arange(survey.samples)
    image = below.pcolormesh(
        receivers[:, 1], times, gather.T, shading="nearest", cmap="gray", vmin=-limit, vmax=limit, rasterized=True
    )
    below.set(xlabel="distance, km", ylabel="time, s")
    below.invert_yaxis()
    figure.colorbar(image, ax=below, label="pressure, Pa", extend="both")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shot", type=int, default=4, help="number of the shot, from 0")
    parser.add_argument("--out", type=Path, default=Path("shot.png"), help="where the picture goes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change an option of the recipe"
    )
    options = parser.parse_args(arguments)

    config, _ = load_config("demo", options.set)
    experiment = build_experiment(config)
    model = experiment.models.true
    assert model is not None
    survey, wavelet = experiment.survey.subset([options.shot]), experiment.wavelet[[options.shot]]
    (gather,) = simulate(model, survey, wavelet, config.modelling)  # float32[receiver, time]

    offsets_m = np.abs(survey.receivers_m[0, :, 1] - survey.sources_m[0, 0, 1])
    started_s = float(first_times_s(wavelet[0, 0], survey.dt_s))
    arrivals_s = first_times_s(gather, survey.dt_s) - started_s
    print(f"{gather.shape[0]} receivers x {gather.shape[1]} samples, largest amplitude {np.abs(gather).max():.3g} Pa")
    print("offset, m  first arrival, s  offset / time, m/s")
    by_offset = np.argsort(offsets_m)
    for receiver in by_offset[:: max(1, len(by_offset) // 8)][1:]:
        speed_mps = offsets_m[receiver] / arrivals_s[receiver]
        print(f"{offsets_m[receiver]:9.0f}  {arrivals_s[receiver]:16.3f}  {speed_mps:18.0f}")
    draw(experiment, options.shot, gather, options.out)
    print(f"Wrote {options.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HpfwiError as error:
        sys.exit(str(error))
