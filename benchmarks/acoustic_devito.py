"""Time hpfwi's acoustic kernels against Devito on the same work and cores: `python benchmarks/acoustic_devito.py`.

Devito compiles the same recursion to C with OpenMP: second order in time, the same order in space, no pressure outside
the grid, sources and receivers on nodes, every step kept for the gradient. It has no layer of its own, so both codes
get a grid as large as the model with a layer would be, and no layer: that is the same work, and no ratio is printed
before both agree with hpfwi in float64. A second ratio is one against ourselves: hpfwi with its C-PML, Devito still
without any layer on as many cells.

Devito is not among the packages that hpfwi installs: `pip install devito`, and a C compiler with OpenMP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks import acoustic, peers
else:  # run as a script, this folder is where Python looks first
    import acoustic
    import peers

EXACT = 1e-5
"""Most relative L2 distance of Devito's float64 to hpfwi's: the two compute the same."""
ROUNDED = 1e-3
"""The same for what is timed, in float32: Devito's update divides by the squared time step and rounds more."""
LAYERED = "hpfwi with C-PML"
DEFAULT_CASES = ("70x70x1000x5", "94x288x1000x13", "301x921x1000x2", "128x128x128x100x1")


class Devito:
    """Devito's operators for one problem: built and compiled once, run for one shot after the other."""

    def __init__(self, problem: peers.Problem, dtype: type[np.floating], threads: int) -> None:
        from devito import Eq, Function, Grid, Inc, Operator, SparseTimeFunction, TimeFunction, configuration, solve

        configuration["language"] = "openmp"
        configuration["log-level"] = "ERROR"
        scheme = problem.scheme
        steps = problem.wavelet.shape[-1]
        shape = problem.velocity.shape
        extent = tuple((cells - 1) * size for cells, size in zip(shape, scheme.spacing_m, strict=True))
        grid = Grid(shape=shape, extent=extent, dtype=dtype)
        self.problem, self.threads, self.spacing = problem, threads, np.array(scheme.spacing_m)
        self.velocity = Function(name="c", grid=grid, space_order=scheme.order)
        self.velocity.data[:] = problem.velocity
        step = grid.stepping_dim.spacing

        def field(name: str, save: int | None = None) -> Any:
            return TimeFunction(name=name, grid=grid, time_order=2, space_order=scheme.order, save=save)

        def points(name: str, cells: NDArray[np.int64]) -> Any:
            return SparseTimeFunction(
                name=name, grid=grid, npoint=len(cells), nt=steps + 2, coordinates=cells * self.spacing
            )

        self.source = points("src", problem.sources[0])
        self.receivers = points("rec", problem.receivers[0])
        self.residual = points("res", problem.receivers[0])
        self.now, self.kept, self.adjoint = (
            field("u"),
            field("kept", steps + 2),
            field("v"),
        )
        self.gradient = Function(name="g", grid=grid)
        area = step**2 * self.velocity**2

        def forward(u: Any) -> Any:
            update = Eq(u.forward, solve(u.dt2 / self.velocity**2 - u.laplace, u.forward))
            sources = self.source.inject(field=u.forward, expr=self.source * area)
            return Operator([update, sources, self.receivers.interpolate(expr=u)], name="Forward")

        v, kept = self.adjoint, self.kept
        back = Eq(v.backward, solve(v.dt2 / self.velocity**2 - v.laplace, v.backward))
        residual = self.residual.inject(field=v.backward, expr=self.residual * area)
        # dL/dc is the sum of mu u_tt 2 / c³, and u_tt / c² holds the source at its cell as well.
        correlation = Inc(self.gradient, v * kept.dt2 * 2 / self.velocity**3)
        self.forward, self.forward_kept = forward(self.now), forward(self.kept)
        self.backward = Operator([correlation, back, residual], name="Backward")
        self.steps, self.dt_s = steps, scheme.inner_dt_s

    def run(self, gradient: bool) -> peers.Answer:
        """All shots: their records, and the velocity gradient of half the sum of their squares."""
        problem, records = self.problem, []
        self.gradient.data[:] = 0.0
        # A kept wavefield has nothing before its first index, so the first sample stands at index 1.
        options = {"dt": self.dt_s, "nthreads": self.threads, "time_m": 1, "time_M": self.steps}
        samples = slice(1, self.steps + 1)
        for shot in range(len(problem.wavelet)):
            self.source.data[samples] = problem.wavelet[shot].T
            self.source.coordinates.data[:] = problem.sources[shot] * self.spacing
            for line in (self.receivers, self.residual):
                line.coordinates.data[:] = problem.receivers[shot] * self.spacing
            wavefield, operator = (self.kept, self.forward_kept) if gradient else (self.now, self.forward)
            wavefield.data_with_halo[:] = 0.0
            self.receivers.data[:] = 0.0
            operator.apply(**options)
            records.append(np.array(self.receivers.data[samples]).T)
            if gradient:
                self.adjoint.data_with_halo[:] = 0.0
                self.residual.data[:] = self.receivers.data
                self.backward.apply(**options)
        return peers.Answer(np.stack(records), np.array(self.gradient.data) if gradient else None)


def problems(name: str, order: int, layer: int) -> tuple[peers.Problem, peers.Problem]:
    """A case with the model continued into what would be its layer, and no layer; and the case with a C-PML."""
    inner = acoustic.problem(acoustic.CASES[name], order, layer, 1)
    scheme = inner.scheme
    widths = [(layer, layer)] * scheme.dimensions
    bare = peers.Problem(
        np.pad(inner.velocity, widths, mode="edge"),
        inner.wavelet,
        inner.sources + layer,
        inner.receivers + layer,
        replace(scheme, absorbing=(0,) * len(scheme.absorbing)),
    )
    return bare, inner


Runs = dict[str, Callable[[bool], peers.Answer]]


def runs_of(bare: peers.Problem, layered: peers.Problem, threads: int) -> Runs:
    """What is timed, by name; called with whether a gradient is wanted."""
    pool = peers.Pool()
    return {
        "hpfwi": lambda gradient: peers.hpfwi(bare, torch.float32, gradient, threads),
        "devito": Devito(bare, np.float32, threads).run,
        LAYERED: lambda gradient: peers.hpfwi(layered, torch.float32, gradient, threads, pool),
    }


def checked(bare: peers.Problem, runs: Runs, threads: int) -> dict[str, dict[str, float]]:
    """How far records and gradients are from hpfwi's float64; raises RuntimeError where that is too far for a ratio."""
    expected = peers.hpfwi(bare, torch.float64, True, threads, peers.Pool())
    answers = {"devito in float64": Devito(bare, np.float64, threads).run(True)}
    answers |= {code: runs[code](True) for code in ("hpfwi", "devito")}
    gaps = {}
    for code, answer in answers.items():
        records, gradient = peers.gap(answer, expected)
        most = EXACT if "64" in code else ROUNDED
        if not max(records, gradient) <= most:
            raise RuntimeError(
                f"{code} differs from hpfwi's float64 by {records:.1e} in records and {gradient:.1e} in the gradient, "
                f"more than {most:g}: no ratio is worth printing."
            )
        gaps[code] = {"records": records, "gradient": gradient}
    return gaps


def timed(runs: Runs, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run by kind of work and code; codes alternate, and so does who goes first."""
    seconds: dict[str, dict[str, list[float]]] = {kind: {code: [] for code in runs} for kind in ("forward", "gradient")}
    for kind, of_code in seconds.items():
        for code in runs:  # touches the buffers, and compiles
            runs[code](kind == "gradient")
        for repeat in range(repeats):
            for code in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
                time.sleep(acoustic.SETTLE_S)
                begin = time.perf_counter()
                runs[code](kind == "gradient")
                of_code[code].append(time.perf_counter() - begin)
    return seconds


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Check one case, then time it."""
    bare, layered = problems(name, options.order, options.layer)
    runs = runs_of(bare, layered, options.threads)
    gaps = checked(bare, runs, options.threads)
    rows = {}
    for kind, of_code in timed(runs, options.repeats).items():
        middle = {code: statistics.median(values) for code, values in of_code.items()}
        fastest = {code: min(values) for code, values in of_code.items()}
        rows[kind] = {
            "seconds": of_code,
            "median_s": middle,
            **{
                f"devito / {code}": {
                    "medians": middle["devito"] / middle[code],
                    "fastest": fastest["devito"] / fastest[code],
                }
                for code in ("hpfwi", LAYERED)
            },
        }
    return {"case": name, "order": options.order, "layer_cells": options.layer, "gaps": gaps, **rows}


def lines(result: dict[str, Any]) -> list[str]:
    """The table's two lines of a case."""
    found = []
    for kind in ("forward", "gradient"):
        row, gaps = result[kind], result["gaps"]
        names = {"forward": "records", "gradient": "gradient"}
        ratios = [row[f"devito / {code}"] for code in ("hpfwi", LAYERED)]
        found.append(
            f"{result['case']:>20}  {result['order']:>5}  {kind:>8}  {row['median_s']['devito']:8.4f}  "
            f"{row['median_s']['hpfwi']:8.4f}  {row['median_s'][LAYERED]:8.4f}  "
            + "  ".join(f"{ratio['medians']:5.2f} ({ratio['fastest']:5.2f})" for ratio in ratios)
            + "".join(f"  {gaps[code][names[kind]]:.1e}" for code in ("devito in float64", "devito", "hpfwi"))
        )
    return found


HEADER = (
    f"{'case (cells,t,shots)':>20}  {'order':>5}  {'kind':>8}  {'devito s':>8}  {'hpfwi s':>8}  {'C-PML s':>8}  "
    f"{'ratio (fastest)':>13}  {'with C-PML':>13}  gaps: devito64, devito32, hpfwi32"
)


def main() -> None:
    """Read the options, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(DEFAULT_CASES), choices=list(acoustic.CASES))
    parser.add_argument("--order", type=int, default=4, help="spatial order (4)")
    parser.add_argument("--layer", type=int, default=20, help="cells of C-PML on every side, or of as much model (20)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both codes (2)")
    parser.add_argument("--json", type=Path, help="where to write the result (benchmarks/results/acoustic_devito_...)")
    options = parser.parse_args()
    try:
        own = {"devito": version("devito")}
    except PackageNotFoundError:
        sys.exit("Devito is not here: install it (`pip install devito`) beside hpfwi and a C compiler with OpenMP.")
    torch.set_num_threads(options.threads)
    conditions = peers.conditions(options.threads) | own
    print("  ".join(f"{key}: {value}" for key, value in conditions.items()))
    path = options.json or peers.result_path("acoustic_devito", conditions)
    results = []
    print(HEADER)
    for name in options.cases:
        results.append(bench(name, options))
        print(*lines(results[-1]), sep="\n", flush=True)
        path.write_text(json.dumps({"conditions": conditions, "results": results}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
