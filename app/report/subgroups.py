"""Test AUROC within the groups that a set tells apart, such as women and men, or scanners."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from app.report.collect import Labels, Result, Scores, mean_components
from app.report.compare import Analysis, seed_means
from app.report.names import method_name, number, protocol_name
from app.report.table import Cell, Column, Row, Table
from app.science.metrics import MULTI_LABEL
from app.science.statistics import Interval, image_covariance, mixed_interval, shared_covariance

FEWEST = 10  # positives, and negatives: with fewer an interval over test images says nothing

Members = NDArray[np.bool_]
Patients = NDArray[np.int64] | None


def groups_of(analysis: Analysis, dataset: str) -> Iterator[tuple[str, Members]]:
    """The groups of a dataset's test images by their names, each with which images are in it, (N,)."""
    for what, cells in analysis.study.test_subgroups.get(dataset, {}).items():
        for group in (*sorted(set(cells.tolist()) - {""}), ""):
            if (cells == group).any():
                yield f"{what}: {group or 'not known'}", cells == group


def fewest(y: Labels, classes: int, task: str, patients: Patients = None) -> tuple[int, int]:
    """Count positives and negatives among labels (N, L): of class 1 of two, else of the one that has fewest of either.

    ``patients`` tells whose each image is, (N,); then patients are counted who have such an image.
    """
    if task == MULTI_LABEL:
        columns = list(y.T)
    else:
        columns = [(y[:, 0] == c).astype(np.int64) for c in ([1] if classes == 2 else range(classes))]
    whose = np.arange(len(y)) if patients is None else patients
    counts = [[len(np.unique(whose[column == value])) for value in (1, 0)] for column in columns]
    positive, negative = min(counts, key=min)
    return positive, negative


def area_within(y: Labels, draws: Sequence[tuple[int, Sequence[Scores]]], patients: Patients = None) -> Interval:
    """Mean AUROC over draws and seeds with its 95 % interval: over seeds and test images, of one seed over images.

    That of one seed of a binary task is DeLong's, or Obuchowski's where patients are known.

    Args:
        y: labels of a group's images, (N, L).
        draws: seed and scores of these images, (N, C) each, by job.
        patients: whose each image is, (N,).
    """
    seeds = [seed for seed, _ in draws]
    areas, components = (
        seed_means(seeds, part) for part in zip(*(mean_components(y, s) for _, s in draws), strict=True)
    )
    covariance = image_covariance(y, components, patients)
    if len(areas) > 1:
        return mixed_interval(areas, shared_covariance(covariance))
    half = float(stats.norm.ppf(0.975)) * math.sqrt(max(float(covariance[0, 0]), 0.0))  # a NaN stays one
    area = float(areas[0])
    return Interval(area, area - half, area + half, len(y))


def subgroups_table(analysis: Analysis) -> Table:
    """AUROC of each method within each group of the test images, with its interval if there are enough of them."""
    study, rows = analysis.study, []
    methods = [m for m in study.methods if any(d in study.test_subgroups and m == k for d, _, k in study.cells)]
    for dataset in study.datasets:
        y, info = study.test_labels.get(dataset), study.experiment.data.get(dataset)
        patients = analysis.patients(dataset)
        groups = list(groups_of(analysis, dataset))
        if y is None or info is None or not groups:
            continue
        for protocol in study.protocols(dataset):
            cells = {m: analysis.results(dataset, protocol, m) for m in methods}
            if not any(cells.values()):
                continue
            for name, members in (("all", np.ones(len(y), dtype=np.bool_)), *groups):
                whose = None if patients is None else patients[members]
                classes = len(info.labels)
                enough = [count >= FEWEST for count in fewest(y[members], classes, info.task, whose)]
                counts = [
                    Cell(f"{count:,}", note="" if is_enough else "few")
                    for count, is_enough in zip(fewest(y[members], classes, info.task), enough, strict=True)
                ]
                areas = (_area_cell(y, results, members, whose, all(enough)) for results in cells.values())
                head = f"{study.title(dataset)} · {protocol_name(protocol)}"
                rows.append(Row(head, name, (Cell(f"{int(members.sum()):,}"), *counts, *areas)))
    return Table(
        "subgroups",
        "Test AUROC within groups of the test images",
        ("Dataset", "Group"),
        (
            Column("all", "images"),
            Column("positive", "images"),
            Column("negative", "images"),
            *(Column(method_name(m), "AUROC [95 % interval]") for m in methods),
        ),
        tuple(rows),
        (
            f"few: fewer than {FEWEST} positives or negatives (patients, where several images are of one), of which no "
            "interval says anything, and an AUROC little. Intervals are over seeds and test images, of one seed over "
            "images (DeLong), not corrected for the number of groups. Of several classes or labels the one is counted "
            "that has the fewest positives or negatives.",
        ),
    )


def _area_cell(y: Labels, results: Sequence[Result], members: Members, patients: Patients, enough: bool) -> Cell:
    draws = [(r.record.seed, [scores[members] for scores in r.draws]) for r in results if r.draws]
    if not draws:
        return Cell("", "missing")
    found = area_within(y[members], draws, patients)
    if not enough or not found.known:
        return Cell(number(found.mean, 2), "missing")
    low, high = np.clip([found.low, found.high], 0, 1)
    return Cell(f"{number(found.mean, 2)} [{number(low, 2)}, {number(high, 2)}]")
