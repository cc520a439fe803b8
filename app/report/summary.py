"""What a report says, kept beside it: a report whose records are still the same is not made again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

import app
from app.errors import InputError
from app.jobs import keys
from app.storage import Store, sha256

SUMMARY = "summary.json"
DRAWN_BY = ("Jinja2", "matplotlib", "numpy", "scikit-learn", "scipy")  # whose versions may change a digit or a line


@dataclass(frozen=True)
class ReportSummary:
    """What a report says.

    ``keys`` are the store keys of its files, ``missing`` one line for each thing the run lacks, ``table_text``
    the AUROC table and the reading of its differences as text for a terminal, ``page`` where the page is.
    """

    keys: tuple[str, ...]
    missing: list[str]
    table_text: str
    page: str

    @property
    def lines(self) -> list[str]:
        """What a terminal shows of it."""
        return [self.table_text, *(f"missing: {thing}" for thing in self.missing), f"report: {self.page}"]

    def check_complete(self) -> None:
        """Find out whether anything is missing.

        Raises:
            InputError: something is.
        """
        if self.missing:
            raise InputError(
                f"{self.page}: {len(self.missing)} of the plan's results are missing; the report names them, run those "
                "jobs and `report` again"
            )


class _Kept(BaseModel):
    """``summary.json``: the summary, the stamps of the files that it speaks of, and what all were made from."""

    model_config = ConfigDict(extra="forbid")

    made_from: str
    files: dict[str, str]
    missing: list[str]
    table_text: str


def made_from(run_id: str, stamps: Mapping[str, str]) -> str:
    """Return a SHA-256 of what decides the bytes of a run's report: what the run left, our code, what draws.

    Args:
        run_id: the run.
        stamps: ``Store.stamps`` of the run's folder.
    """
    apart = (keys.report(run_id, ""), keys.status(run_id))  # made from the records, like the report
    found = {key: stamp for key, stamp in stamps.items() if not key.startswith(apart)}
    versions = {name: version(name) for name in DRAWN_BY}
    return sha256(json.dumps([found, _code(), versions], sort_keys=True).encode())


def _code() -> str:
    """SHA-256 of our own files."""
    root = Path(app.__file__).parent
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sha256(b"".join(f"{path.relative_to(root)}\0".encode() + path.read_bytes() for path in paths))


def kept(store: Store, run_id: str, source: str, stamps: Mapping[str, str]) -> ReportSummary | None:
    """Return the summary of the report in the store; None if that was made from something else, or is not whole.

    Args:
        store: where the run is.
        run_id: its name.
        source: ``made_from`` the run as it is.
        stamps: ``Store.stamps`` of the run's folder.
    """
    key = keys.report(run_id, SUMMARY)
    if key not in stamps:
        return None
    try:
        found = _Kept.model_validate_json(store.read(key))
    except (InputError, ValidationError):
        return None  # damaged, or of another version: the report is made again
    if found.made_from != source or any(stamps.get(name) != stamp for name, stamp in found.files.items()):
        return None
    page = f"{store.uri}/{keys.report(run_id)}"
    return ReportSummary(tuple(found.files), found.missing, found.table_text, page)


def keep(store: Store, run_id: str, source: str, summary: ReportSummary) -> None:
    """Write the summary of a report whose files have just been written."""
    stamps = store.stamps(keys.report(run_id, "").rstrip("/"))
    files = {key: stamps[key] for key in summary.keys if key in stamps}
    if len(files) < len(summary.keys):
        return  # somebody removes it meanwhile
    told = _Kept(made_from=source, files=files, missing=summary.missing, table_text=summary.table_text)
    store.write(keys.report(run_id, SUMMARY), told.model_dump_json(indent=1).encode())


def elsewhere(page: bytes) -> bytes:
    """Return a page without its links to what lies around it in its store: among artifacts they lead nowhere."""
    return re.sub(rb"<!--store-->.*?<!--/store-->", b"", page, flags=re.DOTALL)
