"""A table as plain data, and its forms: Markdown and text for a terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from app.report.names import MINUS, NOT_DONE


@dataclass(frozen=True)
class Source:
    """A record that something was made from: its short name, the job's, and the path from the page to it."""

    name: str
    job: str
    path: str


@dataclass(frozen=True)
class Cell:
    """Text of a table cell; ``tone`` is its role on the page and ``note`` a small remark after the text."""

    text: str
    tone: str = ""
    note: str = ""
    sources: tuple[Source, ...] = ()


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
    sources: tuple[Source, ...] = ()  # of the whole row


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
    def has_sources(self) -> bool:
        """Whether anything in it tells what it was made from by a short name."""
        named = (source for row in self.rows for source in (*row.sources, *(s for c in row.cells for s in c.sources)))
        return any(source.name != source.job for source in named)

    @property
    def row_groups(self) -> list[tuple[str, list[Row]]]:
        """Rows under their common headings."""
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda r: r.group)]


def csv_rows(table: Table) -> str:
    """CSV of a table as it is shown, each row under its group: minus signs are ASCII, and no cell is a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    stub = [name for name in table.stub if name]
    writer.writerow(map(_inert, stub + [f"{c.group}: {c.label}" if c.group else c.label for c in table.columns]))
    for row in table.rows:
        heads = ([row.group] if table.stub[0] else []) + [row.head]
        writer.writerow(map(_inert, heads + [c.text + (f" ({c.note})" if c.note else "") for c in row.cells]))
    return buffer.getvalue()


def _inert(text: str) -> str:
    """Keep a spreadsheet from reading text as a formula, as OWASP advises (CSV injection)."""
    text = text.replace(MINUS, "-")
    number = re.fullmatch(r"[-+]?[\d.,%e]+( to [-+]?[\d.,%e]+)?", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not number else text


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
