"""The report stage: the records of a run to a page, tables and figures."""

from __future__ import annotations

from app.errors import InputError
from app.report import ReportSummary, write_report
from app.storage import Store

__all__ = ["ReportSummary", "run"]


def run(store: Store, run_id: str) -> ReportSummary:
    """Write the report of a run from whatever records it has; missing ones are named.

    Raises:
        InputError: there is no such run.
    """
    if not store.exists(f"runs/{run_id}/experiment.json"):
        known = sorted({key.split("/")[1] for key in store.list("runs") if key.endswith("/experiment.json")})
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(known) or 'none'}")
    return write_report(store, run_id)
