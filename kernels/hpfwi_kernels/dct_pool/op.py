"""Multi-frequency pooling as a torch operation, and the same from torch's own operations."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hpfwi_kernels.dct_pool.tables import cosine
from hpfwi_kernels.errors import KernelError


def multi_frequency_pool(x: Tensor, frequencies: Sequence[tuple[int, int]], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, maximum and minimum of x·D over space, each averaged over the frequencies, in one pass over x.

    x            [sample, channel, row, column], any size; pooled adaptively to side x side first where it is not that
    frequencies  pairs (row, column) of DCT-II indices below `side`; `published_frequencies(side)` gives AMFMS's sixteen
    returns      mean, max, min: each [sample, channel] in the dtype of x, differentiable once in x. Of equal maxima the
                 first in row-major order takes the gradient, as in torch's adaptive maximum pooling
    raises       KernelError for a frequency that `side` has not, or an x that is not 4-dimensional
    """
    if x.dim() != 4 or 0 in x.shape:
        raise KernelError(f"x has shape {tuple(x.shape)}; give [sample, channel, row, column], none of them zero.")
    if not frequencies:
        raise KernelError("frequencies is empty; give at least one pair, such as published_frequencies(side).")
    return eager_multi_frequency_pool(x, frequencies, side)


def eager_multi_frequency_pool(
    x: Tensor, frequencies: Sequence[tuple[int, int]], side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """multi_frequency_pool from torch's own operations, as the published layer puts them together."""
    pooled = x if tuple(x.shape[2:]) == (side, side) else F.adaptive_avg_pool2d(x, side)
    sums = [torch.zeros((), dtype=x.dtype, device=x.device)] * 3
    for table in tables(frequencies, side):
        product = pooled * table.to(x.device, x.dtype)
        parts = (
            F.adaptive_avg_pool2d(product, 1),
            F.adaptive_max_pool2d(product, 1),
            -F.adaptive_max_pool2d(-product, 1),
        )
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    mean, high, low = (total.flatten(1) / len(frequencies) for total in sums)
    return mean, high, low


def tables(frequencies: Sequence[tuple[int, int]], side: int) -> Tensor:
    """The products of cosines that the definition multiplies by: float64[frequency, side, side]."""
    pairs = [(torch.from_numpy(cosine(u, side)), torch.from_numpy(cosine(v, side))) for u, v in frequencies]
    return torch.stack([torch.outer(row, column) for row, column in pairs])
