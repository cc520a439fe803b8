"""A store in a folder of this machine, or of a file server."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from app.atomic import TEMPORARY, UNABLE, replacing
from app.errors import AppError, StorageError, UsageError, os_error
from app.storage.base import MissingObject, Patience, Versioned, check_key, sha256

LOCK = f"{TEMPORARY}lock-"


class FolderStore:
    """Objects are files, published by rename after an fsync; see ``Store``.

    What must happen once only is guarded by ``flock``, which the system releases when its holder dies.

    Args:
        root: the folder; it is made when something is written.
        patience: how long to try again, on a full disk for one; by default not at all.
    """

    def __init__(self, root: Path, patience: Patience | None = None) -> None:
        self.root = root
        self.uri = self.address = str(root)
        self.patience = patience or Patience(0)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""
        path = self._path(key)
        return self.patience.retry(lambda: _read(path))

    def read_version(self, key: str, *, exact_age: bool = False) -> Versioned:
        """Return the object under ``key`` with its version and age; see ``Store``."""
        path = self._path(key)

        def operation() -> Versioned:
            with _explained(path), _present(path), path.open("rb") as file:
                data, written = file.read(), os.fstat(file.fileno()).st_mtime
                now = _clock(path.parent) if exact_age else time.time()
                return Versioned(data, sha256(data), now - written)

        return self.patience.retry(operation)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Publish ``data`` under ``key``: temporary file, fsync, rename, fsync of the folder."""
        path = self._path(key)
        self.patience.retry(lambda: _publish(path, data))

    def create(self, key: str, data: bytes) -> str | None:
        """Publish an object if there is none under ``key``: its version, or None if there is one."""
        return self._swap(key, data, None)

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has ``version``: the new version, or None if it has not."""
        return self._swap(key, data, version)

    def _swap(self, key: str, data: bytes, version: str | None) -> str | None:
        path, ours, tried = self._path(key), sha256(data), False

        def operation() -> str | None:
            nonlocal tried
            with _explained(path), _locked(path):
                try:
                    found = sha256(path.read_bytes())
                except FileNotFoundError:
                    found = None
                # A write may fail after its rename: then what an earlier try left there is ours, and not a rival's.
                if found != version and not (tried and found == ours):
                    return None
                tried = True
                _publish(path, data)
                return ours

        return self.patience.retry(operation)

    def exists(self, key: str) -> bool:
        """Say whether there is an object under ``key``."""
        path = self._path(key)

        def operation() -> bool:
            with _explained(path):
                return path.is_file()

        return self.patience.retry(operation)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with the folder ``prefix``, sorted."""
        yield from self.sizes(prefix)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of each object whose key starts with the folder ``prefix``, sorted by key."""
        return {key: status.st_size for key, status in self._files(prefix).items()}

    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Return the inode, size and time of each file; every publication makes a new one."""
        files = self._files(prefix)
        return {key: f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}" for key, status in files.items()}

    def _files(self, prefix: str) -> dict[str, os.stat_result]:
        """What is known of each file below the folder ``prefix``, sorted by key."""
        start = self._path(prefix) if prefix else self.root

        def operation() -> dict[str, os.stat_result]:
            found = {}
            with _explained(start):
                for path in start.rglob("*"):
                    if not path.name.startswith(TEMPORARY) and path.is_file():
                        with contextlib.suppress(FileNotFoundError):  # removed since
                            found[path.relative_to(self.root).as_posix()] = path.stat()
            return dict(sorted(found.items()))

        return self.patience.retry(operation)

    def delete(self, key: str) -> None:
        """Remove the object under ``key``; no error if it is not there."""
        path = self._path(key)

        def operation() -> None:
            with _explained(path):
                path.unlink(missing_ok=True)

        self.patience.retry(operation)

    def clean(self, prefix: str) -> None:
        """Drop the temporary files that writers that died left below ``prefix``."""
        start = self._path(prefix)
        with _explained(start):
            for path in list(start.rglob(f"{TEMPORARY}*")):
                if not path.name.startswith(LOCK):  # it may guard somebody, and is removed by the next holder
                    path.unlink(missing_ok=True)

    def local(self, key: str) -> Path:
        """Return the file of the object itself."""
        return self._path(key)


def _read(path: Path) -> bytes:
    with _explained(path), _present(path):
        return path.read_bytes()


@contextlib.contextmanager
def _present(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MissingObject(f"{path}: there is no such object; check --store and --run-id") from error


def _clock(folder: Path) -> float:
    """Return the time of the clock that stamps the files in ``folder``, a file server's perhaps, by making one."""
    path = folder / f"{TEMPORARY}{secrets.token_hex(4)}-clock"
    try:
        with path.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        path.unlink(missing_ok=True)


def _publish(path: Path, data: bytes | memoryview) -> None:
    with _explained(path), replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` alone; its lock file is gone afterwards.

    Raises:
        UsageError: the file system has no locks.
    """
    lock = path.with_name(f"{LOCK}{path.name}")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("ab") as file:
            _flock(file.fileno(), path)
            try:
                current = lock.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False  # the one before us removed it: ours guards nothing
            if current:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


_locks_work = False  # whether a lock was ever had in this process


def _flock(file: int, path: Path) -> None:
    global _locks_work
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        # A lock service that is being restarted says ENOLCK too; one that never answered is not there.
        if error.errno not in UNABLE and (error.errno != errno.ENOLCK or _locks_work):
            raise
        raise UsageError(
            f"{path.parent}: this file system has no locks (flock: {error.strerror}), by which one of several copies "
            "of a job wins; mount it with them (Lustre: -o flock; NFS: with its lock service, or -o local_lock=flock "
            "where one machine alone uses it), or choose another --store"
        ) from error
    _locks_work = True


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def _explain(error: OSError, path: Path) -> AppError:
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{path}: the name is too long for this file system; choose a shorter --run-id")
    if error.errno in (errno.EISDIR, errno.ENOENT):  # it came or went meanwhile
        return StorageError(f"{path}: {error.strerror}; run the same command again")
    return os_error(error, path)
