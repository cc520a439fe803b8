"""From the page back to what it was made from: rows as CSV, and the records of every cell."""

from __future__ import annotations

import base64
import csv
import io
import posixpath
from urllib.parse import unquote

import pytest

from app.jobs import keys
from app.report.collect import collect
from app.report.compare import Analysis
from app.report.names import MINUS
from app.report.sources import sources
from app.report.table import Cell, Column, Row, Table, csv_rows
from app.report.tables import results_table
from app.stages.report import run as write_report
from tests.report.test_report import RUN, FakeRun, Page, read


def links(page: str) -> list[str]:
    return [a["href"] for tag, a in Page(page).tags if tag == "a"]


def objects_at(run: FakeRun, page: str) -> list[str]:
    """Keys that relative links of the page lead to."""
    found = [unquote(link) for link in links(page) if not link.startswith(("#", "data:"))]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(keys.report(RUN)), link)) for link in found]


def test_every_link_leads_to_an_object_of_the_store_and_every_record_is_linked(own, widest):
    for run in (own, widest):
        found = objects_at(run, read(run, "index.html"))
        assert all(run.store.exists(key) for key in found)
        records = {key for key in run.store.list(keys.run(RUN)) if key.endswith("/record.json")}
        assert records <= set(found)


def test_a_cell_links_the_records_that_it_was_made_from(own):
    study = collect(own.store, RUN)
    table = results_table(Analysis(study))
    assert len(table.rows) == 2
    for row, protocol in zip(table.rows, ("finetune", "few_shot"), strict=True):
        for cell, init in zip(row.cells, ("random", "byol", "byol_plus"), strict=True):
            jobs = [f"lesions/{init if init == 'random' else f'{init}-s{s}'}/{protocol}/s{s}" for s in (0, 1)]
            assert [(source.name, source.job) for source in cell.sources] == list(zip(("s0", "s1"), jobs, strict=True))


def test_a_link_stays_below_the_run_and_is_quoted(own):
    record = collect(own.store, RUN).pretraining[0].record
    [source] = sources(RUN, [record.model_copy(update={"key": 'a b#c%?"><b>'})])
    assert source.path == "../pretrain/a%20b%23c%25%3F%22%3E%3Cb%3E/record.json"
    [source] = sources(RUN, [record.model_copy(update={"key": "javascript:alert(1)"})])
    assert source.path.startswith("../pretrain/")


def test_a_copy_elsewhere_has_no_links_that_lead_nowhere(own, tmp_path):
    write_report(own.store, RUN, tmp_path)
    copy = (tmp_path / "index.html").read_text()
    assert {link[0] for link in links(copy)} == {"#", "d"}
    assert "beside this page" not in copy.lower()


def test_every_table_brings_its_rows_as_csv(own):
    page = Page(read(own, "index.html"))
    found = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    assert {name for name, _ in ((a.get("id"), a) for tag, a in page.tags if tag == "table")} == {
        name.removesuffix(".csv") for name in found
    }
    kind, data = found["results.csv"].split(",", 1)
    assert kind == "data:text/csv;charset=utf-8;base64"
    rows = list(csv.reader(io.StringIO(base64.b64decode(data).decode("utf-8-sig"))))
    table = results_table(Analysis(collect(own.store, RUN)))
    assert rows[0] == ["Dataset", "Protocol", "Random", "BYOL", "BYOL+"]
    assert [row[:2] for row in rows[1:]] == [["lesions", "Fine-tune"], ["lesions", "Few-shot"]]
    assert [row[2:] for row in rows[1:]] == [[cell.text for cell in row.cells] for row in table.rows]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{MINUS}0.113", "-0.113"),
        (f"{MINUS}0.113 to +0.041", "-0.113 to +0.041"),
        ("+0.5 %", "'+0.5 %"),
        ("= not told apart", "'= not told apart"),
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("▲ 0.9 ± 0.1", "▲ 0.9 ± 0.1"),
    ],
)
def test_no_cell_of_a_csv_is_a_formula(text, said):
    table = Table("t", "T", (text, "Name"), (Column(text),), (Row(text, text, (Cell(text),)),))
    assert list(csv.reader(io.StringIO(csv_rows(table)))) == [[said, "Name", said], [said, said, said]]
