"""What the report shows, in order: the page and the Markdown are two forms of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from app.jobs.processor_time import taken
from app.report.blocks import (
    Block,
    confusion_figures,
    difference_caption,
    efficiency_caption,
    protocol_figures,
    roc_figures,
)
from app.report.clinical import (
    calibration_table,
    embedding_figures,
    error_sheets,
    operating_table,
    reliability_figure,
)
from app.report.collect import Study
from app.report.compare import Analysis
from app.report.counts import class_histogram
from app.report.curves import pretraining_curves
from app.report.efficiency import (
    efficiencies,
    efficiency_figure,
    efficiency_table,
)
from app.report.inventory import (
    datasets_table,
    downstream_jobs_table,
    environment_table,
    files_table,
    missing_lines,
    overlap_table,
    pretraining_jobs_table,
)
from app.report.names import MARKS, display_names, method_name, protocol_name, sentence, signed
from app.report.paper import figure5_table, figure6_table, inside_of_paper, paper_name, published
from app.report.plots import differences
from app.report.robustness import robustness_figures, robustness_table
from app.report.subgroups import subgroups_table
from app.report.table import Table
from app.report.tables import delong_table, differences_table, metrics_table, results_table
from app.report.verdict import lead

SYNTHETIC = "SYNTHETIC: phantom images. The figures say nothing about medicine."
NOT_CLINICAL = "For research. Not a medical device, not for clinical use."
REFERENCES = (
    "B. Murphy: Leveraging BYOL for Image Classification in Limited-Labeled Medical Domains, 2023 (the paper).",
    "J.-B. Grill et al.: Bootstrap your own latent, NeurIPS 2020.",
    "J. Yang et al.: MedMNIST v2, Scientific Data 10, 41, 2023.",
    "E. DeLong, D. DeLong, D. Clarke-Pearson: Comparing the areas under two or more correlated ROC curves, "
    "Biometrics 44, 1988; X. Sun, W. Xu: fast implementation, IEEE Signal Processing Letters 21, 2014.",
    "N. Obuchowski, H. Rockette: Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests, "
    "Communications in Statistics 24, 1995; W. Howe: Approximate confidence limits on the mean of X + Y, Journal of "
    "the American Statistical Association 69, 1974.",
    "N. Obuchowski: Nonparametric analysis of clustered ROC curve data, Biometrics 53, 1997.",
    "E. Wilson: Probable inference, Journal of the American Statistical Association 22, 1927.",
    "C. Guo et al.: On calibration of modern neural networks, ICML 2017.",
    "D. Hendrycks, T. Dietterich: Benchmarking neural network robustness to common corruptions and perturbations, ICLR "
    "2019; F. Di Salvo, S. Doerrich, C. Ledig: MedMNIST-C, 2024.",
    "S. Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.",
    "B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993.",
)


@dataclass(frozen=True)
class DatasetBlock:
    """What the data section shows of one dataset."""

    title: str
    licence: str
    sample: str | None  # data URI
    histogram: Block | None


@dataclass(frozen=True)
class CardLine:
    """One line of a card."""

    protocol: str
    chips: tuple[tuple[str, str, str], ...]  # tone, text, full sentence


@dataclass(frozen=True)
class Card:
    """The findings of one dataset."""

    title: str
    findings: tuple[CardLine, ...]


def build_context(analysis: Analysis) -> dict[str, Any]:
    """Everything that the page and the Markdown show."""
    study, names = analysis.study, display_names(analysis.study)
    datasets = [_dataset_block(study, name) for name in study.experiment.data]
    sections = _heading(study) | _evidence(analysis, names) | _inventory(study, names) | {"datasets": datasets}
    blocks = [
        sections["efficiency_figure"],
        sections["difference_figure"],
        *sections["protocol_figures"],
        *sections["roc_figures"],
        *sections["confusion_figures"],
        sections["reliability_figure"],
        *sections["robustness_figures"],
        *sections["embedding_figures"],
        sections["pretraining_figure"],
        *(d.histogram for d in datasets),
    ]
    return sections | {"figures": [b.figure for b in blocks if b]}


def _heading(study: Study) -> dict[str, Any]:
    """What stands above everything: which run this is, and how far it got."""
    experiment = study.experiment
    results = [r.record for cell in study.cells.values() for r in cell]
    trained = [p.record for p in study.pretraining]
    done = {record.key for record in results} | {record.key for record in trained}
    planned = {job.key for jobs in (experiment.plan.pretrain, experiment.plan.downstream) for job in jobs}
    finished = max([record.finished for record in (*results, *trained)], default="")
    return {
        "title": "Self-supervised pretraining for medical images",
        "run_id": experiment.run_id,
        "preset": experiment.preset,
        "date": (finished or experiment.created)[:10],
        "progress": f"{len(done)} of {len(done | planned)} jobs" if planned - done else f"{len(done)} jobs",
        "seeds": sorted({record.seed for record in (*results, *trained)}),
        "synthetic": SYNTHETIC if experiment.synthetic else "",
        "overlaps": list(study.overlaps.values()),
        "not_clinical": NOT_CLINICAL,
        "took": str(taken((*results, *trained))),
    }


def _evidence(analysis: Analysis, names: Mapping[str, str]) -> dict[str, Any]:
    """What was found: sentences, tables and figures of results."""
    study = analysis.study
    difference = differences(
        list(analysis.against_baseline.values()), {d: study.title(d) for d in study.datasets}, names
    )
    found = efficiencies(analysis)
    titles = {d: study.title(d) for d in study.datasets}
    curves = efficiency_figure(found, titles, names, study.methods) if found else None
    return {
        "lead": lead(analysis, found),
        "efficiency_figure": curves and Block(curves, efficiency_caption(found)),
        "efficiency": efficiency_table(analysis, found),
        "sentences": [sentence(study, c) for c in analysis.comparisons],
        "cards": _cards(analysis),
        "baseline": method_name(analysis.baseline) if analysis.baseline else "",
        "results": results_table(analysis),
        "metrics": metrics_table(analysis),
        "protocol_figures": protocol_figures(analysis, names),
        "differences": differences_table(analysis),
        "difference_figure": difference and Block(difference, difference_caption(analysis)),
        "paper_text": _paper_text(analysis),
        "paper_tables": [] if study.experiment.synthetic else _paper_tables(analysis),
        "delong": delong_table(analysis),
        "roc_figures": roc_figures(analysis, names),
        "confusion_figures": confusion_figures(analysis),
        "operating": operating_table(analysis),
        "calibration": calibration_table(analysis),
        "reliability_figure": reliability_figure(analysis, names),
        "subgroups": subgroups_table(analysis),
        "robustness": robustness_table(analysis),
        "robustness_figures": robustness_figures(analysis, names),
        "embedding_figures": embedding_figures(analysis, names),
        "errors": error_sheets(analysis),
    }


def _inventory(study: Study, names: Mapping[str, str]) -> dict[str, Any]:
    """What was run, on which data, where, and what is missing."""
    curves = pretraining_curves(study.pretraining, names)
    caption = (
        "Thin lines are seeds, thick lines their mean. k-NN and few shots look at a labelled validation split; "
        "at epoch 0 through an encoder without pretraining."
    )
    return {
        "pretraining_figure": curves and Block(curves, caption),
        "pretraining": pretraining_jobs_table(study),
        "dataset_table": datasets_table(study),
        "overlap": overlap_table(study),
        "missing": missing_lines(study),
        "jobs": downstream_jobs_table(study),
        "files": files_table(study),
        "environment": environment_table(study),
        "settings": yaml.safe_dump(dict(study.experiment.config), sort_keys=False, allow_unicode=True),
        "licences": _licences(study),
        "references": REFERENCES,
    }


def _cards(analysis: Analysis) -> list[Card]:
    study = analysis.study
    cards = []
    for dataset in study.datasets:
        findings = []
        for protocol in study.protocols(dataset):
            chips = tuple(
                (
                    c.verdict,
                    f"{MARKS[c.verdict]} {method_name(c.method)} {signed(c.difference)}",
                    sentence(study, c),
                )
                for c in analysis.against_baseline.values()
                if (c.dataset, c.protocol) == (dataset, protocol)
            )
            if chips:
                findings.append(CardLine(protocol_name(protocol), chips))
        if findings:
            cards.append(Card(study.title(dataset), tuple(findings)))
    return cards


def _dataset_block(study: Study, name: str) -> DatasetBlock:
    info = study.experiment.data[name]
    picture = study.samples.get(name)
    histogram = class_histogram(name, info)
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
        return ""
    if study.experiment.synthetic:
        return "This run drew phantoms: its figures and the paper's are of different images and cannot be compared."
    pre = paper["pretraining"]
    text = (
        f"{paper['author']}, “{paper['title']}”, {paper['year']}: one unseeded run for each figure; "
        f"pretraining from {pre['initial_weights']} weights on {pre['images']:,} images for {pre['epochs']:,} epochs."
    )
    inside, beside = inside_of_paper(analysis)
    if beside:
        text += f" Of {beside} of its figures that stand beside ours, {inside} lie within our 95 % interval over seeds."
    return text


def _paper_tables(analysis: Analysis) -> list[Table]:
    return [t for t in (figure5_table(analysis), figure6_table(analysis)) if t.rows]


def _licences(study: Study) -> list[str]:
    lines = [f"{info.title}: {info.licence}" for info in study.experiment.data.values()]
    if any("NC" in info.licence for info in study.experiment.data.values()):
        lines.append("NC: models trained on these images inherit the limit to non-commercial use.")
    return lines
