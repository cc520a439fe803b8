"""Checkpoints, encoders and records: what is published, how it is verified when read back."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from app.errors import InputError
from app.storage import MissingObject, Store, sha256

VERSION = 1
# torch.save writes a zip, and before torch 1.6 wrote a pickle of its magic number (torchvision's older files)
TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def pointer(key: str, data: bytes) -> dict[str, Any]:
    """Describe an object for the record that names it: ``key``, ``size`` in bytes, ``sha256``."""
    return {"key": key, "size": len(data), "sha256": sha256(data)}


def publish(store: Store, folder: str, files: dict[str, bytes], record: dict[str, Any]) -> dict[str, Any]:
    """Write the files of a job, then, last, the ``record.json`` that names them.

    Args:
        store: where to.
        folder: the job's key prefix.
        files: contents by name inside the folder.
        record: the record without its ``files``.

    Returns:
        The record as written, with ``files``: name to size and SHA-256.
    """
    for name, data in files.items():
        store.write(f"{folder}/{name}", data)
    record = record | {"files": {name: {"size": len(d), "sha256": sha256(d)} for name, d in files.items()}}
    write_json(store, f"{folder}/record.json", record)
    return record


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    """Publish ``value`` as JSON."""
    store.write(key, (json.dumps(value, indent=1) + "\n").encode())


def read_json(store: Store, key: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingObject: it is not there.
        InputError: it is not a JSON object.
    """
    try:
        value = json.loads(store.read(key))
    except ValueError as error:
        raise InputError(f"{store.uri}/{key}: damaged, not JSON ({error}); delete it and run the job again") from error
    if not isinstance(value, dict):
        raise InputError(f"{store.uri}/{key}: damaged, not a JSON object; delete it and run the job again")
    return value


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


def save_checkpoint(store: Store, folder: str, step: int, state: dict[str, Any], *, keep: int) -> None:
    """Publish a checkpoint under a key of its own, then ``latest.json``, then drop all but the last ``keep``.

    Args:
        store: where to.
        folder: the job's key prefix.
        step: optimizer steps done.
        state: tensors and plain values only, so that it loads with ``weights_only=True``.
        keep: checkpoints to keep, at least 1.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    name = f"checkpoints/{step:08d}-{secrets.token_hex(4)}.pt"
    store.write(f"{folder}/{name}", data)
    before = _kept(store, folder)
    # One at or beyond this step was damaged, or we would not be here: it must not crowd out an undamaged one.
    earlier = [entry for entry in before if entry["step"] < step][: keep - 1]
    kept = [{"step": step} | pointer(name, data), *earlier]
    write_json(store, f"{folder}/latest.json", {"version": VERSION, "checkpoints": kept})
    for entry in before:
        if entry not in earlier:
            store.delete(f"{folder}/{entry['key']}")


def load_checkpoint(store: Store, folder: str, *, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint of a job, or None if it has none.

    Args:
        store: where from.
        folder: the job's key prefix.
        warn: told of each damaged checkpoint that was passed over.

    Raises:
        InputError: there were checkpoints, and every one is damaged.
    """
    kept = _kept(store, folder)
    for entry in kept:
        try:
            data = read_verified(store, f"{folder}/{entry['key']}", entry)
        except InputError as error:
            warn(f"{error}; trying the checkpoint before it")
            continue
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state
    if kept:
        raise InputError(
            f"{store.uri}/{folder}/latest.json: every checkpoint it names is damaged; --overwrite starts afresh"
        )
    return None


def drop_checkpoints(store: Store, folder: str) -> None:
    """Remove a finished job's checkpoints; the pointer goes first, so that nobody is sent to a missing file."""
    store.delete(f"{folder}/latest.json")
    for key in list(store.list(f"{folder}/checkpoints")):
        store.delete(key)


def _kept(store: Store, folder: str) -> list[dict[str, Any]]:
    try:
        latest = read_json(store, f"{folder}/latest.json")
    except MissingObject:
        return []
    checkpoints = latest.get("checkpoints")
    if not isinstance(checkpoints, list) or not all(
        isinstance(entry, dict) and {"step", "key", "size", "sha256"} <= entry.keys() for entry in checkpoints
    ):
        raise InputError(f"{store.uri}/{folder}/latest.json: damaged, not a list of checkpoints; use --overwrite")
    return checkpoints


def dump_weights(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Pack a state dict and its metadata as safetensors."""
    return safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in state.items()}, metadata)


def parse_weights(data: bytes, *, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Unpack safetensors (or a ``torch.save`` state dict) into tensors and metadata.

    Raises:
        InputError: damaged, or something else than a state dict.
    """
    if data.startswith(TORCH_SAVE):
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(
                f"{source}: not a readable state dict ({_first_line(error)}); give another file"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise InputError(f"{source}: holds no plain state dict; save model.state_dict() and give that file")
        return dict(state), {}
    try:
        header = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header]).get("__metadata__", {})
        return safetensors.torch.load(data), metadata
    except (SafetensorError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source}: not a readable safetensors file ({_first_line(error)}); give another file"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
