"""Tables of results, as plain data, and all numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

from app.report.collect import CellKey, Study
from app.report.compare import Analysis
from app.report.names import (
    MARKS,
    METRIC_NAMES,
    MINUS,
    NOT_DONE,
    READINGS,
    mean_and_half_width,
    method_name,
    number,
    p_value,
    protocol_name,
    signed,
    span,
)
from app.report.paper import printed, published, reference
from app.report.sources import sources
from app.report.table import Cell, Column, Row, Source, Table
from app.science.statistics import Interval

MEDMNIST = "MedMNIST v2"  # the column of its published numbers


def _done_of(analysis: Analysis, key: CellKey) -> str:
    planned = set(analysis.study.planned.get(key, ()))
    done = {result.record.seed for result in analysis.results(*key)} & planned
    return f"{len(done)} of {len(planned)}" if done < planned else ""


def results_table(analysis: Analysis) -> Table:
    """Mean test AUROC with its t-interval: rows dataset and protocol, columns methods."""
    study = analysis.study
    rows = []
    for dataset in study.datasets:
        for protocol in study.protocols(dataset):
            cells = [_result_cell(analysis, (dataset, protocol, m)) for m in study.methods]
            better = [i for i, cell in enumerate(cells) if cell.tone == "better"]
            if better:
                best = max(better, key=lambda i: analysis.metric((dataset, protocol, study.methods[i]), "auroc").mean)
                cells[best] = replace(cells[best], tone="better best")
            known = reference(study, dataset) if protocol == "finetune" else {}
            cells.append(Cell(number(known["auroc"]), "paper") if known else Cell(""))
            mark = " †" if dataset in study.overlaps else ""
            rows.append(Row(study.title(dataset) + mark, protocol_name(protocol), tuple(cells)))
    columns = [*(Column(method_name(m)) for m in study.methods), Column(MEDMNIST)]
    notes = ["Few-shot values are means over the draws of each seed, then over seeds."]
    if any(reference(study, dataset) for dataset in study.datasets):
        notes.append(f"{published()['medmnist']['source']}; for orientation beside fine-tuning.")
    baseline = method_name(analysis.baseline) if analysis.baseline else "a control"
    notes += [f"† {sentence}" for sentence in study.overlaps.values()]
    return Table(
        "results",
        "Test AUROC: mean ± half-width of the 95 % t-interval over seeds",
        ("Dataset", "Protocol"),
        tuple(columns),
        tuple(rows),
        (
            f"▲ better, ▼ worse than {baseline}: the 95 % interval of the paired difference over seeds, draws and test "
            "images excludes zero, after Holm's correction too. ◇ before it alone. Bold: the highest mean among the ▲ "
            "of a row.",
            *notes,
        ),
    ).without_blank(MEDMNIST)


def _result_cell(analysis: Analysis, key: CellKey) -> Cell:
    interval = analysis.metric(key, "auroc")
    if interval.n == 0:
        return Cell("missing" if key in analysis.study.planned else NOT_DONE, "missing")
    note = _done_of(analysis, key)
    comparison = analysis.against_baseline.get(key)
    verdict = comparison.verdict if comparison else ""
    mark = MARKS[verdict] + " " if verdict in ("better", "worse", "unsettled") else ""
    return Cell(mark + mean_and_half_width(interval), verdict, f"{note} seeds" if note else "", _sources(analysis, key))


def _sources(analysis: Analysis, key: CellKey) -> tuple[Source, ...]:
    return sources(analysis.study.experiment.run_id, (result.record for result in analysis.results(*key)))


def metrics_table(analysis: Analysis) -> Table:
    """Every test metric of every cell."""
    study = analysis.study
    rows = [
        Row(
            f"{study.title(dataset)} · {protocol_name(protocol)}",
            method_name(method),
            tuple(
                Cell(mean_and_half_width(analysis.metric((dataset, protocol, method), name))) for name in METRIC_NAMES
            ),
            _sources(analysis, (dataset, protocol, method)),
        )
        for dataset in study.datasets
        for protocol in study.protocols(dataset)
        for method in study.methods
        if analysis.results(dataset, protocol, method)
    ]
    return Table(
        "metrics",
        "Every test metric: mean ± half-width of the 95 % t-interval over seeds",
        ("Dataset", "Method"),
        tuple(Column(METRIC_NAMES[name]) for name in METRIC_NAMES),
        tuple(rows),
        ("Precision, recall and F1 are macro averages.",),
    )


def differences_table(analysis: Analysis) -> Table:
    """Paired differences in AUROC with their intervals and what they allow to say."""
    study, ns = analysis.study, {c.seeds.n for c in analysis.comparisons}
    rows = [
        Row(
            study.title(c.dataset),
            f"{protocol_name(c.protocol)}: {method_name(c.method)} {MINUS} {method_name(c.baseline)}",
            (
                Cell(signed(c.difference), c.verdict),
                Cell(span(c.joint), note="" if len(ns) == 1 else f"n = {c.seeds.n}"),
                Cell(span(c.seeds)),
                Cell(span(c.images)),
                Cell(p_value(c.adjusted)),
                Cell(f"{MARKS[c.verdict]} {READINGS[c.verdict]}", c.verdict),
            ),
        )
        for c in analysis.comparisons
    ]
    tested = len([c for c in analysis.comparisons if not math.isnan(c.adjusted)])
    over = f"{min(ns)} seeds" if len(ns) == 1 and min(ns) > 1 else "seeds"
    return Table(
        "differences",
        "Paired differences in test AUROC",
        ("Dataset", "Comparison"),
        (
            Column("Difference"),
            Column("all together", "95 % interval"),
            Column(f"over {over}", "95 % interval"),
            Column("over images", "95 % interval"),
            Column("p (Holm)"),
            Column("Reading", text=True),
        ),
        tuple(rows),
        (
            "All together: would other seeds, few-shot draws and test images give the same? Mixed model of "
            "Obuchowski and Rockette, half-widths joined after Howe. Over seeds: would training again? Paired t, on "
            "these images. Over test images: would another test set, with these models? Paired bootstrap "
            f"({analysis.resamples:,} resamples within classes).",
            f"Better or worse: all together excludes zero, and p is below 0.05 after Holm's correction for {tested} "
            "comparisons. Not settled: it does before the correction alone, or there is one seed and the interval over "
            "test images does. Not told apart: zero is inside.",
            _patients_note(study),
        ),
    )


def _patients_note(study: Study) -> str:
    """Whose images count as one in intervals over test images."""
    alone = "Test images count as independent of each other: of several of one patient an interval would be too narrow"
    if not study.test_patients:
        return f"{alone}."
    known = ", ".join(study.title(name) for name in study.test_patients)
    rest = f" Elsewhere: {alone[0].lower()}{alone[1:]}." if len(study.test_patients) < len(study.test_labels) else ""
    return f"On {known} another test set has other patients, and images of one count together (Obuchowski 1997).{rest}"


def delong_table(analysis: Analysis) -> Table:
    """DeLong interval of each saved model's AUROC on its (binary) test set."""
    study = analysis.study
    seeds = sorted({r.record.seed for results in study.cells.values() for r in results})
    rows = []
    for dataset in study.datasets:
        for protocol in study.protocols(dataset):
            for method in study.methods:
                by_seed: dict[int, list[str]] = {}
                for result in analysis.results(dataset, protocol, method):
                    interval = analysis.delong(result)
                    if interval is not None:
                        text = f"{number(interval.mean)} [{number(interval.low)}, {number(interval.high)}]"
                        by_seed.setdefault(result.record.seed, []).append(text)
                if by_seed:
                    cells = tuple(Cell("; ".join(by_seed.get(seed, [NOT_DONE]))) for seed in seeds)
                    heading = f"{study.title(dataset)} · {protocol_name(protocol)}"
                    used = _sources(analysis, (dataset, protocol, method))
                    rows.append(Row(heading, method_name(method), cells, used))
    return Table(
        "delong",
        "AUROC of each saved model on its test set, with DeLong's 95 % interval (binary tasks)",
        ("Dataset", "Method"),
        tuple(Column(f"seed {seed}") for seed in seeds),
        tuple(rows),
        ("Few-shot: the saved model is the draw with the best validation AUROC, not the mean of the draws.",),
    )


def csv_text(analysis: Analysis) -> str:
    """Return all numbers in long form: one line for each cell and metric, and one for each comparison and interval.

    Columns: kind (``mean`` or ``difference``), dataset, protocol, method, baseline, metric, interval (``all``,
    ``seeds`` or ``test images``), n (of that interval), estimate, low, high, p (after Holm's correction), paper,
    synthetic.  Unknown values are empty.
    """
    study = analysis.study
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = ("estimate", "low", "high", "p")
    writer.writerow(
        ["kind", "dataset", "protocol", "method", "baseline", "metric", "interval", "n", *ends, "paper", "synthetic"]
    )

    def line(
        kind: str, key: CellKey, baseline: str, metric: str, over: str, i: Interval,
        paper: float | None = None, p: float = math.nan,
    ) -> None:  # fmt: skip
        values = ("" if not math.isfinite(v) else f"{v:.6f}" for v in (i.mean, i.low, i.high, p))
        printed = "" if paper is None else f"{paper:g}"
        synthetic = str(study.experiment.synthetic).lower()
        writer.writerow([kind, *key, baseline, metric, over, i.n, *values, printed, synthetic])

    for key in study.finished_cells:
        for metric in METRIC_NAMES:
            line("mean", key, "", metric, "seeds", analysis.metric(key, metric), printed(study, key, metric))
    for c in analysis.comparisons:
        key = (c.dataset, c.protocol, c.method)
        if c.joint is not None:
            line("difference", key, c.baseline, "auroc", "all", c.joint, p=c.adjusted)
        line("difference", key, c.baseline, "auroc", "seeds", c.seeds)
        if c.images is not None:
            line("difference", key, c.baseline, "auroc", "test images", c.images)
    return buffer.getvalue()
