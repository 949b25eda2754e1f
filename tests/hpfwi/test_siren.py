"""The coordinate network: size, initial statistics, seeding, coordinates."""

import math

import pytest
import torch

from hpfwi.networks.siren import NetworkSettings, build_siren, coordinates


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_default_network_has_the_published_number_of_parameters() -> None:
    network = build_siren(NetworkSettings(), seeded(0))
    assert sum(parameter.numel() for parameter in network.parameters()) == 50_049


def test_the_output_has_mean_zero_and_standard_deviation_one_over_omega0() -> None:
    points = coordinates((24, 32), (15.0, 15.0), "unit")
    with torch.no_grad():
        outputs = torch.stack([build_siren(NetworkSettings(), seeded(seed))(points) for seed in range(60)])
    rms = outputs.square().mean(dim=1).sqrt() * 30.0
    # One network's rms scatters by 0.44 from seed to seed (measured over 150), their mean by 0.44 / sqrt(60) = 0.06.
    assert float(rms.mean()) == pytest.approx(1.0, abs=0.15)
    assert abs(float(outputs.mean())) * 30.0 < 0.2


def test_initial_weights_fill_their_intervals_and_no_more() -> None:
    network = build_siren(NetworkSettings(), seeded(1))
    inner = math.sqrt(6.0 / 128.0) / 30.0
    first, *others = network.hidden_linears()
    assert 0.45 < float(first.weight.detach().abs().max()) <= 0.5
    for layer in [*others, network.last]:
        assert 0.9 * inner < float(layer.weight.detach().abs().max()) <= inner
    for layer in others:
        assert 0.9 / math.sqrt(128.0) < float(layer.bias.detach().abs().max()) <= 1.0 / math.sqrt(128.0)
    assert float(network.last.bias.detach().abs().max()) == 0.0


def test_the_generator_alone_decides_the_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_siren(NetworkSettings(), seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = build_siren(NetworkSettings(), seeded(3)), build_siren(NetworkSettings(), seeded(4))
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(first.last.weight, other.last.weight)


def test_zero_last_gives_a_zero_output_and_the_same_sine_layers() -> None:
    plain = build_siren(NetworkSettings(), seeded(3))
    zeroed = build_siren(NetworkSettings(zero_last=True), seeded(3))
    assert float(zeroed(coordinates((5, 4), (1.0, 1.0), "unit")).detach().abs().max()) == 0.0
    for ours, theirs in zip(zeroed.hidden_linears(), plain.hidden_linears(), strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_trace_and_forward_compute_the_same_network() -> None:
    network = build_siren(NetworkSettings(width=8, hidden_layers=3), seeded(0))
    points = coordinates((5, 4), (1.0, 1.0), "unit")
    phases, activations, output = network.trace(points)
    assert torch.equal(output, network(points))
    assert [tuple(phase.shape) for phase in phases] == [(20, 8)] * 3
    assert torch.equal(activations[-1], torch.sin(phases[-1]))


def test_unit_coordinates_are_row_major_with_depth_first() -> None:
    points = coordinates((3, 5), (10.0, 20.0), "unit").reshape(3, 5, 2)
    assert points[:, 0, 0].tolist() == [-1.0, 0.0, 1.0]
    assert points[0, :, 1].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert float(points[:, :, 0].std(dim=1).max()) == 0.0


def test_kilometre_coordinates_are_distances_from_the_first_cell() -> None:
    points = coordinates((3, 2), (10.0, 20.0), "kilometres")
    assert points[-1].tolist() == pytest.approx([0.020, 0.020])
    assert points[2].tolist() == pytest.approx([0.010, 0.0])
