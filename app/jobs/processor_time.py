"""What a study took of CPUs and GPUs, from the records of its jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from app.errors import InputError
from app.jobs.records import Record, read_json
from app.quantities import processor_time
from app.storage import Store

AT_A_TIME = 8  # records that are read from a store beside each other: a bucket answers slowly, and many at once
MOST = 65_536  # threads or processes of a job: a record that says more is damaged


@dataclass(frozen=True)
class Taken:
    """What the tries that ended in a record took, in seconds of one CPU thread or one GPU.

    A job on a GPU counts its GPUs alone: it is they that are scarce, and its threads wait for them.
    """

    jobs: int = 0
    cpu: float = 0.0
    gpu: float = 0.0

    def __str__(self) -> str:
        jobs = "1 job" if self.jobs == 1 else f"{self.jobs:,} jobs"
        return f"{processor_time(self.cpu, self.gpu)} in {jobs}"


def taken(records: Iterable[Record]) -> Taken:
    """Add up records: wall seconds by threads on a CPU, by processes on GPUs, one each."""
    jobs, cpu, gpu = 0, 0.0, 0.0
    for record in records:
        jobs += 1
        seconds = record.timings.get("seconds", 0.0)
        seconds = seconds if math.isfinite(seconds) and seconds > 0 else 0.0
        processes = _count(record, "processes")
        if record.environment.get("device", "cpu") == "cpu":
            cpu += seconds * processes * _count(record, "threads")
        else:
            gpu += seconds * processes
    return Taken(jobs, cpu, gpu)


def _count(record: Record, what: str) -> int:
    """How many a record says; one in records that are older than the question."""
    count = record.environment.get(what, 1)
    return count if isinstance(count, int) and 0 < count <= MOST else 1


def read_taken(store: Store, keys: Iterable[str]) -> Taken:
    """Add up the records under ``keys``; what is damaged is left out, here as in the number of jobs.

    Raises:
        StorageError: the store cannot be reached.
    """
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = pool.map(lambda key: _read(store, key), keys)
        return taken(record for record in found if record is not None)


def _read(store: Store, key: str) -> Record | None:
    try:
        return Record.model_validate(read_json(store, key))
    except (InputError, ValidationError):
        return None
