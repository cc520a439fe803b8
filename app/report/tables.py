"""The report's tables as plain data, and their Markdown, text and CSV forms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

from app.jobs import keys
from app.jobs.records import DatasetInfo
from app.report.collect import CellKey, Missing, Study
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
    protocol_name,
    signed,
    span,
)
from app.report.paper import printed, published, reference
from app.report.table import Cell, Column, Row, Table
from app.science.statistics import Interval

MEDMNIST = "MedMNIST v2"  # the column of its published numbers


def _done_of(analysis: Analysis, key: CellKey) -> str:
    done, planned = len(analysis.results(*key)), len(analysis.study.planned.get(key, ()))
    return f"{done} of {planned}" if done < planned else ""


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
                cells[best] = Cell(cells[best].text, "better best", cells[best].note)
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
            f"▲ better, ▼ worse than {baseline}: both 95 % intervals of the paired difference exclude zero. "
            "◇ one of them does. Bold: the highest mean among the ▲ of a row.",
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
    return Cell(mark + mean_and_half_width(interval), verdict, f"{note} seeds" if note else "")


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
    """Paired differences in AUROC with both intervals and what they allow to say."""
    study, ns = analysis.study, {c.seeds.n for c in analysis.comparisons}
    rows = [
        Row(
            study.title(c.dataset),
            f"{protocol_name(c.protocol)}: {method_name(c.method)} {MINUS} {method_name(c.baseline)}",
            (
                Cell(signed(c.difference), c.verdict),
                Cell(span(c.seeds), note="" if len(ns) == 1 else f"n = {c.seeds.n}"),
                Cell(span(c.images)),
                Cell(f"{MARKS[c.verdict]} {READINGS[c.verdict]}", c.verdict),
            ),
        )
        for c in analysis.comparisons
    ]
    told = len([c for c in analysis.comparisons if c.verdict != "unknown"])
    notes = [
        "Over seeds: would training again give the same? Paired t-interval. "
        "Over test images: would another test set give the same? Paired bootstrap "
        f"({analysis.resamples:,} resamples within classes), trained models held fixed.",
        "Better or worse: both intervals exclude zero, on the same side. Not settled: exactly one does "
        "(a single seed can reach no more). Not told apart: neither does.",
    ]
    if told > 1:
        notes.append(
            f"The intervals are not adjusted for the number of comparisons: if all {told} differences were zero, "
            f"about {told * 0.05:.1f} intervals of each kind would still exclude zero."
        )
    return Table(
        "differences",
        "Paired differences in test AUROC",
        ("Dataset", "Comparison"),
        (
            Column("Difference"),
            Column(f"95 % over {min(ns)} seeds" if len(ns) == 1 and min(ns) > 1 else "95 % over seeds"),
            Column("95 % over test images"),
            Column("Reading", text=True),
        ),
        tuple(rows),
        tuple(notes),
    )


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
                    rows.append(Row(heading, method_name(method), cells))
    return Table(
        "delong",
        "AUROC of each saved model on its test set, with DeLong's 95 % interval (binary tasks)",
        ("Dataset", "Method"),
        tuple(Column(f"seed {seed}") for seed in seeds),
        tuple(rows),
        ("Few-shot: the saved model is the draw with the best validation AUROC, not the mean of the draws.",),
    )


def datasets_table(study: Study) -> Table:
    """The paper's Table 1 and Fig. 7 for the data of this run; a set with both roles has a row in each."""
    rows = []
    for name, info in study.experiment.data.items():
        if info.role != "downstream":
            rows.append(_dataset_row("Pretrain", name, info, info.unlabelled or info.splits))
        if info.role != "pretrain":
            rows.append(_dataset_row("Downstream", name, info, info.splits))
    compared = any(name.split("_")[0] in published()["datasets"] for name in study.experiment.data)
    labels = (
        ("Modality and task", True),
        ("Classes", False),
        ("Train / val / test", False),
        ("The paper's", False),
        ("Shape", False),
        ("Licence", True),
    )
    return Table(
        "datasets",
        "Datasets" + (" (the paper's Table 1 and Fig. 7)" if compared else ""),
        ("Role", "Dataset"),
        tuple(Column(label, text=text) for label, text in labels),
        tuple(sorted(rows, key=lambda row: row.group == "Downstream")),
    ).without_blank("The paper's")


def _dataset_row(role: str, name: str, info: DatasetInfo, images: Mapping[str, int]) -> Row:
    known = published()["datasets"].get(name.split("_")[0], {})
    labelled = role == "Downstream"
    splits = " / ".join(f"{images[s]:,}" for s in ("train", "val", "test") if s in images) if labelled else ""
    which = " of train" if "train" in images else ""
    printed = " / ".join(f"{n:,}" for n in known.get("splits", ())) or (
        f"{known['images']:,}" if "images" in known else NOT_DONE
    )
    texts = (
        ", ".join(t for t in (info.modality, info.task if labelled else "") if t) or NOT_DONE,
        str(len(info.labels)) if labelled else NOT_DONE,
        splits or f"{sum(images.values()):,} unlabelled{which}",
        printed,
        f"{info.channels}×{info.size}×{info.size}",
        info.licence,
    )
    return Row(role, info.title, tuple(Cell(t) for t in texts))


def overlap_table(study: Study) -> Table:
    """How many images of each test split are pretrained on; no rows if that was not looked at."""
    overlap = study.experiment.overlap
    rows = [
        Row(
            "",
            study.title(name),
            (
                Cell(f"{counts.images:,}"),
                Cell(f"{counts.shared:,}", "worse" if counts.shared else ""),
                Cell(f"{counts.shared / counts.images:.1%}", "worse" if counts.shared else ""),
            ),
        )
        for name, counts in (overlap.test.items() if overlap else ())
    ]
    caption = "Test images that are among the images of pretraining"
    if overlap:
        caption += f" ({study.title(overlap.pretraining)}, {overlap.images:,} images)"
    return Table(
        "overlap",
        caption,
        ("", "Dataset"),
        (Column("Test images"), Column("Pretrained on"), Column("Share")),
        tuple(rows),
        ("Equal pixels, by a hash of each image. What was cropped, scaled or compressed otherwise is not found.",),
    )


def files_table(study: Study) -> Table:
    """Where each dataset came from (origin and patients: the paper's Fig. 7) and its checksum."""
    paper = published()["datasets"]
    rows = []
    for name, info in study.experiment.data.items():
        known = paper.get(name.split("_")[0], {})
        origin = "; ".join(known[k] for k in ("origin", "population") if k in known)
        rows.append(Row("", info.title, tuple(Cell(t or NOT_DONE) for t in (origin, info.source, info.sha256))))
    columns = tuple(Column(label, text=True) for label in ("Origin and patients", "Source", "SHA-256"))
    table = Table("files", "Origin of the data", ("", "Dataset"), columns, tuple(rows))
    return table.without_blank("Origin and patients")


def downstream_jobs_table(study: Study) -> Table:
    """One row for each finished downstream job."""
    rows = [
        Row(
            "",
            r.record.key,
            (
                Cell(str(r.record.seed)),
                Cell(str(r.record.best_epoch) if r.record.best_epoch is not None else NOT_DONE),
                Cell(number(r.record.validation.get("auroc"))),
                Cell(number(r.record.metrics.get("auroc"))),
                Cell(number(r.record.metrics.get("balanced_accuracy"))),
                Cell(number(r.record.metrics.get("accuracy"))),
                Cell(number(r.record.draw_overlap) if r.record.draw_overlap is not None else NOT_DONE),
                Cell(number(r.record.timings.get("seconds"), 1)),
            ),
        )
        for key in study.finished_cells
        for r in study.cells[key]
    ]
    labels = ("Seed", "Best epoch", "Val. AUROC", "AUROC", "Balanced acc.", "Accuracy", "Draw overlap", "Seconds")
    return Table(
        "downstream-jobs",
        "Downstream jobs",
        ("", "Job"),
        tuple(Column(label) for label in labels),
        tuple(rows),
        ("Draw overlap: mean Jaccard index of the training images of two few-shot draws.",),
    )


def pretraining_jobs_table(study: Study) -> Table:
    """One row for each finished pretraining job."""
    quantities = {
        "loss": "Loss",
        "target_std": "Target std",
        "rank_me": "RankMe",
        "knn_accuracy": "k-NN accuracy",
        "knn_auroc": "k-NN AUROC",
    }
    rows = [
        Row(
            "",
            run.record.key,
            (
                Cell(f"{run.record.epochs:g}"),
                Cell(f"{run.record.steps:,}"),
                *(Cell(number(run.record.metrics.get(q), 1 if q == "rank_me" else 3)) for q in quantities),
                Cell(number(run.record.timings.get("images_per_second"), 0)),
                Cell(number(run.record.timings.get("seconds"), 0)),
            ),
        )
        for run in study.pretraining
    ]
    labels = ("Epochs", "Steps", *quantities.values(), "Images/s", "Seconds")
    return Table(
        "pretraining-jobs",
        "Pretraining jobs",
        ("", "Job"),
        tuple(Column(label) for label in labels),
        tuple(rows),
    )


def environment_table(study: Study) -> Table:
    """Where the jobs ran: each item with its different values over all records."""
    records = [run.record for run in study.pretraining]
    environments = [r.environment for r in records]
    environments += [r.record.environment for results in study.cells.values() for r in results]
    items = dict.fromkeys(name for environment in environments for name in environment)
    rows = []
    for item in items:
        values = dict.fromkeys(str(e[item]) for e in environments if item in e)
        rows.append(Row("", item.replace("_", " "), (Cell(", ".join(values)),)))
    return Table("environment", "Environment of the jobs", ("", "Item"), (Column("Value", text=True),), tuple(rows))


def missing_lines(study: Study) -> list[str]:
    """What is missing, with the seeds of a cell on one line."""
    lines: dict[str, list[str]] = {}
    for item in study.missing:
        what, seed = _describe(study, item)
        lines.setdefault(f"{what}|{item.reason}", []).append(seed)
    out = []
    for key, seeds in lines.items():
        what, reason = key.split("|", 1)
        out.append(f"{what}{' (' + ', '.join(s for s in seeds if s) + ')' if any(seeds) else ''}: {reason}")
    return out


def _describe(study: Study, item: Missing) -> tuple[str, str]:
    if item.kind == "downstream" and (job := keys.Downstream.parse(item.key)):
        cell = f"{study.title(job.dataset)} · {protocol_name(job.protocol)} · {method_name(job.method)}"
        return cell, f"s{job.seed}"
    if item.kind == "pretrain" and (pretraining := keys.Pretraining.parse(item.key)):
        return f"Pretraining · {method_name(pretraining.method)}", f"s{pretraining.seed}"
    return item.key, ""


def csv_text(analysis: Analysis) -> str:
    """Return all numbers in long form: one line for each cell and metric, and one for each comparison and interval.

    Columns: kind (``mean`` or ``difference``), dataset, protocol, method, baseline, metric, interval
    (``seeds`` or ``test images``), n (of that interval), estimate, low, high, paper, synthetic.  Unknown
    values are empty.
    """
    study = analysis.study
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "kind",
            "dataset",
            "protocol",
            "method",
            "baseline",
            "metric",
            "interval",
            "n",
            "estimate",
            "low",
            "high",
            "paper",
            "synthetic",
        ]
    )

    def line(kind: str, key: CellKey, baseline: str, metric: str, over: str, i: Interval, paper: float | None) -> None:
        values = ("" if v is None or not math.isfinite(v) else f"{v:.6f}" for v in (i.mean, i.low, i.high))
        printed = "" if paper is None else f"{paper:g}"
        synthetic = str(study.experiment.synthetic).lower()
        writer.writerow([kind, *key, baseline, metric, over, i.n, *values, printed, synthetic])

    for key in study.finished_cells:
        for metric in METRIC_NAMES:
            line("mean", key, "", metric, "seeds", analysis.metric(key, metric), printed(study, key, metric))
    for c in analysis.comparisons:
        key = (c.dataset, c.protocol, c.method)
        line("difference", key, c.baseline, "auroc", "seeds", c.seeds, None)
        if c.images is not None:
            line("difference", key, c.baseline, "auroc", "test images", c.images, None)
    return buffer.getvalue()
