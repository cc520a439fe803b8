"""What of a run can go: checkpoints, models that nobody needs again, caches; never a record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from app.errors import InputError
from app.jobs import keys
from app.jobs.claims import live_owner
from app.machine import cache_folder
from app.quantities import size_in_words
from app.storage import Store

What = Literal["checkpoints", "draws", "models", "caches"]
WORDS: dict[What, str] = {
    "checkpoints": "checkpoints (a job that was stopped begins anew)",
    "draws": "models of few-shot draws (their predictions stay)",
    "models": "models of finetune (their predictions stay; `predict` and `export` need them)",
    "caches": "decoded images in this user's cache (they are decoded again)",
}
USUAL: tuple[What, ...] = ("checkpoints", "draws", "caches")


@dataclass(frozen=True)
class Spare:
    """Something that can be removed.

    Attributes:
        what: its kind.
        name: its key in the store, or its path.
        size: in bytes.
        remove: removes it.
        job: whose it is; None if it is no job's.
    """

    what: What
    name: str
    size: int
    remove: Callable[[], None]
    job: str | None = None


def spare(store: Store, run_id: str, wanted: tuple[What, ...] = USUAL) -> tuple[list[Spare], list[str]]:
    """List what can be removed of a run, largest kinds together, and the jobs that are left alone, being at work.

    Records, predictions, curves, heads, encoders, the plan and the report are never among it.

    Args:
        store: where the run is.
        run_id: its name.
        wanted: the kinds to list.

    Raises:
        InputError: there is no such run.
    """
    sizes = store.sizes(keys.run(run_id))
    if not sizes:
        known = ", ".join(keys.run_ids(store.list(keys.RUNS))) or "none"
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {known}")
    found, busy = list[Spare](), list[str]()
    for job in sorted(keys.begun(run_id, sizes)):
        folder = f"{keys.run(run_id)}/{job}"
        if keys.claim(folder) in sizes and live_owner(store, folder) is not None:
            busy.append(job)
            continue
        found += [
            Spare(kind, key, sizes[key], lambda key=key: store.delete(key), job)  # type: ignore[misc]
            for kind, key in _of_job(job, folder, sizes)
            if kind in wanted
        ]
    return found + (_cached() if "caches" in wanted else []), busy


def remove(store: Store, run_id: str, found: list[Spare]) -> tuple[int, list[str]]:
    """Remove what was listed, but nothing of a job that has begun to work meanwhile: a question may wait for hours.

    Args:
        store: where the run is.
        run_id: its name.
        found: as ``spare`` lists it, a job's together.

    Returns:
        How many are removed, and the jobs that are left alone.
    """
    removed, busy = 0, list[str]()
    for job, spares in groupby(found, key=lambda each: each.job):
        if job is not None and live_owner(store, f"{keys.run(run_id)}/{job}") is not None:
            busy.append(job)
            continue
        for each in spares:
            each.remove()
            removed += 1
    return removed, busy


def _of_job(job: str, folder: str, sizes: dict[str, int]) -> list[tuple[What, str]]:
    """The keys of a job that can go; the pointer to its checkpoints first, so that nobody is sent to a missing one."""
    # A kept state of a job that is not done is all there is of it: with it goes its pointer.
    listed: list[tuple[What, str]] = [
        ("checkpoints", key)
        for key in (keys.latest(folder), *(key for key in sizes if key.startswith(f"{keys.checkpoints(folder)}/")))
        if key in sizes
    ]
    name = keys.Downstream.parse(job.removeprefix(f"{keys.DOWNSTREAM}/"))
    model = f"{folder}/{keys.MODEL}"
    if name is not None and model in sizes and keys.record(folder) in sizes:
        # A frozen protocol's model is of a version that stored whole ones; its job can be run again at little cost.
        listed.append(("models" if name.protocol == "finetune" else "draws", model))
    return listed


def _cached() -> list[Spare]:
    folder = cache_folder("images")
    if folder is None:
        return []
    return [
        Spare("caches", str(path), path.stat().st_size, _remover(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]


def _remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        if path.exists():
            os.unlink(path)

    return remove


def lines(found: list[Spare]) -> list[str]:
    """Say what would go: a line for each thing, the sum of each kind before it, and the sum of all."""
    said = []
    for what, words in WORDS.items():
        of_kind = [each for each in found if each.what == what]
        if of_kind:
            said.append(f"{size_in_words(sum(each.size for each in of_kind)):>8}  {words}:")
            said += [f"{size_in_words(each.size):>8}    {each.name}" for each in of_kind]
    said.append(f"{size_in_words(sum(each.size for each in found)):>8}  in all; records are never touched")
    return said
