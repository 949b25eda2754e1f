"""The exceptions of hpfwi and the exit codes of its commands.

Every message is one sentence with the value, the limit and the remedy, because the command line prints it and nothing
else. The layers below have trees of their own (`hpfwi_kernels.errors`, `hpfwi_cluster.errors`); `hpfwi.cli` maps all of
them to the exit codes here.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_CONFIG = 2
EXIT_DATA = 3
EXIT_NUMERICS = 4
EXIT_CLUSTER = 5
EXIT_STOPPED = 75


class HpfwiError(Exception):
    """Base of everything that hpfwi raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(HpfwiError):
    """The configuration, an option of a command or the choice of run folder cannot be used as given."""

    exit_code = EXIT_CONFIG


class DataError(HpfwiError):
    """A model, a survey, a record or a stored file is missing, damaged or contradicts another one."""

    exit_code = EXIT_DATA


class DiskError(DataError):
    """A file cannot be written: its disk is full, read-only or gone. What was read is as good as before."""


class CheckpointError(DataError):
    """A checkpoint cannot be written, or none of those in a folder can be read back whole."""


class NumericsError(HpfwiError):
    """The computation left the range of numbers that mean something (NaN, infinity, an unstable time step)."""

    exit_code = EXIT_NUMERICS


class RunClusterError(HpfwiError):
    """The workers could not be started, or so many of them were lost that the run cannot go on."""

    exit_code = EXIT_CLUSTER


class Stopped(HpfwiError):
    """The run was asked to stop (Ctrl-C, SIGTERM, a time limit), left a checkpoint, and can be resumed."""

    exit_code = EXIT_STOPPED
