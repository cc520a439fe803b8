"""The report stage: the records of a run to a page, tables and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.data.files import atomic_write
from app.errors import InputError, UsageError
from app.jobs import keys
from app.progress import Progress
from app.report.summary import ReportSummary, elsewhere, keep, kept, made_from
from app.storage import Store, is_key


def run(store: Store, run_id: str, out: Path | None = None) -> ReportSummary:
    """Write the report of a run from whatever records it has; missing ones are named.

    One that the same code has made from the same records is left as it is.

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
    stamps = store.stamps(keys.run(run_id)) if is_key(keys.run(run_id)) else {}
    if run_id not in keys.run_ids(stamps):
        known = ", ".join(keys.run_ids(store.list(keys.RUNS))) or "none"
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {known}")
    source = made_from(run_id, stamps)
    if summary := kept(store, run_id, source, stamps):
        if out is not None:
            _copy(store.read(keys.report(run_id)), out)
        return summary
    from app.report.page import make_report  # what draws takes seconds to import

    files, summary = make_report(store, run_id)
    if out is not None:
        _copy(files[keys.report(run_id)], out)
    try:
        for key, data in files.items():
            store.write(key, data)
        keep(store, run_id, source, summary)
    except UsageError as error:
        if out is None:
            raise UsageError(f"{error}; `report --out FOLDER` writes the page elsewhere") from error
        Progress("report", run_id=run_id).say(f"{error}; the page is in {out} alone")
        return replace(summary, page=f"{out}/index.html")
    return summary


def _copy(page: bytes, out: Path) -> None:
    with atomic_write(out / "index.html") as copy:
        copy.write(elsewhere(page))
