"""Published numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from app.report.collect import CellKey, Study
from app.report.compare import Analysis
from app.report.names import METRIC_NAMES, NOT_DONE, PROTOCOL_NAMES, mean_and_half_width, method_name, number
from app.report.table import Cell, Column, Row, Table


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
                rows.append(Row(f"{study.title(dataset)} · {PROTOCOL_NAMES[protocol]}", head, tuple(cells)))
    columns = tuple(Column(side, method_name(m)) for m in methods for side in ("ours", "paper"))
    return Table(
        "figure-6",
        "The protocols beside the paper's Fig. 6",
        ("Dataset and protocol", "Metric"),
        columns,
        tuple(rows),
        _paper_notes(datasets),
    )


def inside_of_paper(analysis: Analysis) -> tuple[int, int]:
    """How many of the paper's numbers that stand beside ours lie in our interval over seeds, and how many there are."""
    inside = beside = 0
    for key in analysis.study.finished_cells:
        for metric in METRIC_NAMES:
            printed, ours = paper_value(*key, metric), analysis.metric(key, metric)
            if printed is not None and ours.known:
                beside += 1
                inside += ours.low - 0.005 <= printed <= ours.high + 0.005  # printed with two decimals
    return inside, beside
