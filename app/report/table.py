"""A table as plain data, and its forms: Markdown and text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from app.report.names import NOT_DONE


@dataclass(frozen=True)
class Cell:
    """Text of a table cell; ``tone`` is its role on the page and ``note`` a small remark after the text."""

    text: str
    tone: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; neighbours with the same ``group`` share an upper heading."""

    label: str
    group: str = ""
    text: bool = False  # words, not numbers: aligned left


@dataclass(frozen=True)
class Row:
    """A row: rows that follow each other with the same ``group`` are headed by it."""

    group: str
    head: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with the headings of its two row-heading columns (the first is "" if rows have no groups)."""

    id: str
    caption: str
    stub: tuple[str, str]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def without_blank(self, *labels: str) -> Table:
        """Return the table without those of the columns called ``labels`` in which no row says anything."""
        blank = [
            all(row.cells[i].text in ("", NOT_DONE) for row in self.rows) and column.label in labels
            for i, column in enumerate(self.columns)
        ]
        rows = (
            replace(row, cells=tuple(cell for cell, drop in zip(row.cells, blank, strict=True) if not drop))
            for row in self.rows
        )
        columns = tuple(column for column, drop in zip(self.columns, blank, strict=True) if not drop)
        return replace(self, columns=columns, rows=tuple(rows))

    @property
    def column_groups(self) -> list[tuple[str, int]]:
        """Upper headings with the number of columns each spans; empty if no column has one."""
        if not any(c.group for c in self.columns):
            return []
        return [(name, len(list(columns))) for name, columns in groupby(self.columns, key=lambda c: c.group)]

    @property
    def row_groups(self) -> list[tuple[str, list[Row]]]:
        """Rows under their common headings."""
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda r: r.group)]


def markdown(table: Table) -> str:
    """GitHub-flavoured Markdown of a table with its caption and notes."""
    grouped = bool(table.stub[0])
    stub = list(table.stub) if grouped else [table.stub[1]]
    head = stub + [f"{c.group}: {c.label}" if c.group else c.label for c in table.columns]
    lines = [f"**{escape(table.caption)}**", "", _pipe(head)]
    lines.append(_pipe([":--"] * len(stub) + [":--" if c.text else "--:" for c in table.columns]))
    for group, rows in table.row_groups:
        for i, row in enumerate(rows):
            first = [group if i == 0 else ""] if grouped else []
            lines.append(
                _pipe([*map(escape, first), escape(row.head), *(_markdown_cell(c) for c in row.cells)], escaped=True)
            )
    for note in table.notes:
        lines += ["", escape(note)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = escape(cell.text + (f" ({cell.note})" if cell.note else ""))
    return f"**{text}**" if "best" in cell.tone else text


def escape(text: str) -> str:
    """Make text safe inside Markdown: no HTML, no end of a table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """Show text as code inside Markdown, which it cannot leave."""
    return f"`{escape(text).replace('`', '')}`"


def fenced(text: str, language: str) -> str:
    """Show lines as code inside Markdown, between fences that are longer than any in them."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _pipe(cells: Iterable[str], escaped: bool = False) -> str:
    return "| " + " | ".join(c if escaped else escape(c) for c in cells) + " |"


def plain(table: Table) -> str:
    """Return the table as aligned text for a terminal, without notes."""
    head = [*table.stub, *(c.label for c in table.columns)]
    body = []
    for group, rows in table.row_groups:
        for i, row in enumerate(rows):
            cells = [c.text + (f" ({c.note})" if c.note else "") for c in row.cells]
            body.append([group if i == 0 else "", row.head, *cells])
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [table.caption, ""]
    for line in (head, ["-" * w for w in widths], *body):
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
