"""Figures of results with their captions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from app.report.collect import Study
from app.report.compare import Analysis
from app.report.counts import confusion_matrices, panel_side
from app.report.curves import roc_curves
from app.report.efficiency import FEWEST, Efficiency
from app.report.names import method_name, protocol_name
from app.report.paper import paper_name, printed, published, reference
from app.report.plots import protocol_comparison
from app.report.style import Figure, for_page

PAGE_HEIGHT = 6.0  # inches of a figure: with its caption it fits a printed page in landscape


@dataclass(frozen=True)
class Block:
    """A figure with its caption."""

    figure: Figure
    caption: str

    @property
    def html(self) -> Markup:
        """The figure as an element of the page. matplotlib has escaped the text in it."""
        return Markup(for_page(self.figure))


def protocol_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    """Metrics of every cell: a figure for each dataset."""
    study = analysis.study
    figures = []
    for dataset in study.datasets:
        figure = protocol_comparison(
            dataset,
            study.title(dataset),
            study.protocols(dataset),
            study.methods,
            lambda p, m, metric, d=dataset: analysis.metric((d, p, m), metric),  # type: ignore[misc]
            lambda p, m, metric, d=dataset: printed(study, (d, p, m), metric),  # type: ignore[misc]
            reference(study, dataset),
            names,
        )
        if figure:
            caption = "Mean and 95 % t-interval over seeds."
            if "the paper" in figure.svg:
                caption += " Hollow: the paper's single run; its “AUC” stands on the scale that it was computed on."
            if "MedMNIST" in figure.svg:
                caption += " Dashed: MedMNIST v2's ResNet-18, trained on all labels."
            figures.append(Block(figure, f"{study.title(dataset)}. {caption}"))
    return figures


def efficiency_caption(found: Sequence[Efficiency]) -> str:
    """What the figure of label curves shows."""
    band = (
        "Bands: 95 % over seeds, draws and test images."
        if max(one.seeds for one in found) >= FEWEST
        else ("Small markers are seeds; fewer than three have no interval that says anything.")
    )
    return f"Test AUROC over the number of training labels, means over draws and seeds. {band} Dashed: k."


def difference_caption(analysis: Analysis) -> str:
    """What the figure of differences shows."""
    baseline = method_name(analysis.baseline or "")
    return (
        f"Difference in test AUROC from {baseline}. Thin line: 95 % over seeds, draws and test images (an arrow where "
        "it runs out of the picture). Broad band: over test images alone. Filled marker: better or worse, after Holm."
    )


def roc_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    """ROC curves: a figure for each dataset."""
    study = analysis.study
    figures = []
    for dataset, labels in study.test_labels.items():
        figure = roc_curves(
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


def confusion_figures(analysis: Analysis) -> list[Block]:
    """Confusion matrices: a figure for each dataset, or several where they do not fit a page."""
    study = analysis.study
    figures = []
    for dataset in study.datasets:
        info = study.experiment.data.get(dataset)
        if info is None:
            continue
        labels = [info.labels[k] for k in sorted(info.labels, key=int)]
        panels = []
        rows = [protocol_name(p) for p in study.protocols(dataset)]
        printed = published()["confusion"].get(paper_name(dataset)) if not study.experiment.synthetic else None
        for protocol, row in zip(study.protocols(dataset), rows, strict=True):
            for method in study.methods:
                counts = analysis.confusion((dataset, protocol, method))
                if counts is not None and len(counts) == len(labels):
                    panels.append((row, method_name(method), counts))
            if protocol == "finetune" and printed and panels:
                panels.append((row, "the paper's BYOL+", np.array(printed["matrix"], dtype=np.float64)))
        rows = [row for row in rows if any(row == panel[0] for panel in panels)]
        for number, part in enumerate(_parts(rows, max(1, int(PAGE_HEIGHT // panel_side(len(labels)))))):
            name = f"{dataset}-{number + 1}" if number else dataset
            figure = confusion_matrices(name, study.title(dataset), labels, panels, part)
            assert figure is not None, "there is a panel in each row"
            caption = f"{study.title(dataset)}, continued." if number else _matrix_caption(study, dataset)
            figures.append(Block(figure, caption))
    return figures


def _parts(rows: Sequence[str], most: int) -> list[Sequence[str]]:
    """Divide rows into parts of about equal length, ``most`` at most."""
    count = math.ceil(len(rows) / most)
    return [rows[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]


def _matrix_caption(study: Study, dataset: str) -> str:
    labels = study.experiment.data[dataset].labels
    caption = (
        f"{study.title(dataset)}. Rows: truth; columns: prediction. Mean count over seeds; "
        "shade: share of the true class. Few-shot: the saved model."
    )
    if len(labels) > 3:
        caption += " " + ", ".join(f"{i} {labels[i]}" for i in sorted(labels, key=int)) + "."
    printed = published()["confusion"].get(paper_name(dataset)) if not study.experiment.synthetic else None
    return caption + (f" The paper's matrix: {printed['note']}" if printed and "note" in printed else "")
