"""Time AMFMS's fused layers against the published ones in eager torch: `python benchmarks/amfms.py`.

Each layer of AMFMS at OpenFWI's sizes, then the whole network, with the same weights and inputs in the same process. No
ratio is printed before results and gradients agree with the eager layer in float64. Runs alternate, so a disturbance of
the machine meets both; processor seconds say what a run costs even where other programs want the same cores. Bytes are
what torch operations read and write, against the floor: x read and y written forward, x and the gradient read and the
gradient of x written backward. Memory is the peak of one forward and backward pass in a process of its own.
"""

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpfwi.networks import fused, multi_frequency
from hpfwi.networks.amfms import Amfms
from hpfwi.networks.build import OPENFWI_SHAPES
from hpfwi.networks.fused import Kernels
from hpfwi.networks.wavelet_convolution import WINDOW, haar_filters
from hpfwi.networks.wavelet_convolution import wavelet_convolution as published_convolution

if TYPE_CHECKING:
    from benchmarks import peers
else:
    import peers  # run as a script, this folder is where Python looks first

RESULTS = Path(__file__).parent / "results"
CODES: tuple[Kernels, ...] = ("fused", "eager")
# float32 sums over a batch of planes, filter gradients most of all; eager's own distance is printed beside ours.
AGREEMENT = 1e-4
# OpenMP threads of the run before go on spinning for a moment; the next run must not pay for them.
SETTLE_S = 0.2

Layer = Callable[..., Tensor]
Inputs = list[Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of layer at one size; side is that of the cosine tables, for the pooling."""

    kind: str
    channels: int
    rows: int
    columns: int
    side: int = 0

    @property
    def name(self) -> str:
        """Kind and size."""
        side = f" to {self.side}" if self.side else ""
        return f"{self.kind} {self.channels}x{self.rows}x{self.columns}{side}"

    @property
    def floor(self) -> int:
        """Bytes per sample that forward and backward pass cannot do without, in float32."""
        maps = 5 if self.kind == "wavelet" else 2  # the pooling reads x once, and writes its gradient
        return 4 * maps * self.channels * self.rows * self.columns


CASES = (
    *(Case("wavelet", *size) for size in ((8, 280, 70), (16, 140, 70), (32, 70, 70))),
    *(Case("wavelet", *size) for size in ((64, 70, 70), (128, 35, 35), (256, 18, 18))),
    *(Case("pooling", *size) for size in ((64, 70, 70, 56), (64, 35, 35, 56), (64, 17, 17, 56))),
    *(Case("pooling", *size) for size in ((128, 35, 35, 28), (64, 17, 17, 28), (64, 8, 8, 28))),
    *(Case("pooling", *size) for size in ((256, 18, 18, 14), (128, 9, 9, 14), (64, 18, 18, 14))),
)


def problem(case: Case, samples: int) -> Inputs:
    """The map and the layer's weights in float64; a rectified map, as the networks have it, so that cells are equal."""
    generator = torch.Generator().manual_seed(2024)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = random(samples, case.channels, case.rows, case.columns)
    if case.kind == "pooling":
        return [x.relu() + 0.01 * x]
    c, area = case.channels, WINDOW**2
    shapes = [(c, 1, WINDOW, WINDOW), (c,), (c,), (4 * c, 1, WINDOW, WINDOW), (4 * c,)]
    return [x, *(random(*shape) / (area**0.5 if len(shape) == 4 else 1.0) for shape in shapes)]


def layer(case: Case, code: Kernels, dtype: torch.dtype) -> Layer:
    """The layer as a function of its inputs; what does not depend on them is made here, as the networks do."""
    if case.kind == "pooling":
        pairs, tables = multi_frequency.frequencies(case.side), multi_frequency.cosine_tables(case.side).to(dtype)
        if code == "fused":
            return lambda x: torch.stack(fused.multi_frequency_pool(x, pairs, case.side))
        return lambda x: torch.stack(multi_frequency.multi_frequency_pool(x, tables))
    filters = haar_filters(case.channels).to(dtype)
    if code == "fused":
        return fused.wavelet_convolution
    return functools.partial(published_convolution, filters=filters)


def passes(run: Layer, inputs: Inputs) -> tuple[Tensor, ...]:
    """The result and the gradients of half its sum of squares, in every input."""
    result = run(*inputs)
    return result.detach(), *torch.autograd.grad(result, inputs, result.detach())


def leaves(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Copies in one precision that want gradients."""
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def gaps(case: Case, inputs: Inputs) -> dict[Kernels, float]:
    """Largest relative L2 distance of result and gradients to the eager layer in float64.

    The published tables are float32 numbers, so float64 means those numbers in float64 arithmetic for both.
    """
    truth = passes(layer(case, "eager", torch.float64), leaves(inputs, torch.float64))
    found: dict[Kernels, float] = {}
    for code in CODES:
        parts = passes(layer(case, code, torch.float32), leaves(inputs, torch.float32))
        distances = [(part - right).norm() / right.norm() for part, right in zip(parts, truth, strict=True)]
        found[code] = float(max(distances))
    return found


class Traffic(TorchDispatchMode):
    """Counts the bytes that torch operations read and write; those that only make a view count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count its tensors."""
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        held = {leaf.untyped_storage().data_ptr() for leaf in read}
        if any(leaf.untyped_storage().data_ptr() not in held for leaf in written) and "empty" not in str(func):
            self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in (*read, *written))
        return out


def traffic(case: Case, code: Kernels, inputs: Inputs) -> int:
    """Bytes that one forward and backward pass moves between operations."""
    run, work = layer(case, code, torch.float32), leaves(inputs, torch.float32)
    with Traffic() as mode:
        passes(run, work)
    return mode.bytes


Seconds = dict[str, dict[Kernels, list[float]]]


def timed(
    runs: Mapping[Kernels, Callable[[], Tensor]], inputs: dict[Kernels, Inputs], repeats: int
) -> dict[str, Seconds]:
    """Wall-clock and processor seconds of every forward pass and of forward with backward; codes take turns."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, Seconds] = {clock: {kind: {} for kind in ("forward", "both")} for clock in clocks}
    for repeat in range(repeats + 1):
        for code in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            if torch.get_num_threads() > 1:
                time.sleep(SETTLE_S)
            begin = {name: clock() for name, clock in clocks.items()}
            result = runs[code]()
            middle = {name: clock() for name, clock in clocks.items()}
            torch.autograd.grad(result, inputs[code], torch.ones_like(result))
            end = {name: clock() for name, clock in clocks.items()}
            if repeat == 0:  # the first run compiles and touches memory
                continue
            for name in clocks:
                seconds[name]["forward"].setdefault(code, []).append(middle[name] - begin[name])
                seconds[name]["both"].setdefault(code, []).append(end[name] - begin[name])
    return seconds


def summary(seconds: dict[str, Seconds]) -> dict[str, Any]:
    """Medians, fastest runs and their ratios, eager over fused."""
    result: dict[str, Any] = {}
    for clock, kinds in seconds.items():
        for kind, codes in kinds.items():
            middle = {code: statistics.median(values) for code, values in codes.items()}
            result[f"{clock}_{kind}"] = {
                "median_s": middle,
                "fastest_s": {code: min(values) for code, values in codes.items()},
                "spread_s": {code: max(values) - min(values) for code, values in codes.items()},
                "ratio_of_medians": middle["eager"] / middle["fused"],
                "ratio_of_fastest": min(codes["eager"]) / min(codes["fused"]),
            }
    return result


def copy_rate(size: int) -> float:
    """Bytes per processor second that a copy of a map of `size` bytes reads and writes."""
    source, target = (torch.ones(size // 4) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        target.copy_(source)
        best = min(best, time.process_time() - begin)
    return 2 * size / best


def bench(case: Case, samples: int, repeats: int) -> dict[str, Any]:
    """Check one layer, then time it. Raises RuntimeError where the fused layer is further than AGREEMENT from eager."""
    inputs = problem(case, samples)
    found = gaps(case, inputs)
    if found["fused"] > AGREEMENT:
        raise RuntimeError(
            f"The fused {case.name} differs from the eager one by {found['fused']:.1e}, more than {AGREEMENT:g}: no "
            "ratio is worth printing."
        )
    work = {code: leaves(inputs, torch.float32) for code in CODES}
    layers = {code: layer(case, code, torch.float32) for code in CODES}
    runs = {code: functools.partial(layers[code], *work[code]) for code in CODES}
    result = summary(timed(runs, work, repeats))
    floor = case.floor * samples
    moved = {code: traffic(case, code, inputs) / floor for code in CODES}
    rate = copy_rate(inputs[0].numel() * 4)
    at_floor = floor / rate / result["processor_both"]["fastest_s"]["fused"]
    return {"case": case.name, "samples": samples, "load": os.getloadavg()[0], "gap": found, "bytes_over_floor": moved,
            "copy_bytes_per_s": rate, "share_of_copy_rate": at_floor, **result}  # fmt: skip


def network(code: Kernels, samples: int) -> tuple[Amfms, Tensor]:
    """AMFMS with fixed weights in training mode, and records; batch norm in evaluation would hide differences."""
    records, model = OPENFWI_SHAPES
    net = Amfms(records[0], model, width=1.0, kernels=code, generator=torch.Generator().manual_seed(7))
    x = torch.randn(samples, *records, generator=torch.Generator().manual_seed(8))
    return net, x


def bench_network(samples: int, repeats: int) -> dict[str, Any]:
    """The whole network, forward and backward, with the fused layers and with the published ones."""
    nets = {code: network(code, samples)[0] for code in CODES}
    x = network("eager", samples)[1]
    outputs = {code: net(x).detach() for code, net in nets.items()}
    gap = float((outputs["fused"] - outputs["eager"]).norm() / outputs["eager"].norm())
    if gap > AGREEMENT:
        raise RuntimeError(f"AMFMS with fused layers differs from the eager one by {gap:.1e}, more than {AGREEMENT:g}.")
    runs = {code: functools.partial(net, x) for code, net in nets.items()}
    result = summary(timed(runs, {code: list(net.parameters()) for code, net in nets.items()}, repeats))
    return {"case": "AMFMS", "samples": samples, "load": os.getloadavg()[0], "gap": {"fused": gap}, **result}


def peak_memory(code: str, name: str, samples: int, threads: int) -> float:
    """MiB that one forward and backward pass takes at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--child", code, "--cases", name]
    command += ["--samples", str(samples), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_child(code: Kernels, name: str, samples: int) -> float:
    """What `peak_memory` asks for: a first pass of one sample loads what loads once, then the kernel's peak counter."""

    def once(count: int) -> None:
        if name == "AMFMS":
            net, x = network(code, count)
            reset()
            net(x).square().sum().backward()
        else:
            case = next(case for case in CASES if case.name == name)
            inputs = leaves(problem(case, count), torch.float32)
            reset()
            passes(layer(case, code, torch.float32), inputs)

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
    both, moved, memory = result["wall_both"], result.get("bytes_over_floor"), result.get("memory_mib")
    return [
        f"{result['case']}, {result['samples']} samples",
        f"{both['median_s']['fused']:.4f}",
        f"{both['median_s']['eager']:.4f}",
        f"{both['ratio_of_medians']:.2f}",
        f"{both['ratio_of_fastest']:.2f}",
        f"{result['processor_forward']['ratio_of_fastest']:.2f}",
        f"{result['processor_both']['ratio_of_fastest']:.2f}",
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


def main() -> None:
    """Read the options, print the table, write the JSON."""
    names = [case.name for case in CASES] + ["AMFMS"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--samples", type=int, default=4, help="batch of every layer; the network takes half (4)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats after a first one (5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both (2)")
    parser.add_argument("--memory", nargs="*", default=["wavelet 64x70x70", "pooling 64x70x70 to 56", "AMFMS"],
                        choices=names, help="cases to measure the peak memory of, each in two processes")  # fmt: skip
    parser.add_argument("--json", type=Path, help="where to write (benchmarks/results/amfms_<hardware>_<date>.json)")
    parser.add_argument("--child", choices=CODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(measure_child(options.child, options.cases[0], options.samples))
        return
    conditions = peers.conditions(options.threads)
    print("  ".join(f"{key}: {value}" for key, value in conditions.items()))
    print("Ratios are eager over fused, forward with backward; cpu: of processor seconds.")
    print(line(list(COLUMNS)))
    results = []
    for name in options.cases:
        samples = options.samples if name != "AMFMS" else max(1, options.samples // 2)
        if name == "AMFMS":
            result = bench_network(samples, options.repeats)
        else:
            result = bench(next(case for case in CASES if case.name == name), samples, options.repeats)
        if name in options.memory:
            result["memory_mib"] = {code: peak_memory(code, name, samples, options.threads) for code in CODES}
        print(line(cells(result)), flush=True)
        results.append(result)
    sums = {kind: totals(results, kind) for kind in ("wavelet", "pooling")}
    for kind, ratios in sums.items():
        print(f"all {kind} layers: {ratios['wall_both']:.2f} by the clock, {ratios['processor_both']:.2f} by processor")
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{conditions['cpu']} {conditions['cores']} cores".lower()).strip("-")
    threads = "one-thread_" if options.threads == 1 else ""
    path = options.json or RESULTS / f"amfms_{threads}{hardware}_{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": conditions, "totals": sums, "results": results}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
