"""Checkpoints for tests, saved as a job saves them."""

from __future__ import annotations

from typing import Any

from app.jobs.checkpoint import CheckpointWriter
from app.storage import Store


def save_checkpoint(
    store: Store, folder: str, step: int, state: dict[str, Any], *, keep: int, generation: int = 0
) -> None:
    """Save a checkpoint and wait until it is written."""
    writer = CheckpointWriter(store, folder, keep=keep, generation=generation)
    writer.submit(step, state)
    writer.flush()
