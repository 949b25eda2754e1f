"""Steps and validations of a training run as iterations of a group of workers, and what its errors mean here."""

from __future__ import annotations

import math
from pathlib import Path

from hpfwi.commands import command_on
from hpfwi.errors import DataError, NumericsError, RunClusterError
from hpfwi.parallel import Abandoned, ClusterError, Group, GroupLost, ItemFailed, IterationResult, validation_iteration
from hpfwi.training.means import joined
from hpfwi.training.task import HALTED, TrainingTask, listed, slice_sizes


class Items:
    """What a group is given: the slices of a step, or of the validation.

    task    the driver's own replica, which computes none of them
    path    of the run's folder
    """

    def __init__(self, task: TrainingTask, path: Path) -> None:
        self.exponents: tuple[int | None, ...] = ()
        """Scales of the fixed point of each sum that a step takes, one without shared statistics of batch norm."""
        self._task, self._path, self._settings = task, path, task.settings
        self._sizes = slice_sizes(task.config)

    def put_scale(self, group: Group) -> None:
        """Give a group that begins, or begins again, a scale to go on with."""
        last = self.exponents[-1] if self.exponents else None
        group.exponent = last if self._settings.exact else 0

    def step(self, group: Group, step: int) -> IterationResult:
        """One step: one sum over the slices, after two for each batch norm whose statistics they share."""
        results: list[IterationResult] = []
        exponents: list[int | None] = []
        while not results or HALTED in results[-1].scalars[0]:
            if self._settings.exact:
                group.exponent = self.exponents[len(exponents)] if len(exponents) < len(self.exponents) else None
            results.append(self._run(group, step, self._sizes))
            exponents.append(group.exponent)
        self.exponents = tuple(exponents)
        return joined(results)

    def validation(self, group: Group, epoch: int) -> dict[str, float]:
        """Means over the validation samples."""
        share = self._settings.batch // self._settings.slices  # a slice of the validation costs about one of a step
        result = self._run(group, validation_iteration(epoch), [share] * self._task.validation_parts())
        parts = [result.scalars[item] for item in sorted(result.scalars)]
        samples = math.fsum(part["samples"] for part in parts)
        names = [name for name in parts[0] if name != "samples" and all(name in part for part in parts)]
        means = {name: math.fsum(part[name] for part in parts) / samples for name in names}
        if not all(math.isfinite(value) for value in means.values()):
            raise NumericsError(
                f"The validation after epoch {epoch + 1} gave {means}; lower training.schedule.peak in a new run."
            )
        return means

    def _run(self, group: Group, iteration: int, sizes: list[int]) -> IterationResult:
        """Items 0 … of a step or a validation.

        raises  NumericsError: one of them left the range of numbers; DataError: a sample that cannot be read;
                RunClusterError: one that no worker can compute
        """
        try:
            result = group.run(iteration, range(len(sizes)), [float(size) for size in sizes])
        except (GroupLost, Abandoned):
            raise
        except ClusterError as error:
            if f" {DataError.__name__}: " in str(error):
                raise DataError(f"Training cannot go on: {error}") from error
            if NumericsError.__name__ not in str(error):
                raise self._about_samples(error, iteration) from error
            raise NumericsError(
                f"Training cannot go on: {str(error).rstrip('.')}. Lower training.schedule.peak in a new run, or look "
                "for damage with `hpfwi data verify` and `hpfwi data inspect`."
            ) from error
        return result

    def _about_samples(self, error: ClusterError, iteration: int) -> Exception:
        """The error of a group of workers in terms of samples."""
        if not isinstance(error, ItemFailed) or error.item is None or iteration < 0:
            return error
        epoch, step = divmod(iteration, self._task.batches.steps_per_epoch)
        named = listed(self._task.batches.indices(epoch, step, error.item))
        return RunClusterError(
            f"Samples {named} of step {iteration + 1} cannot be computed: {str(error).rstrip('.')}. The state before "
            f"is kept; `{command_on('resume', self._path)}` goes on from there once the cause is gone."
        )
