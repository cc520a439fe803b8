"""What the machine gives this process: cores, a home, a folder for caches, memory, signs on the terminal.

A container or a cluster's node may lack any of them, or have more of them than this process may use.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import io
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote, unquote, urlsplit

from app.errors import UsageError

CGROUPS = Path("/sys/fs/cgroup")
# What torch, cuBLAS, cuDNN, oneDNN and the system say when there is no memory left; torch has no error of its own
# for it on a CPU.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|[A-Z]+_ALLOC_FAILED"
    r"|could not create a memory object|failed to allocate",
    re.I,
)
# Signs of ours that a terminal may lack, by others that every terminal has.
PLAIN_SIGNS = {
    "±": "+-", "▲": "^", "▼": "v", "◇": "o", "×": "x", "–": "-", "—": "-", "\u2212": "-", "…": "...", "→": "->",
    "·": ".", "’": "'", "“": '"', "”": '"', "≥": ">=", "≤": "<=", "━": "-", "█": "#", "µ": "u",
}  # fmt: skip


def cores() -> int:
    """Return how many cores this process may use, by its affinity (taskset, Slurm) and its cgroup's quota (pods)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, _quota())))


def _quota() -> float:
    """Cores' worth of CPU time that the cgroups of this process allow; infinite without a limit."""
    limits = [math.inf]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS  # version 1 has a tree for each controller
        here = root / name.strip("/")
        for folder in [here, *here.parents]:  # a limit further up binds too; a container may see its own root alone
            if folder == root.parent:
                break
            limits.append(_limit(folder))
    return min(limits)


def _limit(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(quota) <= 0 else int(quota) / int(period)
    return math.inf


def available_memory() -> int | None:
    """Return the bytes of memory that this process may still take, of the machine and its cgroup; None if unknown."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = CGROUPS / controllers if controllers else CGROUPS
            here = root / name.strip("/")
            free += [left for folder in (here, *here.parents) if (left := _memory_left(folder)) is not None]
    return min(free) if free else None


def _memory_left(folder: Path) -> int | None:
    """Bytes that a cgroup still allows; None without a limit. What its files hold in the cache can be let go."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(0, most - now + int(statistics.get("inactive_file", 0)))
    return None


def home() -> Path | None:
    """Return the user's home folder; None without HOME for a user that no passwd file knows."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand_home(text: str) -> str:
    """Put the home folder in place of a leading ``~``; where no home is known the text stays as it is."""
    return os.path.expanduser(text)


def path_of(text: str) -> Path:
    """Return the path that a user wrote: with ``~``, or as a ``file://`` URI.

    Raises:
        UsageError: ``~`` where no home is known.
    """
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path, errors="surrogateescape")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: no home folder is known; set HOME, or write the whole path") from error


def as_text(path: str) -> str:
    """Return ``path`` as text that any file can hold: a ``file://`` URI if its bytes are no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"file://{quote(os.path.abspath(os.fsencode(path_of(path))), safe='/:')}"
    return path


def cache_folder(name: str) -> Path | None:
    """Return a folder of this user for copies that can be made anew; None where none can be written.

    ``$XDG_CACHE_HOME/byol-med/<name>``, else in ``~/.cache``, else in the folder for temporary files.
    """
    own = os.environ.get("XDG_CACHE_HOME")
    at_home = home()
    bases = [Path(own)] if own else [at_home / ".cache"] if at_home else []
    folders = [base / "byol-med" / name for base in bases]
    with contextlib.suppress(OSError):  # there may be no folder for temporary files
        folders.append(Path(tempfile.gettempdir()) / f"byol-med-{os.getuid()}" / name)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # in a folder that all may write to, somebody else may have been there first
            if os.access(folder, os.W_OK | os.X_OK) and folder.parent.stat().st_uid in (os.getuid(), 0):
                return folder
    return None


def keep_library_caches_writable() -> None:
    """Give libraries that write to a home a temporary one where there is none, for as long as this process lives."""
    place = home()
    wanted = {"MPLCONFIGDIR": ".config", "TORCHINDUCTOR_CACHE_DIR": ".cache"}
    missing = [
        name for name, folder in wanted.items() if name not in os.environ and not _writable(place and place / folder)
    ]
    if missing:
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="byol-med-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            os.environ.update(dict.fromkeys(missing, folder))


def _writable(folder: Path | None) -> bool:
    """Whether a folder can be written, or made."""
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder is not None and os.access(folder, os.W_OK | os.X_OK)


def out_of_memory(error: BaseException) -> bool:
    """Say whether this is a want of memory, of the machine's or of the GPU's."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(NO_MEMORY.search(str(error)))


@contextlib.contextmanager
def enough_memory(setting: str) -> Iterator[None]:
    """Say of a want of memory which setting to lower.

    Raises:
        UsageError: there was not enough.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        where = "the GPU is out of memory" if re.search("CUDA|CUBLAS|CUDNN|HIP|MPS", str(error)) else "out of memory"
        raise UsageError(f"{where}; lower {setting}, or give the job more") from error


def speak_plainly() -> None:
    """Print what the terminal's encoding lacks by signs that it has, and file names as the bytes they are.

    What libraries warn of is one line, without their source; what they log below an error is left out.
    """
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # no text stream of Python's own: closed, or a test's
            cast("io.TextIOWrapper", stream).reconfigure(errors="plain")

    logging.getLogger().setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for sign in error.object[error.start : error.end]:
        if "\udc80" <= sign <= "\udcff":
            parts.append(bytes([ord(sign) - 0xDC00]))
        else:
            parts.append(PLAIN_SIGNS.get(sign, "?").encode("ascii"))
    return b"".join(parts), error.end
