"""A report that is there already: left as it is if nothing has changed, made again after any change."""

from __future__ import annotations

import pytest

from app.jobs import keys
from app.report import page, summary
from app.report.summary import SUMMARY, ReportSummary
from app.stages.report import run as write_report
from tests.report.runs import OWN, written
from tests.report.test_report import RUN, MemoryStore

PAGE, FIGURE = keys.report(RUN), keys.report(RUN, "figures/one.svg")
RECORD, SAMPLE = f"{keys.run(RUN)}/downstream/a/b/c/s0/record.json", f"{keys.run(RUN)}/samples/a.png"


def test_the_same_records_are_not_drawn_again(tmp_path, monkeypatch):
    run = written(datasets=OWN, methods=("random",), protocols=("finetune",), seeds=(0, 1))
    [gone] = [key for key in run.store.list(keys.run(RUN)) if key.endswith("s1/record.json")]
    run.store.delete(gone)
    anew = write_report(run.store, RUN, tmp_path / "anew")
    run.put("status.json", {"phase": "Succeeded"})  # of the exit handler, after the report
    before = run.store.stamps(keys.run(RUN))
    monkeypatch.setattr(page, "make_report", lambda *_: pytest.fail("drawn again"))
    again = write_report(run.store, RUN, tmp_path / "again")
    assert run.store.stamps(keys.run(RUN)) == before
    assert again == anew
    assert len(again.missing) == 1
    assert (tmp_path / "again/index.html").read_bytes() == (tmp_path / "anew/index.html").read_bytes()


@pytest.mark.parametrize(
    "change",
    {
        "another record": lambda store, _: store.write(RECORD, b"[]"),
        "one more": lambda store, _: store.write(f"{RECORD}.other", b""),
        "one less": lambda store, _: store.delete(SAMPLE),
        "damaged page": lambda store, _: store.write(PAGE, b"<html>"),
        "no figure": lambda store, _: store.delete(FIGURE),
        "no summary": lambda store, _: store.delete(keys.report(RUN, SUMMARY)),
        "damaged summary": lambda store, _: store.write(keys.report(RUN, SUMMARY), b"{"),
        "summary of another version": lambda store, _: store.write(keys.report(RUN, SUMMARY), b'{"made_from": ""}'),
        "other code": lambda _, patch: patch.setattr(summary, "_code", lambda: "other"),
        "other libraries": lambda _, patch: patch.setattr(summary, "version", lambda name: "99"),
    }.items(),
    ids=lambda change: change[0],
)
def test_after_any_change_it_is_made_again(change, monkeypatch):
    store, made = MemoryStore(), []

    def make(_, run_id):
        made.append(run_id)
        return {FIGURE: b"<svg>", PAGE: b"<!doctype html>"}, ReportSummary((FIGURE, PAGE), [], "text", f"memory/{PAGE}")

    monkeypatch.setattr(page, "make_report", make)
    store.write(RECORD, b"{}")
    store.write(SAMPLE, b"png")
    first = [write_report(store, RUN) for _ in range(2)]
    assert (made, first[0]) == ([RUN], first[1])
    change[1](store, monkeypatch)
    write_report(store, RUN)
    write_report(store, RUN)
    assert made == [RUN, RUN]
