"""Claims: of several copies of one job, one works at a time, and one that lost its claim writes no more."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.errors import AppError, InputError, Interrupted
from app.jobs import keys
from app.storage import MissingObject, Store, Versioned

BEATS_PER_EXPIRY = 3


class LostClaim(Interrupted):
    """Another process took the job over, or finished it."""


class Claim:
    """The right to write the results of a job, renewed by a heartbeat.

    The claim is an object beside the job's results, only ever replaced by whoever saw its last version. Each
    owner has a higher ``generation`` than the one before.

    Attributes:
        generation: number of this ownership, from 1.
    """

    def __init__(self, store: Store, folder: str, generation: int, seconds: float) -> None:
        self._store, self._key, self._seconds = store, keys.claim(folder), seconds
        self.generation = generation
        self._owner = _this_process() | {"nonce": secrets.token_hex(8)}
        self._beats = 0
        self._version = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._error: AppError | None = None

    def _body(self, owner: dict[str, Any] | None) -> bytes:
        self._beats += 1
        value = {
            "version": 1,
            "generation": self.generation,
            "owner": owner,
            "beat": self._beats,
            "expires_after_seconds": self._seconds,
        }
        return (json.dumps(value, indent=1) + "\n").encode()

    def take(self, found: Versioned | None) -> bool:
        """Become the owner in place of what was ``found``; False if somebody else was faster."""
        body = self._body(self._owner)
        if found is None:
            version = self._store.create(self._key, body)
        else:
            version = self._store.replace(self._key, body, found.version)
        self._version = version or ""
        return version is not None

    def confirm(self) -> None:
        """Make sure, at the store, that the job is still ours, and renew the claim.

        Raises:
            LostClaim: it is not.
            StorageError: the store cannot be reached.
        """
        with self._lock:
            self.check()
            version = self._store.replace(self._key, self._body(self._owner), self._version)
            if version is None:
                self._error = LostClaim(
                    f"{self._store.uri}/{self._key}: another process has taken the job over; "
                    "run the same command again to see its result"
                )
                raise self._error
            self._version = version

    def check(self) -> None:
        """Raise what the heartbeat met: LostClaim, or StorageError once patience was over."""
        if self._error is not None:
            raise self._error

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds / BEATS_PER_EXPIRY):
            try:
                self.confirm()
            except AppError as error:
                self._error = error
                return

    def start(self) -> None:
        """Start the heartbeat."""
        self._thread.start()

    def release(self, warn: Callable[[str], None], *, timeout: float) -> None:
        """Stop the heartbeat and let the next one in at once; a claim that cannot be released expires."""
        self._ended.set()
        freeing = threading.Thread(target=self._free, args=(warn,), daemon=True)
        freeing.start()
        freeing.join(timeout)

    def _free(self, warn: Callable[[str], None]) -> None:
        with self._lock:
            if self._error is not None:
                return
            try:
                self._store.replace(self._key, self._body(None), self._version)
            except AppError as error:
                warn(f"{error}; the claim expires after {self._seconds:g} s")


@contextlib.contextmanager
def claimed(
    store: Store,
    folder: str,
    *,
    done: Callable[[], bool],
    stopped: Callable[[], bool],
    warn: Callable[[str], None],
    seconds: float,
    wait: float,
    above: int = 0,
    release_within: Callable[[], float] = lambda: 30.0,
) -> Iterator[Claim | None]:
    """Hold the claim of a job while the body runs.

    Whoever comes second waits for the result, or for the owner to fall silent.

    Args:
        store: the store.
        folder: the job's key prefix.
        done: says whether the job has its result; may raise.
        stopped: says whether a signal has come.
        warn: told whom we wait for.
        seconds: an owner silent for so long is dead.
        wait: seconds to wait for a live owner.
        above: a generation that ours must exceed.
        release_within: seconds that releasing may take.

    Yields:
        The claim, or None if the job is done.

    Raises:
        Interrupted: the owner is alive and patience is over, or a signal came while waiting.
    """
    begin, told = time.monotonic(), False
    while True:
        if done():
            yield None
            return
        found = _read(store, folder, exact_age=True)
        holder = None if found is None else _live_owner(found[0], found[1])
        if holder is None:
            generation = max(above, 0 if found is None else int(found[1]["generation"])) + 1
            claim = Claim(store, folder, generation, seconds)
            if claim.take(None if found is None else found[0]):
                break
            continue  # another one was faster: look at it
        if stopped():
            raise Interrupted("stopped while waiting for the job's owner; run the same command again")
        if time.monotonic() - begin >= wait:
            raise Interrupted(
                f"{store.uri}/{folder}: claimed by {holder}, which is alive; run the same command again later"
            )
        if not told:
            warn(f"claimed by {holder}; waiting for its result")
            told = True
        time.sleep(random.SystemRandom().uniform(0.5, 1) * min(seconds / 15, 2.0))
    claim.start()
    try:
        if done():  # its last owner finished between our two looks
            yield None
            return
        store.clean(folder)
        yield claim
    finally:
        claim.release(warn, timeout=release_within())


def live_owner(store: Store, folder: str) -> str | None:
    """Name the live owner of a job, as ``pid@host``; None if nobody holds its claim. Only reads."""
    found = _read(store, folder, exact_age=False)
    return None if found is None else _live_owner(found[0], found[1])


def _read(store: Store, folder: str, *, exact_age: bool) -> tuple[Versioned, dict[str, Any]] | None:
    key = keys.claim(folder)
    try:
        found = store.read_version(key, exact_age=exact_age)
    except MissingObject:
        return None
    try:
        value = json.loads(found.data)
        owner = value["owner"]
        sound = (
            isinstance(value["generation"], int)
            and isinstance(value["expires_after_seconds"], int | float)
            and (owner is None or isinstance(owner["pid"], int))
            and (owner is None or {"host", "boot", "space", "started"} <= owner.keys())
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{store.uri}/{key}: damaged, not a claim; delete it and run the job again")
    return found, value


def _live_owner(found: Versioned, value: dict[str, Any]) -> str | None:
    owner = value["owner"]
    if owner is None or found.age > value["expires_after_seconds"] or _is_dead(owner):
        return None
    return f"{owner['pid']}@{owner['host']}"


def _this_process() -> dict[str, Any]:
    """What tells this process from every other: where the system says it, also from one that had its number."""
    found = _status(os.getpid())
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "space": _link("/proc/self/ns/pid"),
        "started": None if found is None else found[1],
    }


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether an owner in this machine's (or container's) view is certainly gone: no need to wait for it.

    A process whose start cannot be read may be hidden from us (/proc mounted with hidepid): it is gone only if the
    system knows none of its number.
    """
    here = _this_process()
    if here["boot"] is None or here["space"] is None:
        return False
    if (owner["boot"], owner["space"]) != (here["boot"], here["space"]):
        return False
    found = _status(owner["pid"])
    if found is None:
        return not _exists(owner["pid"])
    state, started = found
    return state in "ZX" or owner["started"] not in (None, started)


def _status(pid: int) -> tuple[str, str] | None:
    """State of a process, and when it started in clock ticks since boot; None if that cannot be read."""
    line = _first_line(f"/proc/{pid}/stat")
    fields = [] if line is None else line.rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else None


def _exists(pid: int) -> bool:
    """Whether there is a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
