"""Checkpoints and weights: how tensors are published, and verified when read back."""

from __future__ import annotations

import io
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from app.errors import InputError, StorageError
from app.jobs import keys
from app.jobs.claims import LostClaim
from app.jobs.latest import read_latest
from app.jobs.records import pointer, read_verified, to_json
from app.machine import out_of_memory
from app.storage import Store

VERSION = 1
# torch.save writes a zip, and before torch 1.6 wrote a pickle of its magic number (torchvision's older files)
TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def pack(state: dict[str, Any]) -> memoryview:
    """Pack a state as ``torch.save`` does, in memory: as large as its tensors, and apart from them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()  # no copy: a checkpoint can be hundreds of megabytes


def _publish(store: Store, folder: str, step: int, data: memoryview, *, keep: int, generation: int) -> None:
    """Publish a checkpoint under a key of its own, then ``latest.json``, then drop all but the last ``keep``.

    Raises:
        LostClaim: a later owner (of a higher ``generation`` of the claim) has saved, or taken over, the checkpoints.
    """
    name = keys.checkpoint(step, secrets.token_hex(4))
    store.write(f"{folder}/{name}", data)
    entry = {"step": step} | pointer(name, data)

    def with_ours(before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # One at or beyond this step was damaged, or we would not be here: it must not crowd out an undamaged one.
        return [entry, *[other for other in before if other["step"] < step][: keep - 1]]

    try:
        before, kept = _move_pointer(store, folder, generation, with_ours)
    except LostClaim:
        store.delete(f"{folder}/{name}")
        raise
    for other in before:
        if other not in kept:
            store.delete(f"{folder}/{other['key']}")


def fence_checkpoints(store: Store, folder: str, generation: int) -> None:
    """Mark a job's checkpoints, if it has any, as ours, so that no earlier owner can add to them.

    Raises:
        LostClaim: a later owner has done so.
    """
    if store.exists(keys.latest(folder)):
        _move_pointer(store, folder, generation, lambda before: before)


def _move_pointer(
    store: Store,
    folder: str,
    generation: int,
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Replace ``latest.json`` by a compare-and-swap; return its entries before and after."""
    key = keys.latest(folder)
    while True:
        before, version, theirs = read_latest(store, folder)
        if theirs > generation:
            raise LostClaim(f"{store.uri}/{key}: another process has taken the job over; run the same command again")
        after = change(before)
        data = to_json({"version": VERSION, "generation": generation, "checkpoints": after})
        moved = store.create(key, data) if version is None else store.replace(key, data, version)
        if moved is not None:
            return before, after


class CheckpointWriter:
    """Saves checkpoints while training goes on: one at a time, packed at once and written in the background.

    Args:
        store: where to.
        folder: the job's key prefix.
        keep: checkpoints to keep.
        generation: of the claim.
        confirm: raises if the job is no longer ours; asked before anything is written.
    """

    def __init__(
        self, store: Store, folder: str, *, keep: int, generation: int, confirm: Callable[[], None] = lambda: None
    ) -> None:
        self._store, self._folder, self._keep, self._generation = store, folder, keep, generation
        self._confirm = confirm
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.saved_step: int | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what the last checkpoint failed with, if it did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def submit(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save a checkpoint; waits for the one before, if that is still being written.

        Args:
            step: optimizer steps done.
            state: tensors and plain values only, so that it loads with ``weights_only=True``.
        """
        self.flush()
        # Packing is the copy that training may go on beside: one made before it would double the memory.
        self._thread = threading.Thread(target=self._write, args=(step, pack(state)), name="checkpoint", daemon=True)
        self._thread.start()

    def flush(self, timeout: float | None = None) -> None:
        """Wait for the checkpoint being written, ``timeout`` seconds at most; raise what it failed with.

        Raises:
            StorageError: it was not written in time.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise StorageError(
                    f"{self._store.uri}/{self._folder}: the checkpoint could not be saved in time; "
                    "run the same command again once storage works"
                )
        self.check()

    def _write(self, step: int, data: memoryview) -> None:
        try:
            self._confirm()
            _publish(self._store, self._folder, step, data, keep=self._keep, generation=self._generation)
            self.saved_step = step
        except Exception as error:  # it is raised where the training looks, by ``check``
            self._error = error


def load_checkpoint(store: Store, folder: str, *, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint of a job, or None if it has none.

    Args:
        store: where from.
        folder: the job's key prefix.
        warn: told of each damaged checkpoint that was passed over.

    Raises:
        InputError: there were checkpoints, and every one is damaged.
    """
    kept, _, _ = read_latest(store, folder)
    for entry in kept:
        try:
            data = read_verified(store, f"{folder}/{entry['key']}", entry)
        except InputError as error:
            warn(f"{error}; trying the checkpoint before it")
            continue
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for what it cannot, or must not, load
            if out_of_memory(error):
                raise
            warn(
                f"{store.uri}/{folder}/{entry['key']}: not a checkpoint that is safe to load ({_first_line(error)}); "
                "trying the checkpoint before it"
            )
            continue
        if isinstance(state, dict):
            return state
        warn(f"{store.uri}/{folder}/{entry['key']}: holds no checkpoint; trying the checkpoint before it")
    if kept:
        raise InputError(
            f"{store.uri}/{keys.latest(folder)}: every checkpoint it names is damaged; --overwrite starts afresh"
        )
    return None


def drop_checkpoints(store: Store, folder: str) -> None:
    """Remove a finished job's checkpoints, and uploads that it began and lost sight of.

    The pointer goes first, so that nobody is sent to a missing file.
    """
    store.delete(keys.latest(folder))
    for key in list(store.list(keys.checkpoints(folder))):
        store.delete(key)
    store.clean(folder)


def tensors_of(tree: Mapping[Any, Any], depth: int = 8) -> dict[str, Tensor]:
    """Return the tensors of nested dicts under dotted names: ``{"state_dict": {"conv1.weight": …}}`` and the like."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            found[str(key)] = value
        elif isinstance(value, Mapping) and depth:  # a file can hold a dict that holds itself
            found |= {f"{key}.{name}": tensor for name, tensor in tensors_of(value, depth - 1).items()}
    return found


def dump_weights(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Pack a state dict and its metadata as safetensors; equal contents give equal bytes."""
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in state.items()}, metadata)
    # The library writes the metadata in a random order. Two owners of one job must not differ by that.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def parse_weights(data: bytes, *, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Unpack safetensors (or a ``torch.save`` state dict) into tensors and metadata.

    Raises:
        InputError: damaged, or something else than a state dict.
    """
    if data.startswith(TORCH_SAVE):
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            if out_of_memory(error):
                raise
            what = _first_line(error)
            if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
                what = re.sub(r".*(Unsupported [^.\n]*|GLOBAL [\w.]+).*", r"\1", str(error), flags=re.S)[:200]
                raise InputError(
                    f"{source}: not a readable state dict, but one with other objects, which are never loaded ({what});"
                    " save model.state_dict() alone and give that file"
                ) from error
            raise InputError(f"{source}: not a readable state dict ({what}); give another file") from error
        tensors = tensors_of(state) if isinstance(state, dict) else {}
        if not tensors:
            raise InputError(f"{source}: holds no plain state dict; save model.state_dict() and give that file")
        return tensors, {}
    try:
        tensors = safetensors.torch.load(data)  # first, for it is strict: its header is a flat one
        header = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{source}: not a readable safetensors file ({_first_line(error)}); give another file"
        ) from error
    return tensors, metadata


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
