"""Objects under keys: the one way in which jobs talk to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.errors import UsageError
from app.machine import path_of
from app.storage.base import MissingObject, Patience, Store, Versioned, check_key, is_key, sha256
from app.storage.folder import FolderStore
from app.storage.s3 import S3Store

__all__ = [
    "FolderStore",
    "MissingObject",
    "Patience",
    "S3Store",
    "Store",
    "Versioned",
    "check_key",
    "is_key",
    "open_store",
    "sha256",
]


def open_store(uri: str, *, warn: Callable[[str], None] | None = None) -> Store:
    """Open a store by URI: a folder, ``file://`` and a folder, or ``s3://bucket/prefix``.

    Args:
        uri: where; see ``S3Store`` for what ``?endpoint=`` and ``path_style=`` say.
        warn: told, in one line, when an operation has to be tried again for long.

    Raises:
        UsageError: another scheme, or a URI that is not well formed.
    """
    patience = Patience(warn=warn)
    if "://" not in uri:
        return FolderStore(path_of(uri), patience)
    scheme = uri.partition("://")[0]
    if scheme == "s3":
        return S3Store(uri, patience)
    parts = urlsplit(uri)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStore(Path(unquote(parts.path)), patience)
    raise UsageError(
        f"--store {scheme}://…: unknown kind of store; give a folder, file:///folder or s3://bucket/prefix"
    )
