"""Errors that end a job: one line for the user, one documented exit code for the scheduler."""

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class AppError(Exception):
    """An error whose message is a single line: what is wrong, where, and what to do.

    What a name or a setting brings along of line breaks becomes blanks. ``exit_code`` is the process exit status (see
    README, "Exit codes").
    """

    exit_code = 70

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message))


class UsageError(AppError):
    """Wrong command, config, permission or credentials; trying again cannot help."""

    exit_code = 2


def missing_extra(what: str, library: str, extra: str) -> UsageError:
    """Return the error of a command that needs a library of an optional extra."""
    return UsageError(f"{what}: {library} is not installed; pip install '.[{extra}]' in a clone")


class InputError(AppError):
    """An input is missing, damaged, or of the wrong shape, dtype or architecture."""

    exit_code = 66


class Misfit(ValueError):
    """A state to go on from that the code cannot use: of another version, most likely."""


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


def error_of(code: int) -> type[AppError]:
    """Return the kind of error that ends a process with ``code``; AppError for every other code."""
    kinds = (UsageError, InputError, StorageError, Interrupted, CollapseError)
    return next((kind for kind in kinds if kind.exit_code == code), AppError)


_ROOM = "make room and run the same command again"
# What the system says of a file or folder: whose fault it is, what is wrong, and what to do.
OS_CAUSES: dict[int, tuple[type[AppError], str, str]] = {
    errno.EACCES: (UsageError, "no permission", "change the owner or the permissions, or choose another place"),
    errno.EPERM: (UsageError, "no permission", "change the owner or the permissions, or choose another place"),
    errno.EROFS: (UsageError, "no permission, the file system is read-only", "choose another place"),
    errno.ENAMETOOLONG: (UsageError, "the name is too long for this file system", "choose a shorter one"),
    errno.ENOTDIR: (UsageError, "a file stands where a folder is needed", "choose another place"),
    errno.EEXIST: (UsageError, "a file stands where a folder is needed", "choose another place"),
    errno.EISDIR: (InputError, "is a folder, but a file is needed here", "give the file"),
    errno.ELOOP: (UsageError, "symbolic links lead in a circle", "mend or remove the link"),
    errno.EILSEQ: (UsageError, "this file system does not take the name", "choose one of plain letters and digits"),
    errno.EINVAL: (UsageError, "this file system does not take the name or the request", "choose another place"),
    errno.ENOSYS: (UsageError, "this file system cannot do what is asked of it", "choose another place"),
    errno.EOPNOTSUPP: (UsageError, "this file system cannot do what is asked of it", "choose another place"),
    errno.EFBIG: (UsageError, "the file is too large for this file system or `ulimit -f`", "raise the limit"),
    errno.EMLINK: (UsageError, "the folder holds as much as this file system allows", "choose another place"),
    errno.EMFILE: (UsageError, "this process has too many open files", "raise `ulimit -n`"),
    errno.ENOMEM: (UsageError, "out of memory", "give the job more"),
    errno.ENOSPC: (StorageError, "the disk is full", _ROOM),
    errno.EDQUOT: (StorageError, "the quota is used up: the disk is full", _ROOM),
    errno.ENOTCONN: (StorageError, "the mount has lost its server", "mount it anew and run the same command again"),
    errno.ESTALE: (StorageError, "the file server has lost the file", "run the same command again once it is back"),
} | {
    getattr(errno, name): (UsageError, "the key or ticket for this file system has expired", "renew it (`kinit`)")
    for name in ("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED")
    if hasattr(errno, name)  # Linux has them
}  # fmt: skip

# Those that no mistake of ours looks like: wherever they come from, the machine is to blame.
MACHINE_ERRORS = OS_CAUSES.keys() - {
    errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOSYS, errno.EOPNOTSUPP
}  # fmt: skip


def os_error(error: OSError, path: Path, doing: str = "") -> AppError:
    """Translate an error of the system; one that is not known may pass, and counts as storage's.

    Args:
        error: what was raised.
        path: where.
        doing: what was being done there: "reading", "writing".
    """
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    unknown = (StorageError, reason, "run the same command again once storage works")
    kind, what, remedy = OS_CAUSES.get(error.errno or 0, unknown)
    if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        what += f" ({reason})"
    return kind(f"{path}: {what}{f' while {doing}' if doing else ''}; {remedy}")
