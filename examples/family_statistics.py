"""Do generated velocity maps look like real ones? Layers, dips, throws and velocities of both, side by side.

Give files of real maps (.npy or .npz with [sample, z, x] or [sample, 1, z, x] in m/s, or pairs that `hpfwi data` wrote)
and families; each line is one of them. Ranges are the 10th, 50th and 90th percentile over the maps; lengths are in per
cent of the maps' height. `--figure` draws a few maps of each.

    python examples/family_statistics.py --maps curvevel_a.npz --families curvevel-a curvevel-b --figure families.png
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.errors import DataError, HpfwiError
from hpfwi.store.openfwi import open_pairs
from hpfwi.synthetic.families import FAMILIES, default_shape, velocity_map
from hpfwi.synthetic.statistics import map_statistics

Maps = NDArray[np.float32]
SHOWN = 8
BIN_EDGES_MPS = np.arange(1500.0, 4501.0, 500.0)
HEADER = (
    f"{'maps':28s} {'n':>4s}  {'layers':>11s}  {'thickness %':>11s}  {'dip deg':>11s}  {'steep deg':>11s}  "
    f"{'throw %':>11s}  {'faster below':>12s}  share of cells per 500 m/s from 1500"
)


def read_maps(path: Path, most: int) -> Maps:
    """Up to `most` maps float32[sample, z, x] from a file or a store."""
    if path.is_dir():
        store = open_pairs(path)
        return store.read(range(min(most, store.samples)))[1]
    loaded = np.load(path, allow_pickle=False)
    arrays = [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    for array in arrays:
        if array.ndim == 4 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 3:
            return array[:most].astype(np.float32)
    raise DataError(f"{path} holds no maps: give an array [sample, z, x] or [sample, 1, z, x] in m/s.")


def percentiles(values: Sequence[float], scale: float = 1.0) -> str:
    known = [scale * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    return "/".join(f"{value:.0f}" for value in np.percentile(known, [10, 50, 90]))


def line(name: str, maps: Maps) -> str:
    """The statistics of some maps as one line of the table."""
    found = [map_statistics(velocity) for velocity in maps]
    per_cent = 100.0 / maps.shape[1]
    counts, _ = np.histogram(maps, BIN_EDGES_MPS)
    shares = " ".join(f"{count / maps.size:4.0%}" for count in counts)
    return (
        f"{name[:28]:28s} {len(maps):4d}  {percentiles([item.layers for item in found]):>11s}  "
        f"{percentiles([item.thickness for item in found], per_cent):>11s}  "
        f"{percentiles([item.dip_deg[0] for item in found]):>11s}  "
        f"{percentiles([item.dip_deg[1] for item in found]):>11s}  "
        f"{percentiles([item.throw for item in found], per_cent):>11s}  "
        f"{np.nanmean([item.faster_share for item in found]):12.0%}  {shares}"
    )


def draw(named: dict[str, Maps], path: Path) -> None:
    """A row of maps for each name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(named), SHOWN, figsize=(2 * SHOWN, 2 * len(named)), squeeze=False)
    for row, (name, maps) in zip(axes, named.items(), strict=True):
        row[0].set_ylabel(name)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        for axis, velocity in zip(row, maps, strict=False):
            axis.imshow(velocity, vmin=1500.0, vmax=4500.0, cmap="viridis")
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, nargs="*", default=[], help="files or stores of real maps")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help="families to generate")
    parser.add_argument("-n", type=int, default=100, help="maps of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="picture to write")
    options = parser.parse_args(arguments)
    named: dict[str, Maps] = {}
    try:
        for path in options.maps:
            named[path.name] = read_maps(path, options.n)
        for family in options.families:
            shape = default_shape(family)
            named[family] = np.stack([velocity_map(family, shape, options.seed, k) for k in range(options.n)])
    except HpfwiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(HEADER)
    for name, maps in named.items():
        print(line(name, maps))
    if options.figure is not None:
        draw(named, options.figure)
        print(f"Wrote {options.figure}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
