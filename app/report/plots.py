"""Figures as SVG text: one quiet style, one colour and one marker for each method.

Every function is a pure function of its arguments: the same study gives the same bytes.  Colours are
opaque hexadecimal values from ``PALETTE`` so that the page can exchange them for its theme (see
``for_page``).
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from app.jobs.records import DatasetInfo
from app.report.collect import Labels, PretrainRun, Result
from app.report.compare import Comparison
from app.science.statistics import Interval

MINUS = "\N{MINUS SIGN}"
INK, MUTED, GRID, SURFACE = "#1f2a37", "#5f6b78", "#dfe4ea", "#fefefe"
SPLITS = {"train": "#2f6f8f", "val": "#7fb2c6", "test": "#c3dbe4"}
HEAT = "#0a6fb9"

# After Okabe & Ito: told apart with every common colour blindness, and by marker where colour fails.
_METHODS = {
    "random": ("#6b7684", "s"),
    "imagenet": ("#a8559b", "^"),
    "byol": ("#0a6fb8", "o"),
    "byol_plus": ("#d1570c", "D"),
}
_OTHERS = (("#0b8a6a", "v"), ("#8a6d01", "P"), ("#7a52c7", "X"))

# Light colour -> CSS variable of the page.
PALETTE = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    HEAT: "--heat",
    **{colour: f"--split-{name}" for name, colour in SPLITS.items()},
    **{colour: f"--m-{name.replace('_', '-')}" for name, (colour, _) in _METHODS.items()},
    **{colour: f"--m-other-{i}" for i, (colour, _) in enumerate(_OTHERS)},
}

# Any: matplotlib types the keys of a style as some 300 literals.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same everywhere
    "font.size": 9,
    "text.parse_math": False,  # a class name may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": SURFACE,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


@dataclass(frozen=True)
class Figure:
    """A figure as a standalone SVG document, with its text alternative; ``width`` in CSS pixels."""

    name: str
    svg: str
    alt: str
    width: int


def method_colour(method: str, others: Sequence[str] = ()) -> str:
    """Colour of a method; checkpoints take theirs by their place among ``others``."""
    return _look(method, others)[0]


def _look(method: str, others: Sequence[str]) -> tuple[str, str]:
    if method in _METHODS:
        return _METHODS[method]
    return _OTHERS[others.index(method) % len(_OTHERS) if method in others else 0]


@contextmanager
def _canvas(width: float, height: float) -> Iterator[Canvas]:
    with mpl.rc_context(_STYLE):
        yield Canvas(figsize=(width, height), layout="constrained")


def _finish(canvas: Canvas, name: str, alt: str) -> Figure:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", _shorten, svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Figure(name, svg, alt, round(float(canvas.get_figwidth()) * 96))


def _shorten(tag: re.Match[str]) -> str:
    """Cut the coordinates inside a tag to a hundredth of a point, which nobody sees."""
    return re.sub(r"(?<=\d)\.(\d\d)\d+", r".\1", tag[0])


def for_page(figure: Figure) -> str:
    """Turn a standalone SVG into an element of the page: its colours and font, unique ids, a text alternative."""
    svg = figure.svg[figure.svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib writes a viewBox"
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", rest)
    rest = rest.replace(SURFACE, "none").replace("'DejaVu Sans'", "var(--font)")
    for colour, variable in PALETTE.items():
        rest = rest.replace(colour, f"var({variable})")
    alt = figure.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{alt}">{rest}'


def _legend(canvas: Canvas, methods: Sequence[str], names: Mapping[str, str], *, extra: Sequence[Line2D] = ()) -> None:
    handles = [
        Line2D([], [], color=_look(m, methods)[0], marker=_look(m, methods)[1], markersize=5, label=names[m])
        for m in methods
    ]
    canvas.legend(handles=[*handles, *extra], loc="outside upper left", ncols=6, handlelength=1.6, columnspacing=1.8)


def _others(methods: Sequence[str]) -> list[str]:
    return [m for m in methods if m not in _METHODS]


# --- data -------------------------------------------------------------------------------------------


def class_histogram(name: str, info: DatasetInfo) -> Figure | None:
    """Images of each class, stacked by split (the paper's Fig. 8-10); None without class counts."""
    splits = [s for s in ("train", "val", "test") if info.class_counts.get(s)]
    if not splits:
        return None
    counts = np.array([info.class_counts[s] for s in splits])
    totals = counts.sum(axis=0)
    labels = [info.labels.get(str(c), str(c)) for c in range(counts.shape[1])]
    rows = np.arange(len(labels))
    with _canvas(5.5, 0.85 + 0.36 * len(labels)) as canvas:
        axes: Axes = canvas.subplots()
        left = np.zeros(len(labels))
        for split, row in zip(splits, counts, strict=True):
            axes.barh(rows, row, left=left, height=0.62, color=SPLITS[split], label=split)
            left += row
        images = sum(info.splits.get(s, 0) for s in splits) or int(totals.sum())
        for y, total in zip(rows, totals, strict=True):
            axes.annotate(
                f"{total:,} · {total / images:.1%}",
                (float(total), float(y)),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
                fontsize=8.5,
            )
        axes.set_yticks(rows, [textwrap.fill(label, 26) for label in labels], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1, int(totals.max())) * 1.32)
        axes.grid(False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("images")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        canvas.legend(loc="outside upper left", ncols=3, handlelength=1, handleheight=1)
        parts = "; ".join(f"{label} {total:,}" for label, total in zip(labels, totals, strict=True))
        return _finish(canvas, f"classes-{name}", f"Class histogram of {info.title}: {parts} images.")


# --- pretraining ------------------------------------------------------------------------------------


def pretraining_curves(runs: Sequence[PretrainRun], names: Mapping[str, str]) -> Figure | None:
    """Loss, standard deviation of the target projections and k-NN AUROC over the epochs; None without curves."""
    panels = (("loss", "Loss"), ("target_std", "Target std"), ("knn_auroc", "k-NN AUROC (validation)"))
    runs = [run for run in runs if run.curves]
    if not runs:
        return None
    methods = list(dict.fromkeys(run.record.method for run in runs))
    with _canvas(10.4, 3.1) as canvas:
        grid = canvas.subplots(1, len(panels), squeeze=False)[0]
        ends = []
        for axes, (quantity, title) in zip(grid, panels, strict=True):
            for method in methods:
                colour = method_colour(method, _others(methods))
                series = [_series(run, quantity) for run in runs if run.record.method == method]
                series = [s for s in series if s]
                for s in series if len(series) > 1 else ():
                    axes.plot(list(s), list(s.values()), color=colour, linewidth=0.8, alpha=0.4)
                shared = sorted(set.intersection(*(set(s) for s in series))) if series else []
                if not shared:
                    continue
                mean = [float(np.mean([s[x] for s in series])) for x in shared]
                marker = "o" if len(shared) < 3 else None
                axes.plot(shared, mean, color=colour, linewidth=2, marker=marker, markersize=4)
                ends.append(f"{names[method]} {title.lower()} from {mean[0]:.3f} to {mean[-1]:.3f}")
            axes.set_title(title)
            axes.set_xlabel("epoch")
        canvas.legend(
            handles=[
                Line2D([], [], color=method_colour(m, _others(methods)), linewidth=2, label=names[m]) for m in methods
            ],
            loc="outside upper left",
            ncols=6,
        )
        alt = "Pretraining curves, mean over seeds: " + "; ".join(ends) + "."
        return _finish(canvas, "pretraining", alt)


def _series(run: PretrainRun, quantity: str) -> dict[float, float]:
    """Epoch (fractional) -> value."""
    steps = run.record.steps / run.record.epochs if run.record.steps and run.record.epochs else 1.0
    points = ((p.get("step", math.nan) / steps, p.get(quantity, math.nan)) for p in run.curves)
    return {round(x, 4): y for x, y in points if math.isfinite(x) and math.isfinite(y)}


# --- results ----------------------------------------------------------------------------------------


def protocol_comparison(
    name: str,
    title: str,
    protocols: Sequence[str],
    methods: Sequence[str],
    value: Callable[[str, str, str], Interval],
    published: Callable[[str, str, str], float | None],
    reference: Mapping[str, float],
    names: Mapping[str, str],
) -> Figure | None:
    """Mean and 95 % interval over seeds of three metrics, the paper's number as a hollow marker.

    ``value`` and ``published`` take (protocol, method, metric); ``reference`` gives a vertical line for a
    metric. None where the dataset has no result.
    """
    panels = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
    rows = [(p, m) for p in protocols for m in methods if value(p, m, "auroc").n]
    if not rows:
        return None
    places, place, last = [], 0.0, None
    heads = []
    for protocol, _ in rows:
        if protocol != last:
            place += 1.0 if last is None else 1.35
            heads.append((place - 0.9, protocol))
        else:
            place += 0.82
        places.append(place)
        last = protocol
    others, said = _others(methods), []
    with _canvas(10.4, 1.05 + 0.27 * (places[-1] + 0.6)) as canvas:
        grid = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (metric, label) in zip(grid, panels.items(), strict=True):
            if metric in reference:
                axes.axvline(reference[metric], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            points: list[float] = [reference[metric]] if metric in reference else []
            for (protocol, method), y in zip(rows, places, strict=True):
                interval = value(protocol, method, metric)
                colour, marker = _look(method, others)
                if interval.known:
                    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.6)
                axes.plot([interval.mean], [y], marker=marker, color=colour, markersize=6, linestyle="none")
                printed = published(protocol, method, metric)
                if printed is not None:
                    axes.plot(
                        [printed],
                        [y],
                        marker=marker,
                        markersize=7.5,
                        markerfacecolor="none",
                        markeredgecolor=INK,
                        markeredgewidth=1.1,
                        linestyle="none",
                    )
                    points.append(printed)
                points.extend(v for v in (interval.mean, interval.low, interval.high) if math.isfinite(v))
                if metric == "auroc":
                    said.append(f"{names[protocol]}, {names[method]} {interval.mean:.3f}")
            axes.set_title(label)
            axes.grid(False, axis="y")
            low, high = max(0.0, min(points, default=0.0)), min(1.0, max(points, default=1.0))
            pad = max(0.01, 0.06 * (high - low))
            axes.set_xlim(max(0.0, low - pad), min(1.0, high) + pad)
        grid[0].set_yticks(places, [names[m] for _, m in rows], color=INK)
        grid[0].set_ylim(places[-1] + 0.6, 0.0 - 0.3)
        for y, protocol in heads:
            for axes in grid:
                axes.axhline(y, color=GRID, linewidth=0.8) if y > 0.2 else None
            grid[0].annotate(
                names[protocol],
                (0, y + 0.34),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                fontweight="bold",
                color=MUTED,
            )
        _legend(canvas, [m for m in methods if any(m == r for _, r in rows)], names, extra=_marks(reference))
        alt = f"{title}: AUROC, balanced accuracy and accuracy. Mean AUROC: " + "; ".join(said) + "."
        return _finish(canvas, f"protocols-{name}", alt)


def _marks(reference: Mapping[str, float]) -> list[Line2D]:
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor=INK,
            label="the paper",
        )
    ]
    if reference:
        marks.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="MedMNIST v2"))
    return marks


def differences(
    comparisons: Sequence[Comparison], titles: Mapping[str, str], names: Mapping[str, str]
) -> Figure | None:
    """Paired differences in AUROC: thick = bootstrap over test images, thin = t over seeds; None if there are none."""
    shown = [c for c in comparisons if math.isfinite(c.difference)]
    if not shown:
        return None
    datasets = list(dict.fromkeys(c.dataset for c in shown))
    methods = list(dict.fromkeys(c.method for c in shown))
    columns = min(3, len(datasets))
    lines = math.ceil(len(datasets) / columns)
    protocols = list(dict.fromkeys(c.protocol for c in shown))
    ends = [abs(v) for c in shown for v in (c.difference, *_ends(c.images))]
    limit = max(0.02, 1.25 * max(ends))
    spread = 0.62 / max(1, len(methods))
    panel = 0.5 + len(protocols) * (0.24 + 0.24 * len(methods))
    with _canvas(10.4 if columns > 1 else 6.4, 0.7 + lines * panel) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
        for axes in grid.flat[len(datasets) :]:
            axes.set_visible(False)
        for axes, dataset in zip(grid.flat, datasets, strict=False):
            axes.axvline(0, color=MUTED, linewidth=1.2)
            for c in (c for c in shown if c.dataset == dataset):
                y = protocols.index(c.protocol) + (methods.index(c.method) - (len(methods) - 1) / 2) * spread
                colour, marker = _look(c.method, _others(methods))
                if c.seeds.known:
                    axes.plot([c.seeds.low, c.seeds.high], [y, y], color=colour, linewidth=1)
                    for end, sign, arrow in ((c.seeds.low, -1, "<"), (c.seeds.high, 1, ">")):
                        if sign * end > limit:
                            axes.plot([sign * limit * 0.985], [y], marker=arrow, color=colour, markersize=4)
                if c.images is not None and c.images.known:
                    axes.plot(
                        [c.images.low, c.images.high],
                        [y, y],
                        color=colour,
                        linewidth=5,
                        alpha=0.35,
                        solid_capstyle="butt",
                    )
                settled = c.verdict in ("better", "worse")
                axes.plot(
                    [c.difference],
                    [y],
                    marker=marker,
                    color=colour,
                    markersize=6,
                    markerfacecolor=colour if settled else SURFACE,
                    markeredgewidth=1.4,
                    linestyle="none",
                )
            axes.set_title(titles[dataset])
            axes.set_xlim(-limit, limit)
            axes.set_ylim(len(protocols) - 0.4, -0.6)
            axes.set_yticks(range(len(protocols)), [names[p] for p in protocols], color=INK)
            axes.grid(False, axis="y")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.2f}".replace("-", MINUS) if abs(x) > 1e-9 else "0")
        _legend(canvas, methods, names)
        said = "; ".join(
            f"{titles[c.dataset]}, {names[c.protocol]}, {names[c.method]} {c.difference:+.3f}" for c in shown
        )
        baseline = names[shown[0].baseline]
        return _finish(canvas, "differences", f"Difference in AUROC from {baseline}: {said}.")


def _ends(interval: Interval | None) -> tuple[float, ...]:
    return (interval.low, interval.high) if interval is not None and interval.known else ()


# --- confusion matrices -----------------------------------------------------------------------------


def confusion_matrices(
    name: str,
    title: str,
    labels: Sequence[str],
    panels: Sequence[tuple[str, str, NDArray[np.float64]]],
    rows: Sequence[str],
) -> Figure | None:
    """Confusion matrices (row, heading, counts): rows = truth, shade = share of the row, number = count.

    ``rows`` names the rows of panels from top to bottom.  None without panels.
    """
    if not panels:
        return None
    rows = [row for row in rows if any(row == p[0] for p in panels)]
    headings = list(dict.fromkeys(heading for _, heading, _ in panels))
    size = len(labels)
    side = 1.5 + 0.2 * size if size <= 8 else 3.4
    ticks = [textwrap.fill(label, 12) for label in labels] if size <= 3 else [str(c) for c in range(size)]
    with _canvas(max(4.6, len(headings) * side + 1.2), len(rows) * side + 0.5) as canvas:
        grid = canvas.subplots(len(rows), len(headings), squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for row, heading, counts in panels:
            i, j = rows.index(row), headings.index(heading)
            above = any((rows[k], heading) == panel[:2] for k in range(i) for panel in panels)
            left = any((row, headings[k]) == panel[:2] for k in range(j) for panel in panels)
            axes = grid[i, j]
            axes.set_visible(True)
            _matrix(axes, counts)
            axes.set_title("" if above else heading, fontweight="normal")
            axes.set_xticks(range(size), ticks)
            axes.set_yticks(range(size), [""] * size if left else ticks)
            if not left:
                axes.set_ylabel(row, color=INK, fontsize=9.5, fontweight="bold", labelpad=10)
        said = "; ".join(
            f"{row}, {heading}: {np.trace(counts) / counts.sum():.1%} on the diagonal"
            for row, heading, counts in panels
            if counts.sum()
        )
        return _finish(canvas, f"confusion-{name}", f"Confusion matrices of {title}. {said}.")


def _matrix(axes: Axes, counts: NDArray[np.float64]) -> None:
    size = len(counts)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    for i, j in np.ndindex(size, size):
        # Opacity instead of a colour map: the same drawing works on a light and on a dark page.
        opacity = round(float(share[i, j]), 2)
        axes.add_artist(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=HEAT, alpha=opacity, linewidth=0))
        if size <= 12:
            text = axes.text(
                j,
                i,
                f"{counts[i, j]:.0f}",
                ha="center",
                va="center",
                fontsize=10 if size <= 3 else 7,
                color="#ffffff" if share[i, j] > 0.55 else INK,
            )
            text.set_in_layout(False)  # it lies inside the axes; measuring hundreds of them is slow
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)


# --- ROC --------------------------------------------------------------------------------------------

_FPR = np.linspace(0, 1, 201)


def roc_curve(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """True positive rate at 201 equally spaced false positive rates; None where a class is absent or a score is NaN."""
    if positive.all() or not positive.any() or np.isnan(score).any():
        return None
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # one point for each distinct score
    tpr = np.concatenate([[0.0], hits[ends] / hits[-1]])
    fpr = np.concatenate([[0.0], (ends + 1 - hits[ends]) / (~positive).sum()])
    return np.asarray(np.interp(_FPR, fpr, tpr))  # at a vertical step numpy takes its upper end


def macro_roc(y: Labels, scores: NDArray[np.float64], task: str) -> NDArray[np.float64] | None:
    """ROC curve of one model, macro-averaged over one class against the rest (or over labels) where not binary."""
    if task == "binary-class":
        curves = [roc_curve(y[:, 0] == 1, scores[:, -1])]
    elif task == "multi-label, binary-class":
        known = [y[:, c] >= 0 for c in range(scores.shape[1])]  # the others are missing
        curves = [roc_curve(y[k, c] == 1, scores[k, c]) for c, k in enumerate(known)]
    else:
        curves = [roc_curve(y[:, 0] == c, scores[:, c]) for c in range(scores.shape[1])]
    there = [c for c in curves if c is not None]
    return np.asarray(np.mean(there, axis=0), dtype=np.float64) if there else None


def roc_curves(
    name: str,
    title: str,
    labels: Labels,
    protocols: Sequence[str],
    methods: Sequence[str],
    results: Callable[[str, str], Sequence[Result]],
    names: Mapping[str, str],
) -> Figure | None:
    """ROC curves: a panel for each protocol, thin = a seed, thick = mean over seeds; None without predictions."""
    curves: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for protocol in protocols:
        for method in methods:
            found = [
                macro_roc(labels, r.chosen, r.record.task) for r in results(protocol, method) if r.chosen is not None
            ]
            there = [c for c in found if c is not None]
            if there:
                curves.setdefault(protocol, {})[method] = there
    if not curves:
        return None
    width = 3.35 * len(curves)
    with _canvas(max(4.6, width), 4.1) as canvas:
        grid = canvas.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, (protocol, by_method) in zip(grid, curves.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            for method, lines in by_method.items():
                colour = method_colour(method, _others(methods))
                for line in lines if len(lines) > 1 else ():
                    axes.plot([0, *_FPR], [0, *line], color=colour, linewidth=0.7, alpha=0.35)
                axes.plot([0, *_FPR], [0, *np.mean(lines, axis=0)], color=colour, linewidth=1.9)
            axes.set_title(names[protocol])
            axes.set_xlabel("false positive rate")
            axes.set_box_aspect(1)
            axes.set_xlim(-0.01, 1.01)
            axes.set_ylim(-0.01, 1.01)
        grid[0].set_ylabel("true positive rate")
        shown = [m for m in methods if any(m in by_method for by_method in curves.values())]
        canvas.legend(
            handles=[
                Line2D([], [], color=method_colour(m, _others(methods)), linewidth=2, label=names[m]) for m in shown
            ],
            loc="outside upper left",
            ncols=6,
        )
        panels = ", ".join(names[p] for p in curves)
        alt = f"ROC curves of {title} ({panels}) for {', '.join(names[m] for m in shown)}; the areas are in the tables."
        return _finish(canvas, f"roc-{name}", alt)
