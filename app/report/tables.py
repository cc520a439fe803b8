"""The report's tables as plain data, and their Markdown, text and CSV forms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

import yaml

from app.jobs import keys
from app.jobs.records import DatasetInfo
from app.report.collect import CellKey, Missing, Study
from app.report.compare import METRICS, Analysis, Comparison
from app.science.statistics import Interval

PROTOCOLS = {
    "finetune": "Fine-tune",
    "linear_probe": "Linear probe",
    "few_shot": "Few-shot",
    "few_shot_frozen": "Few-shot (frozen)",
}
METHODS = {"random": "Random", "imagenet": "ImageNet", "byol": "BYOL", "byol_plus": "BYOL+"}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
}
READINGS = {
    "better": "better",
    "worse": "worse",
    "unsettled": "not settled",
    "none": "not told apart",
    "unknown": "no interval",
}
VERDICTS = {
    "better": "an improvement",
    "worse": "worse",
    "unsettled": "not settled: only one of the two intervals excludes zero",
    "none": "no difference can be told",
    "unknown": "nothing can be said without an interval",
}
MARKS = {"better": "▲", "worse": "▼", "unsettled": "◇", "none": "=", "unknown": "?"}
CSV_COLUMNS = (
    *("kind", "dataset", "protocol", "method", "baseline", "metric", "interval"),
    *("n", "estimate", "low", "high", "paper", "synthetic"),
)
NOT_DONE = "—"
MINUS = "\N{MINUS SIGN}"


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


@cache
def published() -> Mapping[str, Any]:
    """Published numbers: the content of ``paper_results.yaml``."""
    text = resources.files("app.report").joinpath("paper_results.yaml").read_text("utf-8")
    loaded: Mapping[str, Any] = yaml.safe_load(text)
    return loaded


def paper_name(dataset: str) -> str | None:
    """Name under which the paper knows a dataset: itself, or the part before its first underscore."""
    figure5 = published()["figure5"]
    return next((name for name in (dataset, dataset.split("_")[0]) if name in figure5), None)


def method_name(method: str) -> str:
    """Display name of a method."""
    if method.startswith("ckpt-"):
        return f"Checkpoint {method.removeprefix('ckpt-')[:8]}"
    return METHODS.get(method, method)


def names(study: Study) -> dict[str, str]:
    """Display names of every method and protocol of a study."""
    methods = {*study.methods, *(run.record.method for run in study.pretraining), *METHODS}
    protocols = {p for d in study.datasets for p in study.protocols(d)}
    return {m: method_name(m) for m in methods} | {p: PROTOCOLS.get(p, p) for p in protocols} | PROTOCOLS


# --- numbers as text --------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals; "n/a" for None and NaN."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Three decimals with a sign (a real minus); "n/a" for NaN."""
    return "n/a" if not math.isfinite(value) else f"{value:+.3f}".replace("-", MINUS)


def mean_and_half_width(interval: Interval) -> str:
    """``0.917 ± 0.012``; the mean alone where there is no interval."""
    return f"{number(interval.mean)} ± {number(interval.half_width)}" if interval.known else number(interval.mean)


def span(interval: Interval | None) -> str:
    """Both ends with their signs; a dash where there is no interval."""
    known = interval is not None and interval.known
    return f"{signed(interval.low)} to {signed(interval.high)}" if known and interval else NOT_DONE


# --- results ----------------------------------------------------------------------------------------


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
            if not study.experiment.synthetic:
                known = reference(study, dataset) if protocol == "finetune" else {}
                cells.append(Cell(number(known["auroc"]), "paper") if known else Cell(""))
            mark = " †" if dataset in study.overlaps else ""
            rows.append(Row(study.title(dataset) + mark, PROTOCOLS.get(protocol, protocol), tuple(cells)))
    columns = [Column(method_name(m)) for m in study.methods]
    notes = ["Few-shot values are means over the draws of each seed, then over seeds."]
    if not study.experiment.synthetic:
        columns.append(Column("MedMNIST v2"))
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
    )


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
            f"{study.title(dataset)} · {PROTOCOLS.get(protocol, protocol)}",
            method_name(method),
            tuple(Cell(mean_and_half_width(analysis.metric((dataset, protocol, method), name))) for name in METRICS),
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
        tuple(Column(METRIC_NAMES[name]) for name in METRICS),
        tuple(rows),
        ("Precision, recall and F1 are macro averages.",),
    )


def differences_table(analysis: Analysis) -> Table:
    """Paired differences in AUROC with both intervals and what they allow to say."""
    study = analysis.study
    rows = [
        Row(
            study.title(c.dataset),
            f"{PROTOCOLS.get(c.protocol, c.protocol)}: {method_name(c.method)} {MINUS} {method_name(c.baseline)}",
            (
                Cell(signed(c.difference), c.verdict),
                Cell(span(c.seeds), note=f"n = {c.seeds.n}"),
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
            Column("95 % over seeds"),
            Column("95 % over test images"),
            Column("Reading", text=True),
        ),
        tuple(rows),
        tuple(notes),
    )


def reading(c: Comparison) -> str:
    """What a comparison allows to say, in words."""
    if c.verdict == "unsettled" and not c.seeds.known:
        return "not settled: one seed cannot say how another would end"
    return VERDICTS[c.verdict]


def sentence(study: Study, c: Comparison) -> str:
    """A comparison as a sentence for people."""
    intervals = []
    if c.images is not None and c.images.known:
        intervals.append(f"95 % interval over test images {span(c.images)}")
    if c.seeds.known:
        intervals.append(f"over {c.seeds.n} seeds {span(c.seeds)}")
    return (
        f"On {study.title(c.dataset)}, {PROTOCOLS.get(c.protocol, c.protocol).lower()}: "
        f"{method_name(c.method)} {MINUS} {method_name(c.baseline)} = {signed(c.difference)} AUROC"
        f"{' (' + '; '.join(intervals) + ')' if intervals else ''}: {reading(c)}."
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
                    heading = f"{study.title(dataset)} · {PROTOCOLS.get(protocol, protocol)}"
                    rows.append(Row(heading, method_name(method), cells))
    return Table(
        "delong",
        "AUROC of each saved model on its test set, with DeLong's 95 % interval (binary tasks)",
        ("Dataset", "Method"),
        tuple(Column(f"seed {seed}") for seed in seeds),
        tuple(rows),
        ("Few-shot: the saved model is the draw with the best validation AUROC, not the mean of the draws.",),
    )


# --- beside the paper -------------------------------------------------------------------------------


def auc_metric(dataset: str) -> str:
    """Our metric that stands beside the paper's "AUC" on a dataset of the paper."""
    return str(published()["datasets"][paper_name(dataset)]["auc_is"])


def paper_value(dataset: str, protocol: str, method: str, metric: str) -> float | None:
    """The paper's number beside our metric; Fig. 5 where it has one, else Fig. 6; None if the paper has none."""
    name = paper_name(dataset)
    if name is None:
        return None
    data, key = published(), metric
    if metric in ("auroc", "balanced_accuracy"):
        if metric != auc_metric(dataset):
            return None
        key = "auc"
    found = data["figure5"][name].get(method, {}).get(key) if protocol == "finetune" else None
    if found is None:
        found = data["figure6"][name].get(method, {}).get(protocol, {}).get(key)
    return None if found is None else float(found)


def printed(study: Study, key: CellKey, metric: str) -> float | None:
    """``paper_value``, but None for a run on phantoms: they have nothing to do with the paper's images."""
    return None if study.experiment.synthetic else paper_value(*key, metric)


def reference(study: Study, dataset: str) -> Mapping[str, float]:
    """MedMNIST v2's numbers (``auroc``, ``accuracy``) for a dataset at 28 pixels; empty where they do not apply."""
    info = study.experiment.data.get(dataset)
    if study.experiment.synthetic or info is None or info.size != 28:
        return {}
    numbers: Mapping[str, Mapping[str, float]] = published()["medmnist"]["resnet18_28"]
    return numbers.get(paper_name(dataset) or dataset, {})


def _beside(analysis: Analysis, key: CellKey, metric: str, printed: float | None) -> tuple[Cell, Cell]:
    ours = analysis.metric(key, metric)
    left = Cell(mean_and_half_width(ours)) if ours.n else Cell(NOT_DONE, "missing")
    return left, Cell(number(printed, 2) if printed is not None else NOT_DONE, "paper")


def _paper_notes(datasets: Sequence[str]) -> tuple[str, ...]:
    notes = published()["paper"]["notes"]
    metrics = {auc_metric(d) for d in datasets}
    return (
        *((f"¹ “AUC” in the paper. {notes['binary_auc']}",) if "balanced_accuracy" in metrics else ()),
        *((f"² “AUC” in the paper. {notes['multiclass_auc']}",) if "auroc" in metrics else ()),
        notes["disagreement"],
    )


def _auc_row(dataset: str) -> str:
    return "Balanced accuracy ¹" if auc_metric(dataset) == "balanced_accuracy" else "AUROC ²"


def figure5_table(analysis: Analysis) -> Table:
    """Fine-tuned models: our means beside the paper's Fig. 5."""
    study = analysis.study
    datasets = [d for d in study.datasets if paper_name(d) and "finetune" in study.protocols(d)]
    extra = [m for m in study.methods if m not in ("imagenet", "byol", "byol_plus")]
    methods = ("imagenet", "byol", "byol_plus")
    shown = [m for m in methods if m != "imagenet" or m in study.methods]
    rows = []
    for dataset in datasets:
        name = paper_name(dataset)
        metrics = ["accuracy", "precision", "recall", "f1", auc_metric(dataset)]
        for metric in (*metrics, *(m for m in ("auroc",) if m not in metrics)):
            cells: list[Cell] = []
            for method in extra:
                cells.append(_beside(analysis, (dataset, "finetune", method), metric, None)[0])
            for method in methods:
                key = "auc" if metric == metrics[-1] else metric
                printed = published()["figure5"][name].get(method, {}).get(key)
                both = _beside(analysis, (dataset, "finetune", method), metric, printed)
                cells.extend(both if method in shown else both[1:])
            head = _auc_row(dataset) if metric == metrics[-1] else METRIC_NAMES[metric]
            rows.append(Row(study.title(dataset), head, tuple(cells)))
    columns = [Column("ours", method_name(m)) for m in extra]
    for method in methods:
        group = "Base" if method == "imagenet" and method not in shown else method_name(method)
        columns += [Column(side, group) for side in ("ours", "paper")][0 if method in shown else 1 :]
    return Table(
        "figure-5",
        "Fine-tuned models beside the paper's Fig. 5",
        ("Dataset", "Metric"),
        tuple(columns),
        tuple(rows),
        (published()["paper"]["notes"]["base"], *_paper_notes(datasets)),
    )


def figure6_table(analysis: Analysis) -> Table:
    """The protocols: our means beside the paper's Fig. 6."""
    study = analysis.study
    methods, protocols = ("byol", "byol_plus"), ("finetune", "linear_probe", "few_shot")
    rows, datasets = [], []
    for dataset in study.datasets:
        name = paper_name(dataset)
        if name is None:
            continue
        datasets.append(dataset)
        for protocol in (p for p in protocols if p in study.protocols(dataset)):
            for metric in ("accuracy", auc_metric(dataset)):
                cells: list[Cell] = []
                for method in methods:
                    printed = published()["figure6"][name][method][protocol]
                    value = printed["accuracy" if metric == "accuracy" else "auc"]
                    cells.extend(_beside(analysis, (dataset, protocol, method), metric, value))
                head = METRIC_NAMES[metric] if metric == "accuracy" else _auc_row(dataset)
                rows.append(Row(f"{study.title(dataset)} · {PROTOCOLS[protocol]}", head, tuple(cells)))
    columns = tuple(Column(side, method_name(m)) for m in methods for side in ("ours", "paper"))
    return Table(
        "figure-6",
        "The protocols beside the paper's Fig. 6",
        ("Dataset and protocol", "Metric"),
        columns,
        tuple(rows),
        _paper_notes(datasets),
    )


# --- data, jobs, surroundings -----------------------------------------------------------------------


def datasets_table(study: Study) -> Table:
    """The paper's Table 1 and Fig. 7 for the data of this run; a set with both roles has a row in each."""
    rows = []
    for name, info in study.experiment.data.items():
        if info.role != "downstream":
            rows.append(_dataset_row("Pretrain", name, info, info.unlabelled or info.splits))
        if info.role != "pretrain":
            rows.append(_dataset_row("Downstream", name, info, info.splits))
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
        "Datasets (the paper's Table 1 and Fig. 7)",
        ("Role", "Dataset"),
        tuple(Column(label, text=text) for label, text in labels),
        tuple(sorted(rows, key=lambda row: row.group == "Downstream")),
    )


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
    return Table("files", "Origin of the data", ("", "Dataset"), columns, tuple(rows))


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
        for key in _cell_order(study)
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


def _cell_order(study: Study) -> list[CellKey]:
    return [
        (d, p, m) for d in study.datasets for p in study.protocols(d) for m in study.methods if (d, p, m) in study.cells
    ]


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
        cell = f"{study.title(job.dataset)} · {PROTOCOLS.get(job.protocol, job.protocol)} · {method_name(job.method)}"
        return cell, f"s{job.seed}"
    if item.kind == "pretrain" and (pretraining := keys.Pretraining.parse(item.key)):
        return f"Pretraining · {method_name(pretraining.method)}", f"s{pretraining.seed}"
    return item.key, ""


# --- other forms ------------------------------------------------------------------------------------


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

    for key in _cell_order(study):
        for metric in METRICS:
            line("mean", key, "", metric, "seeds", analysis.metric(key, metric), printed(study, key, metric))
    for c in analysis.comparisons:
        key = (c.dataset, c.protocol, c.method)
        line("difference", key, c.baseline, "auroc", "seeds", c.seeds, None)
        if c.images is not None:
            line("difference", key, c.baseline, "auroc", "test images", c.images, None)
    return buffer.getvalue()


def inside_of_paper(analysis: Analysis) -> tuple[int, int]:
    """How many of the paper's numbers that stand beside ours lie in our interval over seeds, and how many there are."""
    inside = beside = 0
    for key in _cell_order(analysis.study):
        for metric in METRICS:
            printed, ours = paper_value(*key, metric), analysis.metric(key, metric)
            if printed is not None and ours.known:
                beside += 1
                inside += ours.low - 0.005 <= printed <= ours.high + 0.005  # printed with two decimals
    return inside, beside
