"""From records as they are stored to a network's velocities, and from its scale to m/s."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hpfwi.errors import ConfigError
from hpfwi.training.normalise import VelocityScale, normalised_records, velocity_scale
from hpfwi.training.settings import TrainingSettings

_IN_THE_SETTINGS = (0.0, 0.0)
"""In place of ranges of the data: `hpfwi.training.settings.resolved` has put them into the settings."""


def outputs_of(
    settings: TrainingSettings, network: torch.nn.Module, records: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What a network makes of records Tensor[sample, shot, time, receiver] as they are stored, in float32."""
    records = normalised_records(settings.normalisation, records, _IN_THE_SETTINGS)
    if settings.channels_last:
        records = records.contiguous(memory_format=torch.channels_last)
    low = settings.precision == "bfloat16"
    with torch.autocast(records.device.type, dtype=torch.bfloat16, enabled=low):
        outputs = network(records)
    return (outputs[0].float(), outputs[1].float()) if isinstance(outputs, tuple) else outputs.float()


def velocities_of(settings: TrainingSettings, network: torch.nn.Module, records: torch.Tensor) -> NDArray[np.float32]:
    """Velocities on the network's scale, float32[sample, z, x], of records Tensor[sample, shot, time, receiver]."""
    with torch.no_grad():
        outputs = outputs_of(settings, network, records)
    prediction = outputs[0] if isinstance(outputs, tuple) else outputs
    values: NDArray[np.float32] = prediction[:, 0].cpu().numpy()
    return values


def scale_of(settings: TrainingSettings, models_mps: torch.Tensor) -> VelocityScale:
    """The scale of velocities Tensor[sample, 1, z, x] in m/s, whose values matter to 'per-sample' alone."""
    return velocity_scale(settings.normalisation, models_mps, _IN_THE_SETTINGS)


def in_mps(
    settings: TrainingSettings, values: NDArray[np.float32], true_mps: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Velocities on the network's scale in m/s, float32[sample, z, x].

    true_mps   the true velocities, for a network that was trained on each sample's own range
    raises     ConfigError: that range is needed and not known
    """
    if settings.normalisation.normalisation == "per-sample" and true_mps is None:
        raise ConfigError(
            "This network was trained on each sample's own range ('per-sample'), so it predicts the shape of "
            "a velocity and not m/s; write its own scale with --normalised, or train with 'range'."
        )
    known = values if true_mps is None else true_mps
    scale = scale_of(settings, torch.from_numpy(known).unsqueeze(1))
    result: NDArray[np.float32] = scale.in_mps(torch.from_numpy(values).unsqueeze(1))[:, 0].numpy()
    return result
