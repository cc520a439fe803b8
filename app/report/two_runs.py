"""Two runs beside each other, cell by cell, and whether they can be told apart."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.config import difference
from app.report.collect import CellKey, Study
from app.report.compare import RESAMPLES, Analysis, Comparison, compare_cells
from app.report.content import NOT_CLINICAL, SYNTHETIC
from app.report.names import (
    MARKS,
    MINUS,
    READINGS,
    mean_and_half_width,
    method_name,
    p_value,
    protocol_name,
    signed,
    span,
)
from app.report.page import environment
from app.report.table import Cell, Column, Row, Table, code, escape, markdown, plain
from app.science.statistics import Interval, holm


@dataclass(frozen=True)
class Pair:
    """A cell of both runs.

    Attributes:
        key: dataset, protocol and method.
        first: mean AUROC of the first run with its interval over seeds.
        second: likewise.
        comparison: the second run minus the first, over the seeds that both have.
        same_images: both judged the same test images.
    """

    key: CellKey
    first: Interval
    second: Interval
    comparison: Comparison
    same_images: bool


@dataclass(frozen=True)
class TwoRuns:
    """What there is to say of two runs.

    Attributes:
        first: the one.
        second: the other, from which the first is subtracted.
        pairs: the cells that both have finished jobs of.
    """

    first: Study
    second: Study
    pairs: tuple[Pair, ...]

    @property
    def apart(self) -> list[str]:
        """Settings and data that differ."""
        one, two = self.first.experiment, self.second.experiment
        said = difference(one.config, two.config)
        for name in sorted(one.data.keys() & two.data.keys()):
            if one.data[name].sha256 != two.data[name].sha256:
                said.append(f"data {name}: another file")
        return said

    @property
    def alone(self) -> list[str]:
        """Cells that one run alone has."""
        return [
            f"{study.title(key[0])}, {protocol_name(key[1])}, {method_name(key[2])}: in {study.experiment.run_id} alone"
            for study, other in ((self.first, self.second), (self.second, self.first))
            for key in study.finished_cells
            if key not in other.cells
        ]


def beside(first: Study, second: Study, resamples: int = RESAMPLES) -> TwoRuns:
    """Compare every cell that two runs share; differences are of the second minus the first.

    The same seed draws the same images, order and head in both runs, so seeds are paired; test images are where both
    judged the same ones.
    """
    before, after = Analysis(first, resamples), Analysis(second, resamples)
    keys = [key for key in first.finished_cells if second.cells.get(key)]
    comparisons = [
        compare_cells(
            key,
            first.experiment.run_id,
            (after, after.results(*key)),
            (before, before.results(*key)),
            same_images=_same_images(first, second, key[0]),
        )
        for key in keys
    ]
    adjusted = holm([c.joint.p if c.joint else math.nan for c in comparisons])
    pairs = [
        Pair(
            key,
            before.metric(key, "auroc"),
            after.metric(key, "auroc"),
            replace(comparison, adjusted=p),
            _same_images(first, second, key[0]),
        )
        for key, comparison, p in zip(keys, comparisons, adjusted, strict=True)
    ]
    return TwoRuns(first, second, tuple(pairs))


def _same_images(first: Study, second: Study, dataset: str) -> bool:
    one, two = first.test_labels.get(dataset), second.test_labels.get(dataset)
    sources = [study.experiment.data[dataset].sha256 for study in (first, second) if dataset in study.experiment.data]
    same = len(sources) == 2 and sources[0] == sources[1]
    return same and one is not None and two is not None and np.array_equal(one, two)


# --- how it is shown


def pairs_table(two: TwoRuns) -> Table:
    """A row for each cell of both runs."""
    one, other = two.first.experiment.run_id, two.second.experiment.run_id
    rows = [
        Row(
            two.first.title(pair.key[0]),
            f"{protocol_name(pair.key[1])}: {method_name(pair.key[2])}",
            (
                Cell(mean_and_half_width(pair.first), note=f"n = {pair.first.n}"),
                Cell(mean_and_half_width(pair.second), note=f"n = {pair.second.n}"),
                Cell(signed(pair.comparison.difference), pair.comparison.verdict),
                Cell(span(pair.comparison.joint), note=f"n = {pair.comparison.seeds.n}"),
                Cell(span(pair.comparison.seeds)),
                Cell(span(pair.comparison.images) if pair.same_images else "other images"),
                Cell(p_value(pair.comparison.adjusted)),
                Cell(f"{MARKS[pair.comparison.verdict]} {READINGS[pair.comparison.verdict]}", pair.comparison.verdict),
            ),
        )
        for pair in two.pairs
    ]
    columns = (
        Column(one, "Test AUROC"),
        Column(other, "Test AUROC"),
        Column(f"{other} {MINUS} {one}", "Difference"),
        Column("all together", "95 % interval"),
        Column("over seeds", "95 % interval"),
        Column("over images", "95 % interval"),
        Column("p (Holm)"),
        Column("Reading", text=True),
    )
    notes = (
        "All together, over seeds and over test images as in the report of a run, of the seeds that both runs have; "
        f"over images ({RESAMPLES:,} resamples) where both runs judged the same ones.",
        f"Better or worse is {other} against {one}: all together excludes zero, and p is below 0.05 after Holm's "
        "correction for the comparisons of this table.",
    )
    return Table("two-runs", "Two runs, cell by cell", ("Dataset", "Cell"), columns, tuple(rows), notes)


def context_of(two: TwoRuns) -> dict[str, Any]:
    """What the page and the Markdown show."""
    studies = (two.first, two.second)
    return {
        "runs": [study.experiment for study in studies],
        "synthetic": SYNTHETIC if any(study.experiment.synthetic for study in studies) else "",
        "pairs": pairs_table(two),
        "apart": two.apart,
        "alone": two.alone,
        "missing": [f"{study.experiment.run_id}: {thing}" for study in studies for thing in study.missing],
        "not_clinical": NOT_CLINICAL,
    }


def files_of(two: TwoRuns) -> dict[str, str]:
    """Return the page, the same in Markdown, and the numbers as CSV, by file name."""
    context = context_of(two)
    return {
        "index.html": environment().get_template("two_runs.html.j2").render(**context, linked=False) + "\n",
        "comparison.md": _markdown(context),
        "comparison.csv": _csv(two),
    }


def text_of(two: TwoRuns) -> str:
    """Return the table for a terminal."""
    context = context_of(two)
    lines = [context["synthetic"]] if context["synthetic"] else []
    lines.append(plain(context["pairs"]) if two.pairs else "no cell that both runs have a finished job of")
    return "\n".join([*lines, *context["alone"]])


def _markdown(context: dict[str, Any]) -> str:
    one, other = (code(run.run_id) for run in context["runs"])
    out = [f"# {other} against {one}", ""]
    out += [f"> **{context['synthetic']}**", ""] if context["synthetic"] else []
    out += [f"> {context['not_clinical']}", ""]
    out += [markdown(context["pairs"])] if context["pairs"].rows else []
    for title, name in (("What differs", "apart"), ("In one run alone", "alone"), ("Missing", "missing")):
        if context[name]:
            out += [f"## {title}", "", *(f"- {escape(line)}" for line in context[name]), ""]
    return "\n".join(out).rstrip() + "\n"


def _csv(two: TwoRuns) -> str:
    rows = io.StringIO()
    write = csv.writer(rows, lineterminator="\n").writerow
    write(["dataset", "protocol", "method", "first", "first_n", "second", "second_n", "difference", "seeds_low",
           "seeds_high", "seeds_n", "images_low", "images_high", "joint_low", "joint_high", "p_holm",
           "verdict"])  # fmt: skip
    for pair in two.pairs:
        c = pair.comparison
        images = (c.images.low, c.images.high) if c.images else ("", "")
        joint = (c.joint.low, c.joint.high, c.adjusted) if c.joint else ("", "", "")
        write([*pair.key, pair.first.mean, pair.first.n, pair.second.mean, pair.second.n, c.difference, c.seeds.low,
               c.seeds.high, c.seeds.n, *images, *joint, c.verdict])  # fmt: skip
    return rows.getvalue()
