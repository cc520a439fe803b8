"""From numbers back to the records that they were made from."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from urllib.parse import quote

from app.jobs import keys
from app.jobs.records import PretrainRecord, Record
from app.report.table import Source


def sources(run_id: str, records: Iterable[Record]) -> tuple[Source, ...]:
    """Name records by their seeds, each with its path from the run's page, in a folder or a bucket alike."""
    return tuple(Source(f"s{record.seed}", record.key, _path(run_id, record)) for record in records)


def _path(run_id: str, record: Record) -> str:
    folder = (keys.pretraining if isinstance(record, PretrainRecord) else keys.downstream)(run_id, record.key)
    return quote(posixpath.relpath(keys.record(folder), posixpath.dirname(keys.report(run_id))))
