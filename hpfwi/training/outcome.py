"""How a finished training run ended: its numbers, as done.json has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a finished training run ended.

    epochs, steps      that it took
    early              it ended before its last epoch, because validations gained nothing any more
    loss               mean over the steps of the last epoch
    best_epoch         counted from 1, the one with the least validation loss
    best_validation    its scores: loss and its terms, mae_mps, rmse_mps, ssim
    parameters         of the network that are trained
    """

    epochs: int
    steps: int
    early: bool
    seconds: float
    samples_per_s: float
    loss: float
    best_epoch: int
    best_validation: dict[str, float]
    parameters: int
