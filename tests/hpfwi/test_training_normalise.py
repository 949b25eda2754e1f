"""Scales of velocities and records, there and back."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hpfwi.errors import ConfigError
from hpfwi.training.normalise import NormalisationSettings, normalised_records, velocity_scale


def models(samples: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return 1500 + 3000 * torch.rand((samples, 1, 5, 4), generator=draw)


def test_by_default_the_data_set_s_range_is_mapped_to_zero_and_one() -> None:
    scale = velocity_scale(NormalisationSettings(), models(), (1500.0, 4500.0))
    ends = torch.tensor([1500.0, 3000.0, 4500.0]).reshape(1, 1, 1, 3)
    assert scale.normalised(ends).flatten().tolist() == [0.0, 0.5, 1.0]
    own = velocity_scale(NormalisationSettings(range_mps=(1000.0, 2000.0), signed=True), models(), (1500.0, 4500.0))
    assert own.normalised(ends).flatten().tolist() == [0.0, 3.0, 6.0]


def test_per_sample_every_map_fills_the_scale() -> None:
    for signed, low in ((False, 0.0), (True, -1.0)):
        settings = NormalisationSettings(normalisation="per-sample", signed=signed)
        values = velocity_scale(settings, models(), (0.0, 0.0)).normalised(models())
        assert values.amin(dim=(1, 2, 3)).tolist() == [low] * 3
        assert values.amax(dim=(1, 2, 3)).tolist() == [1.0] * 3


@pytest.mark.parametrize("normalisation", ["range", "per-sample", "none"])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_normalised_comes_back(normalisation: str, signed: bool) -> None:
    settings = NormalisationSettings.model_validate({"normalisation": normalisation, "signed": signed})
    scale = velocity_scale(settings, models(), (1400.0, 4600.0))
    values = scale.normalised(models())
    if normalisation == "none":
        assert torch.equal(values, models())
    # Two roundings of numbers below 4600 m/s.
    torch.testing.assert_close(scale.in_mps(values), models(), rtol=0, atol=2e-3)


def test_a_constant_sample_is_mapped_to_the_lower_end_and_back() -> None:
    constant = torch.full((1, 1, 3, 3), 2500.0)
    scale = velocity_scale(NormalisationSettings(normalisation="per-sample"), constant, (0.0, 1.0))
    values = scale.normalised(constant)
    assert float(values.abs().max()) == 0.0
    assert torch.equal(scale.in_mps(values), constant)


def test_records_are_left_or_compressed_as_in_the_benchmark() -> None:
    records = torch.tensor([-26.95, -1.0, 0.0, 3.0, 52.77]).reshape(1, 1, 5, 1)
    assert normalised_records(NormalisationSettings(), records, (0.0, 0.0)) is records
    found = normalised_records(NormalisationSettings(records="log"), records, (-26.95, 52.77)).flatten().numpy()
    low, high = -np.log1p(26.95), np.log1p(52.77)
    logs = np.array([low, -np.log(2), 0.0, np.log(4), high])
    np.testing.assert_allclose(found, 2 * (logs - low) / (high - low) - 1, atol=1e-6)


def test_ranges_of_no_extent_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"run from 2000 to 2000 m/s, .* give normalisation.range_mps"):
        velocity_scale(NormalisationSettings(), models(), (2000.0, 2000.0))
    with pytest.raises(ConfigError, match=r"amplitudes run from 0 to 0, .* give normalisation.amplitudes"):
        normalised_records(NormalisationSettings(records="log"), models(), (0.0, 0.0))
    with pytest.raises(ValidationError, match="range_mps runs from 4500 to 1500; give the smaller value first"):
        NormalisationSettings(range_mps=(4500.0, 1500.0))
