"""The pointer to a job's checkpoints, ``latest.json``: read without torch, by `ls` for one."""

from __future__ import annotations

from typing import Any

from app.errors import InputError
from app.jobs import keys
from app.jobs.records import parse_json
from app.storage import MissingObject, Store


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
    latest = parse_json(store, key, found.data)
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
