"""AMFMS's layers one by one, fused and as torch's operators: inputs, distances, seconds, bytes."""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpfwi.networks import fused, multi_frequency
from hpfwi.networks.fused import Kernels
from hpfwi.networks.wavelet_convolution import WINDOW, haar_filters
from hpfwi.networks.wavelet_convolution import wavelet_convolution as published_convolution
from hpfwi_kernels.batch_norm import normalised_activation
from hpfwi_kernels.grouped import grouped_convolution
from hpfwi_kernels.winograd import convolution

if TYPE_CHECKING:
    from benchmarks.turns import CODES, Parts, summary, timed
else:
    from turns import CODES, Parts, summary, timed  # run as a script, this folder is where Python looks first

# float32 sums over a batch of planes, filter gradients most of all; eager's own distance is printed beside ours.
AGREEMENT = 1e-4
EPSILON = 1e-5
GROUPS = 32

Layer = Callable[..., Tensor]
Inputs = list[Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of layer at one size: `extra` is the side of the cosine tables, the outputs or the dilation."""

    kind: str
    channels: int
    rows: int
    columns: int
    extra: int = 0

    @property
    def name(self) -> str:
        """Kind and size."""
        word = {"pooling": " to ", "window": " to ", "grouped": " by "}.get(self.kind)
        extra = f"{word}{self.extra}" if word else ""
        return f"{self.kind} {self.channels}x{self.rows}x{self.columns}{extra}"

    @property
    def floor(self) -> int:
        """Bytes per sample that forward and backward pass cannot do without, in float32.

        x is read and y written; x and the gradient of y are read and that of x is written. The pooling reads x once and
        writes its gradient. Weights are not counted.
        """
        outputs = self.extra if self.kind == "window" else self.channels
        maps = 2 * self.channels if self.kind == "pooling" else 3 * self.channels + 2 * outputs
        return 4 * maps * self.rows * self.columns


CASES = (
    *(Case("wavelet", *size) for size in ((8, 280, 70), (16, 140, 70), (32, 70, 70))),
    *(Case("wavelet", *size) for size in ((64, 70, 70), (128, 35, 35), (256, 18, 18))),
    *(Case("pooling", *size) for size in ((64, 70, 70, 56), (64, 35, 35, 56), (64, 17, 17, 56))),
    *(Case("pooling", *size) for size in ((128, 35, 35, 28), (64, 17, 17, 28), (64, 8, 8, 28))),
    *(Case("pooling", *size) for size in ((256, 18, 18, 14), (128, 9, 9, 14), (64, 18, 18, 14))),
    *(Case("window", *size) for size in ((64, 70, 70, 64), (128, 70, 70, 64), (128, 35, 35, 128))),
    *(Case("window", *size) for size in ((256, 35, 35, 128), (256, 18, 18, 256), (512, 18, 18, 256))),
    *(Case("norm", *size) for size in ((64, 70, 70), (128, 35, 35), (256, 18, 18), (512, 9, 9))),
    *(Case("grouped", *size) for size in ((64, 70, 70, 1), (64, 35, 35, 2), (64, 17, 17, 3), (128, 35, 35, 1))),
)


def problem(case: Case, samples: int) -> Inputs:
    """The map and the layer's weights in float64; a rectified map, as the networks have it, so that cells are equal."""
    generator = torch.Generator().manual_seed(2024)

    def random(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return values / (size[1] * size[2] * size[3]) ** 0.5 if len(size) == 4 else values

    c = case.channels
    x = torch.randn((samples, c, case.rows, case.columns), generator=generator, dtype=torch.float64)
    match case.kind:
        case "pooling":
            return [x.relu() + 0.01 * x]
        case "window":
            return [x, random(case.extra, c, 3, 3), random(case.extra)]
        case "norm":
            return [x, random(c), random(c), random(c)]
        case "grouped":
            return [x, random(c, c // GROUPS, 3, 3)]
    shapes = [(c, 1, WINDOW, WINDOW), (c,), (c,), (4 * c, 1, WINDOW, WINDOW), (4 * c,)]
    return [x, *(random(*shape) for shape in shapes)]


def layer(case: Case, code: Kernels, dtype: torch.dtype) -> Layer:
    """The layer as a function of its inputs; what does not depend on them is made here, as the networks do."""
    own = code == "fused"
    match case.kind:
        case "pooling":
            pairs, tables = multi_frequency.frequencies(case.extra), multi_frequency.cosine_tables(case.extra).to(dtype)
            if own:
                return lambda x: torch.stack(fused.multi_frequency_pool(x, pairs, case.extra))
            return lambda x: torch.stack(multi_frequency.multi_frequency_pool(x, tables))
        case "window":
            return convolution if own else functools.partial(functional.conv2d, padding=1)
        case "norm":
            if own:
                return lambda x, weight, bias, slope: normalised_activation(x, weight, bias, slope, EPSILON)[0]

            def norm(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
                return functional.prelu(functional.batch_norm(x, None, None, weight, bias, True, 0.0, EPSILON), slope)

            return norm
        case "grouped":
            if own:
                return functools.partial(grouped_convolution, dilation=case.extra)
            return functools.partial(functional.conv2d, padding=case.extra, dilation=case.extra, groups=GROUPS)
    if own:
        return fused.wavelet_convolution
    return functools.partial(published_convolution, filters=haar_filters(case.channels).to(dtype))


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


def copy_rate(size: int) -> float:
    """Bytes per processor second that a copy of a map of `size` bytes reads and writes."""
    source, target = (torch.ones(size // 4) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        target.copy_(source)
        best = min(best, time.process_time() - begin)
    return 2 * size / best


def parts(run: Layer, inputs: Inputs) -> Parts:
    """The forward pass, and both."""
    results: list[Tensor] = []

    def forward() -> None:
        results.append(run(*inputs))

    def both() -> None:
        result = results.pop()
        torch.autograd.grad(result, inputs, torch.ones_like(result))

    return {"forward": forward, "both": both}


def bench(case: Case, samples: int, repeats: int) -> dict[str, Any]:
    """Check one layer, then time it. Raises RuntimeError where the fused layer is further than AGREEMENT from eager."""
    inputs = problem(case, samples)
    found = gaps(case, inputs)
    if found["fused"] > AGREEMENT:
        raise RuntimeError(
            f"The fused {case.name} differs from the eager one by {found['fused']:.1e}, more than {AGREEMENT:g}: no "
            "ratio is worth printing."
        )
    runs = {code: parts(layer(case, code, torch.float32), leaves(inputs, torch.float32)) for code in CODES}
    result = summary(timed(runs, repeats))
    floor = case.floor * samples
    moved = {code: traffic(case, code, inputs) / floor for code in CODES}
    rate = copy_rate(inputs[0].numel() * 4)
    at_floor = floor / rate / result["processor_both"]["fastest_s"]["fused"]
    return {"case": case.name, "samples": samples, "load": os.getloadavg()[0], "gap": found, "bytes_over_floor": moved,
            "copy_bytes_per_s": rate, "share_of_copy_rate": at_floor, **result}  # fmt: skip
