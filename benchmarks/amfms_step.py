"""AMFMS's whole training step, with fused layers and with torch's: distances, seconds, and where the seconds go.

A step is the forward pass, the loss, the backward pass and Adam, in float32 and in training mode.
"""

import os
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from hpfwi.inversion.optimise import AdamSettings, build_adam
from hpfwi.networks.amfms import Amfms
from hpfwi.networks.build import OPENFWI_SHAPES
from hpfwi.networks.fused import Kernels
from hpfwi.training.losses import LossSettings, loss_terms

if TYPE_CHECKING:
    from benchmarks.turns import CODES, Parts, summary, timed
else:
    from turns import CODES, Parts, summary, timed  # run as a script, this folder is where Python looks first

OUTPUT_AGREEMENT = 1e-5
GRADIENT_AGREEMENT = 1e-3
"""Maxima and rectifiers pass a gradient on to one cell or another by the last bit, so no two orders of the same sums
agree better than a few 1e-4 over the whole network: `other_order` is that distance for torch's own layers."""


class Step:
    """One network in training; fixed weights and records."""

    def __init__(self, code: Kernels, samples: int) -> None:
        records, model = OPENFWI_SHAPES
        self.network = Amfms(
            records[0], model, width=1.0, kernels=code, generator=torch.Generator().manual_seed(7)
        ).train()
        random = torch.Generator().manual_seed(8)
        self.records = torch.randn(samples, *records, generator=random)
        self.target = torch.rand(samples, 1, *model, generator=random)
        group = {"params": list(self.network.parameters()), "lr": 1e-6, "name": "network"}
        self.optimiser = build_adam([group], AdamSettings.model_validate({}))
        self.loss = torch.zeros(())
        self.output = torch.zeros(())

    def forward(self) -> None:
        """Prediction and loss."""
        self.optimiser.zero_grad()
        self.output = self.network(self.records)
        self.loss = torch.stack(list(loss_terms(LossSettings(), self.output, self.target).values())).sum()

    def backward(self) -> None:
        """Gradients of all weights."""
        self.loss.backward()

    def parts(self) -> Parts:
        """The forward pass, both passes, and all of the step."""

        def update() -> None:
            self.optimiser.step()

        return {"forward": self.forward, "both": self.backward, "step": update}

    def answer(self) -> tuple[Tensor, Tensor]:
        """The prediction, and the gradients of all weights as one vector."""
        self.forward()
        self.backward()
        gradients = [value.grad.flatten() for value in self.network.parameters() if value.grad is not None]
        return self.output.detach(), torch.cat(gradients)


def step_gaps(samples: int) -> dict[str, float]:
    """Relative L2 distances to the eager step, of the prediction and of all gradients together.

    other_order_*   torch's layers with its other implementation of convolutions: what the order of sums alone does
    """

    def distance(found: Tensor, right: Tensor) -> float:
        return float((found - right).norm() / right.norm())

    output, gradient = Step("eager", samples).answer()
    own_output, own_gradient = Step("fused", samples).answer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns about GPUs that this processor has not
        with torch.backends.mkldnn.flags(enabled=False):
            other_output, other_gradient = Step("eager", samples).answer()
    return {
        "fused": distance(own_output, output),
        "fused_gradient": distance(own_gradient, gradient),
        "other_order": distance(other_output, output),
        "other_order_gradient": distance(other_gradient, gradient),
    }


def bench_step(samples: int, repeats: int) -> dict[str, Any]:
    """The whole step, checked and timed. Raises RuntimeError where fused layers do not agree with torch's."""
    found = step_gaps(min(samples, 2))
    if found["fused"] > OUTPUT_AGREEMENT or found["fused_gradient"] > GRADIENT_AGREEMENT:
        raise RuntimeError(
            f"AMFMS with fused layers differs from the eager one by {found['fused']:.1e} (gradients "
            f"{found['fused_gradient']:.1e}), more than {OUTPUT_AGREEMENT:g} ({GRADIENT_AGREEMENT:g})."
        )
    result = summary(timed({code: Step(code, samples).parts() for code in CODES}, repeats))
    return {"case": "AMFMS", "samples": samples, "load": os.getloadavg()[0], "gap": found, **result}


KINDS = (
    ("3x3 windows, fused", ("convolution_3x3",)),
    ("wavelet convolution", ("wavelet_convolution",)),
    ("cosine pooling", ("multi_frequency_pool", "adaptive_max_pool", "adaptive_avg_pool")),
    ("batch norm and activation", ("normalised_activation", "batch_norm", "prelu", "relu", "threshold", "clamp_min")),
    ("grouped windows, fused", ("grouped_convolution",)),
    ("max and average pooling", ("max_pool2d", "avg_pool2d", "half_maximum", "average_pool")),
    ("resampling", ("upsample", "bilinear")),
    ("optimiser", ("adam", "addcdiv", "addcmul", "lerp", "sqrt", "zero_grad")),
    ("memory", ("copy_", "fill_", "zero_", "empty", "clone", "contiguous", "cat")),
)
"""Operations by words in their names; the first kind that fits counts."""


def kind_of(event: FunctionEventAvg) -> str:
    """Where an operation belongs; torch's convolutions by their filters."""
    name = str(event.key).lower()
    for kind, words in KINDS:
        if any(word in name for word in words):
            return kind
    if "conv" not in name:
        return "other elementwise, reductions, dispatch"
    filters = [shape for shape in event.input_shapes or [] if len(shape) == 4 and max(shape[2:]) <= 5]
    if not filters:
        return "torch's convolutions, dispatch"
    _, inputs, *window = filters[-1]
    if window == [3, 3] and inputs > 8:
        return "torch's 3x3 windows"
    if window == [5, 5] or (window == [2, 2] and inputs == 1):
        return "wavelet convolution"
    if window == [3, 3]:
        return "torch's grouped windows"
    return "torch's 1x1, 2x2 and 3x1 windows"


def profiled(code: Kernels, samples: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step by kind of operation, on one thread, by torch's profiler; largest first."""
    step = Step(code, samples)
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # what the profiler loads once is not part of a step
    for _ in range(2):
        for part in step.parts().values():
            part()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        for _ in range(repeats):
            for part in step.parts().values():
                part()
    spent: Counter[str] = Counter()
    for event in record.key_averages(group_by_input_shape=True):
        spent[kind_of(event)] += event.self_cpu_time_total / 1e3 / repeats
    return dict(spent.most_common())


def profile_table(samples: int, repeats: int) -> tuple[list[str], dict[Kernels, dict[str, float]]]:
    """Lines of Markdown that say where a step's time goes, and the numbers; on one thread."""
    found = {code: profiled(code, samples, repeats) for code in CODES}
    totals = {code: sum(spent.values()) for code, spent in found.items()}
    lines = ["| one step, one thread | eager ms | share | fused ms | share |", "|---|---|---|---|---|"]
    for kind in sorted(set().union(*found.values()), key=lambda kind: -found["eager"].get(kind, 0.0)):
        cells = [f"{found[code].get(kind, 0.0):.0f} | {found[code].get(kind, 0.0) / totals[code]:.1%}"
                 for code in ("eager", "fused")]  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines.append(f"| all | {totals['eager']:.0f} | | {totals['fused']:.0f} | |")
    return lines, found
