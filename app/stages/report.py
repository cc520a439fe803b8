"""The report stage: the records of a run to a page, tables and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.data.files import atomic_write
from app.errors import InputError, UsageError
from app.jobs import keys
from app.progress import Progress
from app.storage import Store

if TYPE_CHECKING:  # what draws takes a second to import, in each worker of a study
    from app.report import ReportSummary


def run(store: Store, run_id: str, out: Path | None = None) -> ReportSummary:
    """Write the report of a run from whatever records it has; missing ones are named.

    Args:
        store: where the run is.
        run_id: its name.
        out: folder for a copy of the page, which is self-contained and has no links into the store. With one the store
            need not be writable.

    Raises:
        InputError: there is no such run.
        UsageError: neither the store nor ``out`` may be written.
        StorageError: one of them is full or fails.
    """
    from app.report import make_report

    known = keys.run_ids(store.list(keys.RUNS))
    if run_id not in known:
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(known) or 'none'}")
    files, summary = make_report(store, run_id)
    if out is not None:
        with atomic_write(out / "index.html") as copy:
            copy.write(summary.copy().encode())
    try:
        for key, data in files.items():
            store.write(key, data)
    except UsageError as error:
        if out is None:
            raise UsageError(f"{error}; `report --out FOLDER` writes the page elsewhere") from error
        Progress("report", run_id=run_id).say(f"{error}; the page is in {out} alone")
        return replace(summary, page=f"{out}/index.html")
    return summary
