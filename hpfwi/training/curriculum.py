"""DD-Net's curriculum: records that are easier to read come first.

In the first epochs every shot of a sample is replaced by its middle shot, and the copies are made different: the first
third of them is noisy, the second third has its weak arrivals raised by automatic gain control, the rest is left as it
is. Then come plain copies, and then the true records. Validation always sees the true records.

Zhang et al., IEEE TGRS 2024 (doi 10.1109/TGRS.2024.3358492). Shares of the copies, the noise and the gain's window are
those of its authors' code, with two differences. Their gain control reaches the first and the last samples of a trace
alone, because the loop between them is empty: here it reaches all. Of 29 shots they take number 15, counted from 0, for
the middle one: here it is number 14.
"""

from __future__ import annotations

import torch
from torch.nn import functional

NOISE = 0.01
"""Standard deviation of the noise on copies, in the records' unit."""
FEWEST = 2
"""Copies that are noisy, and that are gained, where a third of the shots would be fewer."""
SILENT = 1e-4
"""Mean amplitude in a window below which nothing is raised, in the records' unit."""


def simplified(records: torch.Tensor, stage: int, generator: torch.Generator) -> torch.Tensor:
    """Records Tensor[sample, shot, time, receiver] as a stage of the curriculum shows them: 1, 2 or 3.

    generator   on the CPU, of the noise of stage 1

    >>> records = torch.arange(3.0).reshape(1, 3, 1, 1).expand(1, 3, 4, 2)
    >>> simplified(records, 2, torch.Generator())[0, :, 0, 0].tolist()
    [1.0, 1.0, 1.0]
    """
    if stage == 3:
        return records
    shots = records.shape[1]
    middle = records[:, shots // 2].unsqueeze(1)
    copies = middle.repeat(1, shots, 1, 1)
    if stage == 1:
        part = max(FEWEST, shots // 3)
        # One noise for all noisy copies of a sample, as published.
        noise = torch.randn(middle.shape, generator=generator).to(records.device) * NOISE
        copies[:, :part] += noise
        copies[:, part : 2 * part] = gained(middle)
    return copies


def gained(records: torch.Tensor) -> torch.Tensor:
    """Every trace over the mean amplitude around each of its samples, then scaled so that gathers stay as loud.

    records   Tensor[sample, shot, time, receiver]; the window has as many samples as there are receivers

    The scale is one number for a gather: the mean over its traces of how much their largest value was raised.
    """
    half = min(max(1, records.shape[-1] // 2), records.shape[-2] // 2)
    around = functional.avg_pool2d(
        records.abs(), (2 * half + 1, 1), stride=1, padding=(half, 0), count_include_pad=False
    )
    raised = torch.where(around > SILENT, records / around.clamp_min(SILENT), records)
    before, after = (values.abs().amax(dim=-2, keepdim=True) for values in (records, raised))
    ratio = torch.where(before > SILENT, after / before.clamp_min(SILENT), torch.ones_like(before))
    return raised / ratio.mean(dim=-1, keepdim=True)
