"""The layers that the networks are made of, against slow definitions, and the fused ones against the eager ones."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi.networks.blocks import SpatialAttention, TimeReducer, half_pool, plain_mixing, resized
from hpfwi.networks.deformable import (
    DeformableConvolution,
    deformable_convolution,
    sampled_by_gather,
    sampled_by_grid,
)
from hpfwi.networks.fused import Kernels
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.multi_frequency import (
    MultiFrequencyAttention,
    MultiScaleAttention,
    cosine_tables,
    frequencies,
    multi_frequency_pool,
)
from hpfwi.networks.wavelet_convolution import WaveletConvolution, wavelet_convolution

Array = NDArray[np.float64]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def windowed(image: Array, window: Array) -> Array:
    """Sum of a window times the cells around each cell, zeros outside."""
    reach = len(window) // 2
    ring = np.pad(image, reach)
    out = np.zeros_like(image)
    for row, column in np.ndindex(*image.shape):
        out[row, column] = (ring[row : row + len(window), column : column + len(window)] * window).sum()
    return out


def slow_wavelet_convolution(image: Array, base: Array, bias: float, gain: float, bands: Array, gains: Array) -> Array:
    """The layer for one channel, cell by cell, from the definition of the four bands."""
    even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2)))
    a, b, c, d = even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2]
    split = [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
    s0, s1, s2, s3 = (gains[k] * windowed(split[k], bands[k]) for k in range(4))
    back = np.empty_like(even)
    back[::2, ::2], back[::2, 1::2] = (s0 + s1 + s2 + s3) / 2, (s0 + s1 - s2 - s3) / 2
    back[1::2, ::2], back[1::2, 1::2] = (s0 - s1 + s2 - s3) / 2, (s0 - s1 - s2 + s3) / 2
    return gain * (windowed(image, base) + bias) + back[: image.shape[0], : image.shape[1]]


def layer_with_odd_scales(channels: int, kernels: Kernels) -> WaveletConvolution:
    layer = WaveletConvolution(channels, kernels=kernels)
    initialise(layer, seeded(1))
    with torch.no_grad():
        layer.base_scale.copy_(1 + 0.3 * normal(channels, seed=2))
        layer.band_scale.copy_(normal(4 * channels, seed=3))
    return layer


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 2), (9, 4)])
def test_the_wavelet_convolution_is_its_definition(shape: tuple[int, int]) -> None:
    layer = layer_with_odd_scales(3, "eager")
    features = normal(2, 3, *shape)
    found = layer(features).detach().numpy()
    assert layer.base.bias is not None
    base, bias, gain, bands, gains = (
        values.detach().double().numpy()
        for values in (layer.base.weight, layer.base.bias, layer.base_scale, layer.bands.weight, layer.band_scale)
    )
    for sample, channel in itertools.product(range(2), range(3)):
        four = slice(4 * channel, 4 * channel + 4)
        expected = slow_wavelet_convolution(
            features[sample, channel].double().numpy(),
            base[channel, 0],
            bias[channel],
            gain[channel],
            bands[four, 0],
            gains[four],
        )
        # Sums of some 130 products of size 1 in float32: sqrt(130) roundings of 6e-8.
        np.testing.assert_allclose(found[sample, channel], expected, atol=2e-6)


def test_a_fresh_wavelet_convolution_has_the_published_scales_and_size() -> None:
    layer = WaveletConvolution(8, kernels="eager")
    assert sum(parameter.numel() for parameter in layer.parameters()) == 131 * 8
    assert set(layer.base_scale.tolist()) == {1.0}
    assert layer.band_scale.tolist() == [pytest.approx(0.1)] * 32


def test_the_filters_are_orthonormal_so_bands_alone_give_the_map_back() -> None:
    channels = 2
    centre = torch.zeros(4 * channels, 1, 5, 5)
    centre[..., 2, 2] = 1.0
    filters = WaveletConvolution(channels, kernels="eager").filters
    features = normal(1, channels, 7, 6)
    none = torch.zeros(channels)
    found = wavelet_convolution(
        features, torch.zeros(channels, 1, 5, 5), none, none, centre, torch.ones(4 * channels), filters
    )
    torch.testing.assert_close(found, features)


def with_gradients(layer: torch.nn.Module, features: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of a random projection of it with respect to the input and to all weights."""
    features = features.clone().requires_grad_()
    output = layer(features)
    wanted = [features, *layer.parameters()]
    return [output.detach(), *torch.autograd.grad((output * normal(*output.shape, seed=9)).sum(), wanted)]


@pytest.mark.parametrize("shape", [(12, 10), (9, 7), (63, 5)])
def test_the_fused_wavelet_convolution_equals_the_eager_one(shape: tuple[int, int]) -> None:
    features = normal(2, 8, *shape)
    eager = with_gradients(layer_with_odd_scales(8, "eager"), features)
    fused = with_gradients(layer_with_odd_scales(8, "fused"), features)
    assert len(eager) == len(fused) == 7
    torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(fused[1:], eager[1:], strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


def slow_pool(image: Array, side: int) -> tuple[float, float, float]:
    """Mean, maximum and minimum of one channel times each cosine table, averaged over the tables."""
    rows, columns = image.shape
    square = np.empty((side, side))
    for i, j in np.ndindex(side, side):
        top, bottom = i * rows // side, -(-(i + 1) * rows // side)
        left, right = j * columns // side, -(-(j + 1) * columns // side)
        square[i, j] = image[top:bottom, left:right].mean()

    def wave(frequency: int) -> Array:
        scale = math.sqrt((2 if frequency else 1) / side)
        return np.array([scale * math.cos(math.pi * frequency * (t + 0.5) / side) for t in range(side)])

    products = [square * np.outer(wave(u), wave(v)) for u, v in frequencies(side)]
    return (
        float(np.mean([product.mean() for product in products])),
        float(np.mean([product.max() for product in products])),
        float(np.mean([product.min() for product in products])),
    )


@pytest.mark.parametrize(("shape", "side"), [((14, 14), 14), ((9, 23), 14), ((5, 3), 7), ((70, 70), 28)])
def test_the_multi_frequency_pool_is_its_definition(shape: tuple[int, int], side: int) -> None:
    features = normal(2, 2, *shape)
    found = multi_frequency_pool(features, cosine_tables(side))
    for sample, channel in itertools.product(range(2), range(2)):
        expected = slow_pool(features[sample, channel].double().numpy(), side)
        for one, other in zip(found, expected, strict=True):
            assert float(one[sample, channel]) == pytest.approx(other, abs=1e-6)


def test_the_frequencies_are_sixteen_different_ones_of_a_seven_by_seven_grid() -> None:
    pairs = frequencies(7)
    assert len(set(pairs)) == 16
    assert all(0 <= u <= 6 and 0 <= v <= 6 for u, v in pairs)
    assert (pairs[0], pairs[2], pairs[9], pairs[15]) == ((0, 0), (6, 0), (1, 6), (2, 2))
    assert frequencies(56)[15] == (16, 16)


@pytest.mark.parametrize("shape", [(14, 14), (11, 9), (30, 17)])
def test_the_fused_multi_frequency_attention_equals_the_eager_one(shape: tuple[int, int]) -> None:
    results = []
    for kernels in ("eager", "fused"):
        layer = MultiFrequencyAttention(32, 14, kernels="eager" if kernels == "eager" else "fused")
        initialise(layer, seeded(4))
        results.append(with_gradients(layer, 3 * normal(2, 32, *shape)))
    eager, fused = results
    torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(fused[1:], eager[1:], strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


# Tracing looks at the .grad of the sequence's inner tensor, at which torch warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.slow
def test_fused_layers_are_compiled_as_one_graph() -> None:
    """Traced and differentiated by torch.compile without a break; generating code is not part of what is tested."""
    layer = torch.nn.Sequential(layer_with_odd_scales(8, "fused"), MultiFrequencyAttention(8, 14, kernels="fused"))
    initialise(layer[1], seeded(4))
    features = normal(2, 8, 9, 7)
    expected = with_gradients(layer, features)
    layer.compile(backend="aot_eager", fullgraph=True)
    for one, other in zip(with_gradients(layer, features), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_attention_sums_three_gates_from_one_bottleneck() -> None:
    layer = MultiFrequencyAttention(64, 7, kernels="eager")
    initialise(layer, seeded(5))
    features = 60 * normal(1, 64, 6, 5)  # the tables are small: without this every gate is near a half
    first, last = (values[:, :, 0, 0] for values in layer.bottleneck.parameters())
    gates = [last @ torch.relu(first @ values[0]) for values in multi_frequency_pool(features, layer.tables)]
    assert min(float(gate.detach().abs().max()) for gate in gates) > 0.01
    expected = features * torch.sigmoid(gates[0] + gates[1] + gates[2]).reshape(1, 64, 1, 1)
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize(("channels", "trained"), [(256, 1_217_350), (128, 346_886), (64, 129_222)])
def test_the_multi_scale_block_has_the_published_size(channels: int, trained: int) -> None:
    block = MultiScaleAttention(channels, 7, narrowest=64, kernels="eager")
    assert sum(parameter.numel() for parameter in block.parameters()) == trained


def test_a_branch_works_at_full_resolution_where_pooling_would_leave_fewer_than_eight_rows() -> None:
    block = MultiScaleAttention(32, 7, narrowest=32, kernels="eager")
    initialise(block, seeded())
    seen: list[tuple[int, int]] = []
    for branch in block.branches:
        entry = branch.get_submodule("enter")
        entry.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    for shape, expected in (
        ((18, 18), [(18, 18), (9, 9), (18, 18)]),
        ((35, 13), [(35, 13), (17, 6), (8, 3)]),
        ((15, 40), [(15, 40)] * 3),
    ):
        seen.clear()
        assert block(normal(2, 32, *shape)).shape[-2:] == shape
        assert seen == expected


def slow_deformable(features: Array, offsets: Array, masks: Array, weight: Array, bias: Array, groups: int) -> Array:
    """The definition for one sample: every tap of every cell, four corners, zero outside."""
    channels, rows, columns = features.shape
    out = np.repeat(bias[:, None, None], rows, 1).repeat(columns, 2)
    for y, x in np.ndindex(rows, columns):
        for channel, tap in itertools.product(range(channels), range(9)):
            group = channel * groups // channels
            down = y - 1 + tap // 3 + offsets[2 * (9 * group + tap), y, x]
            right = x - 1 + tap % 3 + offsets[2 * (9 * group + tap) + 1, y, x]
            value = 0.0
            for row, column in itertools.product(range(rows), range(columns)):
                value += features[channel, row, column] * max(0, 1 - abs(down - row)) * max(0, 1 - abs(right - column))
            out[:, y, x] += weight[:, channel, tap // 3, tap % 3] * masks[9 * group + tap, y, x] * value
    return out


def test_the_deformable_convolution_is_its_definition() -> None:
    samples, channels, rows, columns, groups = 2, 4, 4, 5, 2
    features = normal(samples, channels, rows, columns)
    offsets = 2.5 * normal(samples, 18 * groups, rows, columns, seed=1)  # many samples fall outside
    masks = torch.rand((samples, 9 * groups, rows, columns), generator=seeded(2))
    weight, bias = normal(3, channels, 3, 3, seed=3), normal(3, seed=4)
    found = deformable_convolution(features, offsets, masks, weight, bias)
    for sample in range(samples):
        expected = slow_deformable(
            features[sample].double().numpy(),
            offsets[sample].double().numpy(),
            masks[sample].double().numpy(),
            weight.double().numpy(),
            bias.double().numpy(),
            groups,
        )
        np.testing.assert_allclose(found[sample].numpy(), expected, atol=1e-5)


def test_the_two_samplers_agree_with_their_gradients() -> None:
    results = []
    for sampler in (sampled_by_grid, sampled_by_gather):
        features = normal(3, 4, 6, 9).requires_grad_()
        rows, columns = (
            (scale * torch.rand((3, 50), generator=seeded(seed)) - 2).requires_grad_()
            for scale, seed in ((10, 1), (13, 2))
        )
        values = sampler(features, rows, columns)
        loss = (values * normal(*values.shape, seed=5)).sum()
        results.append([values.detach(), *torch.autograd.grad(loss, [features, rows, columns])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_fresh_deformable_convolution_is_half_a_plain_one() -> None:
    layer = DeformableConvolution(8)
    initialise(layer, seeded())
    features = normal(2, 8, 6, 7)
    plain = torch.nn.functional.conv2d(features, layer.window.weight, padding=1)
    torch.testing.assert_close(layer(features, normal(2, 8, 6, 7, seed=1)), 0.5 * plain, rtol=1e-4, atol=1e-5)


def test_spatial_attention_weighs_positions_by_mean_and_maximum() -> None:
    layer = SpatialAttention()
    initialise(layer, seeded())
    features = normal(1, 5, 4, 3)
    mean, largest = features[0].mean(0).double().numpy(), features[0].max(0).values.double().numpy()
    windows = layer.mix.weight[0].detach().double().numpy()
    gate = 1 / (1 + np.exp(-(windowed(mean, windows[0]) + windowed(largest, windows[1]))))
    np.testing.assert_allclose(layer(features)[0].detach().numpy(), features[0].numpy() * gate, atol=1e-6)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 18


def test_the_reducer_has_the_published_sizes() -> None:
    plain = TimeReducer(5, (70, 70), width=1.0, mixing=plain_mixing)
    wavelets = TimeReducer(
        5, (70, 70), width=1.0, mixing=lambda channels: WaveletConvolution(channels, kernels="eager")
    )
    counts = [sum(parameter.numel() for parameter in reducer.parameters()) for reducer in (plain, wavelets)]
    assert counts == [14_472, 9_544]
    assert plain.to("meta")(torch.empty(1, 5, 1000, 70, device="meta")).shape == (1, 32, 70, 70)


def test_pooling_keeps_the_last_odd_row_and_resizing_to_the_same_size_is_the_identity() -> None:
    features = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert half_pool(features)[0, 0].tolist() == [[6, 8, 9], [11, 13, 14]]
    assert resized(features, (3, 5)) is features


def test_one_file_calls_the_fused_layers() -> None:
    root = Path(__file__).parents[2] / "hpfwi"
    named = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"hpfwi_kernels\.(haar|dct_pool)|hpfwi_kernels import .*(haar|dct_pool)", path.read_text("utf-8"))
    }
    assert named == {"networks/fused.py"}
