"""Multi-frequency pooling as a torch operation, and the same from torch's own."""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.dct_pool import cpu, cuda
from hpfwi_kernels.dct_pool.tables import cosine
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.gpu import available

Frequencies = Sequence[tuple[int, int]]


def multi_frequency_pool(x: Tensor, frequencies: Frequencies, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, maximum and minimum of x·D over space, each averaged over the frequencies, in one pass over x.

    x            [sample, channel, row, column], any size, float32, float64, bfloat16 or float16; pooled adaptively to
                 side x side first where it is not that
    frequencies  pairs (row, column) of DCT-II indices below `side`; `published_frequencies(side)` gives AMFMS's sixteen
    returns      mean, max, min: each [sample, channel] in the dtype of x, differentiable once in x. Of equal extremes
                 the first in row-major order takes the gradient, as in torch's adaptive maximum pooling
    raises       KernelError for a frequency that `side` has not, or an x that is not 4-dimensional

    Keeps no copy of x for its gradient: only the cells of the extremes, 128 bytes per plane for sixteen frequencies.
    """
    if x.dim() != 4 or 0 in x.shape:
        raise KernelError(f"x has shape {tuple(x.shape)}; give [sample, channel, row, column], none of them zero.")
    if not frequencies:
        raise KernelError("frequencies is empty; give at least one pair, such as published_frequencies(side).")
    if not all(0 <= index < side for pair in frequencies for index in pair):
        raise KernelError(f"A frequency of {list(frequencies)} does not exist for side={side}: give 0 to {side - 1}.")
    if not compiled(x, frequencies, side):
        by_numba = x.is_cuda and not _gpu_is_usable() and numba_is_usable()
        return (numba_multi_frequency_pool if by_numba else eager_multi_frequency_pool)(x, frequencies, side)
    flat = [index for pair in frequencies for index in pair]
    mean, high, low, _ = _pool(x, flat, side, torch.is_grad_enabled() and x.requires_grad)
    return mean, high, low


def compiled(x: Tensor, frequencies: Frequencies, side: int) -> bool:
    """Whether x's device has a kernel for it that a compiled graph can hold; elsewhere Numba's, or torch's own."""
    return x.device.type == "cpu" or (x.is_cuda and cuda.takes(frequencies, side) and _gpu_is_usable())


@torch.compiler.assume_constant_result  # a compiler is not to follow what looks for a GPU
def _gpu_is_usable() -> bool:
    return available()


@torch.compiler.assume_constant_result
def numba_is_usable() -> bool:
    try:
        from hpfwi_kernels.dct_pool import numba_cuda
    except ImportError:  # a Numba without a CUDA target
        return False
    return numba_cuda.available()


def _array(tensor: Tensor) -> NDArray:
    """The tensor's memory as an array; precisions that NumPy has not become float32."""
    wide = tensor if tensor.dtype in (torch.float32, torch.float64, torch.int32) else tensor.float()
    return wide.detach().contiguous().numpy()


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


@torch.library.custom_op("hpfwi::multi_frequency_pool", mutates_args=(), device_types="cpu")
def _pool(x: Tensor, frequencies: Sequence[int], side: int, positions: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, maximum, minimum, and int32[sample, channel, 2, frequency] cells of the extremes, empty if not wanted."""
    parts = cpu.forward(_array(x), _pairs(frequencies), side, positions=positions, threads=torch.get_num_threads())
    mean, high, low, cells = (torch.from_numpy(part) for part in parts)
    return mean.to(x.dtype), high.to(x.dtype), low.to(x.dtype), cells


@_pool.register_kernel("cuda")
def _pool_on_gpu(
    x: Tensor, frequencies: Sequence[int], side: int, positions: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    precision = x.dtype if x.dtype == torch.float64 else torch.float32
    planes = x.detach().to(precision).contiguous()
    mean, high, low = (planes.new_empty(x.shape[:2]) for _ in range(3))
    count = len(frequencies) // 2
    cells = planes.new_empty((*x.shape[:2], 2, count) if positions else (0, 2, count), dtype=torch.int32)
    call = _call(planes, frequencies, side)
    shared = call.pop("tables")
    cuda.forward(
        planes.data_ptr(), shared.data_ptr(), mean.data_ptr(), high.data_ptr(), low.data_ptr(), cells.data_ptr(), **call
    )
    return mean.to(x.dtype), high.to(x.dtype), low.to(x.dtype), cells


def _call(planes: Tensor, frequencies: Sequence[int], side: int) -> dict[str, Any]:
    """What every launch on the GPU is told about planes [sample, channel, row, column], and the tables' memory."""
    told = {
        "shape": tuple(planes.shape[2:]),
        "frequencies": tuple(_pairs(frequencies)),
        "side": side,
        "dtype": str(planes.dtype).removeprefix("torch."),
    }
    return told | {
        "tables": _tables_on(planes.device, **told),
        "planes": planes.shape[0] * planes.shape[1],
        "device": planes.device.index,
        "stream": torch.cuda.current_stream(planes.device).cuda_stream,
    }


@functools.lru_cache(maxsize=32)
def _tables_on(
    device: torch.device, *, shape: tuple[int, int], frequencies: tuple[tuple[int, int], ...], side: int, dtype: str
) -> Tensor:
    return torch.from_numpy(cuda.tables(shape, frequencies, side, dtype)).to(device)


@_pool.register_fake
def _(x: Tensor, frequencies: Sequence[int], side: int, positions: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, high, low = (x.new_empty(x.shape[:2]) for _ in range(3))
    count = len(frequencies) // 2
    shape = (*x.shape[:2], 2, count) if positions else (0, 2, count)
    return mean, high, low, x.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("hpfwi::multi_frequency_pool_gradient", mutates_args=(), device_types="cpu")
def _pool_gradient(
    positions: Tensor, frequencies: Sequence[int], side: int, rows: int, columns: int, mean: Tensor, high: Tensor,
    low: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient of x [sample, channel, rows, columns] from the gradients of mean, maximum and minimum."""
    out = cpu.gradient(
        (rows, columns),
        _array(positions),
        _pairs(frequencies),
        side,
        _array(mean),
        _array(high),
        _array(low),
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(out).to(mean.dtype)


@_pool_gradient.register_kernel("cuda")
def _pool_gradient_on_gpu(
    positions: Tensor, frequencies: Sequence[int], side: int, rows: int, columns: int, mean: Tensor, high: Tensor,
    low: Tensor,
) -> Tensor:  # fmt: skip
    precision = mean.dtype if mean.dtype == torch.float64 else torch.float32
    from_mean, from_high, from_low = (part.detach().to(precision).contiguous() for part in (mean, high, low))
    cells = positions.contiguous()
    out = mean.new_empty((*mean.shape, rows, columns), dtype=precision)
    call = _call(out, frequencies, side)
    shared = call.pop("tables")
    cuda.gradient(
        out.data_ptr(), shared.data_ptr(), from_mean.data_ptr(), from_high.data_ptr(), from_low.data_ptr(),
        cells.data_ptr(), **call,
    )  # fmt: skip
    return out.to(mean.dtype)


@_pool_gradient.register_fake
def _(
    positions: Tensor, frequencies: Sequence[int], side: int, rows: int, columns: int, mean: Tensor, high: Tensor,
    low: Tensor,
) -> Tensor:  # fmt: skip
    return mean.new_empty((*mean.shape, rows, columns))


def _keep_positions(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.frequencies, ctx.side, ctx.kept = inputs
    ctx.rows, ctx.columns = x.shape[2:]
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(output[3])


def _pool_backward(ctx: Any, mean: Tensor, high: Tensor, low: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.kept:
        raise KernelError("This pooling kept no positions, so it has no gradient: let x require one before the call.")
    (positions,) = ctx.saved_tensors
    gradient = _pool_gradient(positions, ctx.frequencies, ctx.side, ctx.rows, ctx.columns, mean, high, low)
    return gradient, None, None, None


_pool.register_autograd(_pool_backward, setup_context=_keep_positions)


@torch.compiler.disable
def numba_multi_frequency_pool(x: Tensor, frequencies: Frequencies, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """multi_frequency_pool by Numba's CUDA kernels, for GPUs without CuPy; a compiled graph breaks at it."""
    mean, high, low = _ByNumba.apply(x, tuple(frequencies), side)
    return mean, high, low


class _ByNumba(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frequencies: Frequencies, side: int) -> tuple[Tensor, Tensor, Tensor]:
        from hpfwi_kernels.dct_pool import numba_cuda

        precision = x.dtype if x.dtype == torch.float64 else torch.float32
        planes = x.detach().to(precision).contiguous().flatten(0, 1)
        mean, high, low = (planes.new_empty(len(planes)) for _ in range(3))
        cells = planes.new_empty((len(planes), 2, len(frequencies)), dtype=torch.int32)
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            numba_cuda.forward(planes, frequencies, side, mean, high, low, cells, **_where(x))
        ctx.save_for_backward(cells)
        ctx.frequencies, ctx.side, ctx.shape = frequencies, side, x.shape
        means, highs, lows = (part.view(x.shape[:2]).to(x.dtype) for part in (mean, high, low))
        return means, highs, lows

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        from hpfwi_kernels.dct_pool import numba_cuda

        (cells,) = ctx.saved_tensors
        like = above[0]
        precision = like.dtype if like.dtype == torch.float64 else torch.float32
        mean, high, low = (part.detach().to(precision).contiguous().flatten() for part in above)
        out = mean.new_empty((len(cells), *ctx.shape[2:]))
        with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
            numba_cuda.gradient(out, cells, ctx.frequencies, ctx.side, mean, high, low, **_where(like))
        return out.view(ctx.shape).to(like.dtype), None, None


def _where(tensor: Tensor) -> dict[str, int]:
    """The stream and the GPU that a tensor is computed on; the simulator of Numba's CUDA target has neither."""
    if not tensor.is_cuda:
        return {}
    return {"stream": torch.cuda.current_stream(tensor.device).cuda_stream, "gpu": tensor.device.index}


def eager_multi_frequency_pool(x: Tensor, frequencies: Frequencies, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """multi_frequency_pool from torch's own operations, as the published layer puts them together."""
    return eager_pool_with_tables(x, tables(frequencies, side).to(x.device, x.dtype))


def eager_pool_with_tables(x: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """eager_multi_frequency_pool with the tables made before, [frequency, side, side] as `tables` makes them."""
    count, side = products.shape[:2]
    pooled = x if tuple(x.shape[2:]) == (side, side) else F.adaptive_avg_pool2d(x, side)
    mean = high = low = torch.zeros((), dtype=x.dtype, device=x.device)
    for table in products:
        product = pooled * table
        mean = mean + F.adaptive_avg_pool2d(product, 1)
        high = high + F.adaptive_max_pool2d(product, 1)
        low = low - F.adaptive_max_pool2d(-product, 1)
    return mean.flatten(1) / count, high.flatten(1) / count, low.flatten(1) / count


def tables(frequencies: Frequencies, side: int) -> Tensor:
    """The products of cosines that the definition multiplies by: float64[frequency, side, side]."""
    pairs = [(torch.from_numpy(cosine(u, side)), torch.from_numpy(cosine(v, side))) for u, v in frequencies]
    return torch.stack([torch.outer(row, column) for row, column in pairs])
