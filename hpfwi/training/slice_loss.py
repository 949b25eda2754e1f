"""The loss of a slice and its gradients in a copy of the network: a function of the weights and of the slice alone."""

from __future__ import annotations

import numpy as np
import torch

from hpfwi.networks.velocitygan import VelocityGan
from hpfwi.training.batches import Slice
from hpfwi.training.curriculum import simplified
from hpfwi.training.edges import edge_masks
from hpfwi.training.forward import outputs_of, scale_of
from hpfwi.training.losses import LossSettings, critic_terms, loss_terms, needs_edges
from hpfwi.training.schedule import curriculum_stage
from hpfwi.training.settings import TrainingSettings

_SUMMED_OVER_A_BATCH = {"mpe": "edge", "l1+l2+rctb": "boundary"}
"""Terms that divide by the number of samples once more than a mean does. A slice's term is therefore weighted by its
share of the batch, so that cutting a batch into slices leaves the size of the term as it was published."""


def backward(
    settings: TrainingSettings, replica: torch.nn.Module, taken: Slice, share: float, *, moves: bool
) -> dict[str, float]:
    """Put the gradients of a slice's mean loss into a copy of the network; returns the loss's terms.

    share   of the batch that the slice is
    moves   whether VelocityGAN's generator is trained in this step
    """
    if isinstance(replica, VelocityGan):
        return _critic_and_generator(settings, replica, taken, moves)
    terms = terms_of(settings, replica, taken, share)
    torch.stack(list(terms.values())).sum().backward()
    return {name: float(value.detach()) for name, value in terms.items()}


def terms_of(
    settings: TrainingSettings, network: torch.nn.Module, taken: Slice, share: float
) -> dict[str, torch.Tensor]:
    """The terms of a slice's mean loss, with the graph behind them; for networks with one loss."""
    target = scale_of(settings, taken.models).normalised(taken.models)
    outputs = outputs_of(settings, network, _seen(settings, taken))
    terms = loss_terms(settings.loss, outputs, target, edges=edges_of(settings.loss, taken.models))
    return in_a_batch(settings.loss, terms, share)


def in_a_batch(settings: LossSettings, terms: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The terms of samples that are a share of a batch, as the batch's loss weights them."""
    summed = _SUMMED_OVER_A_BATCH.get(settings.name)
    return {name: term * share if name == summed else term for name, term in terms.items()}


def edges_of(settings: LossSettings, models_mps: torch.Tensor) -> torch.Tensor | None:
    """Edge masks bool[sample, z, x] of velocities Tensor[sample, 1, z, x], where the loss reads them."""
    if not needs_edges(settings):
        return None
    return torch.from_numpy(edge_masks(models_mps[:, 0].cpu().numpy())).to(models_mps.device)


def noise_of(seed: int, taken: Slice, std: float) -> torch.Tensor:
    """Gaussian noise for the records of a slice, of their shape and on their device, the same wherever it is drawn."""
    noise = torch.randn(taken.records.shape, generator=_generator(seed, taken, stream=0)) * std
    return noise.to(taken.records.device)


def _seen(settings: TrainingSettings, taken: Slice) -> torch.Tensor:
    """Records of a slice as the network sees them in training."""
    records = taken.records
    if settings.curriculum is not None:
        stage = curriculum_stage(taken.epoch, settings.curriculum)
        records = simplified(records, stage, _generator(settings.seed, taken, stream=2))
    if settings.records_noise:
        records = records + noise_of(settings.seed, taken, settings.records_noise)
    return records


def _critic_and_generator(
    settings: TrainingSettings, replica: VelocityGan, taken: Slice, moves: bool
) -> dict[str, float]:
    """Gradients of both parts of VelocityGAN, the generator's in its turns; returns the terms."""
    target = scale_of(settings, taken.models).normalised(taken.models)
    with torch.set_grad_enabled(moves):
        outputs = outputs_of(settings, replica, _seen(settings, taken))
    assert isinstance(outputs, torch.Tensor)
    # Both parts see the networks as they were before the step, so that one sum carries both gradients.
    generator = _generator(settings.seed, taken, stream=1)
    terms = critic_terms(settings.loss, replica.critic, outputs, target, generator)
    torch.stack(list(terms.values())).sum().backward()
    own = loss_terms(settings.loss, outputs, target, critic=replica.critic if moves else None)
    if moves:
        parameters = [parameter for parameter in replica.generator.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(torch.stack(list(own.values())).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
    return {name: float(value.detach()) for name, value in (terms | own).items()}


def _generator(seed: int, taken: Slice, *, stream: int) -> torch.Generator:
    """A generator on the CPU for one slice and one purpose, the same wherever the slice is computed."""
    words = np.random.SeedSequence([seed, stream, taken.epoch, taken.step, taken.slot]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
