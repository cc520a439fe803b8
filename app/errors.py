"""Errors that end a job: one line for the user, one documented exit code for the scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any


class AppError(Exception):
    """An error whose message is a single line: what is wrong, where, and what to do.

    ``exit_code`` is the process exit status (see README, "Exit codes").
    """

    exit_code = 70


class UsageError(AppError):
    """Wrong command, config, permission or credentials; trying again cannot help."""

    exit_code = 2


class InputError(AppError):
    """An input is missing, damaged, or of the wrong shape, dtype or architecture."""

    exit_code = 66


class StorageError(AppError):
    """Storage is unreachable or full; trying again later can help."""

    exit_code = 69


class Interrupted(AppError):
    """A signal stopped the job after it saved a checkpoint; the same command continues it."""

    exit_code = 75


class CollapseError(AppError):
    """The loss became NaN, or the representation collapsed to a constant.

    Args:
        message: the line to print.
        curves: the training curves up to there, if the raiser keeps them.
    """

    exit_code = 76

    def __init__(self, message: str, curves: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.curves = curves
