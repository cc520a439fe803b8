"""Records and pointers: the JSON that says what was published, and how that is verified when read back.

Nothing here needs torch: planning, listing and reporting read records without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from app.errors import InputError
from app.jobs import keys
from app.jobs.claims import LostClaim
from app.storage import MissingObject, Store, sha256


def pointer(key: str, data: bytes | memoryview) -> dict[str, Any]:
    """Describe an object for the record that names it: ``key``, ``size`` in bytes, ``sha256``."""
    return {"key": key, "size": len(data), "sha256": sha256(data)}


def publish(
    store: Store,
    folder: str,
    files: dict[str, bytes],
    record: dict[str, Any],
    *,
    confirm: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the files of a job, then, last, the ``record.json`` that names them; there is one record, once.

    Args:
        store: where to.
        folder: the job's key prefix.
        files: contents by name inside the folder.
        record: the record without its ``files``.
        confirm: raises if the job is no longer ours; asked before every write.

    Returns:
        The record as written, with ``files``: name to size and SHA-256.

    Raises:
        LostClaim: there is a record already.
    """
    for name, data in files.items():
        confirm()
        store.write(f"{folder}/{name}", data)
    record = record | {"files": {name: {"size": len(d), "sha256": sha256(d)} for name, d in files.items()}}
    confirm()
    if store.create(keys.record(folder), to_json(record)) is None:
        raise LostClaim(f"{store.uri}/{keys.record(folder)}: another process has published the result meanwhile")
    return record


def to_json(value: dict[str, Any]) -> bytes:
    """Write ``value`` as JSON: as every record and pointer is written."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    """Publish ``value`` as JSON."""
    store.write(key, to_json(value))


def read_json(store: Store, key: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingObject: it is not there.
        InputError: it is not a JSON object.
    """
    return _parse_json(store, key, store.read(key))


def _parse_json(store: Store, key: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.uri}/{key}: damaged, not JSON ({error}); delete it and run the job again") from error
    if not isinstance(value, dict):
        raise InputError(f"{store.uri}/{key}: damaged, not a JSON object; delete it and run the job again")
    return value


def read_record(store: Store, folder: str) -> dict[str, Any]:
    """Read a job's record.

    Raises:
        MissingObject: the job is not done.
        InputError: it is no record.
    """
    key = keys.record(folder)
    record = read_json(store, key)
    files = record.get("files")
    if (
        not isinstance(record.get("science"), dict)
        or not isinstance(record.get("identity"), str)
        or not isinstance(files, dict)
        or not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in files.values())
    ):
        raise InputError(f"{store.uri}/{key}: damaged, not a record; delete it and run the job again, or --overwrite")
    return record


def read_verified(store: Store, key: str, expected: dict[str, Any]) -> bytes:
    """Read an object and compare it with the ``size`` and ``sha256`` of its pointer.

    Raises:
        MissingObject: it is not there.
        InputError: it is not what was published.
    """
    data = store.read(key)
    if len(data) != expected["size"] or sha256(data) != expected["sha256"]:
        raise InputError(
            f"{store.uri}/{key}: damaged, its SHA-256 is not the recorded one; delete it and run the job again"
        )
    return data


def last_generation(store: Store, folder: str) -> int:
    """Return the generation that wrote the job's checkpoint pointer; 0 if there is none."""
    return read_latest(store, folder)[2]


def last_step(store: Store, folder: str) -> int | None:
    """Return the step of the job's newest checkpoint; None if it has none."""
    checkpoints, _, _ = read_latest(store, folder)
    return checkpoints[0]["step"] if checkpoints else None


def read_latest(store: Store, folder: str) -> tuple[list[dict[str, Any]], str | None, int]:
    """Read ``latest.json``: its entries, newest first, its version (None if there is none), its generation."""
    key = keys.latest(folder)
    try:
        found = store.read_version(key)
    except MissingObject:
        return [], None, 0
    latest = _parse_json(store, key, found.data)
    checkpoints, generation = latest.get("checkpoints"), latest.get("generation", 0)
    if (
        not isinstance(checkpoints, list)
        or not isinstance(generation, int)
        or not all(isinstance(entry, dict) and _is_pointer(entry) for entry in checkpoints)
    ):
        raise InputError(f"{store.uri}/{key}: damaged, not a list of checkpoints; use --overwrite")
    return checkpoints, found.version, generation


def _is_pointer(entry: dict[str, Any]) -> bool:
    kinds = {"step": int, "key": str, "size": int, "sha256": str}
    return all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
