"""A store in a folder of this machine, or of a file server."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from app.errors import InputError, StorageError, UsageError
from app.storage.base import TEMPORARY, MissingObject, Patience, Versioned, check_key, sha256

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

    def read_version(self, key: str) -> Versioned:
        """Return the object under ``key`` with its version and age."""
        path = self._path(key)

        def operation() -> Versioned:
            with _explained(path), _present(path), path.open("rb") as file:
                data, written = file.read(), os.fstat(file.fileno()).st_mtime
                return Versioned(data, sha256(data), _clock(path.parent) - written)

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
        path = self._path(key)

        def operation() -> str | None:
            with _explained(path), _locked(path):
                try:
                    found = sha256(path.read_bytes())
                except FileNotFoundError:
                    found = None
                if found != version:
                    return None
                _publish(path, data)
                return sha256(data)

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
        start = self._path(prefix) if prefix else self.root

        def operation() -> list[str]:
            with _explained(start):
                found = [p for p in start.rglob("*") if p.is_file() and not p.name.startswith(TEMPORARY)]
            return sorted(p.relative_to(self.root).as_posix() for p in found)

        yield from self.patience.retry(operation)

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
    """Return the time of the clock that stamps the files in ``folder``, a file server's perhaps."""
    path = folder / f"{TEMPORARY}{secrets.token_hex(4)}-clock"
    try:
        with path.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        path.unlink(missing_ok=True)


def _publish(path: Path, data: bytes | memoryview) -> None:
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` alone; its lock file is gone afterwards."""
    lock = path.with_name(f"{LOCK}{path.name}")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def _explain(error: OSError, path: Path) -> InputError | StorageError | UsageError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"{path}: no permission; choose another --store or change the folder's owner")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: the disk is full; make room and run the same command again")
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{path}: the name is too long for this file system; choose a shorter --run-id")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UsageError(f"{path}: a file stands where a folder is needed; choose another --store")
    return StorageError(f"{path}: {error.strerror or error}; run the same command again once storage works")
