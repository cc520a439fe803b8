"""Two runs of a store, or of two stores, beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.data.files import atomic_write
from app.report.collect import collect
from app.report.two_runs import beside, files_of, text_of
from app.storage import Store


def compare_runs(store: Store, first: str, other: Store, second: str, out: Path) -> Iterator[str]:
    """Write the comparison of two runs to a folder, and yield what a terminal shows of it.

    Raises:
        InputError: there is no such run.
    """
    two = beside(collect(store, first), collect(other, second))
    for name, text in files_of(two).items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    yield text_of(two)
    yield f"comparison: {out}/index.html"
