"""DD-Net's curriculum: which copies of the middle shot a stage shows, and that nothing else is changed."""

from __future__ import annotations

import pytest
import torch

from hpfwi.errors import ConfigError
from hpfwi.training.curriculum import NOISE, gained, simplified
from hpfwi.training.settings import load_train_config


def records(shots: int = 5) -> torch.Tensor:
    return torch.randn((2, shots, 60, 7), generator=torch.Generator().manual_seed(shots))


def shown(stage: int, shots: int = 5, seed: int = 0) -> torch.Tensor:
    return simplified(records(shots), stage, torch.Generator().manual_seed(seed))


def test_the_third_stage_shows_the_true_records() -> None:
    true = records()
    assert simplified(true, 3, torch.Generator()) is true


def test_the_second_stage_shows_the_middle_shot_in_every_place() -> None:
    assert torch.equal(shown(2), records()[:, 2:3].expand(2, 5, 60, 7))


@pytest.mark.parametrize(("shots", "noisy", "plain"), [(5, 2, 4), (29, 9, 18), (3, 2, 3), (1, 1, 1)])
def test_the_first_stage_shows_noisy_gained_and_plain_copies(shots: int, noisy: int, plain: int) -> None:
    """OpenFWI's 5 shots are 2 noisy, 2 gained and 1 plain copy, SEG's 29 are 9, 9 and 11."""
    middle = records(shots)[:, shots // 2].unsqueeze(1)
    found = shown(1, shots)
    assert torch.equal(found[:, plain:], middle.expand_as(found)[:, plain:])
    assert torch.equal(found[:, noisy:plain], gained(middle).expand_as(found)[:, noisy:plain])
    noise = found[:, :noisy] - middle
    # 840 draws: their spread is known to a fortieth.
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.1)
    assert torch.equal(found, shown(1, shots))
    assert not torch.equal(found, shown(1, shots, seed=1))


def test_gain_raises_weak_arrivals_and_keeps_the_loudness_of_a_gather() -> None:
    time = torch.arange(400.0)
    trace = torch.sin(0.8 * time) * torch.exp(-time / 60)
    gather = trace.reshape(1, 1, 400, 1).repeat(1, 1, 1, 21)
    gather[..., 20] = 0.0
    raised = gained(gather)
    assert torch.equal(raised[..., 20], gather[..., 20])
    late, early = (float(raised[0, 0, part, 0].abs().max()) for part in (slice(330, 370), slice(30, 70)))
    assert late == pytest.approx(early, rel=0.3)  # before the gain they were 150 times apart
    alone = gained(gather[..., :20])
    assert float(alone.abs().max()) == pytest.approx(float(gather.abs().max()), rel=1e-5)


def test_a_curriculum_leaves_epochs_for_the_true_records() -> None:
    config, _ = load_train_config(None, ["training.curriculum=[10, 10, 120]"])
    assert config.training.curriculum == (10, 10, 120)
    with pytest.raises(ConfigError, match="leaves none of 20 epochs for the true records"):
        load_train_config(None, ["training.curriculum=[10, 10, 120]", "training.epochs=20"])
