"""The report stage: the records of a run to a page, tables and figures."""

from __future__ import annotations

from pathlib import Path

from app.errors import InputError, UsageError
from app.report import ReportSummary, write_report
from app.storage import Store

__all__ = ["ReportSummary", "copy_page", "run"]


def run(store: Store, run_id: str) -> ReportSummary:
    """Write the report of a run from whatever records it has; missing ones are named.

    Raises:
        InputError: there is no such run.
    """
    if not store.exists(f"runs/{run_id}/experiment.json"):
        known = sorted({key.split("/")[1] for key in store.list("runs") if key.endswith("/experiment.json")})
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(known) or 'none'}")
    return write_report(store, run_id)


def copy_page(store: Store, run_id: str, folder: Path) -> None:
    """Copy the page of a written report into a folder: it is self-contained.

    Raises:
        UsageError: the folder cannot be written.
    """
    page = store.read(f"runs/{run_id}/report/index.html")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_bytes(page)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
