"""The report of a run: one self-contained HTML page, the same in Markdown, the numbers as CSV, the figures as SVG."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from app.jobs import keys
from app.report import plots, tables
from app.report.collect import Study, collect
from app.report.compare import Analysis
from app.report.plots import Figure
from app.report.tables import MARKS, PROTOCOLS, Table, method_name, paper_name, published
from app.storage import Store

SYNTHETIC = "SYNTHETIC: phantom images. The figures say nothing about medicine."
NOT_CLINICAL = "For research. Not a medical device, not for clinical use."

REFERENCES = (
    "B. Murphy: Leveraging BYOL for Image Classification in Limited-Labeled Medical Domains, 2023 (the paper).",
    "J.-B. Grill et al.: Bootstrap your own latent, NeurIPS 2020.",
    "J. Yang et al.: MedMNIST v2, Scientific Data 10, 41, 2023.",
    "E. DeLong, D. DeLong, D. Clarke-Pearson: Comparing the areas under two or more correlated ROC curves, "
    "Biometrics 44, 1988; X. Sun, W. Xu: fast implementation, IEEE Signal Processing Letters 21, 2014.",
    "B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993.",
)


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


@dataclass(frozen=True)
class Block:
    """A figure with its caption."""

    figure: Figure
    caption: str

    @property
    def html(self) -> Markup:
        """The figure as an element of the page. matplotlib has escaped the text in it."""
        return Markup(plots.for_page(self.figure))


@dataclass(frozen=True)
class DatasetBlock:
    """What the data section shows of one dataset."""

    title: str
    licence: str
    sample: str | None  # data URI
    histogram: Block | None


@dataclass(frozen=True)
class Finding:
    """One line of a card."""

    protocol: str
    chips: tuple[tuple[str, str, str], ...]  # tone, text, full sentence


@dataclass(frozen=True)
class Card:
    """The findings of one dataset."""

    title: str
    findings: tuple[Finding, ...]


def write_report(store: Store, run_id: str) -> ReportSummary:
    """Write ``runs/<run-id>/report/{index.html, report.md, tables.csv, figures/*.svg}`` from what the run has so far.

    Works for any part of a run, down to a plan without results; the same records give the same bytes.

    Raises:
        InputError: no such run, or its ``experiment.json`` is damaged.
        StorageError: the store cannot be reached or is full.
    """
    files, summary = make_report(store, run_id)
    for key, data in files.items():
        store.write(key, data)
    return summary


def make_report(store: Store, run_id: str) -> tuple[dict[str, bytes], ReportSummary]:
    """Return the files of ``write_report`` by their keys, the page last, and what they say; writes nothing.

    Raises:
        InputError: no such run, or its ``experiment.json`` is damaged.
        StorageError: the store cannot be reached.
    """
    study = collect(store, run_id)
    analysis = Analysis(study)
    context = build_context(analysis)
    files = {keys.report(run_id, f"figures/{f.name}.svg"): f.svg for f in context["figures"]}
    files[keys.report(run_id, "tables.csv")] = tables.csv_text(analysis)
    files[keys.report(run_id, "report.md")] = render_markdown(context)
    files[keys.report(run_id)] = render_html(context)
    summary = ReportSummary(
        keys=tuple(files),
        missing=[str(m) for m in study.missing],
        table_text=table_text(analysis, context),
        page=f"{store.uri}/{keys.report(run_id)}",
    )
    return {key: text.encode() for key, text in files.items()}, summary


# --- the content ------------------------------------------------------------------------------------


def build_context(analysis: Analysis) -> dict[str, Any]:
    """Everything that the page and the Markdown show."""
    study = analysis.study
    experiment = study.experiment
    names = tables.names(study)
    results = [r for cell in study.cells.values() for r in cell]
    done = len(results) + len(study.pretraining)
    planned = len(experiment.plan.pretrain) + len(experiment.plan.downstream)
    finished = max([r.record.finished for r in results] + [p.record.finished for p in study.pretraining], default="")
    datasets = [_dataset_block(study, name) for name in experiment.data]
    difference = plots.differences(
        list(analysis.against_baseline.values()), {d: study.title(d) for d in study.datasets}, names
    )
    curves = plots.pretraining_curves(study.pretraining, names)
    sections: dict[str, Any] = {
        "title": "Self-supervised pretraining for medical images",
        "run_id": experiment.run_id,
        "preset": experiment.preset,
        "date": (finished or experiment.created)[:10],
        "progress": f"{done} of {planned} jobs" if planned > done else f"{done} jobs",
        "seeds": sorted({r.record.seed for r in results} | {p.record.seed for p in study.pretraining}),
        "synthetic": SYNTHETIC if experiment.synthetic else "",
        "overlaps": list(study.overlaps.values()),
        "not_clinical": NOT_CLINICAL,
        "lead": lead(analysis),
        "sentences": [tables.sentence(study, c) for c in analysis.comparisons],
        "cards": _cards(analysis),
        "baseline": method_name(analysis.baseline) if analysis.baseline else "",
        "results": tables.results_table(analysis),
        "metrics": tables.metrics_table(analysis),
        "protocol_figures": _protocol_figures(analysis, names),
        "differences": tables.differences_table(analysis),
        "difference_figure": difference and Block(difference, _difference_caption(analysis)),
        "paper_text": _paper_text(analysis),
        "paper_tables": [] if experiment.synthetic else _paper_tables(analysis),
        "delong": tables.delong_table(analysis),
        "roc_figures": _roc_figures(analysis, names),
        "confusion_figures": _confusion_figures(analysis),
        "pretraining_figure": curves
        and Block(curves, "Thin lines are seeds, thick lines their mean. k-NN looks at a labelled validation split."),
        "pretraining": tables.pretraining_jobs_table(study),
        "dataset_table": tables.datasets_table(study),
        "overlap": tables.overlap_table(study),
        "datasets": datasets,
        "missing": tables.missing_lines(study),
        "jobs": tables.downstream_jobs_table(study),
        "files": tables.files_table(study),
        "environment": tables.environment_table(study),
        "settings": yaml.safe_dump(dict(experiment.config), sort_keys=False, allow_unicode=True),
        "licences": _licences(study),
        "references": REFERENCES,
        "total_time": _duration(
            sum(
                seconds
                for r in (*(r.record for r in results), *(p.record for p in study.pretraining))
                if math.isfinite(seconds := r.timings.get("seconds", 0.0))
            )
        ),
    }
    blocks = [
        sections["difference_figure"],
        *sections["protocol_figures"],
        *sections["roc_figures"],
        *sections["confusion_figures"],
        sections["pretraining_figure"],
        *(d.histogram for d in datasets),
    ]
    sections["figures"] = [b.figure for b in blocks if b]
    return sections


def lead(analysis: Analysis) -> list[str]:
    """The findings in a few sentences for people who read nothing else."""
    study = analysis.study
    lines = []
    main = list(analysis.against_baseline.values())
    baseline = method_name(analysis.baseline) if analysis.baseline else ""
    if not study.cells:
        lines.append("No downstream job has finished yet, so there is nothing to compare.")
    elif not main:
        lines.append("There is no pair of a method and a control (random or ImageNet start) to compare yet.")
    else:
        count: Counter[str] = Counter(c.verdict for c in main)
        told = [f"{count['better']} are better", f"{count['worse']} worse", f"{count['unsettled']} not settled"]
        said = [text for text, verdict in zip(told, ("better", "worse", "unsettled"), strict=True) if count[verdict]]
        undecided = count["none"] + count["unknown"]
        if undecided:
            said.append(f"{'and ' if said else ''}in {undecided} no difference can be told")
        start = f"{len(main)} comparison{'s' if len(main) > 1 else ''} with the {baseline} start"
        lines.append(f"Of {start}, {', '.join(said)}.")
        settled = sorted((c for c in main if c.verdict in ("better", "worse")), key=lambda c: c.difference)
        if settled and settled[-1].verdict == "better":
            lines.append(f"Largest gain. {tables.sentence(study, settled[-1])}")
        if settled and settled[0].verdict == "worse":
            lines.append(f"Largest loss. {tables.sentence(study, settled[0])}")
    lines += [
        f"Beware. {sentence} What BYOL and BYOL+ gain there is no evidence for images that they have not seen."
        for sentence in study.overlaps.values()
    ]
    if study.missing:
        things = "1 thing is" if len(study.missing) == 1 else f"{len(study.missing)} things are"
        lines.append(f"{things} missing: see “Missing”.")
    if study.experiment.synthetic:
        lines.append("These are phantom images: the figures say nothing about medicine.")
    return lines


def _cards(analysis: Analysis) -> list[Card]:
    study = analysis.study
    cards = []
    for dataset in study.datasets:
        findings = []
        for protocol in study.protocols(dataset):
            chips = tuple(
                (
                    c.verdict,
                    f"{MARKS[c.verdict]} {method_name(c.method)} {tables.signed(c.difference)}",
                    tables.sentence(study, c),
                )
                for c in analysis.against_baseline.values()
                if (c.dataset, c.protocol) == (dataset, protocol)
            )
            if chips:
                findings.append(Finding(PROTOCOLS.get(protocol, protocol), chips))
        if findings:
            cards.append(Card(study.title(dataset), tuple(findings)))
    return cards


def _protocol_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    study = analysis.study
    figures = []
    for dataset in study.datasets:
        figure = plots.protocol_comparison(
            dataset,
            study.title(dataset),
            study.protocols(dataset),
            study.methods,
            lambda p, m, metric, d=dataset: analysis.metric((d, p, m), metric),  # type: ignore[misc]
            lambda p, m, metric, d=dataset: tables.printed(study, (d, p, m), metric),  # type: ignore[misc]
            tables.reference(study, dataset),
            names,
        )
        if figure:
            caption = "Mean and 95 % t-interval over seeds."
            if paper_name(dataset) and not study.experiment.synthetic:
                caption += " Hollow: the paper's single run; its “AUC” stands on the scale that it was computed on."
            if "MedMNIST" in figure.svg:
                caption += " Dashed: MedMNIST v2's ResNet-18, trained on all labels."
            figures.append(Block(figure, f"{study.title(dataset)}. {caption}"))
    return figures


def _difference_caption(analysis: Analysis) -> str:
    baseline = method_name(analysis.baseline or "")
    return (
        f"Difference in test AUROC from {baseline}. Broad band: 95 % over test images (paired bootstrap). Thin line: "
        "95 % over seeds (paired t; an arrow where it runs out of the picture). Filled marker: both exclude zero."
    )


def _roc_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    study = analysis.study
    figures = []
    for dataset, labels in study.test_labels.items():
        figure = plots.roc_curves(
            dataset,
            study.title(dataset),
            labels,
            study.protocols(dataset),
            study.methods,
            lambda p, m, d=dataset: analysis.results(d, p, m),  # type: ignore[misc]
            names,
        )
        if figure:
            task = study.experiment.data[dataset].task
            kind = "" if task == "binary-class" else " Macro average of one class against the rest."
            caption = f"{study.title(dataset)}. Thin lines are seeds, thick lines their mean.{kind}"
            figures.append(Block(figure, f"{caption} Few-shot shows the saved model of each seed."))
    return figures


def _confusion_figures(analysis: Analysis) -> list[Block]:
    study = analysis.study
    figures = []
    for dataset in study.datasets:
        info = study.experiment.data.get(dataset)
        if info is None:
            continue
        labels = [info.labels[k] for k in sorted(info.labels, key=int)]
        panels = []
        rows = [PROTOCOLS.get(p, p) for p in study.protocols(dataset)]
        printed = published()["confusion"].get(paper_name(dataset)) if not study.experiment.synthetic else None
        for protocol, row in zip(study.protocols(dataset), rows, strict=True):
            for method in study.methods:
                counts = analysis.confusion((dataset, protocol, method))
                if counts is not None and len(counts) == len(labels):
                    panels.append((row, method_name(method), counts))
            if protocol == "finetune" and printed and panels:
                panels.append((row, "the paper's BYOL+", np.array(printed["matrix"], dtype=np.float64)))
        figure = plots.confusion_matrices(dataset, study.title(dataset), labels, panels, rows)
        if figure:
            caption = (
                f"{study.title(dataset)}. Rows: truth; columns: prediction. Mean count over seeds; "
                "shade: share of the true class. Few-shot: the saved model."
            )
            if len(labels) > 3:
                caption += " " + ", ".join(f"{i} {label}" for i, label in enumerate(labels)) + "."
            if printed and "note" in printed:
                caption += f" The paper's matrix: {printed['note']}"
            figures.append(Block(figure, caption))
    return figures


def _dataset_block(study: Study, name: str) -> DatasetBlock:
    info = study.experiment.data[name]
    picture = study.samples.get(name)
    histogram = plots.class_histogram(name, info)
    return DatasetBlock(
        info.title,
        info.licence,
        "data:image/png;base64," + base64.b64encode(picture).decode() if picture else None,
        Block(histogram, "") if histogram else None,
    )


def _paper_text(analysis: Analysis) -> str:
    study = analysis.study
    paper = published()["paper"]
    if not any(paper_name(d) for d in study.datasets):
        return f"None of this run's datasets is in the paper ({paper['short']})."
    if study.experiment.synthetic:
        return "This run drew phantoms: its figures and the paper's are of different images and cannot be compared."
    pre = paper["pretraining"]
    text = (
        f"{paper['author']}, “{paper['title']}”, {paper['year']}: one unseeded run for each figure; "
        f"pretraining from {pre['initial_weights']} weights on {pre['images']:,} images for {pre['epochs']:,} epochs."
    )
    inside, beside = tables.inside_of_paper(analysis)
    if beside:
        text += f" Of {beside} of its figures that stand beside ours, {inside} lie within our 95 % interval over seeds."
    return text


def _paper_tables(analysis: Analysis) -> list[Table]:
    return [t for t in (tables.figure5_table(analysis), tables.figure6_table(analysis)) if t.rows]


def _licences(study: Study) -> list[str]:
    lines = [f"{info.title}: {info.licence}" for info in study.experiment.data.values()]
    if any("NC" in info.licence for info in study.experiment.data.values()):
        lines.append("NC: models trained on these images inherit the limit to non-commercial use.")
    return lines


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{seconds:.0f} s"
        if minutes < 3
        else (f"{minutes} min")
    )


# --- the forms --------------------------------------------------------------------------------------


def render_html(context: Mapping[str, Any]) -> str:
    """Render the page; everything but our own figures is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("app.report").joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(source).render(**context) + "\n"


def render_markdown(context: Mapping[str, Any]) -> str:
    """Render the same content for readers of text: tables as Markdown, figures as links."""
    escape = tables.escape
    out = [f"# {context['title']}", ""]
    out += [f"Run `{context['run_id']}` · preset `{context['preset']}` · {context['date']} · {context['progress']}", ""]
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
                out.append(tables.markdown(part))
            elif isinstance(part, Block):
                alt, caption = escape(part.figure.alt), escape(part.caption)
                out.extend([f"![{alt}](figures/{part.figure.name}.svg)", "", f"*{caption}*" if caption else "", ""])
            else:
                out.extend([part, ""])

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
    section("Settings", f"```yaml\n{context['settings']}```")
    section("Licences and references", _list((*context["licences"], *context["references"])))
    return "\n".join(out).rstrip() + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {tables.escape(line)}" for line in lines)


def table_text(analysis: Analysis, context: Mapping[str, Any]) -> str:
    """The AUROC table for a terminal, with the marks explained and the findings below."""
    parts = [f"{context['synthetic']}\n"] if context["synthetic"] else []
    table: Table = context["results"]
    if table.rows:
        parts += [tables.plain(table), table.notes[0], ""]
    parts += context["lead"]
    return "\n".join(parts) + "\n"
