"""Distances between predicted and observed gathers."""

import torch

from hpfwi.errors import DataError


def l2(predicted: torch.Tensor, observed: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Half the sum of weighted squared residuals, a float64 scalar; its gradient has `predicted`'s dtype.

    predicted   Tensor[shot, receiver, time]
    observed    Tensor[shot, receiver, time], same unit
    weights     Tensor[shot, receiver] >= 0, multiplies the squared residuals of a trace; None means 1. A trace of
                weight 0 counts nothing even where `observed` is NaN.
    raises      DataError: shapes that do not match

    Each trace is summed before the traces are, which keeps the value independent of the number of threads.
    """
    if predicted.shape != observed.shape:
        raise DataError(
            f"Predicted gathers have shape {tuple(predicted.shape)}, observed ones {tuple(observed.shape)}. "
            "Read the observed gathers of the shots that were predicted."
        )
    residual = predicted - observed
    if weights is None:
        return 0.5 * residual.double().square().sum(dim=-1).sum()
    if weights.shape != predicted.shape[:-1]:
        raise DataError(
            f"Trace weights have shape {tuple(weights.shape)}, the gathers' traces {tuple(predicted.shape[:-1])}. "
            "Give one weight for each shot and receiver."
        )
    residual = torch.where((weights > 0).unsqueeze(-1), residual, torch.zeros_like(residual))
    return 0.5 * (residual.double().square().sum(dim=-1) * weights.double()).sum()


def equal_traces(gathers: torch.Tensor, rms: float) -> torch.Tensor:
    """Gathers [shot, receiver, time] with every trace scaled to one root mean square, float32; differentiable.

    Traces of zeros stay zeros and pass no gradient. Half the squared distance of two traces scaled so is their energy
    times one minus their normalised correlation: it knows phases and relative amplitudes along a trace, and nothing of
    strengths from trace to trace.
    """
    energy = gathers.double().square().mean(dim=-1, keepdim=True)
    heard = energy > 0
    # The root of zero has an infinite derivative, which times zero is NaN: a silent trace takes another root.
    scale = torch.where(heard, rms / torch.where(heard, energy, torch.ones_like(energy)).sqrt(), 0.0)
    return (gathers * scale).to(gathers.dtype)
