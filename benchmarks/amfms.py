"""Time AMFMS's fused layers and training step against those of eager torch: `python benchmarks/amfms.py`.

Each layer of AMFMS at OpenFWI's sizes, then a whole training step, with the same weights and inputs in the same
process. No ratio is printed before results and gradients agree with the eager layer in float64. Runs alternate, so a
disturbance of the machine meets both; processor seconds say what a run costs even where other programs want the same
cores. Bytes are what torch operations read and write, against the floor: x read and y written forward, x and the
gradient read and the gradient of x written backward. Memory is the peak of a forward and backward pass, or of a step,
in a process of its own. `--profile` prints where a step's time goes.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hpfwi.networks.fused import Kernels

if TYPE_CHECKING:
    from benchmarks import amfms_layers, amfms_step, peers
    from benchmarks.turns import CODES
else:  # run as a script, this folder is where Python looks first
    import amfms_layers
    import amfms_step
    import peers
    from turns import CODES

STEP = "AMFMS"
NAMES = [case.name for case in amfms_layers.CASES] + [STEP]
KINDS = ("wavelet", "pooling", "window", "norm", "grouped")


def peak_memory(code: str, name: str, samples: int, threads: int) -> float:
    """MiB that one forward and backward pass, or a step, takes at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--child", code, "--cases", name]
    command += ["--samples", str(samples), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_child(code: Kernels, name: str, samples: int) -> float:
    """What `peak_memory` asks for: a first pass of one sample loads what loads once, then the kernel's peak counter."""

    def once(count: int) -> None:
        if name == STEP:
            step = amfms_step.Step(code, count)
            reset()
            for part in step.parts().values():
                part()
        else:
            case = next(case for case in amfms_layers.CASES if case.name == name)
            inputs = amfms_layers.leaves(amfms_layers.problem(case, count), torch.float32)
            reset()
            amfms_layers.passes(amfms_layers.layer(case, code, torch.float32), inputs)

    before = [0.0]

    def reset() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before[0] = resident("VmRSS")

    once(1)
    once(samples)
    return resident("VmHWM") - before[0]


def resident(field: str) -> float:
    """MiB of this process from /proc: VmRSS is what it holds now, VmHWM the most it held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


COLUMNS = {
    "layer (channels, rows, columns)": 31,
    "fused s": 8,
    "eager s": 8,
    "ratio": 6,
    "fastest": 7,
    "cpu fwd": 7,
    "cpu": 6,
    "bytes": 5,
    "eager bytes": 11,
    "gap": 7,
    "eager gap": 9,
    "MiB": 6,
    "eager MiB": 9,
}


def line(cells: Sequence[str]) -> str:
    """One line of the printed table."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def cells(result: dict[str, Any]) -> list[str]:
    """The table's cells: seconds and ratios of forward with backward, bytes over the floor."""
    moved, memory = result.get("bytes_over_floor"), result.get("memory_mib")
    whole = "step" if "wall_step" in result else "both"
    both = result[f"wall_{whole}"]
    return [
        f"{result['case']}, {result['samples']} samples",
        f"{both['median_s']['fused']:.4f}",
        f"{both['median_s']['eager']:.4f}",
        f"{both['ratio_of_medians']:.2f}",
        f"{both['ratio_of_fastest']:.2f}",
        f"{result['processor_forward']['ratio_of_fastest']:.2f}",
        f"{result[f'processor_{whole}']['ratio_of_fastest']:.2f}",
        f"{moved['fused']:.2f}" if moved else "",
        f"{moved['eager']:.1f}" if moved else "",
        f"{result['gap']['fused']:.1e}",
        f"{result['gap']['eager']:.1e}" if "eager" in result["gap"] else "",
        f"{memory['fused']:.0f}" if memory else "",
        f"{memory['eager']:.0f}" if memory else "",
    ]


def totals(results: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Ratio of the sums over all layers of a kind: what a step of the network gains on them."""
    chosen = [result for result in results if result["case"].startswith(kind)]
    ratios = {}
    for clock in ("wall_both", "processor_both"):
        sums = {code: sum(result[clock]["fastest_s"][code] for result in chosen) for code in CODES}
        ratios[clock] = sums["eager"] / sums["fused"] if chosen else float("nan")
    return ratios


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--cases", nargs="+", default=NAMES, choices=NAMES)
    result.add_argument("--samples", type=int, default=4, help="batch (4)")
    result.add_argument("--repeats", type=int, default=5, help="interleaved repeats after a first one (5)")
    result.add_argument("--threads", type=int, default=2, help="threads of both (2)")
    result.add_argument("--memory", nargs="*", default=["wavelet 64x70x70", "pooling 64x70x70 to 56", STEP],
                        choices=NAMES, help="cases to measure the peak memory of, each in two processes")  # fmt: skip
    result.add_argument("--profile", action="store_true", help="only print where a step's time goes, on one thread")
    result.add_argument("--json", type=Path, help="where to write (benchmarks/results/amfms_<hardware>_<date>.json)")
    result.add_argument("--child", choices=CODES, help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, print the table, write the JSON."""
    options = parser().parse_args(arguments)
    if options.profile:
        options.threads = 1
    torch.set_num_threads(options.threads)
    if options.child:
        print(measure_child(options.child, options.cases[0], options.samples))
        return
    conditions = peers.conditions(options.threads)
    print("  ".join(f"{key}: {value}" for key, value in conditions.items()))
    if options.profile:
        lines, found = amfms_step.profile_table(options.samples, options.repeats)
        print("\n".join(lines))
        write(
            {"conditions": conditions, "samples": options.samples, "milliseconds": found},
            "profile",
            options,
            conditions,
        )
        return
    print("Ratios are eager over fused, forward with backward, for AMFMS the whole step; cpu: of processor seconds.")
    print(line(list(COLUMNS)))
    results = []
    for name in options.cases:
        if name == STEP:
            result = amfms_step.bench_step(options.samples, options.repeats)
        else:
            case = next(case for case in amfms_layers.CASES if case.name == name)
            result = amfms_layers.bench(case, options.samples, options.repeats)
        if name in options.memory:
            result["memory_mib"] = {code: peak_memory(code, name, options.samples, options.threads) for code in CODES}
        print(line(cells(result)), flush=True)
        results.append(result)
    sums = {kind: totals(results, kind) for kind in KINDS if any(r["case"].startswith(kind) for r in results)}
    for kind, ratios in sums.items():
        print(f"all {kind} layers: {ratios['wall_both']:.2f} by the clock, {ratios['processor_both']:.2f} by processor")
    for remark in (remark for result in results for remark in remarks(result)):
        print(remark)
    write({"conditions": conditions, "totals": sums, "results": results}, "", options, conditions)


def remarks(result: dict[str, Any]) -> list[str]:
    """What a line of the table has no room for."""
    if result["case"] != STEP:
        return []
    gap, said = result["gap"], []
    said.append(
        f"AMFMS's gradients: {gap['fused_gradient']:.1e} from eager; eager with torch's other convolutions: "
        f"{gap['other_order_gradient']:.1e} (prediction {gap['other_order']:.1e})"
    )
    if (memory := result.get("memory_mib")) is not None:
        said.append(f"AMFMS's peak memory: {memory['fused'] / memory['eager']:.2f} of eager")
    return said


def write(contents: dict[str, Any], what: str, options: argparse.Namespace, conditions: dict[str, str]) -> None:
    """The results as JSON, under a name that says the hardware and the day."""
    threads = "_one-thread" if options.threads == 1 else ""
    path = options.json or peers.result_path(f"amfms{what and '_' + what}{threads}", conditions)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=1) + "\n")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
