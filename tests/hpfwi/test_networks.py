"""The data-driven networks: published sizes and costs, shapes, seeds, faults, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hpfwi.errors import ConfigError
from hpfwi.networks.aba_fwi import aligning_padding
from hpfwi.networks.amfms import AmfmsSeg
from hpfwi.networks.build import OPENFWI_SHAPES, NetworkChoice, NetworkName, build_network, published_shapes
from hpfwi.networks.ddnet import DdNet70
from hpfwi.networks.initialisation import OwnInitialisation, initialise
from hpfwi.networks.u_net import Encoder, zeros_around
from hpfwi.networks.velocitygan import VelocityGan

TOY_RECORDS, TOY_MODEL = (3, 40, 16), (11, 15)
OPENFWI: dict[str, Any] = {"records_shape": OPENFWI_SHAPES[0], "model_shape": OPENFWI_SHAPES[1]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def outputs_of(network: torch.nn.Module, records: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs = network(records)
    return outputs if isinstance(outputs, tuple) else (outputs,)


# Trained parameters, batch norm buffers and 1e9 multiply-accumulates of one sample: as measured on the published code.
PUBLISHED = [
    ("amfms", {}, 8_782_107, 12_057, 3.593),
    ("amfms-seg", {"as_published": True}, 8_905_363, 12_072, 30.236),
    ("inversionnet", {}, 24_409_123, 8_667, 2.094),
    ("fcnvmb", {"as_published": True}, 31_058_497, 11_794, 91.082),
    ("fcnvmb", {"as_published": True} | OPENFWI, 31_044_673, 11_794, 57.390),
    ("dd-net", {"as_published": True}, 31_058_627, 11_794, 148.866),
    ("dd-net70", {"as_published": True}, 7_632_209, 5_626, 1.874),
    ("aba-fwi", {}, 9_860_738, 7_642, 2.472),
    ("aba-fwi", {"ablation": True}, 9_793_594, 7_642, 2.421),
    ("aba-fwi+", {"as_published": True}, 31_184_329, 11_794, 91.927),
    ("tu-net", {"as_published": True}, 10_191_247, 6_653, 6.067),
    ("tu-net-seg", {"as_published": True}, 10_304_805, 6_550, 61.842),
    ("velocitygan", {}, 24_409_123 + 1_180_003, 8_667 + 1_931, 2.094),
]


@pytest.mark.parametrize(("name", "options", "trained", "buffers", "gmac"), PUBLISHED)
def test_sizes_costs_and_shapes_are_the_published_ones(
    name: NetworkName, options: dict[str, Any], trained: int, buffers: int, gmac: float
) -> None:
    choice = NetworkChoice(name=name, kernels="eager", **options)  # what is counted are torch's operators
    records_shape, model_shape = published_shapes(name)
    records_shape, model_shape = choice.records_shape or records_shape, choice.model_shape or model_shape
    network = build_network(choice).eval().to("meta")
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == trained
    assert sum(value.numel() for value in network.state_dict().values()) == trained + buffers
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        outputs = outputs_of(network, torch.empty(1, *records_shape, device="meta"))
    # The figures have three decimals; that of the ablation, 2.42051, was rounded up.
    assert operations.get_total_flops() / 2e9 == pytest.approx(gmac, abs=6e-4)
    expected = [(1, channels, *model_shape) for channels in (1, 2)][: len(outputs)]
    assert [tuple(output.shape) for output in outputs] == expected
    assert (len(outputs) == 2) == name.startswith("dd-net")


DECODER_70 = 2_295_552 + 574_336 + 32_832 + 8_224
"""Trained values of DD-Net70's decoder."""


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("fcnvmb", 31_058_497),
        ("dd-net", 43_250_947),
        ("dd-net70", 7_632_209 + DECODER_70),
        ("tu-net", 10_191_247),
    ],
)
def test_without_the_faults_only_the_dd_nets_grow_by_their_second_decoder(name: NetworkName, trained: int) -> None:
    network = build_network(NetworkChoice(name=name, kernels="eager")).to("meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == trained
    records_shape, model_shape = published_shapes(name)
    outputs = outputs_of(network, torch.empty(2, *records_shape, device="meta"))
    assert tuple(outputs[0].shape) == (2, 1, *model_shape)


def test_the_critic_is_the_published_one() -> None:
    network = build_network(NetworkChoice(name="velocitygan"))
    assert isinstance(network, VelocityGan)
    critic = network.critic.eval().to("meta")
    assert sum(parameter.numel() for parameter in critic.parameters()) == 1_180_003
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        assert tuple(critic(torch.empty(3, 1, 70, 70, device="meta")).shape) == (3, 1)
    assert operations.get_total_flops() / 3 / 2e9 == pytest.approx(0.0696, abs=1e-4)


# Rate of Adam and steps with which each network gets below half the variance of the targets between samples.
LEARNING = [
    ("amfms", 0.01, 12),
    ("amfms-seg", 0.005, 20),
    ("inversionnet", 0.02, 30),
    ("fcnvmb", 0.01, 12),
    ("dd-net", 0.01, 12),
    ("dd-net70", 0.02, 20),
    ("aba-fwi", 0.015, 20),
    ("aba-fwi+", 0.01, 12),
    ("tu-net", 0.02, 30),
    ("tu-net-seg", 0.02, 30),
]
NAMES = [*(name for name, *_ in LEARNING), "velocitygan"]


@pytest.mark.parametrize(("name", "rate", "steps"), LEARNING)
def test_a_network_learns_four_samples_with_every_parameter(name: NetworkName, rate: float, steps: int) -> None:
    draw = torch.Generator().manual_seed(0)
    records = torch.randn((4, *TOY_RECORDS), generator=draw)
    target = functional.interpolate(1.8 * torch.rand((4, 1, 2, 2), generator=draw) - 0.9, TOY_MODEL, mode="bilinear")
    network = build_network(NetworkChoice(name=name, width=0.125, records_shape=TOY_RECORDS, model_shape=TOY_MODEL))
    trained = dict(network.named_parameters())
    first = {key: value.detach().clone() for key, value in trained.items()}
    optimiser = torch.optim.Adam(trained.values(), lr=rate)
    for step in range(steps):
        velocity, *logits = outputs_of(network, records)
        assert velocity.shape == target.shape
        error = (velocity - target).square().mean()
        loss = error + sum(0.1 * functional.cross_entropy(edges, (target[:, 0] > 0).long()) for edges in logits)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for key, value in trained.items():
                assert value.grad is not None, key
                assert torch.isfinite(value.grad).all(), key
        optimiser.step()
    # A network that ignored its input could at best reach the variance between the four targets.
    between = float((target - target.mean(dim=0)).square().mean())
    assert float(error.detach()) < 0.5 * between
    assert [key for key, value in trained.items() if torch.equal(value, first[key])] == []


def toy(name: NetworkName, **options: Any) -> torch.nn.Module:
    settings = {"width": 0.125, "records_shape": TOY_RECORDS, "model_shape": TOY_MODEL} | options
    return build_network(NetworkChoice(name=name, **settings))


def toy_records(samples: int = 2, shape: tuple[int, int, int] = TOY_RECORDS) -> torch.Tensor:
    return torch.randn((samples, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_the_weights(name: NetworkName) -> None:
    before = torch.get_rng_state()
    network, same, other = toy(name, seed=3), toy(name, seed=3), toy(name, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in network.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    drawn = [key for key, value in network.named_parameters() if value.ndim == 4 and "steering" not in key]
    assert drawn
    for key in drawn:
        assert not torch.equal(network.state_dict()[key], other.state_dict()[key]), key


@pytest.mark.parametrize("name", ["amfms", "inversionnet", "tu-net"])
def test_first_weights_have_torch_s_own_spread(name: NetworkName) -> None:
    network = toy(name, width=0.5)
    own = {
        id(layer) for block in network.modules() if isinstance(block, OwnInitialisation) for layer in block.modules()
    }
    checked = 0
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and id(layer) not in own:
            like = type(layer)(
                layer.in_channels,
                layer.out_channels,
                (layer.kernel_size[0], layer.kernel_size[1]),
                groups=layer.groups,
            )
            largest = [float(weights.detach().abs().max()) for weights in (layer.weight, like.weight)]
            if layer.weight.numel() > 2000:
                # The largest of n uniform values falls short of the bound by 1 / n: 0.5 % here, far below 5 %.
                assert largest[0] == pytest.approx(largest[1], rel=0.05)
                checked += 1
    assert checked > 3


def test_tables_and_filters_are_neither_trained_nor_saved() -> None:
    network = toy("amfms")
    fixed = {name for name, _ in network.named_buffers() if name.endswith(("tables", "filters"))}
    assert len(fixed) == 6 + 9  # a filter bank for each wavelet convolution, tables for three branches of three stages
    assert not fixed & set(network.state_dict())
    assert not fixed & {name for name, _ in network.named_parameters()}


def test_as_published_the_velocity_is_cut_one_cell_further() -> None:
    records = toy_records()
    whole = toy("amfms-seg", model_shape=(12, 16)).eval()(records)
    for start, as_published in ((0, False), (1, True)):
        network = toy("amfms-seg", as_published=as_published).eval()
        assert isinstance(network, AmfmsSeg)
        # Only the last 1x1 convolution sees other sizes: a few roundings of 8 products.
        torch.testing.assert_close(network(records), whole[..., start : start + 11, start : start + 15])


@pytest.mark.parametrize("name", ["fcnvmb", "aba-fwi+", "dd-net", "tu-net", "tu-net-seg"])
def test_the_faults_change_the_output_of_the_same_weights(name: NetworkName) -> None:
    records = toy_records()
    sound, faulty = toy(name).eval(), toy(name, as_published=True).eval()
    shared = {key: value for key, value in sound.state_dict().items() if key in faulty.state_dict()}
    for key, value in shared.items():
        if "steering" in key:  # zero at first, which hides what steers
            value.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    faulty.load_state_dict(shared)
    with torch.no_grad():
        before, after = outputs_of(sound, records)[0], outputs_of(faulty, records)[0]
    assert before.shape == after.shape
    assert float((before - after).abs().max()) > 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("name", ["amfms", "inversionnet", "aba-fwi", "velocitygan"])
def test_networks_without_faults_ignore_the_option(name: NetworkName) -> None:
    records = toy_records()
    assert torch.equal(toy(name).eval()(records), toy(name, as_published=True).eval()(records))


def test_a_skip_has_the_size_of_the_map_it_joins_and_half_of_it_as_published() -> None:
    records = toy_records(2, (3, 37, 20))
    for as_published, expected in (
        (False, [(37, 20), (19, 10), (10, 5), (5, 3)]),
        (True, [(19, 10), (10, 5), (5, 3), (3, 2)]),
    ):
        encoder = Encoder(3, as_published=as_published, width=0.125)
        initialise(encoder, torch.Generator().manual_seed(0))
        centre, skips = encoder(records)
        assert [tuple(skip.shape[-2:]) for skip in skips] == expected
        assert centre.shape[-2:] == (3, 2)


def test_misplaced_skips_lie_in_the_middle_quarter() -> None:
    placed = zeros_around(torch.ones(1, 1, 3, 2), (6, 5))
    assert placed[0, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("name", ["dd-net", "dd-net70"])
def test_one_decoder_runs_twice_only_as_published(name: NetworkName) -> None:
    for as_published, updates in ((True, 2), (False, 1)):
        network = toy(name, as_published=as_published).train()
        network(toy_records())
        counts = [int(v) for k, v in network.state_dict().items() if k.startswith("decoder") and k.endswith("tracked")]
        assert set(counts) == {updates}
        assert any(key.startswith("edge_decoder") for key in network.state_dict()) is not as_published
        pointers = [value.data_ptr() for value in network.state_dict().values()]
        assert len(set(pointers)) == len(pointers)  # a checkpoint holds nothing twice


def test_dd_net70_s_edge_logits_are_bounded_and_its_decoders_see_the_records() -> None:
    network = toy("dd-net70")
    assert isinstance(network, DdNet70)
    velocity, logits = network(toy_records())
    assert float(velocity.detach().abs().max()) < 1
    assert float(logits.detach().abs().max()) < 1
    assert float((velocity[0] - velocity[1]).detach().abs().max()) > 0.01


@pytest.mark.parametrize("name", ["amfms", "dd-net70", "tu-net"])
def test_records_of_any_length_are_resampled_first(name: NetworkName) -> None:
    network = toy(name).eval()
    for shape in ((3, 40, 16), (3, 97, 7)):
        assert tuple(outputs_of(network, toy_records(2, shape))[0].shape) == (2, 1, *TOY_MODEL)


@pytest.mark.parametrize("name", ["amfms", "aba-fwi", "aba-fwi+"])
def test_a_network_of_fused_layers_is_the_one_of_eager_layers(name: NetworkName) -> None:
    results = []
    for kernels in ("eager", "fused"):
        # In float64, because batch norms and maxima amplify the roundings of float32 from layer to layer.
        network = toy(name, kernels=kernels).double()
        output = network(toy_records().double())
        output.square().sum().backward()
        results.append([output.detach(), *(value.grad for value in network.parameters())])
    eager, fused = results
    assert len(eager) == len(fused)
    torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in eager[1:])
    for one, other in zip(fused[1:], eager[1:], strict=True):
        # Biases in front of a batch norm have no gradient but rounding: hence the second term.
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()) + 1e-9 * largest


def test_shapes_that_cannot_be_built_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"for 41 cells along z that map has 40; give records of at least 41 samples"):
        toy("fcnvmb", model_shape=(41, 15))
    with pytest.raises(ConfigError, match=r"for 16 cells along x that map has 16; give records of at least 17 receiv"):
        toy("amfms-seg", model_shape=(11, 16), as_published=True)
    with pytest.raises(ConfigError, match=r"maps of 80 x 80 cells and cannot give a model of 201 x 70"):
        toy("inversionnet", model_shape=(201, 70))
    with pytest.raises(ConfigError, match=r"at most 82 receivers and 1312 samples, but a side has 101 cells"):
        toy("aba-fwi", records_shape=(3, 400, 101))
    with pytest.raises(ValidationError, match=r"ablation is defined for 'aba-fwi' alone, not for 'amfms'"):
        NetworkChoice(name="amfms", ablation=True)


def test_every_side_up_to_the_limit_is_aligned_to_forty() -> None:
    for cells in range(1, 83):
        assert (cells + 2 * aligning_padding(cells) - 3) // 2 + 1 == 40
