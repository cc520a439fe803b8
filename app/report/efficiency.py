"""Label efficiency: AUROC over the number of labels, and how many labels pretraining saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from app.report.collect import Labels, Result
from app.report.compare import Analysis, Verdict, joint_verdict
from app.report.names import MARKS, MINUS, method_name, number, protocol_name, signed, span
from app.report.style import INK, MUTED, WIDEST, Figure, canvas_of, finish, legend, look, others_of
from app.report.table import Cell, Column, Row, Table
from app.science.efficiency import Curve, LabelsNeeded, difference, labels_needed
from app.science.statistics import Tested, holm

FEWEST = 3  # seeds of which an interval is drawn


@dataclass(frozen=True)
class Efficiency:
    """The label curves of one dataset and protocol, on the seeds and budgets that all methods have.

    ``budgets`` are in the order of ``curves[...].labels``; ``k`` is the number of labels of the protocol itself.
    """

    dataset: str
    protocol: str
    baseline: str
    budgets: tuple[str, ...]
    k: float
    curves: Mapping[str, Curve]
    y: Labels
    patients: NDArray[np.int64] | None = None

    @property
    def seeds(self) -> int:
        """Seeds that all methods have."""
        return int(self.curves[self.baseline].areas.shape[1])

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are compared with the baseline."""
        return tuple(method for method in self.curves if method != self.baseline)

    @cached_property
    def differences(self) -> Mapping[tuple[str, int], Tested]:
        """Paired difference of each method from the baseline at each point."""
        control = self.curves[self.baseline]
        return {
            (method, i): difference(
                (curve.areas[i], curve.components[i]),
                (control.areas[i], control.components[i]),
                self.y,
                self.patients,
            )
            for method, curve in self.curves.items()
            if method != self.baseline
            for i in range(len(self.budgets))
        }

    @cached_property
    def adjusted(self) -> Mapping[tuple[str, int], float]:
        """Their p-values after Holm's correction for all points of the dataset and protocol."""
        return dict(zip(self.differences, holm([d.p for d in self.differences.values()]), strict=True))

    @cached_property
    def needed(self) -> Mapping[str, LabelsNeeded]:
        """For each method, the labels that the baseline needs for what it reaches with ``k``."""
        control = self.curves[self.baseline]
        return {m: labels_needed(self.curves[m], control, self.k, self.y, self.patients) for m in self.methods}

    def verdict(self, method: str, i: int) -> Verdict:
        """What may be said of ``method`` at a point."""
        return joint_verdict(self.differences[method, i], self.adjusted[method, i])

    def settled(self, method: str) -> tuple[list[float], list[float]]:
        """Return the numbers of labels with which ``method`` is sure to save labels, and to cost some.

        They are read by the difference from the baseline after Holm's correction; the protocol's own by the interval of
        the labels that the baseline needs besides, which may hold it where curves go up and down.
        """
        needed, labels = self.needed[method], self.curves[self.baseline].labels.tolist()
        verdicts = [(n, self.verdict(method, i)) for i, n in enumerate(labels)]
        return (
            [n for n, said in verdicts if said == "better" and (n != self.k or needed.low > n)],
            [n for n, said in verdicts if said == "worse" and (n != self.k or needed.high < n)],
        )


def efficiencies(analysis: Analysis) -> tuple[Efficiency, ...]:
    """The label curves of a study: those of which the baseline and another method have at least three points."""
    study, baseline = analysis.study, analysis.baseline
    found = []
    for dataset in study.datasets if baseline else ():
        for protocol in study.protocols(dataset):
            y = study.test_labels.get(dataset)
            jobs = {m: [r for r in analysis.results(dataset, protocol, m) if r.curve] for m in study.methods}
            jobs = {m: results for m, results in jobs.items() if results}
            if y is None or baseline is None or baseline not in jobs or len(jobs) < 2:
                continue
            if (one := _efficiency(analysis, dataset, protocol, baseline, jobs, y)) is not None:
                found.append(one)
    return tuple(found)


def _efficiency(
    analysis: Analysis, dataset: str, protocol: str, baseline: str, jobs: Mapping[str, Sequence[Result]], y: Labels
) -> Efficiency | None:
    seeds = sorted(set.intersection(*({r.record.seed for r in results} for results in jobs.values())))
    points = {m: {s: _points(analysis, y, results, s) for s in seeds} for m, results in jobs.items()}
    every = [found for by_seed in points.values() for found in by_seed.values()]
    if not every:
        return None
    shared = set.intersection(*(set(found) for found in every))
    labels = {budget: every[0][budget][0] for budget in shared}
    order = sorted(
        {n: budget for budget, n in sorted(labels.items(), reverse=True)}.items()
    )  # one budget for each number
    own = _own(jobs[baseline][0])
    if len(order) < 3 or own not in labels:
        return None
    budgets = tuple(budget for _, budget in order)
    curves = {
        m: Curve(
            np.array([n for n, _ in order]),
            np.array([[by_seed[s][b][1] for s in seeds] for b in budgets]),
            np.stack([np.stack([by_seed[s][b][2] for s in seeds]) for b in budgets]),
        )
        for m, by_seed in points.items()
    }
    return Efficiency(dataset, protocol, baseline, budgets, labels[own], curves, y, analysis.patients(dataset))


def _own(result: Result) -> str:
    return str(result.record.science.get("protocol", {}).get("k", "k"))


Point = tuple[float, float, NDArray[np.float64]]  # labels, AUROC, components


def _points(analysis: Analysis, y: Labels, results: Sequence[Result], seed: int) -> dict[str, Point]:
    """The points of one seed by budget, the protocol's own among them: means over its jobs, where all have one."""
    jobs = [_points_of(analysis, y, r) for r in results if r.record.seed == seed]
    shared = set.intersection(*(set(job) for job in jobs))
    return {budget: _mean([job[budget] for job in jobs]) for budget in shared}


def _points_of(analysis: Analysis, y: Labels, result: Result) -> dict[str, Point]:
    area, own = analysis.components_of(y, result)
    labels = float(np.mean([len(draw.indices) for draw in result.record.draws]))
    return {p.budget: (p.labels, p.area, p.components) for p in result.curve} | {_own(result): (labels, area, own)}


def _mean(points: Sequence[Point]) -> Point:
    labels, areas, components = zip(*points, strict=True)
    return float(np.mean(labels)), float(np.mean(areas)), np.mean(components, axis=0)


def count(labels: float) -> str:
    """A number of labels, rounded to what an interpolation can mean."""
    if math.isinf(labels):
        return "∞"
    return f"{round(labels):,}" if labels < 100 else f"{round(labels, 1 - math.ceil(math.log10(labels)) + 1):,.0f}"


def saved_sentence(title: str, one: Efficiency, method: str) -> str:
    """How many labels a method saves on a dataset, for people."""
    needed, most = one.needed[method], one.curves[one.baseline].labels[-1]
    fewest = one.curves[one.baseline].labels[0]
    where = f"On {title}, {protocol_name(one.protocol).lower()}: {count(one.k)} labels with {method_name(method)}"
    control = f"the {method_name(one.baseline)} start"
    if math.isnan(needed.needed):
        return f"{where} cannot be compared with {control}: their AUROC is not defined on the test images."
    if math.isinf(needed.needed):
        said = f"{where} do more than {count(most)}, the most that were tried, from {control}"
    elif needed.needed == 0:
        least = needed.labels - fewest
        lost = f": {count(least)} lost, or more" if round(least) > 0 else ""
        said = f"{where} do what {count(fewest)}, the fewest that were tried, or fewer do from {control}{lost}"
    else:
        said = f"{where} do what {count(needed.needed)} do from {control}: {_saved(needed.saved)}"
    if math.isnan(needed.low):
        why = "one seed gives" if one.seeds == 1 else "a class with a single test image or patient gives"
        return f"{said}; {why} no interval."
    few, many = f"fewer than {count(fewest)}", f"more than {count(most)}"
    low, high = (few if end == 0 else many if math.isinf(end) else count(end) for end in (needed.low, needed.high))
    reading = ""
    if not any(one.k in labels for labels in one.settled(method)):
        apart = needed.low > needed.labels or needed.high < needed.labels
        reading = f"; not settled{' after the correction for all numbers of labels' if apart else ''}"
    ends = low if low == high else f"{low} to {high}"
    return f"{said} (95 %: it needs {ends}{reading})."


def _saved(labels: float) -> str:
    if round(labels) == 0:
        return "none saved"
    return f"{count(labels)} saved" if labels > 0 else f"{count(-labels)} lost"


def efficiency_table(analysis: Analysis, found: Sequence[Efficiency]) -> Table:
    """AUROC of the baseline and the paired difference of each method, at each number of labels."""
    methods = [m for m in analysis.study.methods if any(m in one.methods for one in found)]
    rows = []
    for one in found:
        head = f"{analysis.study.title(one.dataset)} · {protocol_name(one.protocol)}"
        for i, budget in enumerate(one.budgets):
            cells = [Cell(number(float(one.curves[one.baseline].areas[i].mean())))]
            for method in methods:
                cells += _difference_cells(one, method, i)
            which = budget if budget.endswith("%") else f"k = {budget}"
            rows.append(Row(head, f"{count(one.curves[one.baseline].labels[i])} labels ({which})", tuple(cells)))
    baseline = method_name(analysis.baseline or "")
    columns = [Column("AUROC", baseline)]
    for method in methods:
        columns += [
            Column(label, f"{method_name(method)} {MINUS} {baseline}") for label in ("difference", "95 % interval")
        ]
    return Table(
        "efficiency",
        "Test AUROC over the number of training labels",
        ("Dataset", "Labels"),
        tuple(columns),
        tuple(rows),
        (
            "Means over draws and seeds; intervals over seeds, draws and test images together. ▲ better, ▼ worse after "
            "Holm's correction for all points of a dataset and protocol, ◇ before it alone. The epoch of every "
            "training is chosen on the whole validation split.",
        ),
    )


def _difference_cells(one: Efficiency, method: str, i: int) -> list[Cell]:
    if method not in one.methods:
        return [Cell(""), Cell("")]
    found, verdict = one.differences[method, i], one.verdict(method, i)
    tone = "" if verdict in ("none", "unknown") else verdict
    mark = f"{MARKS[tone]} " if tone else ""
    return [Cell(mark + signed(found.mean), tone), Cell(span(found))]


def efficiency_figure(
    found: Sequence[Efficiency], titles: Mapping[str, str], names: Mapping[str, str], methods: Sequence[str]
) -> Figure:
    """AUROC over labels, a panel for each dataset and protocol; bands are 95 % intervals where there are 3 seeds."""
    columns = min(3, len(found))
    lines = math.ceil(len(found) / columns)
    shown = [m for m in methods if any(m in one.curves for one in found)]
    with canvas_of(WIDEST if columns > 1 else 6.4, 0.5 + 3.5 * lines) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for axes, one in zip(grid.flat, found, strict=False):
            for method, curve in one.curves.items():
                _curve(axes, curve, one, look(method, others_of(methods)))
            axes.axvline(one.k, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_xscale("log")
            low, high = one.curves[one.baseline].labels[[0, -1]]
            ticks = (f * 10**power for power in range(7) for f in ((1, 3) if high / low > 100 else (1, 2, 5)))
            inside = [n for n in ticks if low <= n <= high]
            axes.set_xticks(inside, [f"{n:,}" for n in inside])
            axes.minorticks_off()
            axes.set_xlabel("training labels")
            axes.set_title(f"{titles[one.dataset]}\n{names[one.protocol]}")
        for left in grid[:, 0]:
            left.set_ylabel("test AUROC")
        legend(canvas, shown, names)
        said = "; ".join(
            f"{titles[one.dataset]}, {names[one.protocol]}, {names[m]} "
            + ", ".join(f"{n:,.0f} labels {a:.3f}" for n, a in zip(c.labels, c.areas.mean(axis=1), strict=True))
            for one in found
            for m, c in one.curves.items()
        )
        return finish(canvas, "label-efficiency", f"Test AUROC over training labels: {said}.")


def _curve(axes: Axes, curve: Curve, one: Efficiency, colour_and_marker: tuple[str, str]) -> None:
    colour, marker = colour_and_marker
    if one.seeds >= FEWEST:
        ends = [curve.mean(one.y, i, one.patients) for i in range(len(curve.labels))]
        low, high = (
            [max(0.0, min(1.0, e)) for e in side] for side in zip(*((i.low, i.high) for i in ends), strict=True)
        )
        axes.fill_between(curve.labels, low, high, color=colour, alpha=0.13, linewidth=0)
    else:  # of fewer seeds an interval would be wider than the picture: each is shown
        for areas in curve.areas.T if one.seeds > 1 else ():
            axes.plot(curve.labels, areas, color=colour, linestyle="none", marker=marker, markersize=3.5, alpha=0.5)
    axes.plot(curve.labels, curve.areas.mean(axis=1), color=colour, linewidth=1.8, marker=marker, markersize=4.5)
    axes.tick_params(axis="y", colors=INK)
