"""What a store is, whatever is behind it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app.errors import InputError, StorageError, UsageError

T = TypeVar("T")


class MissingObject(InputError):
    """There is no object under the key."""


@dataclass(frozen=True)
class Versioned:
    """An object with what is needed to replace it only if nobody else did.

    Attributes:
        data: the object.
        version: changes whenever the object's bytes change.
        age: seconds since it was written; by the store's own clock if that was asked for, or is known anyway.
    """

    data: bytes
    version: str
    age: float


class Patience:
    """How long an operation that fails for a passing reason is tried again, with growing pauses.

    Args:
        seconds: how long; until the store has answered once, ``FIRST_CONTACT`` at most, because an
            address that never worked is rather a wrong one.
        warn: told once, in one line, when an operation has failed for more than ``WARN_AFTER`` seconds.
    """

    FIRST_CONTACT = 30.0
    WARN_AFTER = 3.0
    LONGEST_PAUSE = 5.0

    def __init__(self, seconds: float = 600.0, warn: Callable[[str], None] | None = None) -> None:
        self.seconds = seconds
        self.reached = False
        self._warn = warn
        self._deadline: float | None = None
        self._random = random.Random()  # its own: pauses must not shift anybody's draws

    def hurry(self, seconds: float) -> None:
        """Give up ``seconds`` from now, running operations included: a signal has come."""
        self._deadline = time.monotonic() + seconds

    @property
    def hurried(self) -> bool:
        """Whether a signal has come."""
        return self._deadline is not None

    def say(self, message: str) -> None:
        """Hand one line to whoever asked to be warned."""
        if self._warn:
            self._warn(message)

    def left(self, begin: float) -> float:
        """Seconds for which an operation that began at ``begin`` (monotonic) may still be tried."""
        seconds = self.seconds if self.reached else min(self.seconds, self.FIRST_CONTACT)
        end = begin + seconds if self._deadline is None else min(begin + seconds, self._deadline)
        return end - time.monotonic()

    def retry(self, operation: Callable[[], T]) -> T:
        """Do ``operation``, again and again while it raises StorageError.

        Raises:
            StorageError: the last one, once patience is over.
        """
        begin, tries, warned = time.monotonic(), 0, False
        while True:
            try:
                result = operation()
            except StorageError as error:
                tries += 1
                if self.left(begin) <= 0:
                    raise
                if not warned and time.monotonic() - begin > self.WARN_AFTER:
                    self.say(f"{error} (trying again for up to {max(self.left(begin), 1):.0f} s)")
                    warned = True
                pause = min(self.LONGEST_PAUSE, 0.1 * 2**tries) * self._random.uniform(0.5, 1)
                until = time.monotonic() + pause
                while (wait := min(until - time.monotonic(), self.left(begin), 0.25)) > 0:
                    time.sleep(wait)  # in slices, so that ``hurry`` is heard
            else:
                self.reached = True
                return result


class Store(Protocol):
    """Objects (bytes) under keys such as ``runs/<run-id>/experiment.json``.

    A write is atomic: a reader sees the old object or the new one, never a part. What fails for a passing
    reason is tried again for as long as ``patience`` says.

    Attributes:
        uri: where it is, as messages name it.
        address: what ``open_store`` takes to open it again.
        patience: how long to try.

    Raises:
        MissingObject: ``read`` of a key that is not there.
        InputError: what is read is not what was written.
        StorageError: storage is unreachable or full.
        UsageError: no permission, wrong credentials, or a key that leaves the store.
    """

    uri: str
    address: str
    patience: Patience

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""

    def read_version(self, key: str, *, exact_age: bool = False) -> Versioned:
        """Return the object under ``key`` with its version and age.

        ``exact_age`` is for owners-to-be, who may write: a folder's clock is told by a temporary file. Reading without
        it never writes.
        """

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Publish ``data`` under ``key``, replacing what was there."""

    def create(self, key: str, data: bytes) -> str | None:
        """Publish a small object if there is none under ``key``: its version, or None if there is one.

        Of several that try at once, one wins.
        """

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace a small object if it still has ``version``: the new version, or None if it has not."""

    def exists(self, key: str) -> bool:
        """Say whether there is an object under ``key``."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with the folder ``prefix``, sorted."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of each object whose key starts with the folder ``prefix``, sorted by key."""

    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Return a stamp of each object whose key starts with the folder ``prefix``, sorted by key.

        It is another one whenever the object has been written with other bytes; the same bytes may have several.
        """

    def delete(self, key: str) -> None:
        """Remove the object under ``key``; no error if it is not there."""

    def clean(self, prefix: str) -> None:
        """Drop what writers that died left half-written below the folder ``prefix``."""

    def local(self, key: str) -> Path:
        """Return a file with the object under ``key``, to be read only."""


def is_key(text: str) -> bool:
    """Whether ``text`` can be a key: a plain relative path, which stays inside the store."""
    parts = text.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\\" not in text and text.isprintable()


def check_key(key: str) -> str:
    """Return ``key`` if it stays inside the store.

    Raises:
        UsageError: empty, absolute, with ``..``, a backslash or a control character.
    """
    if not is_key(key):
        raise UsageError(f"key {key!r}: not a plain relative path; use letters, digits, '-', '_', '.' and '/'")
    return key


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
