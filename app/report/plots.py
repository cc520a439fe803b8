"""Figures as SVG text: one quiet style, one colour and one marker for each method.

Every function is a pure function of its arguments: the same study gives the same bytes.  Colours are
opaque hexadecimal values from ``PALETTE`` so that the page can exchange them for its theme (see
``for_page``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from app.report.compare import Comparison
from app.report.names import MINUS
from app.report.style import (
    GRID,
    INK,
    MUTED,
    SMALLEST_TEXT,
    SURFACE,
    WIDEST,
    Figure,
    canvas_of,
    finish,
    legend,
    look,
    others_of,
)
from app.science.statistics import Interval

PANELS = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}

Value = Callable[[str, str, str], Interval]  # of (protocol, method, metric)
Published = Callable[[str, str, str], float | None]


def protocol_comparison(
    name: str,
    title: str,
    protocols: Sequence[str],
    methods: Sequence[str],
    value: Value,
    published: Published,
    reference: Mapping[str, float],
    names: Mapping[str, str],
) -> Figure | None:
    """Mean and 95 % interval over seeds of three metrics, the paper's number as a hollow marker.

    ``value`` and ``published`` take (protocol, method, metric); ``reference`` gives a vertical line for a
    metric. None where the dataset has no result.
    """
    rows = [(p, m) for p in protocols for m in methods if value(p, m, "auroc").n]
    if not rows:
        return None
    places, heads = _places(rows)
    shown = [m for m in methods if any(m == row for _, row in rows)]
    with canvas_of(WIDEST, 1.05 + 0.27 * (places[-1] + 0.6)) as canvas:
        grid = canvas.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
        for axes, (metric, label) in zip(grid, PANELS.items(), strict=True):
            points = [reference[metric]] if metric in reference else []
            for point in points:
                axes.axvline(point, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for (protocol, method), y in zip(rows, places, strict=True):
                ours, printed = value(protocol, method, metric), published(protocol, method, metric)
                points += _mean_with_interval(axes, y, ours, printed, look(method, others_of(methods)))
            axes.set_title(label)
            axes.grid(False, axis="y")
            low, high = max(0.0, min(points, default=0.0)), min(1.0, max(points, default=1.0))
            pad = max(0.01, 0.06 * (high - low))
            axes.set_xlim(max(0.0, low - pad), min(1.0, high) + pad)
        grid[0].set_yticks(places, [names[m] for _, m in rows], color=INK)
        grid[0].set_ylim(places[-1] + 0.6, 0.0 - 0.3)
        for y, protocol in heads:
            _head(grid, y, names[protocol])
        compared = any(published(p, m, metric) is not None for p, m in rows for metric in PANELS)
        legend(canvas, shown, names, extra=_marks(compared, bool(reference)))
        said = "; ".join(f"{names[p]}, {names[m]} {value(p, m, 'auroc').mean:.3f}" for p, m in rows)
        alt = f"{title}: AUROC, balanced accuracy and accuracy. Mean AUROC: {said}."
        return finish(canvas, f"protocols-{name}", alt)


def _places(rows: Sequence[tuple[str, str]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where each row (protocol, method) stands from above, and where each protocol's heading does."""
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    place = 0.0
    for protocol, _ in rows:
        if heads and protocol == heads[-1][1]:
            place += 0.82
        else:
            place += 1.35 if heads else 1.0
            heads.append((place - 0.9, protocol))
        places.append(place)
    return places, heads


def _mean_with_interval(
    axes: Axes, y: float, ours: Interval, printed: float | None, colour_and_marker: tuple[str, str]
) -> list[float]:
    """Draw one row of a panel; return the values that have to be inside of it."""
    colour, marker = colour_and_marker
    if ours.known:
        axes.plot([ours.low, ours.high], [y, y], color=colour, linewidth=1.6)
    axes.plot([ours.mean], [y], marker=marker, color=colour, markersize=6, linestyle="none")
    if printed is not None:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.1}
        axes.plot([printed], [y], marker=marker, markersize=7.5, linestyle="none", **hollow)
    return [v for v in (printed, ours.mean, ours.low, ours.high) if v is not None and math.isfinite(v)]


def _head(grid: Sequence[Axes], y: float, text: str) -> None:
    """Write a protocol's name above its rows, and a line above that, except at the very top."""
    for axes in grid if y > 0.2 else ():
        axes.axhline(y, color=GRID, linewidth=0.8)
    grid[0].annotate(
        text,
        (0, y + 0.34),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALLEST_TEXT,
        fontweight="bold",
        color=MUTED,
    )


def _marks(compared: bool, referred: bool) -> list[Line2D]:
    """Entries of the legend for what is drawn beside our results: the paper's markers, MedMNIST's lines."""
    marks = []
    if compared:
        hollow = Line2D([], [], linestyle="none", marker="o", markersize=7, markerfacecolor="none", markeredgecolor=INK)
        marks.append((hollow, "the paper"))
    if referred:
        marks.append((Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3))), "MedMNIST v2"))
    for mark, label in marks:
        mark.set_label(label)
    return [mark for mark, _ in marks]


def differences(
    comparisons: Sequence[Comparison], titles: Mapping[str, str], names: Mapping[str, str]
) -> Figure | None:
    """Paired differences in AUROC: thin = seeds, draws and images, thick = images alone; None if there are none."""
    shown = [c for c in comparisons if math.isfinite(c.difference)]
    if not shown:
        return None
    datasets, methods, protocols = (
        list(dict.fromkeys(getattr(c, what) for c in shown)) for what in ("dataset", "method", "protocol")
    )
    columns = min(3, len(datasets))
    lines = math.ceil(len(datasets) / columns)
    limit = max(0.02, 1.25 * max(abs(v) for c in shown for v in (c.difference, *_ends(c.images))))
    spread = 0.62 / max(1, len(methods))
    panel = 0.5 + len(protocols) * (0.24 + 0.24 * len(methods))
    with canvas_of(WIDEST if columns > 1 else 6.4, 0.7 + lines * panel) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
        for axes in grid.flat[len(datasets) :]:
            axes.set_visible(False)
        for axes, dataset in zip(grid.flat, datasets, strict=False):
            axes.axvline(0, color=MUTED, linewidth=1.2)
            for c in (c for c in shown if c.dataset == dataset):
                y = protocols.index(c.protocol) + (methods.index(c.method) - (len(methods) - 1) / 2) * spread
                _difference(axes, y, c, limit, look(c.method, others_of(methods)))
            axes.set_title(titles[dataset])
            axes.set_xlim(-limit, limit)
            axes.set_ylim(len(protocols) - 0.4, -0.6)
            axes.set_yticks(range(len(protocols)), [names[p] for p in protocols], color=INK)
            axes.grid(False, axis="y")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.2f}".replace("-", MINUS) if abs(x) > 1e-9 else "0")
        legend(canvas, methods, names)
        said = "; ".join(
            f"{titles[c.dataset]}, {names[c.protocol]}, {names[c.method]} {c.difference:+.3f}" for c in shown
        )
        baseline = names[shown[0].baseline]
        return finish(canvas, "differences", f"Difference in AUROC from {baseline}: {said}.")


def _difference(axes: Axes, y: float, c: Comparison, limit: float, colour_and_marker: tuple[str, str]) -> None:
    """Draw one difference with its intervals; an arrow where one runs beyond ``limit``."""
    colour, marker = colour_and_marker
    if c.joint is not None and c.joint.known:
        axes.plot([c.joint.low, c.joint.high], [y, y], color=colour, linewidth=1.4)
        for end, sign, arrow in ((c.joint.low, -1, "<"), (c.joint.high, 1, ">")):
            if sign * end > limit:
                axes.plot([sign * limit * 0.985], [y], marker=arrow, color=colour, markersize=4)
    if c.images is not None and c.images.known:
        band: dict[str, Any] = {"color": colour, "linewidth": 5, "alpha": 0.35, "solid_capstyle": "butt"}
        axes.plot([c.images.low, c.images.high], [y, y], **band)
    axes.plot(
        [c.difference],
        [y],
        marker=marker,
        color=colour,
        markersize=6,
        markerfacecolor=colour if c.verdict in ("better", "worse") else SURFACE,
        markeredgewidth=1.4,
        linestyle="none",
    )


def _ends(interval: Interval | None) -> tuple[float, ...]:
    return (interval.low, interval.high) if interval is not None and interval.known else ()
