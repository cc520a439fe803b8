"""The report of a run: one self-contained HTML page, the same in Markdown, the numbers as CSV, the figures as SVG."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from app.jobs import keys
from app.report.blocks import Block
from app.report.collect import collect
from app.report.compare import Analysis
from app.report.content import build_context
from app.report.summary import ReportSummary
from app.report.table import Table, code, csv_rows, escape, fenced, markdown, plain
from app.report.tables import csv_text
from app.storage import Store


def make_report(store: Store, run_id: str) -> tuple[dict[str, bytes], ReportSummary]:
    """Return a report's files by their keys, the page last, and what they say; writes nothing.

    They are ``runs/<run-id>/report/{figures/*.svg, tables.csv, report.md, index.html}``. Works for any part of a run,
    down to a plan without results; the same records give the same bytes.

    Raises:
        InputError: no such run, or its ``experiment.json`` is damaged.
        StorageError: the store cannot be reached.
    """
    study = collect(store, run_id)
    analysis = Analysis(study)
    context = build_context(analysis)
    written = {keys.report(run_id, f"figures/{f.name}.svg"): f.svg for f in context["figures"]}
    written[keys.report(run_id, "tables.csv")] = csv_text(analysis)
    written[keys.report(run_id, "report.md")] = render_markdown(context)
    written[keys.report(run_id)] = render_html(context)
    summary = ReportSummary(
        keys=tuple(written),
        missing=[str(m) for m in study.missing],
        table_text=table_text(analysis, context),
        page=f"{store.uri}/{keys.report(run_id)}",
    )
    return {key: text.encode() for key, text in written.items()}, summary


def render_html(context: Mapping[str, Any]) -> str:
    """Render the page; everything but our own figures is escaped. ``elsewhere`` makes a copy for another place."""
    return environment().get_template("page.html.j2").render(**context, linked=True) + "\n"


def environment() -> jinja2.Environment:
    """Return what renders our templates: strict, everything escaped, and the one script that may run there."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("app.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("app.report").joinpath("sort.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}", "csv_link": _csv_link}
    return found


def _csv_link(table: Table) -> str:
    """The rows of a table as a file inside a link: it is there wherever the page is, and without a script."""
    data = csv_rows(table).encode("utf-8-sig")  # the mark tells spreadsheets what "±" is written in
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(data).decode()}"


def render_markdown(context: Mapping[str, Any]) -> str:
    """Render the same content for readers of text: tables as Markdown, figures as links."""
    out = [f"# {context['title']}", ""]
    names = f"Run {code(context['run_id'])} · preset {code(context['preset'])}"
    out += [f"{names} · {escape(context['date'])} · {context['progress']} · took {context['took']}", ""]
    if context["synthetic"]:
        out += [f"> **{context['synthetic']}**", ""]
    out += [f"> {context['not_clinical']}", "", "## Findings", ""]
    out += [f"{escape(line)}\n" for line in context["lead"]]
    if context["missing"]:
        out += ["## Missing", "", _list(context["missing"]), ""]

    def section(title: str, *parts: Table | Block | str | None) -> None:
        shown = [p for p in parts if p and not (isinstance(p, Table) and not p.rows)]
        if not shown:
            return
        out.extend([f"## {title}", ""])
        for part in shown:
            if isinstance(part, Table):
                out.append(markdown(part))
            elif isinstance(part, Block):
                alt, caption = escape(part.figure.alt), escape(part.caption)
                out.extend([f"![{alt}](figures/{part.figure.name}.svg)", "", f"*{caption}*" if caption else "", ""])
            else:
                out.extend([part, ""])

    section("Label efficiency", context["efficiency_figure"], context["efficiency"])
    section("Results", context["results"], *context["protocol_figures"])
    section(
        "Differences",
        context["difference_figure"],
        context["differences"],
        _list(context["sentences"]),
    )
    section("Beside the paper", escape(context["paper_text"]), *context["paper_tables"])
    section("ROC curves", context["delong"], *context["roc_figures"])
    section("Confusion matrices", *context["confusion_figures"])
    section("Operating points", context["operating"])
    section("Calibration", context["reliability_figure"], context["calibration"])
    section("Subgroups", context["subgroups"])
    section("Robustness", *context["robustness_figures"], context["robustness"])
    section("Embedding", *context["embedding_figures"])
    section("Most confident errors", _list(f"{s.title}: {line}" for s in context["errors"] for line in s.lines))
    section("Every metric", context["metrics"])
    section("Pretraining", context["pretraining_figure"], context["pretraining"])
    section(
        "Data",
        context["dataset_table"],
        context["overlap"],
        context["files"],
        *(d.histogram for d in context["datasets"]),
    )
    section("Jobs", context["jobs"])
    section("Environment", context["environment"])
    section("Settings", fenced(context["settings"], "yaml"))
    section("Licences and references", _list((*context["licences"], *context["references"])))
    return "\n".join(out).rstrip() + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def table_text(analysis: Analysis, context: Mapping[str, Any]) -> str:
    """The AUROC table for a terminal, with the marks explained and the findings below."""
    parts = [f"{context['synthetic']}\n"] if context["synthetic"] else []
    table: Table = context["results"]
    if table.rows:
        parts += [plain(table), table.notes[0], ""]
    parts += context["lead"]
    return "\n".join(parts) + "\n"
