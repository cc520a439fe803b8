"""Objects under keys: the one way in which jobs talk to each other."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from app.errors import InputError, StorageError, UsageError

TEMPORARY = ".tmp-"  # prefix of half-written files; never listed, never read


class MissingObject(InputError):
    """There is no object under the key."""


class Store(Protocol):
    """Objects (bytes) under keys such as ``runs/<run-id>/experiment.json``.

    A write is atomic: a reader sees the old object or the new one, never a part.

    Raises:
        MissingObject: ``read`` of a key that is not there.
        StorageError: storage is unreachable or full.
        UsageError: no permission, or a key that leaves the store.
    """

    uri: str

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""

    def write(self, key: str, data: bytes) -> None:
        """Publish ``data`` under ``key``, replacing what was there."""

    def exists(self, key: str) -> bool:
        """Say whether there is an object under ``key``."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with the folder ``prefix``, sorted."""

    def delete(self, key: str) -> None:
        """Remove the object under ``key``; no error if it is not there."""

    def local(self, key: str) -> Path:
        """Return a file with the object under ``key``, to be read only."""


def open_store(uri: str) -> Store:
    """Open a store by URI: a folder, or ``file://`` and a folder.

    Raises:
        UsageError: another scheme.
    """
    if "://" not in uri:
        return FolderStore(Path(uri))
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStore(Path(unquote(parts.path)))
    raise UsageError(f"--store {uri}: unknown kind of store; give a folder or file:///folder")


def check_key(key: str) -> str:
    """Return ``key`` if it stays inside the store.

    Raises:
        UsageError: empty, absolute, with ``..``, a backslash or a control character.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or not key.isprintable():
        raise UsageError(f"key {key!r}: not a plain relative path; use letters, digits, '-', '_', '.' and '/'")
    return key


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


class FolderStore:
    """A store in a folder. Objects are files, published by rename after an fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""
        path = self._path(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise MissingObject(f"{path}: there is no such object; check --store and --run-id") from error
        except OSError as error:
            raise _explain(error, path) from error

    def write(self, key: str, data: bytes) -> None:
        """Publish ``data`` under ``key``: temporary file, fsync, rename, fsync of the folder."""
        path = self._path(key)
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
        try:
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
        except OSError as error:
            raise _explain(error, path) from error

    def exists(self, key: str) -> bool:
        """Say whether there is an object under ``key``."""
        path = self._path(key)
        try:
            return path.is_file()
        except OSError as error:
            raise _explain(error, path) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with the folder ``prefix``, sorted."""
        start = self._path(prefix) if prefix else self.root
        found = (p for p in start.rglob("*") if p.is_file() and not p.name.startswith(TEMPORARY))
        yield from sorted(p.relative_to(self.root).as_posix() for p in found)

    def delete(self, key: str) -> None:
        """Remove the object under ``key``; no error if it is not there."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _explain(error, self._path(key)) from error

    def local(self, key: str) -> Path:
        """Return the file of the object itself."""
        return self._path(key)


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
