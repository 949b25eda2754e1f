"""Forecasts of `hpfwi cluster simulate` against real workers: `python benchmarks/scaling.py`.

The overheads of the machine are measured first, with workers that do nothing. Then groups of 1, 2 and 3 workers run
iterations whose items sleep, so that three workers need no three cores, and each is timed beside its forecast: the same
ledger and the same order of work, once with processes and a network, once in virtual time. `even` is what dividing the
items' time by the workers would promise. Shortest of a few iterations, because other work on the machine only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi_cluster import ClusterSettings
from hpfwi_cluster.calibrate import measure, sleeping_group
from hpfwi_cluster.connection import connect
from hpfwi_cluster.virtual import Work, run_iteration

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.10
"""Largest difference that a forecast may have."""

WORKERS = (1, 2, 3)


def cases() -> dict[str, Work]:
    """Iterations that differ in what matters: the tail, the number of items, the size of the sum."""
    random = np.random.default_rng(0)

    def work(item_s: float, costs: np.ndarray, size: int, finish_s: float) -> Work:
        relative = tuple(float(cost) for cost in costs / costs.mean())
        return Work(item_s=item_s, costs=relative, spread=0.0, size=size, finish_s=finish_s)

    return {
        "7 uneven items of 0.4 s": work(0.4, np.array([1.7, 1.3, 1.2, 1.1, 0.9, 0.6, 0.2]), 800, 0.1),
        "13 even items of 0.2 s": work(0.2, np.ones(13), 800, 0.05),
        "60 items of 0.05 s, spread 0.5": work(0.05, random.lognormal(0, 0.5, 60), 800, 0.0),
        "12 items of 0.2 s, sum of 8 MB": work(0.2, random.lognormal(0, 0.3, 12), 8_000_000, 0.1),
    }


def main() -> None:
    """Time, compare, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Iterations timed for each row.")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    machine = measure(lambda sentence: print(f"# {sentence}", flush=True))
    print(f"# {machine}")
    print(f"{'case':<32} {'workers':>7} {'real s':>8} {'forecast s':>10} {'ratio':>6} {'even s':>7}")
    rows: list[dict[str, Any]] = []
    with connect(ClusterSettings(workers=0), cores=max(WORKERS)):
        for name, work in cases().items():
            seconds = [work.item_s * cost for cost in work.costs]
            for workers in WORKERS:
                with sleeping_group(workers, seconds, work.size // 8, work.finish_s) as group:
                    items = range(len(seconds))
                    real_s = min(group.run(turn, items, work.costs).seconds for turn in range(arguments.repeats + 1))
                forecast_s = run_iteration(work, machine, workers).seconds
                even_s = work.work_s / workers + work.finish_s
                ratio = forecast_s / real_s
                print(
                    f"{name:<32} {workers:>7} {real_s:>8.3f} {forecast_s:>10.3f} {ratio:>6.3f} {even_s:>7.3f}",
                    flush=True,
                )
                rows.append(
                    {"case": name, "workers": workers, "real_s": real_s, "forecast_s": forecast_s, "even_s": even_s}
                )
    worst = max(abs(row["forecast_s"] / row["real_s"] - 1) for row in rows)
    print(f"# largest difference {100 * worst:.1f} %, limit {100 * LIMIT:g} %")
    about = {
        "date": date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "repeats": arguments.repeats,
    }
    document = {"about": about, "machine": machine.model_dump(), "largest_difference": worst, "rows": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"# Wrote {arguments.out}")
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
