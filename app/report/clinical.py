"""What a clinician asks: operating points, calibration, the most confident errors; and how features lie."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from app.report.blocks import Block
from app.report.collect import CellKey, Labels, Result, Scores
from app.report.compare import Analysis, seed_means
from app.report.names import mean_and_half_width, method_name, number, protocol_name
from app.report.sources import sources
from app.report.style import LOOKS, MUTED, OTHER_LOOKS, WIDEST, Figure, canvas_of, finish, legend, look, others_of
from app.report.table import Cell, Column, Row, Source, Table
from app.science.clinical import (
    calibration,
    independent_images,
    rate_interval,
    rates,
    rescale,
    temperature,
    threshold_for,
)
from app.science.metrics import BINARY, MULTI_LABEL
from app.science.statistics import Interval, t_interval

ASKED = 0.9  # of one rate, in validation data
MOST_POINTS = 400  # of an embedding's panel
CLASS_COLOURS = tuple(colour for colour, _ in (*list(LOOKS.values())[2:], *OTHER_LOOKS, *list(LOOKS.values())[:2]))


@dataclass(frozen=True)
class Judged:
    """A finished job of a task with one label an image, with the scores of both splits and their truth."""

    result: Result
    test: Scores
    truth: Labels
    validation: Scores
    val_truth: Labels


def judged(analysis: Analysis, key: CellKey) -> list[Judged]:
    """The jobs of a cell whose validation scores are kept, which older ones are not."""
    study = analysis.study
    truth, val = study.test_labels.get(key[0]), study.val_labels.get(key[0])
    if truth is None or val is None:
        return []
    return [
        Judged(r, r.chosen, truth[:, 0], r.validation, val[:, 0])
        for r in analysis.results(*key)
        if r.chosen is not None and r.validation is not None and r.record.task != MULTI_LABEL
    ]


def _cells(analysis: Analysis) -> Iterator[tuple[CellKey, list[Judged]]]:
    for key in analysis.study.finished_cells:
        if jobs := judged(analysis, key):
            yield key, jobs


def _mean_rate(
    jobs: Sequence[Judged],
    found: Sequence[tuple[float, NDArray[np.float64]]],
    label: int,
    patients: NDArray[np.int64] | None,
) -> Interval:
    """Mean of a class's rate over seeds with its interval over seeds and test images; of one seed over images."""
    shares, components = (_over_jobs(jobs, part) for part in zip(*found, strict=True))
    return rate_interval(list(shares), independent_images(jobs[0].truth, label, components, patients))


def _over_jobs(jobs: Sequence[Judged], values: ArrayLike) -> NDArray[np.float64]:
    return seed_means([job.result.record.seed for job in jobs], values)


def _between(interval: Interval) -> str:
    low, high = np.clip([interval.low, interval.high], 0, 1)
    ends = f" [{number(low, 2)}, {number(high, 2)}]" if interval.known else ""
    return f"{number(interval.mean, 2)}{ends}"


def _sources(analysis: Analysis, jobs: Sequence[Judged]) -> tuple[Source, ...]:
    return sources(analysis.study.experiment.run_id, (job.result.record for job in jobs))


def operating_table(analysis: Analysis) -> Table:
    """Sensitivity at a specificity and the reverse on the test images, thresholds chosen on validation data."""
    rows = []
    for (dataset, protocol, method), jobs in _cells(analysis):
        if jobs[0].result.record.task != BINARY:
            continue
        cells = []
        for asked in ({"specificity": ASKED}, {"sensitivity": ASKED}):
            found = [
                rates(j.truth, j.test[:, 1], threshold_for(j.val_truth, j.validation[:, 1], **asked)) for j in jobs
            ]
            sensitivity, specificity = (
                _mean_rate(jobs, [f[i] for f in found], 1 - i, analysis.patients(dataset)) for i in (0, 1)
            )
            first, second = (sensitivity, specificity) if "specificity" in asked else (specificity, sensitivity)
            cells += [Cell(_between(first)), Cell(_between(second), "paper")]
        head = f"{analysis.study.title(dataset)} · {protocol_name(protocol)}"
        rows.append(Row(head, method_name(method), tuple(cells), _sources(analysis, jobs)))
    groups = (f"at {ASKED:.0%} specificity", f"at {ASKED:.0%} sensitivity")
    return Table(
        "operating",
        "Operating points on the test images",
        ("Dataset", "Method"),
        (
            Column("sensitivity", groups[0]),
            Column("specificity reached", groups[0]),
            Column("specificity", groups[1]),
            Column("sensitivity reached", groups[1]),
        ),
        tuple(rows),
        (
            "Thresholds are chosen on the validation split: the rate that was asked for is reached there, and on the "
            "test images more or less. 95 % intervals over seeds (t) and test images (Wilson). Few-shot: the saved "
            "model.",
        ),
    )


def calibration_table(analysis: Analysis) -> Table:
    """Calibration error and Brier score before and after temperature scaling on validation data."""
    rows = []
    for (dataset, protocol, method), jobs in _cells(analysis):
        task = jobs[0].result.record.task
        by = [temperature(j.val_truth, j.validation) for j in jobs]
        before = [calibration(j.truth, j.test, task) for j in jobs]
        after = [calibration(j.truth, rescale(j.test, t), task) for j, t in zip(jobs, by, strict=True)]
        values = (
            *([c.error for c in each] for each in (before, after)),
            *([c.brier for c in each] for each in (before, after)),
            by,
        )
        cells = tuple(Cell(mean_and_half_width(t_interval(_over_jobs(jobs, v)))) for v in values)
        head = f"{analysis.study.title(dataset)} · {protocol_name(protocol)}"
        rows.append(Row(head, method_name(method), cells, _sources(analysis, jobs)))
    return Table(
        "calibration",
        "Calibration on the test images, before and after temperature scaling",
        ("Dataset", "Method"),
        (
            Column("before", "ECE"),
            Column("after", "ECE"),
            Column("before", "Brier score"),
            Column("after", "Brier score"),
            Column("Temperature"),
        ),
        tuple(rows),
        (
            "ECE: expected calibration error of 15 bins: how sure of the likeliest class against how often that is "
            "right (Guo et al. 2017), but with two classes the probability of the second against how often it is the "
            "second. The temperature is chosen on the validation split; above 1 the model was too "
            "sure. ± half-width of the 95 % t-interval over seeds.",
        ),
    )


def reliability_figure(analysis: Analysis, names: Mapping[str, str]) -> Block | None:
    """Share of right answers over confidence: a panel for each dataset, of its first protocol."""
    study = analysis.study
    panels = []
    for dataset in study.datasets:
        for protocol in study.protocols(dataset):
            jobs = {m: found for m in study.methods if (found := judged(analysis, (dataset, protocol, m)))}
            if jobs:
                panels.append((dataset, protocol, jobs))
                break
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    said = []
    with canvas_of(WIDEST if columns > 1 else 4.6, 0.5 + 3.5 * lines) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (dataset, protocol, jobs) in zip(grid.flat, panels, strict=False):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
            for method, found in jobs.items():
                colour, marker = look(method, others_of(study.methods))
                for scaled in (False, True):
                    bins = _pooled(found, scaled)
                    style = {"linestyle": "-", "marker": marker} if scaled else {"linestyle": (0, (2, 2)), "marker": ""}
                    axes.plot(bins[:, 0], bins[:, 1], color=colour, linewidth=1.4, markersize=4, **style)
                said.append(f"{study.title(dataset)}, {names[method]}")
            axes.set_title(f"{study.title(dataset)}\n{names[protocol]}")
            axes.set_xlabel("probability said")
            axes.set_box_aspect(1)
        for left in grid[:, 0]:
            left.set_ylabel("share that is so")
        extra = [
            Line2D([], [], color=MUTED, linestyle=(0, (2, 2)), label="before"),
            Line2D([], [], color=MUTED, label="after scaling"),
        ]
        shown = [m for m in study.methods if any(m in jobs for _, _, jobs in panels)]
        legend(canvas, shown, names, extra=extra)
        alt = f"Reliability diagrams of {'; '.join(said)}; the calibration errors are in the table."
        figure = finish(canvas, "reliability", alt)
    caption = "Of test images with a probability of so much, how many are so; all seeds together. On the line is right."
    return Block(figure, caption)


def _pooled(jobs: Sequence[Judged], scaled: bool) -> NDArray[np.float64]:
    scores = [rescale(j.test, temperature(j.val_truth, j.validation)) if scaled else j.test for j in jobs]
    truth = np.concatenate([j.truth for j in jobs])
    bins = calibration(truth, np.concatenate(scores), jobs[0].result.record.task).bins
    return bins[bins[:, 2] >= 5] if (bins[:, 2] >= 5).any() else bins


@dataclass(frozen=True)
class ErrorSheet:
    """The test images that a model is wrong about and surest of."""

    title: str
    picture: str  # data URI
    alt: str
    lines: tuple[str, ...]


def error_sheets(analysis: Analysis) -> list[ErrorSheet]:
    """The errors of each dataset and method: by the first protocol that has any, and its first seed."""
    study, sheets = analysis.study, []
    for dataset in study.datasets:
        for method in study.methods:
            for protocol in study.protocols(dataset):
                found = next((r for r in analysis.results(dataset, protocol, method) if r.errors), None)
                if found is None or found.errors is None:
                    continue
                record = found.record
                lines = tuple(
                    f"{record.labels.get(str(e.truth), e.truth)} taken for "
                    f"{record.labels.get(str(e.predicted), e.predicted)}, {e.probability:.3f} (test image {e.image})"
                    for e in record.errors
                )
                title = f"{study.title(dataset)}, {method_name(method)}"
                sheets.append(
                    ErrorSheet(
                        f"{title} ({protocol_name(protocol).lower()}, seed {record.seed})",
                        "data:image/png;base64," + base64.b64encode(found.errors).decode(),
                        f"Test images of {title} that are most surely wrong, from the left: {'; '.join(lines)}",
                        lines,
                    )
                )
                break
    return sheets


def embedding_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    """Validation images by the first two principal components of their features: a figure for each dataset."""
    study, blocks = analysis.study, []
    for dataset in study.datasets:
        labels, info = study.val_labels.get(dataset), study.experiment.data.get(dataset)
        if labels is None or info is None or info.task == MULTI_LABEL:
            continue
        jobs = {
            m: found
            for m in study.methods
            if (found := [r for r in analysis.results(dataset, "linear_probe", m) if r.embedding is not None])
        }
        if jobs:
            figure = _embedding(dataset, study.title(dataset), labels[:, 0], info.labels, jobs, names)
            some = f", {MOST_POINTS} of {len(labels):,}," if len(labels) > MOST_POINTS else ""
            caption = f"Validation images{some} by the first two principal components of the frozen encoder's features."
            blocks.append(Block(figure, f"{study.title(dataset)}, first seed. {caption}"))
    return blocks


def _embedding(
    name: str,
    title: str,
    truth: Labels,
    classes: Mapping[str, str],
    jobs: Mapping[str, Sequence[Result]],
    names: Mapping[str, str],
) -> Figure:
    side = min(3.35, WIDEST / len(jobs))
    # from end to end of the split, which may be sorted by class
    shown = np.linspace(0, len(truth) - 1, min(MOST_POINTS, len(truth))).round().astype(np.int64)
    with canvas_of(max(4.6, len(jobs) * side), side + 0.9) as canvas:
        grid = canvas.subplots(1, len(jobs), squeeze=False)[0]
        for axes, (method, results) in zip(grid, jobs.items(), strict=True):
            places = results[0].embedding
            assert places is not None, "jobs without one are left out"
            for c in range(len(classes)):
                of_class = places[shown][truth[shown] == c]
                colour = CLASS_COLOURS[c % len(CLASS_COLOURS)]
                axes.plot(of_class[:, 0], of_class[:, 1], ".", color=colour, markersize=4, alpha=0.7)
            axes.set_title(names[method])
            axes.set_xticks([])
            axes.set_yticks([])
        handles = [
            Line2D([], [], linestyle="none", marker="o", markersize=5, color=CLASS_COLOURS[c % len(CLASS_COLOURS)],
                   label=str(classes.get(str(c), c)))
            for c in range(len(classes))
        ]  # fmt: skip
        canvas.legend(handles=handles, loc="outside upper left", ncols=2 if len(classes) > 3 else 4)
        methods = ", ".join(names[m] for m in jobs)
        return finish(canvas, f"embedding-{name}", f"Principal components of the features of {title}: {methods}.")
