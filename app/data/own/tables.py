"""Tables that come with images: CSV, TSV and Parquet, every cell as text."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.data.files import file_error, one_line
from app.errors import InputError, UsageError, missing_extra

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
WORDS_FOR_NOTHING = ("na", "n/a", "null", "none")


@dataclass(frozen=True)
class SourceTable:
    """A table: ``columns[name]`` holds a text for each row, "" where nothing is written."""

    path: Path
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, option: str) -> list[str]:
        """Return a column that an option names.

        Raises:
            UsageError: there is none of this name.
        """
        if name not in self.columns:
            raise UsageError(f"{option} {name}: {self.path} has no such column; it has {', '.join(self.columns)}")
        return self.columns[name]


def read_table(path: Path) -> SourceTable:
    """Read a table by its suffix.

    Raises:
        InputError: missing, damaged, empty, or with two columns of one name.
        UsageError: of a kind that is not read, or its library is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a table of labels has to end in {', '.join(SUFFIXES)}; export it as CSV")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise file_error(error, path, "reading") from error
    columns = _parquet(path, data) if path.suffix.lower() == ".parquet" else _separated(path, data)
    if not any(columns.values()):
        raise InputError(f"{path}: holds no rows; write one for each image")
    return SourceTable(path, {name: [_text(cell) for cell in cells] for name, cells in columns.items()})


def _separated(path: Path, data: bytes) -> dict[str, list[Any]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not in UTF-8 (at byte {error.start}); save it as CSV in UTF-8") from error
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({one_line(error)}); save it as CSV again") from error
    names = [name.strip() for name in rows[0]] if rows else []
    twice = [name or "(nothing)" for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]}; give each a name of its own")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise InputError(f"{path}: row {number} has {len(row)} cells, but the first has {len(names)}; mend it")
    return {name: [row[index] for row in rows[1:]] for index, name in enumerate(names)}


def _parquet(path: Path, data: bytes) -> dict[str, list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(str(path), "pyarrow", "parquet") from error
    try:
        columns: dict[str, list[Any]] = parquet.read_table(io.BytesIO(data)).to_pydict()
    except Exception as error:  # Arrow's errors share no ancestor but this
        raise InputError(f"{path}: damaged or no Parquet ({one_line(error)[:80]}); write it again") from error
    return columns


def _text(cell: Any) -> str:
    """A cell as text: nothing for None and NaN, whole numbers without a point.

    Pandas writes a column of whole numbers as 1.0 and 0.0 as soon as one is missing.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    text = str(cell).strip()
    whole = re.fullmatch(r"(-?\d+)\.0+", text)
    return whole[1] if whole else "" if text.lower() == "nan" else text


def without_words(cells: Iterable[str]) -> list[str]:
    """Take words such as "NA" and "none" for nothing: only where they cannot be the name of a class."""
    return ["" if cell.lower() in WORDS_FOR_NOTHING else cell for cell in cells]
