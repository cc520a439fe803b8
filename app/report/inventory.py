"""Tables of what was run, as plain data: jobs, their data, where they ran, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from app.jobs import keys
from app.jobs.records import DatasetInfo, Record
from app.report.collect import Missing, Study
from app.report.names import NOT_DONE, method_name, number, protocol_name
from app.report.paper import published
from app.report.sources import sources
from app.report.table import Cell, Column, Row, Source, Table


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
                Cell(NOT_DONE if counts.near is None else f"{counts.near:,}", "worse" if counts.near else ""),
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
        (Column("Test images"), Column("Pretrained on"), Column("Share"), Column("Nearly so")),
        tuple(rows),
        (
            "Equal pixels, by a hash of each image. What was cropped, scaled or compressed otherwise is not found, but "
            "in own images, by a perceptual hash and the correlation of the pixels.",
        ),
    ).without_blank("Nearly so")


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
            _whole_job(study, r.record),
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


def _whole_job(study: Study, record: Record) -> tuple[Source, ...]:
    """A row that is one job: its name is the link."""
    return tuple(replace(source, name=source.job) for source in sources(study.experiment.run_id, [record]))


def pretraining_jobs_table(study: Study) -> Table:
    """One row for each finished pretraining job."""
    quantities = {
        "loss": "Loss",
        "target_std": "Target std",
        "rank_me": "RankMe",
        "knn_accuracy": "k-NN accuracy",
        "knn_auroc": "k-NN AUROC",
        "few_shot_auroc": "Few-shot AUROC",
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
            _whole_job(study, run.record),
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
