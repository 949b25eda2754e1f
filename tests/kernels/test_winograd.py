"""The 3x3 convolution by fewer products: its definition, its rounding, its torch op, and when it steps aside."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.winograd import convolution, cpu, op, reference, tiles

SHAPES = [(3, 8, 16, 13, 10), (1, 16, 8, 4, 4), (2, 8, 8, 5, 23), (5, 8, 24, 9, 65), (2, 24, 8, 1, 3)]


def arrays(shape: tuple[int, ...], dtype: Any = np.float64) -> tuple[NDArray, ...]:
    """Map, weight, bias and output gradient of unit size, for sample, input, output, row, column."""
    samples, inputs, outputs, rows, columns = shape
    random = np.random.default_rng(sum(shape))
    sizes = ((samples, inputs, rows, columns), (outputs, inputs, 3, 3), (outputs,), (samples, outputs, rows, columns))
    return tuple(random.standard_normal(size).astype(dtype) for size in sizes)


def distance(found: NDArray, right: NDArray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_result_and_gradients_are_those_of_the_definition(shape: tuple[int, ...], threads: int) -> None:
    x, weight, bias, gradient = arrays(shape)
    right = (reference.forward(x, weight, bias), *reference.gradient(x, weight, gradient))
    found = (cpu.forward(x, weight, bias, threads=threads), *cpu.gradient(x, weight, gradient, threads=threads))
    # A few hundred operations on numbers up to ten times the result.
    for part, expected in zip(found, right, strict=True):
        assert part.shape == expected.shape
        assert distance(part, expected) < 50 * np.finfo(np.float64).eps


def test_the_definition_is_torchs_convolution() -> None:
    x, weight, bias, gradient = (torch.from_numpy(a).requires_grad_() for a in arrays(SHAPES[0]))
    peer = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    expected = [peer, *torch.autograd.grad(peer, (x, weight, bias), gradient)]
    numbers = [a.detach().numpy() for a in (x, weight, bias, gradient)]
    found = [reference.forward(*numbers[:3]), *reference.gradient(numbers[0], numbers[1], numbers[3])]
    for part, right in zip(found, expected, strict=True):
        assert distance(part, right.detach().numpy()) < 1e-14


def test_float32_rounds_little_more_than_a_plain_convolution() -> None:
    x, weight, bias, gradient = arrays((2, 64, 32, 18, 18), np.float32)
    right = (reference.forward(x, weight, bias), *reference.gradient(x, weight, gradient))
    found = (cpu.forward(x, weight, bias), *cpu.gradient(x, weight, gradient))
    for part, expected in zip(found, right, strict=True):
        assert part.dtype == np.float32
        # Sums of 576 products lose about 2e-7; the transforms multiply that by about four.
        assert distance(part, expected) < 1e-6


def test_the_bits_depend_on_neither_threads_nor_the_number_of_chunks_nor_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias, gradient = arrays(SHAPES[3], np.float32)
    runs = [
        (cpu.forward(x, weight, bias, threads=threads), *cpu.gradient(x, weight, gradient, threads=threads))
        for threads in (1, 2, 3, 1)
    ]
    for run, part in itertools.product(runs[1:], range(4)):
        assert np.array_equal(run[part], runs[0][part])
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 0)  # one sample at a time
    tiles.tiles_of.cache_clear()
    try:
        assert np.array_equal(cpu.forward(x, weight, bias), runs[0][0])
        assert distance(cpu.gradient(x, weight, gradient)[1], runs[0][2]) < 1e-6
    finally:
        tiles.tiles_of.cache_clear()


def test_what_the_loops_do_not_take_is_refused() -> None:
    x, weight, *_ = arrays(SHAPES[0])
    with pytest.raises(KernelError, match="float16; give float32 or float64"):
        cpu.forward(x.astype(np.float16), weight, None)
    with pytest.raises(KernelError, match=r"shape \(16, 4, 3, 3\) for 4 channels.*multiples of 8"):
        cpu.forward(x[:, :4], weight[:, :4], None)


def layer(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Map, weight and bias that the op takes."""
    return [torch.from_numpy(a).to(dtype).requires_grad_() for a in arrays((2, 8, 8, 16, 16))[:3]]


def torch_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the op stands for."""
    return torch.nn.functional.conv2d(x, weight, bias, padding=1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Filled with True for each call that reaches the compiled loops."""
    calls: list[bool] = []
    plain = cpu.forward

    def counted(*args: Any, **kwargs: Any) -> NDArray:
        calls.append(True)
        return plain(*args, **kwargs)

    monkeypatch.setattr(cpu, "forward", counted)
    return calls


def test_the_op_gives_torchs_values_and_gradients(taken: list[bool]) -> None:
    values = layer()
    own, peer = convolution(*values), torch_convolution(*values)
    assert taken == [True]
    torch.testing.assert_close(own, peer, rtol=0, atol=1e-13)
    weight = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part, right in zip(*(torch.autograd.grad(y, values, weight) for y in (own, peer)), strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_asked_for_are_computed(wanted: tuple[bool, ...]) -> None:
    values = layer()
    for value, want in zip(values, wanted, strict=True):
        value.requires_grad_(want)
    convolution(*values).sum().backward()
    assert [value.grad is not None for value in values] == list(wanted)


def test_strided_maps_are_taken_as_they_stand(taken: list[bool]) -> None:
    x, weight, bias = (value.detach() for value in layer())
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(convolution(last, weight, bias), convolution(x, weight, bias), rtol=0, atol=0)
    assert len(taken) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x[..., :9, :9], w, b),  # tiles of which a third is border
        lambda x, w, b: (x[:1, :, :8, :8], w, b),  # few tiles
        lambda x, w, b: (x[:, :4], w[:, :4], b),  # channels that fill no block
        lambda x, w, b: (x, w[:4], b[:4]),
        lambda x, w, b: (x.bfloat16(), w.bfloat16(), b.bfloat16()),
        lambda x, w, b: (x.to("meta"), w.to("meta"), b.to("meta")),
    ],
)
def test_where_it_does_not_pay_torch_convolves(change: Callable[..., Any], taken: list[bool]) -> None:
    values = change(*(value.detach() for value in layer()))
    own = convolution(*values)
    assert own.shape == torch_convolution(*values).shape
    assert own.dtype == values[0].dtype
    assert not taken


def test_autocast_leaves_the_layer_to_torch(taken: list[bool]) -> None:
    values = [value.detach() for value in layer(torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(*values).dtype == torch.bfloat16
    assert not taken


@pytest.mark.parametrize("bias", [True, False])
def test_the_op_is_registered_as_torch_wants_it(bias: bool) -> None:
    x, weight, offset = layer()
    torch.library.opcheck(op._convolution, (x, weight, offset if bias else None))


def test_compilers_see_through_the_op() -> None:
    values = layer(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*values), convolution(*values), rtol=0, atol=0)
    compiled(*values).sum().backward()
    assert all(value.grad is not None for value in values)
