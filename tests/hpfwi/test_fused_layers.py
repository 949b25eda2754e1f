"""Networks of fused layers: the weights, running statistics and results of those of torch's layers."""

import copy

import pytest
import torch

from hpfwi.networks.blocks import Activation, activation, convolution, double_convolution, sequence
from hpfwi.networks.build import NetworkChoice, build_network
from hpfwi.networks.fused import Kernels, Layers
from hpfwi.networks.initialisation import initialise
from hpfwi.networks.multi_frequency import grouped_convolution


def maps(*shape: int) -> torch.Tensor:
    """Fixed normal values in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def pair(kind: Activation) -> list[torch.nn.Sequential]:
    """A double convolution of torch's layers and one of fused layers, with the same weights in float64."""
    layers = [double_convolution(8, 16, kind, kernels=kernels) for kernels in ("eager", "fused")]
    initialise(layers[0], torch.Generator().manual_seed(1))
    layers[1].load_state_dict(layers[0].state_dict())
    return [layer.double() for layer in layers]


@pytest.mark.parametrize("kind", ["relu", "prelu", "prelu-per-channel", "leaky"])
def test_fused_layers_train_as_torchs_do(kind: Activation) -> None:
    eager, fused = pair(kind)
    assert type(fused) is Layers
    found = []
    for layers in (eager, fused):
        features = maps(2, 8, 16, 12).requires_grad_()
        for _ in range(2):  # running statistics move twice
            output = layers(features)
        output.square().sum().backward()
        found.append([output.detach(), features.grad, *(value.grad for value in layers.parameters())])
    # Biases in front of a batch norm have no gradient but rounding.
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(maps(1, 8, 16, 12)), eager.eval()(maps(1, 8, 16, 12)))


def test_norms_of_another_kind_are_left_alone() -> None:
    """Without statistics, without weights, with a cumulative average, or synchronised: torch's own layer runs."""
    for norm in (
        torch.nn.BatchNorm2d(4, track_running_stats=False),
        torch.nn.BatchNorm2d(4, affine=False),
        torch.nn.BatchNorm2d(4, momentum=None),
        torch.nn.GroupNorm(2, 4),
    ):
        layers = [norm.double(), torch.nn.ReLU()]
        peer = copy.deepcopy(torch.nn.Sequential(*layers))
        own = Layers(*layers)
        torch.testing.assert_close(own(maps(3, 4, 5, 6)), peer(maps(3, 4, 5, 6)))
        assert list(own.state_dict()) == list(peer.state_dict())
        for one, other in zip(own.state_dict().values(), peer.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_grouped_window_equals_torchs(dilation: int) -> None:
    found = []
    for kernels in ("eager", "fused"):
        layer = grouped_convolution(8, 4, dilation, kernels="eager" if kernels == "eager" else "fused")
        initialise(layer, torch.Generator().manual_seed(2))
        layer = layer.double()
        features = maps(2, 8, 9, 7).requires_grad_()
        output = layer(features)
        found.append([output, *torch.autograd.grad(output.square().sum(), (features, layer.weight))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_sequence_of_torchs_layers_stays_one() -> None:
    layers = sequence(convolution(2, 2), activation("relu", 2))
    assert type(layers) is torch.nn.Sequential


def test_weights_move_between_fused_and_eager_networks() -> None:
    def network(kernels: Kernels) -> torch.nn.Module:
        return build_network(NetworkChoice(kernels=kernels, width=0.125, seed=3))

    eager, fused = network("eager").state_dict(), network("fused").state_dict()
    assert list(eager) == list(fused)
    assert all(torch.equal(eager[name], fused[name]) for name in eager)
